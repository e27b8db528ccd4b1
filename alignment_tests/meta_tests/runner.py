"""Plant every fault in its experiment and note what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from alignment_tests.meta_tests.experiments.outcome import Blame, Outcome
from alignment_tests.meta_tests.faults.fault import FAULTS, Fault

Notify = Callable[[str], None]


class Experiment(Protocol):
    """A comparison whose reference side is recorded once."""

    @property
    def subject(self) -> Any:
        """What faults are planted into."""

    def run(self) -> Outcome:
        """Of the candidate as it is now."""


@dataclass(frozen=True)
class Finding:
    """What became of one fault.

    Attributes:
        fault: which.
        detected: the report is not aligned, or the candidate's side raised an error.
        exact: what is named first is the fault's own place.
        named: what is named first.
        reason: in the report's words.
        plain: by the names of ``outcome.PLAIN``: (detected, exact); a check that alarms without a fault too detects
            nothing.
        seconds: of the run.
    """

    fault: Fault
    detected: bool
    exact: bool
    named: str
    reason: str
    plain: dict[str, tuple[bool, bool]]
    seconds: float


def examine(fault: Fault, experiment: Experiment, clean: Outcome) -> Finding:
    """``clean`` is what the experiment finds without a fault."""
    start = time.perf_counter()
    try:
        with fault.planted(experiment.subject):
            outcome = experiment.run()
    except Exception as error:  # the candidate does not run at all: seen by everybody, and named by its traceback only
        message = Blame(type(error).__name__)
        outcome = Outcome(False, message, f"{type(error).__name__}: {error}", dict.fromkeys(clean.plain, message))
    silent = {title: clean.plain[title] is None for title in clean.plain}
    plain = {
        title: (silent[title] and blame is not None, silent[title] and blamed(fault, blame))
        for title, blame in outcome.plain.items()
    }
    return Finding(
        fault=fault,
        detected=not outcome.aligned,
        exact=not outcome.aligned and blamed(fault, outcome.blame),
        named="" if outcome.blame is None else outcome.blame.name,
        reason=outcome.reason,
        plain=plain,
        seconds=time.perf_counter() - start,
    )


def blamed(fault: Fault, blame: Blame | None) -> bool:
    return blame is not None and fault.blames(blame.module, blame.name)


def by_experiment(faults: Iterable[Fault]) -> dict[str, list[Fault]]:
    grouped: dict[str, list[Fault]] = {}
    for fault in faults:
        grouped.setdefault(fault.experiment, []).append(fault)
    return grouped


def examine_all(faults: Iterable[Fault], make: Callable[[str], Experiment], notify: Notify) -> Iterator[Finding]:
    """Every fault in its experiment; after those of an experiment the candidate must be as it was.

    Raises:
        RuntimeError: a candidate without fault is not aligned, before the first fault or after the last.
    """
    for name, group in by_experiment(faults).items():
        experiment = make(name)
        clean = check_clean(experiment, f"{name}, before any fault")
        for fault in group:
            finding = examine(fault, experiment, clean)
            verdict = "exact" if finding.exact else "FOUND ELSEWHERE" if finding.detected else "MISSED"
            notify(f"{name}: {fault.name}: {verdict} ({finding.named}) {finding.seconds:.1f} s")
            yield finding
        check_clean(experiment, f"{name}, after its faults")


def check_clean(experiment: Experiment, when: str) -> Outcome:
    outcome = experiment.run()
    if not outcome.aligned:
        raise RuntimeError(f"without a fault the comparison must be aligned ({when}). Found: {outcome.reason}")
    return outcome


def chosen(only: Iterable[str] = ()) -> list[Fault]:
    """All faults, or those whose name, family or experiment holds one of these texts."""
    wanted = list(only)
    return [
        fault
        for fault in FAULTS.values()
        if not wanted or any(text in f"{fault.name}|{fault.family}|{fault.experiment}" for text in wanted)
    ]
