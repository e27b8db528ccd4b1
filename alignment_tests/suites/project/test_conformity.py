"""The document of models and operators is made from its JSON, and says what that holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment_tests.conformity.__main__ import PAGE, RESULTS, ROOT, main
from alignment_tests.conformity.document import commits, document, zoo_row
from alignment_tests.conformity.measure import entry, finite, measure
from alignment_tests.conformity.operators.cases import Case
from alignment_tests.conformity.operators.table import TABLE
from alignment_tests.conformity.operators.worker import cases_by_key
from alignment_tests.conformity.repros import FOLDER, NETWORKS

Data = dict[str, Any]


@pytest.fixture(scope="module")
def data() -> Data:
    found: Data = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_document_is_what_the_json_makes(data: Data) -> None:
    assert PAGE.read_text(encoding="utf-8") == document(data)


def test_twenty_architectures_are_in_it(data: Data) -> None:
    compared = [model for model in data["zoo"]["models"] if model.get("parts")]
    assert len(compared) >= 20
    assert f"\n{len(compared)} of {len(data['zoo']['models'])} architectures were compared, " in document(data)


def test_every_row_tells_its_commit(data: Data) -> None:
    assert [row["name"] for row in data["zoo"]["models"] if "not run" not in row and "commit" not in row] == []


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_the_figures_are_json() -> None:
    json.loads(RESULTS.read_text(encoding="utf-8"), parse_constant=refuse)


def test_every_row_of_the_table_is_in_it(data: Data) -> None:
    assert [row["name"] for row in data["operators"]["operators"]] == [operator.name for operator in TABLE]


def test_every_difference_has_a_script(data: Data) -> None:
    found = [one for row in data["operators"]["operators"] for one in row["differences"]]
    assert found
    assert [one for one in found if "import numpy as np, torch, jittor as jt" not in one["repro"]] == []


def outcomes_of(place: int, verdicts: dict[str, str]) -> tuple[dict[str, Data], dict[str, Case]]:
    cases = {key: case for key, case in cases_by_key().items() if key.startswith(f"{place}|")}
    fine = {"verdict": "conforms"}
    return {
        key: {"verdict": verdicts[case.variant], "reason": "x"} if case.variant in verdicts else fine
        for key, case in cases.items()
    }, cases


def test_the_worst_case_names_the_row() -> None:
    outcomes, cases = outcomes_of(0, {"nan": "crashes", "inf": "raises"})
    row = entry(0, outcomes, cases)
    assert row["verdict"] == "crashes"
    assert row["counts"] == {"crashes": 2, "raises": 2, "conforms": 12}
    assert [(one["verdict"], one["cases"]) for one in row["differences"]] == [("crashes", 2), ("raises", 2)]


def test_a_failed_model_and_its_figures_are_reported() -> None:
    whole = {"aligned": False, "first": ["first"], "rows": 5, "float64": 0.5, "float32": 99.0}
    right = {**whole, "aligned": True, "float64": 1e-12, "float32": 2.0}
    parts = {"eval": {"verdict": "conforms", "as it is": right}}
    parts["train"] = {"verdict": "differs, explained", "as it is": whole, "corrected": right}
    row = zoo_row({"name": "net", "images": [2, 3, 8, 8], "settings": {}, "parts": parts, "seconds": 3.0})
    assert row == "| net | 2x3x8x8 | conforms | explained | – | 10 | 1.0e-12 | 2.0 | 3 s |"


def test_a_part_without_figures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--only", "none", "--results", str(tmp_path / "none.json"), "--output", str(tmp_path / "page.md")]) == 2
    )
    assert "needs figures of ['operators', 'zoo']" in capsys.readouterr().err


@pytest.mark.parametrize("only", [["--only", "zoo"], []])
def test_an_unknown_model_is_refused(only: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = RESULTS.read_bytes()
    assert main([*only, "--models", "resnet18", "resnet81"]) == 2
    assert re.search(r"`models` must be among .*resnet18.* Received: resnet81\n", capsys.readouterr().err)
    assert RESULTS.read_bytes() == before


def test_models_that_are_not_run_keep_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    new = [{"name": "a", "not run": "not asked for"}, {"name": "b", "seconds": 2.0}, {"name": "c", "not run": "x"}]
    monkeypatch.setattr("alignment_tests.conformity.measure.run_zoo", lambda *rest: new)
    old = {"zoo": {"models": [{"name": "a", "seconds": 1.0}, {"name": "b", "seconds": 9.0}]}}
    rows = measure(print, ("zoo",), old)["zoo"]["models"]
    assert rows == [{"name": "a", "seconds": 1.0}, {"name": "b", "seconds": 2.0}, {"name": "c", "not run": "x"}]


def test_numbers_that_json_lacks_are_words() -> None:
    assert finite({"a": [float("nan"), -float("inf"), 1.5]}) == {"a": ["nan", "-inf", 1.5]}


COMMITS = {"commit": "a" * 40}, {"commit": "a" * 40}, {"commit": "b" * 40 + "+changes"}, {"not run": "x"}


def test_commits_of_rows_are_counted() -> None:
    shown = f"rows by commit: {'a' * 12} (2), {'b' * 12}+changes (1)"
    assert commits({"models": COMMITS}) == shown


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bisected_script_still_shows_its_difference(name: str) -> None:
    script = FOLDER / name / "repro.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    theirs, ours = done.stdout.partition("PyTorch:")[2].split("Jittor:")
    numbers = [[float(found) for found in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", side)] for side in (theirs, ours)]
    assert len(numbers[0]) == len(numbers[1]) > 0
    assert not np.allclose(numbers[0], numbers[1], rtol=1e-3, atol=1e-3)
