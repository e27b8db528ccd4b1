"""A run of the suite comes to its end whatever dies in it, and its last lines say what failed and what was left out.

Each test runs pytest in a child, over small files, with the options of ``make test`` and of pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PASSING = "import time, pytest\n@pytest.mark.parametrize('i', range(3))\ndef test_passes(i): time.sleep(0.1)\n"
DEADLY = "import os\ndef test_{name}(): os.kill(os.getpid(), 9)\n"
AFTER = "def test_after(): pass\n"
KILL_OUTSIDE = "if os.environ.get('PYTEST_XDIST_WORKER') == 'gw1': os.kill(os.getpid(), 9)"
FILES = {
    "in its last file": {"a": PASSING, "b": PASSING, "c": PASSING + DEADLY.format(name="deadly")},
    "in the middle, twice": {
        "a": PASSING + DEADLY.format(name="deadly") + AFTER,
        "b": DEADLY.format(name="too") + AFTER,
        "c": PASSING,
        "d": PASSING,
    },
    "both, at the end": {"a": PASSING + DEADLY.format(name="deadly"), "b": PASSING + DEADLY.format(name="too")},
    "while collecting": {"a": f"import os\n{KILL_OUTSIDE}\n{PASSING}", "b": PASSING},
    "in the teardown of the session": {
        "a": PASSING,
        "b": PASSING,
        "conftest": "import os, pytest\n@pytest.fixture(scope='session', autouse=True)\n"
        f"def held():\n    yield\n    {KILL_OUTSIDE}\n",
    },
}
# The tests that are named as failed, and how many pass.
OUTCOMES = {
    "in its last file": (["test_deadly"], 9),
    "in the middle, twice": (["test_deadly", "test_too"], 11),
    "both, at the end": (["test_deadly", "test_too"], 6),
    "while collecting": ([], 6),
}


def run_suite(folder: Path, files: dict[str, str]) -> tuple[int, list[str]]:
    """Exit code and output of the files, run as ``make test`` runs the suite; none may take a minute."""
    for name, text in files.items():
        (folder / f"{name if name == 'conftest' else f'test_{name}'}.py").write_text(text)
    line = re.search(r"-m pytest (.*) \$\(SLICE\)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert line is not None
    options = shlex.split(line[1].replace("$(WORKERS)", "2"))
    given = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "alignment_tests.suites.dead_workers",
        *given,
        *options,
        str(folder),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as child:
        try:
            output, _ = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return child.returncode, output.splitlines()


@pytest.mark.parametrize("where", OUTCOMES)
def test_a_run_ends_where_a_worker_dies(where: str, tmp_path: Path) -> None:
    """Each deadly test fails once, and all others run: nothing of the living worker's is lost."""
    code, lines = run_suite(tmp_path, FILES[where])
    failed, passed = OUTCOMES[where]
    assert code == 1, "\n".join(lines)
    assert sorted(re.findall(r"^FAILED \S+::(\w+)", "\n".join(lines), re.MULTILINE)) == failed
    assert f"{passed} passed" in lines[-1]
    assert any(re.fullmatch(r"worker gw\d died: Not properly terminated", line) for line in lines)


def test_a_run_ends_where_a_worker_dies_in_the_teardown_of_the_session(tmp_path: Path) -> None:
    """It had passed, and fails all the same, as pytest counts it where a teardown ends in an error."""
    code, lines = run_suite(tmp_path, FILES["in the teardown of the session"])
    assert code == 1, "\n".join(lines)
    assert "worker gw1 died: Not properly terminated" in lines
    assert "1 failed, 6 passed" in lines[-1]


def test_last_lines_say_what_was_skipped(tmp_path: Path) -> None:
    """-ra in pyproject.toml does it, also for workers; where nothing was skipped, nothing is said."""
    reason = "needs nvcc: install the CUDA toolkit, or pip install the packages that this long line names in full"
    skipping = f"import pytest\n@pytest.mark.skipif(True, reason={reason!r})\ndef test_skipped(): pass\n"
    code, lines = run_suite(tmp_path, {"a": PASSING, "b": skipping})
    assert code == 0, "\n".join(lines)
    assert "short test summary" in lines[-3]
    assert re.fullmatch(rf"SKIPPED \[1\] \S*test_b.py:2: {reason}", lines[-2])
    assert "3 passed, 1 skipped in" in lines[-1]
    (tmp_path / "test_b.py").unlink()
    code, lines = run_suite(tmp_path, {"a": PASSING})
    assert code == 0
    assert not any("SKIPPED" in line or "short test summary" in line for line in lines)
