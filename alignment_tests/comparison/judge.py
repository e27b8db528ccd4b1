"""The verdict on two frameworks' runs, and whether their timings can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alignment_tests.comparison import conditions, results
from alignment_tests.comparison.evidence import Evidence
from alignment_tests.comparison.findings import AGAINST, HOLDS, NOTE, OPEN, UNPROVEN, Finding, holds, unproven
from alignment_tests.comparison.records import JITTOR, TITLES, TORCH, Test

ALIGNED, NOT_ALIGNED, NOT_PROVEN = "aligned", "not aligned", "not proven"

CHECKS = (
    conditions.records,
    conditions.finite,
    conditions.config,
    conditions.options,
    conditions.data,
    conditions.parameters,
    conditions.structure,
    conditions.batches,
    conditions.schedule,
    conditions.start,
    conditions.weights,
    results.curves,
    results.recomputed,
    results.learned,
    results.interval,
    results.layers,
    results.steps,
)
MACHINE = ("device", "gpu", "processor", "cores", "threads")  # of an environment, in which timings must agree


@dataclass(frozen=True)
class Judgement:
    """Attributes:
    verdict: ALIGNED, NOT_ALIGNED or NOT_PROVEN.
    findings: of every check, in the order of CHECKS.
    speed: why timings cannot be compared, or one finding that they can.
    """

    verdict: str
    findings: tuple[Finding, ...]
    speed: tuple[Finding, ...]

    @property
    def reasons(self) -> list[Finding]:
        """Why the verdict is not "aligned", evidence against it first; checks left open only where nothing else is."""
        found = [one for outcome in (AGAINST, UNPROVEN) for one in self.findings if one.outcome == outcome]
        return found or [one for one in self.findings if one.outcome == OPEN]

    @property
    def speed_stated(self) -> bool:
        return all(one.outcome == HOLDS for one in self.speed)


def judge(evidence: Evidence) -> Judgement:
    """Every check, each with at least one finding. Only "holds" and what informs make "aligned"."""
    findings = tuple(finding for check in CHECKS for finding in check(evidence))
    outcomes = {finding.outcome for finding in findings}
    verdict = NOT_ALIGNED if AGAINST in outcomes else ALIGNED if outcomes <= {HOLDS, NOTE} else NOT_PROVEN
    return Judgement(verdict, findings, tuple(speed(evidence)))


def speed(evidence: Evidence) -> Iterator[Finding]:
    """Whether latencies may be set in relation: measured alike, synchronised, on one machine, without compiling."""
    reasons = list(_speed(evidence))
    yield from reasons or [holds("speed", "comparable")]


def _speed(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.tests:
        yield unproven("speed", "no_records")
        return
    pair = evidence.tests[0].pair
    shared = pair.jittor.by_batch_size("speed").keys() & pair.torch.by_batch_size("speed").keys()
    if not shared:
        yield unproven("speed", "no_records")
    for name, test in pair.sides.items():
        entries = [entry for size, entry in test.by_batch_size("speed").items() if size in shared]
        for fact, wrong in (
            ("unsynchronised", any(entry.get("synchronized") is not True for entry in entries)),
            ("cold", any(not entry.get("warmup") or not entry.get("rounds") for entry in entries)),
            ("compiled", any(entry.get("kernels_compiled") for entry in entries)),
            ("null", any(not entry.get("latency_ms") for entry in entries)),
        ):
            if wrong:
                yield unproven("speed", fact, side=TITLES[name])
    differ = _machine(pair.sides[JITTOR], pair.sides[TORCH])
    if differ:
        yield unproven("speed", "machine", shown="; ".join(differ))


def _machine(mine: Test, other: Test) -> list[str]:
    """What differs of the machine and of the model's form."""
    sides = [
        {**{key: test.environment[key] for key in MACHINE if key in test.environment}, "form": test.model.get("form")}
        for test in (mine, other)
    ]
    shared = sides[0].keys() & sides[1].keys()
    a, b = ({key: side[key] for key in shared} for side in sides)
    return list(conditions.differences(a, b))
