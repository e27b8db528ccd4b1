"""``make setup`` on a machine that cannot take it: one line at once, and nothing half made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
def test_a_machine_that_cannot_take_the_packages_is_told_at_once(what: str, tmp_path: Path) -> None:
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
