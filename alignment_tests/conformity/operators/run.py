"""The operator table from a run: child processes over all cases, then one entry per operator."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment_tests.cases.child_processes import exit_code, sheltered, stop
from alignment_tests.conformity.operators.worker import cases_by_key

ROOT = Path(__file__).resolve().parents[3]
COMMAND = (sys.executable, "-m", "alignment_tests.conformity.operators.worker")
CRASHES, HANGS = "crashes", "hangs"
PATIENCE = 600.0  # seconds without a line; a case compiles for a few, and waits where processes share the cache
BATCH = 400  # cases of one process; Jittor keeps every kernel that it loaded

Outcome = dict[str, Any]
Notify = Callable[[str], None]
_one_line = threading.Lock()  # batches that run beside one another keep their outcomes in one file


@dataclass
class Batch:
    """A child process and what it has said so far."""

    keys: list[str]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    current: str = ""
    kept: Path | None = None

    def take(self, line: str) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            return  # Jittor prints too
        if "start" in said:
            self.current = said["start"]
        elif "key" in said:
            self.outcomes[said.pop("key")] = said
            self.keep(line)

    def keep(self, line: str) -> None:
        if self.kept is not None:
            with _one_line, self.kept.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def run_cases(
    keys: Iterable[str],
    notify: Notify = lambda text: None,
    patience: float = PATIENCE,
    kept: Path | None = None,
    jobs: int = 1,
) -> dict[str, Outcome]:
    """Outcome of each case; a crash or a hang of the process is the outcome of the case that it was in.

    Args:
        keys: the cases.
        notify: told how many are done.
        patience: seconds without an outcome after which a process hangs.
        kept: a file of outcomes, a line each; those found in it are not made again, new ones are added as they come.
        jobs: processes at a time.

    Raises:
        RuntimeError: a process ends before its first case.
    """
    every = list(keys)
    found = {key: outcome for key, outcome in read_kept(kept).items() if key in set(every)}
    left = [key for key in every if key not in found]

    def run_share(share: list[str]) -> None:
        for outcomes in outcomes_of(share, patience, kept):
            found.update(outcomes)
            notify(f"operators: {len(found)} of {len(every)} cases")

    with ThreadPoolExecutor(jobs) as pool:  # a thread waits for its child process
        list(pool.map(run_share, (left[start : start + BATCH] for start in range(0, len(left), BATCH))))
    return {key: found[key] for key in every}


def outcomes_of(left: list[str], patience: float, kept: Path | None) -> Iterator[dict[str, Outcome]]:
    """Of one process, and where one ends early, of another for the cases that it left."""
    while left:
        batch = Batch(left, kept=kept)
        ending = run_batch(batch, patience)
        outcomes = dict(batch.outcomes)
        if ending and batch.current in left and batch.current not in outcomes:
            outcomes[batch.current] = ending
            batch.keep(json.dumps({"key": batch.current, **ending}))
        elif not outcomes:
            raise RuntimeError(f"the worker ends before its first case: {ending or 'without an error'}")
        left = [key for key in left if key not in outcomes]
        yield outcomes


def read_kept(kept: Path | None) -> dict[str, Outcome]:
    if kept is None:
        return {}
    kept.parent.mkdir(parents=True, exist_ok=True)
    text = kept.read_text(encoding="utf-8") if kept.is_file() else ""
    if text and not text.endswith("\n"):  # a run that was cut leaves half a line: what comes is not to be joined to it
        kept.write_text(f"{text}\n", encoding="utf-8")
    found = {}
    for line in text.splitlines():
        with suppress(ValueError):
            said = json.loads(line)
            found[said.pop("key")] = said
    return found


def run_batch(batch: Batch, patience: float) -> Outcome | None:
    """Run a worker to its end; what ended it early, or None."""
    with subprocess.Popen(
        sheltered(COMMAND),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=quiet(),
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
                stop(worker)
                return {"verdict": HANGS, "reason": f"no answer for {patience:.0f} s"}
        code = exit_code(worker)
    return {"verdict": CRASHES, "reason": f"the process ends with {code}"} if code else None


def quiet() -> dict[str, str]:
    return {**os.environ, "ALIGN_PROGRESS": "0"}


def run_all(notify: Notify = lambda text: None, kept: Path | None = None, jobs: int = 1) -> dict[str, Outcome]:
    return run_cases(cases_by_key(), notify, kept=kept, jobs=jobs)
