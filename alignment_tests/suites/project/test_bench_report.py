"""The report on the performance suite, from figures that are made here: what stands beside each number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignment_tests import compare
from alignment_tests.bench import report
from alignment_tests.bench.benchmark_entry import extra_info
from alignment_tests.bench.cases import COMPILE, EAGER, JITTOR, WORK, Case
from alignment_tests.bench.interleaved import Measurement, Outcome
from alignment_tests.bench.results import read_performance, short
from alignment_tests.cases.run_records import clean, command, write
from alignment_tests.comparison import accuracy, page

CASE = Case("inference", "gold_yolo_s", 512, 4)
FACTS = {"processor": "Abacus 9", "tf32": {"matmul": False}}


def outcome(contender: Any, seconds: float, resident: int, **more: Any) -> Outcome:
    times = [seconds * factor for factor in (1.0, 2.0, 1.0)]
    return Outcome(contender, times=times, memory={"resident": resident}, facts=dict(FACTS), **more)


def fought() -> Measurement:
    outcomes = [
        outcome(EAGER, 0.2, 200 * 2**20),
        outcome(JITTOR, 0.1, 100 * 2**20, kernels=(7, 7)),
        Outcome(COMPILE, failed="no <compiler>"),
    ]
    return Measurement(CASE, {one.contender.name: one for one in outcomes}, 3.0, 0.5)


def document(folder: Path, **changed: Any) -> Path:
    """A file as pytest-benchmark writes it, as far as it is read."""
    measurement = fought()
    infos = [
        extra_info(measurement, one) | {"commit": "abc123"} | changed
        for one in measurement.outcomes.values()
        if one.times
    ]
    path = folder / "figures.json"
    entries = [{"name": info["case"], "extra_info": info} for info in infos]
    path.write_text(json.dumps({"benchmarks": entries, "datetime": "now", "not_run": {"nms": "no time"}}))
    return path


def test_a_row_has_time_ratio_memory_environment_and_commit(tmp_path: Path) -> None:
    (case,) = read_performance(document(tmp_path))["cases"]
    row = case["rows"][1]
    assert (row["contender"], row["median_ms"], row["images_per_second"]) == ("jittor", 100.0, 40.0)
    assert (row["ratio"], row["ratio_quartiles"], row["memory_ratio"]) == (0.5, [0.5, 0.5], 0.5)
    assert (row["kernels"], row["kernels_loaded_meanwhile"]) == (7, 0)
    assert (row["environment"], row["commit"]) == ("A", "abc123")


@pytest.mark.parametrize(
    ("commit", "shown"), [("a" * 40, "a" * 12), ("a" * 40 + "+changes", "a" * 12 + "+changes"), ("unknown", "unknown")]
)
def test_a_shortened_commit_still_tells_of_changes(commit: str, shown: str) -> None:
    assert short(commit) == shown


def test_equal_environments_share_a_letter(tmp_path: Path) -> None:
    found = read_performance(document(tmp_path))["environments"]
    assert list(found) == ["A"]
    assert found["A"].items() >= {("processor", "Abacus 9"), ("tf32.matmul", "False")}


def test_the_report_has_three_files_and_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert report.main([str(document(tmp_path)), "--output_dir", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {report.JSON, report.MARKDOWN, report.PICTURE}
    text = (folder / report.MARKDOWN).read_text()
    assert "| jittor | 100 | 100 … 150 | 40 | 0.500 | 0.500 … 0.500 | 7 | 100 | – | – | – | A | abc123 |" in text
    assert "Not measured: pytorch-compile: no <compiler>" in text
    assert "- nms: no time" in text
    assert "Load average of the machine before: 0.50." in text
    assert json.loads((folder / report.JSON).read_text())["cases"][0]["name"] == CASE.name
    with Image.open(folder / report.PICTURE) as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "must be one of `pytest --benchmark-only"),
        ('{"benchmarks": 3}', "is no list of objects"),
        ('{"benchmarks": [{"name": "other"}]}', "must hold entries of the performance suite"),
        (None, "FileNotFoundError"),
    ],
)
def test_other_files_are_refused_in_a_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    if content is not None:
        path.write_text(content)
    assert report.main([str(path), "--output-dir", str(tmp_path / "made")]) == 2
    described = capsys.readouterr().err
    assert message in described
    assert described.count("\n") == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_comparison_shows_the_benchmark(lang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "SAMPLES", 100)  # of the bootstrap, which is tested elsewhere
    folder = tmp_path / "compared"
    more = ["--benchmark", str(document(tmp_path)), "--lang", lang, "--output-dir", str(folder)]
    assert compare.main(command(write(clean(), tmp_path), tmp_path, *more)) == 0
    text = (folder / compare.HTML).read_text(encoding="utf-8")
    assert f"<h2>{page.language(lang)['benchmark']}</h2>" in text
    assert text.count("<code>abc123</code>") == 2
    assert "no &lt;compiler&gt;" in text
    assert json.loads((folder / compare.JSON).read_text())["benchmark"]["cases"][0]["rows"][1]["ratio"] == 0.5
    assert (folder / compare.BENCHMARK).is_file()


def test_the_comparison_refuses_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    path.write_text("{}")
    more = ["--benchmark", str(path), "--output-dir", str(tmp_path / "compared")]
    assert compare.main(command(write(clean(), tmp_path), tmp_path, *more)) == 2
    assert "must be one of `pytest --benchmark-only" in capsys.readouterr().err
    assert not (tmp_path / "compared").exists()


@pytest.mark.parametrize("what", WORK)
def test_every_kind_of_case_has_words_on_the_page(what: str) -> None:
    assert all(f"benchmark_{what.replace('-', '_')}" in page.language(lang) for lang in page.languages())
