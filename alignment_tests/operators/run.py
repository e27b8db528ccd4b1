"""The operator table from a run: child processes over all cases, then one entry per operator."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment_tests.operators.worker import cases_by_key

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "alignment_tests.operators.worker")
CRASHES, HANGS = "crashes", "hangs"
PATIENCE = 600.0  # seconds without a line; a case compiles for a few, and waits where processes share the cache
BATCH = 400  # cases of one process; Jittor keeps every kernel that it loaded

Outcome = dict[str, Any]
Notify = Callable[[str], None]


@dataclass
class Batch:
    """A child process and what it has said so far."""

    keys: list[str]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    current: str = ""

    def take(self, line: str) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            return  # Jittor prints too
        if "start" in said:
            self.current = said["start"]
        elif "key" in said:
            self.outcomes[said.pop("key")] = said


def run_cases(
    keys: Iterable[str], notify: Notify = lambda text: None, patience: float = PATIENCE
) -> dict[str, Outcome]:
    """Outcome of each case; a crash or a hang of the process is the outcome of the case that it was in."""
    left, found = list(keys), {}
    total = len(left)
    while left:
        batch = Batch(left[:BATCH])
        ending = run_batch(batch, patience)
        found.update(batch.outcomes)
        left = [key for key in left if key not in found]
        if ending and batch.current in left:
            found[batch.current] = ending
            left.remove(batch.current)
        elif ending and not batch.outcomes:
            raise RuntimeError(f"the worker ends before its first case: {ending}")
        notify(f"operators: {total - len(left)} of {total} cases")
    return found


def run_batch(batch: Batch, patience: float) -> Outcome | None:
    """Run a worker to its end; what ended it early, or None."""
    with subprocess.Popen(
        COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=quiet()
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("".join(f"{key}\n" for key in batch.keys).encode())
        worker.stdin.close()
        heard, text = time.monotonic(), b""
        while True:
            ready, _, _ = select.select([worker.stdout], [], [], 1.0)
            if ready:
                part = os.read(worker.stdout.fileno(), 1 << 16)
                if not part:
                    break
                heard = time.monotonic()
                *lines, text = (text + part).split(b"\n")
                for line in lines:
                    batch.take(line.decode(errors="replace"))
            elif time.monotonic() - heard > patience:
                worker.kill()
                return {"verdict": HANGS, "reason": f"no answer for {patience:.0f} s"}
        code = worker.wait()
    return {"verdict": CRASHES, "reason": f"the process ends with {code}"} if code else None


def quiet() -> dict[str, str]:
    return {**os.environ, "ALIGN_PROGRESS": "0"}


def run_all(notify: Notify = lambda text: None) -> dict[str, Outcome]:
    return run_cases(cases_by_key(), notify)
