"""Runs stages one after the other, each within its own time and all within one deadline.

A stage that fails, hangs or is interrupted (Ctrl-C; twice ends the run) never takes the rest along, and after each one
its result is on disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

PASSED, FAILED, TIMED_OUT, INTERRUPTED, NOT_RUN, SKIPPED = (
    *("passed", "failed", "out of time", "interrupted", "not run", "left out"),
)
LEAST_SECONDS = 2.0
GRACE_SECONDS = 10.0
TWICE_SECONDS = 4.0


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: also of its log file.
        command: words; empty for one that is left out, for the reason ``omitted``.
        seconds: of its own.
        kept: of these, what earlier stages must leave.
        needs: stages that must have passed.
        headline: one line of figures from the output folder, for the table.
        omitted: why the stage is not run.
    """

    name: str
    command: tuple[str, ...] = ()
    seconds: float = 60.0
    kept: float = 0.0
    needs: tuple[str, ...] = ()
    headline: Callable[[Path], str] | None = None
    omitted: str = ""


@dataclass(frozen=True)
class Result:
    stage: str
    status: str
    seconds: float = 0.0
    detail: str = ""


class Runner:
    """Keeps the results of a run in ``folder``.

    Args:
        folder: of logs and of ``summary.json``.
        seconds: for all stages together.
        environment: of the commands.
        facts: what the summary says beside the results.
    """

    def __init__(
        self, folder: Path, seconds: float, environment: Mapping[str, str], facts: Mapping[str, object]
    ) -> None:
        self.folder, self.environment, self.facts = folder, dict(environment), dict(facts)
        self.start = time.monotonic()
        self.deadline = self.start + seconds
        self.results: list[Result] = []
        self.ending = ""
        self.last_interrupt = float("-inf")

    def run(self, stages: Sequence[Stage]) -> int:
        """All of them, in order; the exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = signal.signal(signal.SIGTERM, self._terminated)
        try:
            for index, stage in enumerate(stages):
                kept = sum(later.kept for later in stages[index + 1 :])
                try:
                    result = self._one(stage, kept)
                except KeyboardInterrupt:  # between two commands
                    result = Result(stage.name, INTERRUPTED)
                self.results.append(result)
                self.save()
        finally:
            signal.signal(signal.SIGTERM, before)
        return int(any(result.status not in (PASSED, SKIPPED) for result in self.results))

    def _terminated(self, number: int, frame: object) -> None:
        self.ending = "the run was told to end"
        raise KeyboardInterrupt

    def _interrupted(self) -> None:
        """One interrupt ends a stage, a second one soon after it the run."""
        now = time.monotonic()
        if now - self.last_interrupt < TWICE_SECONDS:
            self.ending = "the run was interrupted"
        self.last_interrupt = now

    def _one(self, stage: Stage, kept: float) -> Result:
        passed = {result.stage for result in self.results if result.status == PASSED}
        lacking = [name for name in stage.needs if name not in passed]
        limit = min(stage.seconds, self.deadline - time.monotonic() - kept)
        if not stage.command:
            return Result(stage.name, SKIPPED, 0.0, stage.omitted)
        if self.ending or lacking or limit < LEAST_SECONDS:
            why = self.ending or (f"needs: {', '.join(lacking)}" if lacking else "no time was left")
            return Result(stage.name, NOT_RUN, 0.0, why)
        print(f"\n== {stage.name} (at most {limit:.0f} s): {' '.join(stage.command)}", flush=True)
        start = time.monotonic()
        status, detail = self._execute(stage, limit)
        seconds = time.monotonic() - start
        print(f"== {stage.name}: {status} ({seconds:.1f} s)", flush=True)
        return Result(stage.name, status, round(seconds, 1), detail)

    def _execute(self, stage: Stage, limit: float) -> tuple[str, str]:
        log = self.folder / f"{stage.name}.log"
        try:
            process = subprocess.Popen(
                stage.command,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return FAILED, str(error)
        assert process.stdout is not None
        copier = threading.Thread(target=copy_output, args=(process.stdout, log), daemon=True)
        try:
            copier.start()
            code = process.wait(timeout=limit)
            status = PASSED if code == 0 else FAILED
        except subprocess.TimeoutExpired:
            code, status = end(process), TIMED_OUT
        except KeyboardInterrupt:
            self._interrupted()
            code, status = end(process), INTERRUPTED
        copier.join(timeout=GRACE_SECONDS)
        return status, self._detail(stage, status, code, log)

    def _detail(self, stage: Stage, status: str, code: int, log: Path) -> str:
        """Figures where there are any, also of a stage that was cut; else why it failed."""
        text = ""
        if stage.headline is not None:
            try:
                text = stage.headline(self.folder)
            except (OSError, ValueError, KeyError, TypeError, IndexError):
                text = ""
        if status == FAILED:
            text = "; ".join(filter(None, [text or last_line(log), f"exit code {code}, see {log.name}"]))
        return text

    def save(self) -> None:
        """Results so far, written to a temporary name and renamed."""
        seconds = round(time.monotonic() - self.start, 1)
        content = {**self.facts, "seconds": seconds, "stages": [asdict(result) for result in self.results]}
        temporary = self.folder / f".summary.{os.getpid()}"
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / "summary.json")


def last_line(log: Path) -> str:
    """What a failed command said last, shortened."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "")


def copy_output(source: IO[bytes], log: Path) -> None:
    """What a command prints, to its log and to the screen as it comes."""
    with source, open(log, "wb") as file:
        for chunk in iter(lambda: os.read(source.fileno(), 65536), b""):
            file.write(chunk)
            file.flush()
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()


def end(process: subprocess.Popen[bytes]) -> int:
    """Stop a command with all that it started: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=GRACE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
    return process.wait()


def table(results: Sequence[Result], seconds: float, folder: Path) -> str:
    """A line for each stage, and what it came to."""
    width = max(len(result.stage) for result in results)
    rows = [f"{r.stage:<{width}}  {r.status:<11} {r.seconds:7.1f} s  {r.detail}".rstrip() for r in results]
    counts = {status: sum(r.status == status for r in results) for status in dict.fromkeys(r.status for r in results)}
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([*rows, f"{text}; {seconds:.0f} s in all; files in {folder}"])
