"""The slice of ``make check``: what it names exists, and every room has its part."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignment_tests.suites.check import CHECKED, is_of
from alignment_tests.suites.project.test_rooms import ROOMS

ROOT = Path(__file__).resolve().parents[3]


def test_every_room_is_checked() -> None:
    """All but the tests and what they share, which every entry uses."""
    folders = {file.parent.name for file in (ROOT / "alignment_tests").glob("*/__init__.py")} - {"suites", "cases"}
    assert set(CHECKED) == {*ROOMS, *(f"alignment_tests.{name}" for name in folders)}


@pytest.mark.parametrize("room", CHECKED)
def test_what_stands_for_a_room_uses_it(room: str) -> None:
    folder, _, name = room.rpartition(".")
    used = re.compile(rf"^\s*(from|import) ({room}\b|{folder or '-'} import .*\b{name}\b)", re.MULTILINE)
    files = {ROOT / "alignment_tests" / name.partition("::")[0] for name in CHECKED[room]}
    assert any(used.search(file.read_text(encoding="utf-8")) for file in files)


def test_every_name_is_that_of_a_test() -> None:
    files = sorted({f"alignment_tests/{name.partition('::')[0]}" for names in CHECKED.values() for name in names})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "check", *files]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout[-2000:]
    tests = [line for line in result.stdout.splitlines() if "::" in line]
    names = [name for chosen in CHECKED.values() for name in chosen]
    assert [name for name in names if not any(is_of(test, name) for test in tests)] == []
    assert [test for test in tests if not any(is_of(test, name) for name in names)] == []
