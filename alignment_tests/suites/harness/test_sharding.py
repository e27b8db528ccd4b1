"""Parts of a suite: each test in exactly one, and the merged page is that of a single run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignment_tests.harness import sharding
from alignment_tests.harness.__main__ import main
from alignment_tests.harness.report import suite
from alignment_tests.harness.sharding import assign, parse_shard

SUITE = """
import numpy as np, pytest, torch
from alignment_tests.harness import align

@pytest.mark.parametrize("size", [2, 3])
def test_{name}(size, check_alignment):
    torch.manual_seed(size)
    model = torch.nn.Linear(4, size)
    check_alignment(align(model, model, np.ones((2, 4), np.float32), title=f"{name} {{size}}"))
"""
ROOT = Path(__file__).resolve().parents[3]
PLUGINS = ["-p", "alignment_tests.harness.plugin", "-p", "alignment_tests.harness.sharding", "-p", "no:cacheprovider"]


def run_suite(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), *PLUGINS, *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of three files, run whole and in two parts."""
    made = tmp_path_factory.mktemp("suite")
    for name in ("first", "second", "third"):
        (made / f"test_{name}.py").write_text(SUITE.format(name=name))
    for name, options in {"whole": (), "part1": ("--shard", "1/2"), "part2": ("--shard", "2/2")}.items():
        done = run_suite(made, "--alignment-reports", str(made / name), *options)
        assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_junit_holds_the_figures_of_each_report(folder: Path, tmp_path: Path) -> None:
    """With this project's own settings, where every warning is an error."""
    file = tmp_path / "junit.xml"
    done = run_suite(folder, "-c", str(ROOT / "pyproject.toml"), "-k", "first", "--junitxml", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    cases = list(ET.parse(file).iter("testcase"))
    assert len(cases) == 2
    for case in cases:
        held = {one.get("name"): one.get("value") for one in case.iter("property")}
        assert int(held["rows"] or 0) > 0
        assert held["first_divergence"] == "none"


def test_parts_hold_each_report_once(folder: Path) -> None:
    parts = [{report.parent.name for report in suite.find_reports(folder / name)} for name in ("part1", "part2")]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {report.parent.name for report in suite.find_reports(folder / "whole")}
    assert sorted(map(len, parts)) == [2, 4]


def test_merged_parts_equal_the_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "merged"
    assert main(["merge", str(folder / "part2"), str(folder / "part1"), "--output-dir", str(target)]) == 0
    for name in (suite.PAGE, suite.TABLE):
        assert (target / name).read_text() == (folder / "whole" / name).read_text()
    assert "6 of 6 reports aligned" in capsys.readouterr().out
    assert (target / "test_first-test_first-2" / "report.html").is_file()


def test_a_report_that_is_not_aligned_shows(folder: Path, tmp_path: Path) -> None:
    part, target = tmp_path / "part", tmp_path / "merged"
    copy = part / "test_first-test_first-2"
    copy.mkdir(parents=True)
    data = json.loads((folder / "whole" / copy.name / suite.REPORT).read_text())
    (copy / suite.REPORT).write_text(json.dumps({**data, "aligned": False}))
    assert main(["merge", str(part), "--output-dir", str(target)]) == 1
    assert "not aligned" in (target / suite.TABLE).read_text()


def test_different_reports_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "part" / "test_first-test_first-2"
    copy.mkdir(parents=True)
    text = (folder / "whole" / copy.name / suite.REPORT).read_text()
    (copy / suite.REPORT).write_text(text.replace("first 2", "another"))
    with pytest.raises(ValueError, match="different reports of one name"):
        suite.merge([folder / "whole", tmp_path / "part"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_empty_part_and_an_existing_target_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each part must be a folder"):
        suite.merge([tmp_path], tmp_path / "merged")
    with pytest.raises(ValueError, match="must not exist yet"):
        suite.merge([folder / "part1"], tmp_path)


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_files_are_spread_by_the_number_of_tests(shards: int) -> None:
    tests = {"a.py": 9, "b.py": 5, "c.py": 4, "d.py": 1, "e.py": 1}
    chosen = assign(tests, shards)
    assert set(chosen) == set(tests)
    loads = Counter(dict.fromkeys(range(1, shards + 1), 0))
    for file, shard in chosen.items():
        loads[shard] += tests[file]
    assert max(loads.values()) <= max(9, 20 // shards + 1)


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "a/b", "-1/2"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be PART/PARTS"):
        parse_shard(text)


def test_a_pytest_that_a_worker_starts_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    sharding.pytest_configure(SimpleNamespace())  # type: ignore[arg-type]
    assert os.environ["PYTEST_XDIST_WORKER"] == "gw1"
    sharding.pytest_configure(SimpleNamespace(workerinput={}))  # type: ignore[arg-type]
    assert "PYTEST_XDIST_WORKER" not in os.environ


@pytest.mark.parametrize(
    ("workers", "cores", "given", "expected"),
    [("2", 2, None, "1"), ("2", 16, None, "8"), ("4", 2, None, "1"), ("2", 16, "3", "3"), (None, 16, None, None)],
)
def test_workers_share_the_cores(
    workers: str | None, cores: int, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("conftest_alone", ROOT / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name, value in (("PYTEST_XDIST_WORKER_COUNT", None), ("OMP_NUM_THREADS", given)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    spec.loader.exec_module(module)
    if workers is not None:
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", workers)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    module.share_cores()
    assert os.environ.get("OMP_NUM_THREADS") == expected
