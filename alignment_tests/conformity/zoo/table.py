"""Every architecture in a process of its own, as many at a time as there is room for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignment_tests.cases.child_processes import exit_code, sheltered, stop
from alignment_tests.conformity.zoo.models import ON_DEMAND, architectures
from alignment_tests.harness.record.temporary import write_text_atomically
from fixtures.runs.record import commit_of

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 1800.0  # seconds for one architecture; cold kernels on a busy machine
DEEPER = "deeper or wider forms of the same code"
Row = dict[str, Any]


def run_all(
    names: Iterable[str] | None = None,
    kept: Path | None = None,
    notify: Callable[[str], None] = lambda text: None,
    jobs: int = 1,
) -> list[Row]:
    """Rows of the named architectures; by default all but those on demand, which are listed as not run.

    Args:
        names: which.
        kept: a folder that has a file for each row as soon as it is there; rows found in it are not made again. Each
            row holds the commit that it was made at.
        notify: told of each row.
        jobs: architectures at a time. They share one folder of kernels; each may need 6 GB of memory.

    Raises:
        ValueError: a name is of no architecture that both packages have.
    """
    every = architectures()
    wanted = [name for name in every if name not in ON_DEMAND] if names is None else list(names)
    check_names(wanted)

    def row_of(name: str) -> Row:
        if name not in wanted:
            return {"name": name, "not run": DEEPER if name in ON_DEMAND else "not asked for"}
        start = time.monotonic()
        row = kept_or_run(name, kept)
        verdicts = [found["verdict"] for found in row["parts"].values()] if "parts" in row else row["failed"]
        notify(f"zoo: {name}: {verdicts} ({time.monotonic() - start:.0f} s)")
        return row

    with ThreadPoolExecutor(jobs) as pool:  # a thread waits for its child process
        return list(pool.map(row_of, every))


def check_names(names: Iterable[str]) -> None:
    """Refuse what is no architecture.

    Raises:
        ValueError: a name is of no architecture that both packages have.
    """
    every = architectures()
    unknown = [name for name in names if name not in every]
    if unknown:
        raise ValueError(f"`models` must be among {', '.join(every)}. Received: {', '.join(unknown)}")


def kept_or_run(name: str, kept: Path | None) -> Row:
    file = None if kept is None else kept / f"{name}.json"
    if file is not None and file.is_file():
        found: Row = json.loads(file.read_text(encoding="utf-8"))
        return found
    row = {"name": name, "commit": commit_of(ROOT, ("docs",)), **run_one(name)}
    if file is not None and "parts" in row:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps(row))
    return row


def run_one(name: str) -> Row:
    """The row, or what became of the process."""
    with TemporaryDirectory() as folder:
        target, errors = Path(folder) / "row.json", Path(folder) / "stderr"
        command = sheltered([sys.executable, "-m", "alignment_tests.conformity.zoo.run", name, str(target)])
        with errors.open("wb") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as child:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                stop(child)
                return {"name": name, "failed": f"no end within {PATIENCE:.0f} s"}
            code = exit_code(child)
        if code or not target.is_file():
            said = errors.read_text(encoding="utf-8", errors="replace").strip()[-300:]
            return {"name": name, "failed": f"the process ends with {code}: {said}"}
        row: Row = json.loads(target.read_text(encoding="utf-8"))
        return row
