"""A case fought out: every contender warmed in its own process, then rounds in turn, and what they are worth."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from alignment_tests.bench import rounds
from alignment_tests.bench.cases import Case, Contender
from alignment_tests.bench.workers import Starter, Worker, WorkerError


class Fighter(Protocol):
    """What a duel needs of a worker; every method may raise WorkerError."""

    @property
    def pid(self) -> int: ...

    def ready(self) -> dict[str, Any]: ...

    def take(self, steps: int) -> dict[str, Any]: ...


Start = Callable[..., AbstractContextManager[Fighter]]


@dataclass
class Outcome:
    """What became of a contender in a case.

    Attributes:
        failed: why it has no times, or None; ``out_of_memory`` and ``late`` tell of what was lacking.
        times: seconds per step, by round.
        steps: per round.
        warm_up: seconds per step of the rounds before; ``warm`` tells whether they had settled.
        kernels: loaded before and after the timed rounds (of a start: compiled).
        memory: bytes by measure: "resident", "allocated", "reserved", "driver", as far as there is such a figure.
        facts: the framework's environment in that process.
        more: of single kinds of case.
    """

    contender: Contender
    failed: str | None = None
    out_of_memory: bool = False
    late: bool = False
    times: list[float] = field(default_factory=list)
    steps: int = 1
    warm_up: list[float] = field(default_factory=list)
    warm: bool = True
    kernels: tuple[int, int] = (0, 0)
    memory: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def void_reason(self, compiling: bool = False) -> str | None:
        """Why the times count for nothing; ``compiling``: kernels are part of what is timed."""
        before, after = self.kernels
        return rounds.void_reason(self.times, before, before if compiling else after, self.warm)


@dataclass(frozen=True)
class Measurement:
    case: Case
    outcomes: Mapping[str, Outcome]
    seconds: float
    load: float  # average of the machine before, processes

    def ratios(self, outcome: Outcome) -> list[float]:
        """To the contender's baseline, round by round; empty where that has no valid times, or other batches."""
        other = self.outcomes.get(outcome.contender.baseline)
        compiling = self.case.what == "cold-start"
        if self.case.what == "limit" or other is None or other.failed or other.void_reason(compiling) or outcome.failed:
            return []
        return rounds.ratios(outcome.times, other.times)


def interleave(
    case: Case,
    contenders: Sequence[Contender],
    *,
    deadline: float = float("inf"),
    start: Start | None = None,
    environment: Mapping[str, str] | None = None,
) -> Measurement:
    """All contenders of a case, each in its own process, rounds in turn: A B C D A B C D.

    Args:
        deadline: on ``time.monotonic``'s clock; past it a duel has the least number of rounds, and who has not
            answered a while later has failed.
        environment: more variables for all of them.
    """
    begun, load = time.monotonic(), os.getloadavg()[0]
    make: Start = start or (Starter if case.fresh_processes else Worker)
    outcomes = {one.name: Outcome(one) for one in contenders}
    with ExitStack() as stack:
        # All at once: importing a framework takes seconds.
        workers = {one.name: stack.enter_context(make(case, one, environment, deadline)) for one in contenders}
        fighters = [(worker, outcomes[name]) for name, worker in workers.items()]
        for worker, outcome in fighters:
            attempt(outcome, partial(warm_up, worker, outcome, case))
        steps = steps_of(case, outcomes.values())
        for done in range(case.rounds):
            if not rounds.may_go_on(deadline - time.monotonic(), done):
                break
            for worker, outcome in fighters:
                attempt(outcome, partial(timed_round, worker, outcome, steps))
        if case.device == "cuda":
            add_driver_memory({name: worker.pid for name, worker in workers.items()}, outcomes)
    return Measurement(case, outcomes, time.monotonic() - begun, load)


def attempt(outcome: Outcome, work: Callable[[], None]) -> None:
    """Do it unless the contender has failed; if it fails, keep the reason and drop its times."""
    if outcome.failed:
        return
    try:
        work()
    except WorkerError as error:
        outcome.failed, outcome.out_of_memory, outcome.late = str(error), error.out_of_memory, error.late
        outcome.times = []


