"""``make setup`` where the packages cannot go: one line at once, and nothing half made. What ``make check`` runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PATCHES = {
    "a full disk": "import collections, shutil\n"
    "shutil.disk_usage = lambda path: collections.namedtuple('usage', 'total used free')(9e9, 4e9, 5e9)\n",
    "an old Python": "import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n",
}
SAID = {
    "a full disk": "5.0 GB are free here, and the packages take 7 GB: free some space",
    "an old Python": "is not Python 3.10 to 3.12; choose one: make setup PYTHON=python3.11",
}


@pytest.mark.parametrize("what", PATCHES)
def test_a_machine_that_cannot_take_the_packages_is_reported_at_once(what: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(PATCHES[what])
    result = subprocess.run(
        ["make", "setup", f"PYTHON={sys.executable}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(patches)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert SAID[what] in result.stderr
    assert not (tmp_path / ".venv").exists()


def commands(target: str) -> list[str]:
    """What the target runs once the environment stands."""
    words = ["make", "--dry-run", target, "PYTEST_ARGS=-x"]
    # Of the environment that a `make` above hands down, nothing may arrive.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run(words, cwd=ROOT, env=inherited, capture_output=True, text=True, check=True)
    return [
        line.split("python -m ", 1)[1] for line in result.stdout.splitlines() if line.startswith(".venv/bin/python -m")
    ]


def test_the_check_runs_what_the_test_does_over_a_slice() -> None:
    check, test = commands("check"), commands("test")
    assert check[-4:-1] == test[-4:-1] == ["ruff check .", "ruff format --check .", "mypy"]
    assert " -m check " in check[-1]
    assert check[-1].replace(" -m check ", " ").split() == test[-1].split()
    assert test[-1].startswith("pytest ")
    assert test[-1].endswith(" -x")
