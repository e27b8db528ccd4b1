"""The operator table from a run: child processes over all cases, then one entry per operator."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment_tests.children import exit_code, sheltered, stop
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
            with self.kept.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def run_cases(
    keys: Iterable[str],
    notify: Notify = lambda text: None,
    patience: float = PATIENCE,
    kept: Path | None = None,
) -> dict[str, Outcome]:
    """Outcome of each case; a crash or a hang of the process is the outcome of the case that it was in.

    ``kept``: a file of outcomes, a line each; those found in it are not made again, new ones are added as they come.
    """
    every = list(keys)
    found = {key: outcome for key, outcome in read_kept(kept).items() if key in set(every)}
    left = [key for key in every if key not in found]
    while left:
        batch = Batch(left[:BATCH], kept=kept)
        ending = run_batch(batch, patience)
        found.update(batch.outcomes)
        left = [key for key in left if key not in found]
        if ending and batch.current in left:
            found[batch.current] = ending
            batch.keep(json.dumps({"key": batch.current, **ending}))
            left.remove(batch.current)
        elif ending and not batch.outcomes:
            raise RuntimeError(f"the worker ends before its first case: {ending}")
        notify(f"operators: {len(every) - len(left)} of {len(every)} cases")
    return {key: found[key] for key in every}


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


def run_all(notify: Notify = lambda text: None, kept: Path | None = None) -> dict[str, Outcome]:
    return run_cases(cases_by_key(), notify, kept=kept)
