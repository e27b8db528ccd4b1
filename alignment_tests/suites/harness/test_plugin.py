"""The pytest plugin in somebody else's suite, which knows nothing of this repository's own configuration."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = "alignment_tests.harness.plugin"
SUITE = """
import copy
import numpy as np
import torch

def test_pair(assert_aligned):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    report = assert_aligned(model, copy.deepcopy(model), np.ones((2, 4), np.float32))
    assert_aligned(model[0], copy.deepcopy(model[0]), np.ones((2, 4), np.float32), title="one layer")
    assert report.title == "test_pair"
"""
FAULTY = """
import copy
import numpy as np
import torch

def test_pair(assert_aligned):
    model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.ReLU())
    other = copy.deepcopy(model)
    other[0].eps = 0.1
    assert_aligned(model, other, np.arange(8, dtype=np.float32).reshape(2, 4))
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder with a test in it, and what an installed distribution says of its plugin."""
    about = tmp_path / "site" / "somebody-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[pytest11]\n{PLUGIN} = {PLUGIN}\n")
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "test_port.py").write_text(SUITE)
    return tmp_path / "suite"


def run(suite: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(suite.parent / "site")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options],
        cwd=suite,
        env={**os.environ, "PYTHONPATH": paths, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


LOADED = {
    "by the entry point": ((), ""),
    "by -p too": (("-p", PLUGIN), ""),
    "by the conftest too": ((), f'pytest_plugins = ["{PLUGIN}"]'),
    "by all three": (("-p", PLUGIN), f'pytest_plugins = ["{PLUGIN}"]'),
}


@pytest.mark.parametrize(("options", "conftest"), LOADED.values(), ids=LOADED)
def test_it_is_loaded_once_however_it_is_named(options: tuple[str, ...], conftest: str, suite: Path) -> None:
    (suite / "conftest.py").write_text(conftest)
    done = run(suite, *options, "--collect-only")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = run(suite, *options, "--help")
    assert shown.stdout.count("--alignment-reports=FOLDER") == 1


def test_rows_are_in_junit_and_reports_are_saved(suite: Path) -> None:
    done = run(suite, "--junitxml", "junit.xml", "--alignment-reports", "reports")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {p.get("name"): p.get("value") for p in ET.parse(suite / "junit.xml").iter("property")}
    assert found["failing"] == "0"
    assert str(found["activation/1#0/0 [float64]"]).startswith("pass: ")
    assert sorted(path.name for path in (suite / "reports").iterdir()) == [
        "test_port-test_pair",
        "test_port-test_pair-2",
    ]
    assert (suite / "reports" / "test_port-test_pair" / "report.html").is_file()


def test_a_difference_names_the_module_and_shows_no_code_of_the_harness(suite: Path) -> None:
    (suite / "test_port.py").write_text(FAULTY)
    done = run(suite)
    assert done.returncode == 1
    assert "test_pair: not aligned" in done.stdout
    assert "first divergence at activation/0#0/0 (LayerNorm, float64)" in done.stdout
    assert "> " in done.stdout
    assert "alignment_tests/harness" not in done.stdout
    assert not (suite / "reports").exists()


def test_the_summary_of_the_run_gets_that_of_the_report(suite: Path) -> None:
    summary = suite / "summary.md"
    run(suite, GITHUB_STEP_SUMMARY=str(summary))
    assert "ALIGNED" in summary.read_text()
    assert "one layer" in summary.read_text()


def test_importing_it_loads_no_framework() -> None:
    heavy = "('torch', 'jittor', 'matplotlib', 'jinja2', 'rich')"
    lines = f"import sys, {PLUGIN}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
