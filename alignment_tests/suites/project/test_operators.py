"""The operator table: a fixed sample of it, its judge, and what a crash, a hang or a new name becomes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignment_tests.conformity.inventory import jittor_names, without_row
from alignment_tests.conformity.operators import run as runner
from alignment_tests.conformity.operators.cases import Case
from alignment_tests.conformity.operators.judge import CONFORMS, DIFFERS, ROUNDED, judge
from alignment_tests.conformity.operators.table import NO_ROW, TABLE
from alignment_tests.conformity.operators.worker import RAISES, cases_by_key, run
from alignment_tests.conformity.repro import script
from alignment_tests.harness.record.adapter import Array

# Of Jittor 1.3.11: a verdict that changes means another Jittor, or a fault of the harness.
SAMPLE = {
    ("nn.relu", 0, "float32", "ordinary"): CONFORMS,
    ("nn.relu", 0, "float64", "ordinary"): CONFORMS,
    ("nn.softmax", 0, "float32", "ordinary"): CONFORMS,
    ("matmul", 0, "float64", "ordinary"): CONFORMS,
    ("abs", 0, "float32", "zeros"): DIFFERS,
    ("round", 0, "float32", "inf"): DIFFERS,
    ("deg2rad", 0, "float64", "ordinary"): ROUNDED,
    ("nn.AdaptiveAvgPool2d", 2, "float32", "ordinary"): DIFFERS,
    ("nn.MaxPool2d", 1, "float32", "ordinary"): CONFORMS,
    ("nn.BatchNorm2d", 0, "float32", "ordinary"): DIFFERS,
}


def find(name: str, number: int, dtype: str, variant: str) -> Case:
    key = f"{name}|{number}|{dtype}|{variant}"
    return next(case for place, case in cases_by_key().items() if place.partition("|")[2] == key)


@pytest.mark.parametrize(("place", "verdict"), SAMPLE.items(), ids=lambda value: "-".join(map(str, value)))
def test_the_sample_has_its_verdicts(place: tuple[str, int, str, str], verdict: str) -> None:
    assert run(find(*place))["verdict"] == verdict


NAN = float("nan")
JUDGED: dict[str, tuple[list[float], list[float], str, str]] = {
    "equal": ([1.0, 2.0], [1.0, 2.0], "float64", CONFORMS),
    "float32 inside float64": ([1.0, 2.0 + 1e-7], [1.0, 2.0], "float64", ROUNDED),
    "another value": ([1.0, 2.1], [1.0, 2.0], "float64", DIFFERS),
    "float32 off by a digit": ([1.0, 2.00001], [1.0, 2.0], "float32", DIFFERS),
    "the same NaN": ([NAN, 2.0], [NAN, 2.0], "float64", CONFORMS),
    "NaN on one side": ([1.0, 2.0], [NAN, 2.0], "float64", DIFFERS),
    "infinity of the other sign": ([-np.inf, 2.0], [np.inf, 2.0], "float64", DIFFERS),
    "another shape": ([1.0], [1.0, 1.0], "float64", DIFFERS),
}


@pytest.mark.parametrize(("actual", "expected", "dtype", "verdict"), JUDGED.values(), ids=JUDGED)
def test_arrays_are_judged(actual: list[float], expected: list[float], dtype: str, verdict: str) -> None:
    ours, theirs = np.array(actual, dtype), np.array(expected, dtype)
    assert judge(ours, theirs, theirs.astype(np.float64)).verdict == verdict


def test_a_single_float32_number_is_judged_as_one() -> None:
    exact = np.array(1.0 / 3.0)
    assert judge(np.array([1.0 / 3.0], np.float32), exact.astype(np.float32), exact).verdict == CONFORMS


def test_another_dtype_differs() -> None:
    array: Array = np.ones(2, np.float64)
    assert judge(array.astype(np.float32), array, array).verdict == DIFFERS


def test_an_operator_that_raises_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("alignment_tests.conformity.operators.worker.run_candidate", fail)
    assert run(find("abs", 0, "float32", "ordinary")) == {"verdict": RAISES, "reason": "RuntimeError: no such thing"}


WORKER = """
import json, os, sys, time
for line in sys.stdin:
    key = line.strip()
    print(json.dumps({"start": key}), flush=True)
    if key == "dies": os.abort()
    if key == "sleeps": time.sleep(60)
    print(json.dumps({"key": key, "verdict": "conforms"}), flush=True)