def warm_up(worker: Fighter, outcome: Outcome, case: Case) -> None:
    """Single steps until the rule says that it is warm; of new processes one, which fills the caches on disk."""
    ready = worker.ready()
    outcome.facts = ready["facts"]
    kernels: list[int] = []
    if case.what == "cold-start":
        return
    most = 1 if case.fresh_processes else rounds.MOST_WARM_UP
    while len(kernels) < most and not rounds.is_warm(outcome.warm_up, kernels):
        figures = worker.take(1)
        outcome.warm_up.append(figures["seconds"])
        kernels.append(figures["kernels"])
    outcome.warm = case.fresh_processes or rounds.is_warm(outcome.warm_up, kernels)
    outcome.kernels = (kernels[-1], kernels[-1])


def steps_of(case: Case, outcomes: Any) -> int:
    """The same for all, so that a round of one lies beside a round of another."""
    known = [min(outcome.warm_up) for outcome in outcomes if outcome.warm_up and not outcome.failed]
    return 1 if case.fresh_processes or not known else rounds.steps_per_round(min(known))


def timed_round(worker: Fighter, outcome: Outcome, steps: int) -> None:
    figures = worker.take(steps)
    outcome.times.append(figures["seconds"] / steps)
    outcome.steps = steps
    outcome.kernels = (outcome.kernels[0], figures["kernels"])
    outcome.memory = figures["memory"]
    outcome.facts = figures.get("facts") or outcome.facts


def add_driver_memory(pids: Mapping[str, int], outcomes: Mapping[str, Outcome]) -> None:
    """What the driver says that each process holds on the GPU, where it tells."""
    held = driver_memory()
    for name, pid in pids.items():
        if pid in held and not outcomes[name].failed:
            outcomes[name].memory["driver"] = held[pid]


def driver_memory() -> dict[int, int]:
    """Bytes on the GPU by process. Inside a container the driver may know processes by other numbers, or not tell."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = [command, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        message = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_driver_memory(message)


def parse_driver_memory(text: str) -> dict[int, int]:
    """Lines ``pid, MiB``; those without a number, such as "[N/A]", tell nothing."""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    return {int(row[0]): int(row[1]) * 2**20 for row in rows if len(row) == 2 and all(map(str.isdigit, row))}


def find_limit(
    case: Case, contenders: Sequence[Contender], *, deadline: float = float("inf"), most: int = 2048
) -> Measurement:
    """For each contender the largest batch of a training step that fits; every try is a process of its own."""
    begun, load = time.monotonic(), os.getloadavg()[0]
    outcomes = {one.name: Outcome(one) for one in contenders}
    for one in contenders:
        attempt(outcomes[one.name], partial(try_batches, case, outcomes[one.name], deadline, most))
    return Measurement(case, outcomes, time.monotonic() - begun, load)


def try_batches(case: Case, outcome: Outcome, deadline: float, most: int) -> None:
    """Raises WorkerError for anything but a lack of memory."""
    seen: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def fits(batch: int) -> bool:
        tried = replace(case, what="training", batch=batch)
        try:
            with Worker(tried, outcome.contender, None, deadline) as worker:
                facts = worker.ready()["facts"]
                for _ in range(rounds.LEAST_ROUNDS):
                    before = worker.take(1)
                seen[batch] = ({"kernels": before["kernels"], "facts": facts}, worker.take(1))
        except WorkerError as error:
            if not error.out_of_memory:
                raise
            return False
        return True

    largest, failing = rounds.largest_that_fits(fits, case.batch, most)
    if not largest:
        raise WorkerError(f"not even a batch of {case.batch} fits", out_of_memory=True)
    before, figures = seen[largest]
    outcome.times, outcome.facts, outcome.memory = [figures["seconds"]], before["facts"], figures["memory"]
    outcome.kernels = (before["kernels"], figures["kernels"])
    outcome.more = {"largest_batch": largest, "first_that_fails": failing}
