"""Every architecture in a process of its own, one after another."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignment_tests.harness.report import write_text_atomically
from alignment_tests.zoo.models import ON_DEMAND, architectures

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800.0  # seconds for one architecture; cold kernels on a busy machine
DEEPER = "deeper or wider forms of the same code"
Row = dict[str, Any]


def run_all(
    names: Iterable[str] | None = None, kept: Path | None = None, notify: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """Rows of the named architectures; by default all but those on demand, which are listed as not run.

    ``kept``: a folder that has a file for each row as soon as it is there; rows found in it are not made again.
    """
    every = architectures()
    wanted = [name for name in every if name not in ON_DEMAND] if names is None else list(names)
    rows: list[Row] = []
    for number, name in enumerate(every):
        if name not in wanted:
            rows.append({"name": name, "not run": DEEPER if name in ON_DEMAND else "not asked for"})
            continue
        start = time.monotonic()
        row = kept_or_run(name, kept)
        rows.append(row)
        verdicts = [found["verdict"] for found in row["parts"].values()] if "parts" in row else row["failed"]
        notify(f"zoo: {number + 1} of {len(every)}, {name}: {verdicts} ({time.monotonic() - start:.0f} s)")
    return rows


def kept_or_run(name: str, kept: Path | None) -> Row:
    file = None if kept is None else kept / f"{name}.json"
    if file is not None and file.is_file():
        found: Row = json.loads(file.read_text(encoding="utf-8"))
        return found
    row = run_one(name)
    if file is not None and "parts" in row:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps(row))
    return row


def run_one(name: str) -> Row:
    """The row, or what became of the process."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "row.json"
        command = [sys.executable, "-m", "alignment_tests.zoo.run", name, str(target)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            return {"name": name, "failed": f"no end within {PATIENCE:.0f} s"}
        if done.returncode or not target.is_file():
            return {"name": name, "failed": f"the process ends with {done.returncode}: {done.stderr.strip()[-300:]}"}
        row: Row = json.loads(target.read_text(encoding="utf-8"))
        return row
