"""Contenders as processes: told to take steps, they answer with figures; whatever they fail by is a reason."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from alignment_tests.bench.caches import empty_cache
from alignment_tests.bench.cases import Case, Contender
from alignment_tests.bench.worker import MARK

SCRIPT = Path(__file__).with_name("worker.py")
PATIENCE = 30.0  # seconds to go on after a deadline, or to end by itself
LOOK = 1.0  # seconds between two looks at a silent process
# Alone in its process a framework gets the thread settings that its users have; the case decides about TF32.
HIDDEN = ("OMP_WAIT_POLICY", "NVIDIA_TF32_OVERRIDE")


class WorkerError(RuntimeError):
    """A contender cannot go on; ``out_of_memory`` and ``late`` tell whether for lack of memory, or of time."""

    def __init__(self, reason: str, out_of_memory: bool = False, late: bool = False) -> None:
        super().__init__(reason)
        self.out_of_memory, self.late = out_of_memory, late


def environment_of(case: Case, more: Mapping[str, str]) -> dict[str, str]:
    """The user's, with what decides about the device set before the framework is loaded."""
    made = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    made["ALIGN_PROGRESS"] = "0"
    if case.device == "cuda":
        made["ALIGN_CUDA"] = "1"
    return made | dict(more)


class Worker:
    """A contender of a case; it starts at once and ``ready`` waits for it.

    Args:
        deadline: on ``time.monotonic``'s clock; an answer that is ``PATIENCE`` later is not waited for.

    Every method raises WorkerError where the process failed, ended or was not waited for.
    """

    def __init__(
        self,
        case: Case,
        contender: Contender,
        environment: Mapping[str, str] | None = None,
        deadline: float = float("inf"),
    ) -> None:
        work = {"package": contender.package, "setting": contender.setting, "case": asdict(case)}
        self.deadline, self._rest = deadline, b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment_of(case, environment or {}),
            start_new_session=True,  # so that compilers that it started can be ended with it
        )
        self._ready: dict[str, Any] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self) -> dict[str, Any]:
        """The first answer: seconds until the work could begin, kernels, memory, facts of the environment."""
        if self._ready is None:
            self._ready = self._answer()
        return self._ready

    def take(self, steps: int) -> dict[str, Any]:
        """Take so many steps: seconds, and kernels and memory at their end."""
        self.ready()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{steps}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        while True:
            line = self._line()
            if line.startswith(MARK.encode()):
                figures: dict[str, Any] = json.loads(line[len(MARK) :])
                if "failed" in figures:
                    raise WorkerError(figures["failed"], figures["out_of_memory"])
                return figures

    def _line(self) -> bytes:
        """The next line of its output, without waiting longer than allowed."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self.process.stdout], [], [], LOOK)[0]:
                if time.monotonic() > self.deadline + PATIENCE:
                    raise WorkerError("the time budget ended before it answered", late=True)
                if self.process.poll() is not None:  # children of it may keep its output open
                    raise self._ended()
                continue
            read = os.read(self.process.stdout.fileno(), 65536)
            if not read:
                raise self._ended()
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _ended(self) -> WorkerError:
        code = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return WorkerError(f"its process ended with code {code}: {lines[-1][:300] if lines else 'it said nothing'}")

    def close(self, patience: float = PATIENCE) -> None:
        """End the process: by itself, else after so many seconds with all that it started."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended
            self.process.stdin.close()
        try:
            self.process.wait(timeout=patience if time.monotonic() < self.deadline else 1.0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(PATIENCE if kind is None else 1.0)  # whoever broke off does not want to wait


class Starter:
    """A contender whose every round is a new process: from its start until its first forward pass has ended.

    ``kernels`` counts those that these processes compiled, not those they loaded.
    """

    pid = 0  # no process that lasts

    def __init__(
        self,
        case: Case,
        contender: Contender,
        environment: Mapping[str, str] | None = None,
        deadline: float = float("inf"),
    ) -> None:
        self.case, self.contender, self.environment, self.deadline = case, contender, environment, deadline
        self.compiled = 0

    def ready(self) -> dict[str, Any]:
        return {"seconds": 0.0, "kernels": 0, "memory": {}, "facts": {}}

    def take(self, steps: int) -> dict[str, Any]:
        """One start, whatever ``steps`` says."""
        with empty_cache() if self.case.what == "cold-start" else nullcontext() as cache:
            environment = {**(self.environment or {}), **({"cache_name": cache} if cache else {})}
            start = time.perf_counter()
            with Worker(replace(self.case, what="inference"), self.contender, environment, self.deadline) as worker:
                facts, figures = worker.ready()["facts"], worker.take(1)
                seconds = time.perf_counter() - start
        self.compiled += figures["compiled"]
        return {"seconds": seconds, "kernels": self.compiled, "memory": figures["memory"], "facts": facts}

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *_: object) -> None:
        return None
