"""The demo's commands are those that the programs take. Running them takes minutes: ``make demo``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alignment_tests.demo import RUNS, commands, main

MADE = commands(Path("experiments/demo"), 8, 1, "zh")
MODULES = list(dict.fromkeys(words[0] for words in MADE))


@pytest.mark.parametrize("module", MODULES)
def test_every_option_is_one_of_the_program(module: str) -> None:
    message = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    ).stdout
    used = {word for words in MADE if words[0] == module for word in words if word.startswith("--")}
    assert used
    assert [option for option in sorted(used) if option not in message] == []


def test_what_one_command_reads_an_earlier_one_writes() -> None:
    written: list[str] = []
    for words in MADE:
        given = words[1:]
        places = [given.index(option) + 1 for option in ("--output-dir", "--target") if option in given]
        read = [word for i, word in enumerate(given) if word.startswith("experiments/") and i not in places]
        assert [word for word in read if not word.startswith(tuple(written))] == []
        written += [given[place] for place in places]


def test_every_run_is_tested_and_compared() -> None:
    compared = set(MADE[-1])
    for name, seed in RUNS:
        assert {f"experiments/demo/{name}_{what}_{seed}" for what in ("train", "test")} <= compared


def test_a_demo_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "comparison").mkdir()
    assert main(["--output-dir", str(tmp_path)]) == 2
    assert "holds a demo already" in capsys.readouterr().err
