"""The console script ``alignment``: two models from their files, without a script."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from alignment_tests.cli import COMMANDS, main
from alignment_tests.commands.inputs import drawn, input_of
from alignment_tests.commands.pair import load_pair, target
from alignment_tests.harness import PortMap
from alignment_tests.harness.judge.report import load_report_json

ORIGINAL = """
from torch import nn
from utils import WIDTH, squash

class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x, mask=None):
        x = squash(self.norm(self.first(x)))
        return self.last(x if mask is None else x * mask)

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids):
        return self.table(ids)

made = Net()
wrong = 3
"""
PORT = """
from jittor import nn
from utils import WIDTH, squash

class Net(nn.Module):
    def __init__(self, classes=5, slope=1.0):
        super().__init__()
        self.stem, self.norm, self.last = nn.Linear(4, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)
        self.slope = slope

    def execute(self, x, mask=None):
        x = squash(self.norm(self.stem(x))) * self.slope
        return self.last(x if mask is None else x * mask)

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def execute(self, ids):
        return self.table(ids)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise KeyError("no such size")
"""
UTILS = {
    "original": "import torch\n\nsquash, WIDTH = torch.tanh, 8\n",
    "port": "import jittor\n\nsquash, WIDTH = jittor.tanh, 8\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders that hold modules of the same names."""
    for side, text in (("original", ORIGINAL), ("port", PORT)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "model.py").write_text(text)
        (tmp_path / side / "utils.py").write_text(UTILS[side])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pair(reference: str = "Net", candidate: str = "Net") -> list[str]:
    return ["--reference", f"original/model.py:{reference}", "--candidate", f"port/model.py:{candidate}"]


def test_a_port_is_aligned_without_a_script(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", *pair(), "--input", "2x4", "--train"]) == 0
    shown = capsys.readouterr()
    assert "ALIGNED" in shown.out
    assert "importing both models" in shown.err
    report = load_report_json(project / "reports" / "model.Net" / "report.json")
    assert report["settings"]["port map"] == {"modules": {"stem": "first"}}
    assert report["checks"]["trained parameters"] == "both sides train the same of 6 arrays"


def test_a_fault_is_exit_code_1_and_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", *pair(candidate="Net(slope=1.5)"), "--input", "2x4", "--output_dir", "out"]) == 1
    assert "DIVERGED" in capsys.readouterr().out
    assert (project / "out" / "repro" / "repro.py").is_file()


def test_the_repro_of_a_fault_runs(project: Path) -> None:
    main(["align", *pair(candidate="Net(slope=1.5)"), "--input", "2x4", "--output-dir", "out"])
    done = subprocess.run(
        [sys.executable, "out/repro/repro.py"], env=environment(), capture_output=True, text=True, check=False
    )
    assert "worst" in done.stdout + done.stderr or "differ" in done.stdout, done.stdout + done.stderr


def test_whole_numbers_and_arguments_by_name(project: Path) -> None:
    assert main(["align", *pair("Words", "Words"), "--input", "int64:0..9:2x3"]) == 0
    assert main(["align", *pair(), "--input", "2x4", "--input", "mask=float32:0..1:2x8"]) == 0


def test_weights_come_from_a_checkpoint(project: Path) -> None:
    model = load_pair(project / "original/model.py:Net", project / "port/model.py:Net", seed=7)[0]
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, project / "w.safetensors")
    assert main(["align", *pair(), "--input", "2x4", "--weights", "w.safetensors", "--output-dir", "out"]) == 0
    assert load_report_json(project / "out" / "report.json")["settings"]["weights"] == "w.safetensors"


def test_a_map_is_taken_from_its_file(project: Path) -> None:
    PortMap(modules={"stem": "first"}).write(project / "map.yaml")
    assert main(["align", *pair(), "--input", "2x4", "--port-map", "map.yaml"]) == 0


# Bad input