"""


def test_a_crash_and_a_hang_are_rows_and_not_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", WORKER))
    found = runner.run_cases(["a", "dies", "b", "sleeps", "c"], patience=3.0)
    assert {key: outcome["verdict"] for key, outcome in found.items()} == {
        "a": CONFORMS,
        "dies": runner.CRASHES,
        "b": CONFORMS,
        "sleeps": runner.HANGS,
        "c": CONFORMS,
    }


def test_processes_beside_one_another_find_what_one_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", WORKER))
    monkeypatch.setattr(runner, "BATCH", 2)
    keys, kept = ["a", "dies", "b", "c", "d"], tmp_path / "operators.jsonl"
    found = runner.run_cases(keys, kept=kept, jobs=3)
    assert found == runner.run_cases(keys) == runner.read_kept(kept)
    assert list(found) == keys


@pytest.mark.parametrize("code", ["pass", "raise SystemExit(3)"])
def test_a_worker_that_says_nothing_ends_the_run(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", code))
    with pytest.raises(RuntimeError, match="the worker ends before its first case"):
        runner.run_cases(["a"])


def test_a_run_that_was_cut_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", WORKER))
    kept = tmp_path / "rows" / "operators.jsonl"
    first = runner.run_cases(["a", "dies"], kept=kept)
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", "raise SystemExit('must not run')"))
    assert runner.run_cases(["a", "dies"], kept=kept) == first


def test_half_a_line_of_a_cut_run_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", WORKER))
    kept = tmp_path / "operators.jsonl"
    kept.write_text('{"key": "a", "verdict": "kept"}\n{"key": "b", "ver', encoding="utf-8")
    found = runner.run_cases(["a", "b"], kept=kept)
    assert found == {"a": {"verdict": "kept"}, "b": {"verdict": CONFORMS}}
    assert runner.read_kept(kept) == found


def test_every_name_of_jittor_is_in_the_table_or_listed() -> None:
    listed = {name for names in without_row().values() for name in names}
    rows = {operator.name.removesuffix(".apply") for operator in TABLE}
    assert set(jittor_names()) - rows == listed


def test_a_new_name_shows_as_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment_tests.conformity import inventory

    monkeypatch.setattr(inventory, "jittor_names", lambda: ["nn.brand_new", "nn.relu", "nn.SGD"])
    assert without_row()["not covered"] == ["nn.brand_new"]


def test_names_without_a_row_have_none() -> None:
    listed = [name for names in NO_ROW.values() for name in names]
    assert sorted(set(listed) & {operator.name for operator in TABLE}) == []


def test_every_case_has_a_script_that_parses() -> None:
    for case in cases_by_key().values():
        if case.dtype == "float32":
            ast.parse(script(case, "forward", "0"))
            ast.parse(script(case, "backward", "input 0"))
            ast.parse(script(case, "forward", None))


def run_script(text: str) -> subprocess.CompletedProcess[str]:
    """On its own; with this project's Jittor, since another build would compile for minutes."""
    prepared = f"from jt_impl.runtime import load\nload()\n{text}"
    return subprocess.run([sys.executable, "-c", prepared], capture_output=True, text=True, check=False)


def test_a_script_shows_what_raises_in_the_backward_pass_only() -> None:
    done = run_script(script(find("lgamma.apply", 0, "float32", "ordinary"), "forward", None))
    assert done.returncode == 1
    assert "'lgamma' object has no attribute 'grad'" in done.stderr


def test_a_script_shows_gradients_of_outputs_of_other_shapes() -> None:
    done = run_script(script(find("norm", 0, "float32", "ordinary"), "backward", "input 0"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "] == ["PyTorch", "Jittor"]


def test_a_script_shows_its_difference() -> None:
    done = run_script(script(find("abs", 0, "float32", "zeros"), "backward", "input 0"))
    theirs, ours = (line for line in done.stdout.splitlines() if line.startswith(("PyTorch", "Jittor")))
    assert "0., -0." in theirs or "0., 0." in theirs
    assert "1.3" in ours