NOT_THERE = ["--reference", "nowhere.py:Net", "--candidate", "port/model.py:Net"]
BAD: dict[str, tuple[list[str], str]] = {
    "no such file": ([*NOT_THERE, "--input", "2x4"], "--reference"),
    "no such class": (
        [*pair("Nett"), "--input", "2x4"],
        "`--reference` original/model.py:Nett: there is no Nett; nearest: Net",
    ),
    "no model": ([*pair("wrong"), "--input", "2x4"], "`--reference`"),
    "a class of another kind": ([*pair("nn.ReLU.__name__"), "--input", "2x4"], "`--reference`"),
    "a constructor that raises": ([*pair(candidate="Broken"), "--input", "2x4"], "port/model.py:"),
    "an argument that is no literal": ([*pair("Net(open('x'))"), "--input", "2x4"], "plain values"),
    "no input": (pair(), "--input"),
    "an input without shape": ([*pair(), "--input", "float32"], "--input"),
    "whole numbers without bounds": ([*pair(), "--input", "int64:2x4"], "needs bounds"),
    "an input of another size": ([*pair(), "--input", "2x3"], "`--reference` or `--input`"),
    "no such weights": ([*pair(), "--input", "2x4", "--weights", "no.pt"], "`--weights`"),
    "no such map": ([*pair(), "--input", "2x4", "--port-map", "no.yaml"], "`--port-map` no.yaml"),
    "a bad map": ([*pair(), "--input", "2x4", "--port-map", "bad.yaml"], "`--port-map`: bad.yaml"),
    "a map of other models": ([*pair(), "--input", "2x4", "--port-map", "other.yaml"], "`--port-map`: `modules` names"),
    "other weights": ([*pair(candidate="Net(classes=4)"), "--input", "2x4"], "alignment init"),
    "no such baseline": ([*pair(), "--input", "2x4", "--baseline", "no.json"], "`baseline`"),
    "a folder that is a file": ([*pair(), "--input", "2x4", "--output-dir", "bad.yaml/x"], "`--output-dir`"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_that_names_the_option(
    options: list[str], words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "bad.yaml").write_text("modul: {a: b}")
    (project / "other.yaml").write_text("modules: {conv: first}")
    assert code_of(lambda: main(["align", *options])) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(" ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (project / "reports").exists()


def code_of(run: Callable[[], int]) -> Any:
    try:
        return run()
    except SystemExit as stop:
        return stop.code


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert main(["align", *pair(), "--input", "2x4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: `--output-dir`")
    assert "Permission denied" in error


# Two sides


def test_modules_of_equal_names_are_imported_apart(project: Path) -> None:
    before, path = dict(sys.modules), list(sys.path)
    reference, candidate = load_pair("original/model.py:Net", "port/model.py:Net(4)")
    assert [type(model).__module__ for model in (reference, candidate)] == ["model", "model"]
    assert isinstance(reference, torch.nn.Module)
    assert candidate.last.weight.shape[0] == 4
    assert sys.path == path
    assert {"model", "utils"} & (sys.modules.keys() - before.keys()) == set()


def test_a_module_that_the_program_has_loaded_stays_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = type(sys)("utils")
    monkeypatch.setitem(sys.modules, "utils", ours)
    load_pair("original/model.py:Net", "port/model.py:Net")
    assert sys.modules["utils"] is ours


def test_a_file_of_a_package_may_import_beside_itself(project: Path) -> None:
    for side in ("original", "port"):
        (project / side / "__init__.py").write_text("")
        file = project / side / "model.py"
        file.write_text(file.read_text().replace("from utils", "from .utils"))
    reference, _ = load_pair("original/model.py:Net", "port/model.py:Net")
    assert type(reference).__module__ == "original.model"


def test_a_file_of_a_package_may_import_as_a_script_does(project: Path) -> None:
    """A folder of scripts often has an ``__init__.py`` that nothing needs."""
    for side in ("original", "port"):
        (project / side / "__init__.py").write_text("")
    models = load_pair("original/model.py:Net", "port/model.py:Net(4)")
    assert [type(model).__module__ for model in models] == ["original.model", "port.model"]
    assert models[1].last.weight.shape[0] == 4


def test_a_module_may_be_named_and_a_model_that_is_made_is_taken(project: Path) -> None:
    (project / "original" / "__init__.py").write_text("")
    (project / "utils.py").write_text(UTILS["original"])
    reference, _ = load_pair("original.model:made", "port/model.py:Net")
    assert type(reference).__name__ == "Net"


def test_a_file_that_reads_the_command_line_finds_nothing_there(project: Path) -> None:
    file = project / "original" / "model.py"
    file.write_text("import sys\nWORDS = list(sys.argv)\n" + file.read_text())
    before = list(sys.argv)
    reference, _ = load_pair("original/model.py:Net", "port/model.py:Net")
    assert type(reference).forward.__globals__["WORDS"] == ["original/model.py"]
    assert sys.argv == before


def test_weights_follow_the_seed(project: Path) -> None:
    made = [load_pair("original/model.py:Net", "port/model.py:Net", seed=seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(made[0].last.weight, made[1].last.weight)
    assert not torch.equal(made[0].last.weight, made[2].last.weight)


@pytest.mark.parametrize(
    ("text", "names", "args", "kwargs"),
    [
        ("a.b:Net", ("Net",), (), None),
        ("a:nn.Net", ("nn", "Net"), (), None),
        ("a:Net()", ("Net",), (), {}),
        ("a:Net(3, [1, 2], wide=True, name='x:y')", ("Net",), (3, [1, 2]), {"wide": True, "name": "x:y"}),
    ],
)
def test_a_target_has_names_and_literals(text: str, names: Any, args: Any, kwargs: Any) -> None:
    found = target(text)
    assert (found.names, found.args, found.kwargs) == (names, args, kwargs)


@pytest.mark.parametrize(
    "text", ["Net", "a:", ":Net", "a:Net[0]", "a:Net(x)", "a:Net()()", "a:lambda: 0", "a:1 +", "a:Net(*[1])"]
)
def test_nothing_else_is_a_target(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        target(text)


# Inputs

DRAWN = {
    "2x3": ("float32", (2, 3), None),
    "float64:4": ("float64", (4,), None),
    "float32:-1..1:5x5": ("float32", (5, 5), (-1, 1)),
    "int64:0..3:100": ("int64", (100,), (0, 3)),
    "uint8:0..255:8x8": ("uint8", (8, 8), (0, 255)),
    "bool:50": ("bool", (50,), (0, 1)),
}


@pytest.mark.parametrize(("text", "expected"), DRAWN.items())
def test_inputs_are_drawn_as_they_are_named(text: str, expected: Any) -> None:
    (array,), named = drawn([input_of(text)], 0)
    dtype, shape, bounds = expected
    assert (str(array.dtype), array.shape, named) == (dtype, shape, {})
    if bounds is not None:
        assert (array.min() >= bounds[0], array.max() <= bounds[1]) == (True, True)
    if array.dtype.kind == "i":
        assert set(array.tolist()) == {0, 1, 2, 3}


def test_an_input_may_be_a_file_and_have_a_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    args, named = drawn([input_of(f"ids={tmp_path / 'x.npy'}")], 0)
    assert args == []
    assert named["ids"].tolist() == [0, 1, 2]


BAD_INPUTS = [
    "",
    "2x",
    "axb",
    "-1x2",
    "complex64:2",
    "int64:2",
    "int64:3..1:2",
    "int64:0.5..1:2",
    "uint8:0..300:2",
    "bool:0..1:2",
]


@pytest.mark.parametrize("text", [*BAD_INPUTS, "float32:0:2", "float32:0..1", "a:b:c:d", "1a=2x3", "x.npy", "x=y.npy"])
def test_nothing_else_is_an_input(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        input_of(text)


# Other commands


def environment() -> dict[str, str]:
    import os

    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": root}


def test_init_writes_a_script_that_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", *pair(), "--input", "2x4", "--input", "mask=float32:0..1:2x8", "--output-dir", "made"]) == 0
    script = (project / "made" / "pair.py").read_text()
    assert len(script.strip().splitlines()) <= 20
    assert PortMap.read(project / "made" / "port_map.yaml") == PortMap(modules={"stem": "first"})
    done = subprocess.run(
        [sys.executable, "made/pair.py"], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("aligned"), done.stdout + done.stderr
    assert main(["init", *pair(), "--input", "2x4", "--output-dir", "made"]) == 2
    assert "unless with --force" in capsys.readouterr().err


def test_init_shows_what_it_cannot_map(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", *pair(candidate="Net(classes=4)"), "--input", "2x4", "--output-dir", "made"]) == 0
    assert "no place" in capsys.readouterr().out
    assert "# candidate last (linear: bias (4,)" in (project / "made" / "port_map.yaml").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_an_unknown_command_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allign"]) == 2
    assert "align, init, dump" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0


def test_options_of_commands_that_are_handed_on_have_dashes_or_underscores(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "a", "b", "--output_dir", "x"]) == 2
    assert "must be a folder made by `dump`" in capsys.readouterr().err
