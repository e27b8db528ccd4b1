"""From a contender's outcome to an entry of pytest-benchmark: its rounds, and what must stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from alignment_tests.bench import rounds
from alignment_tests.bench.cases import WORK
from alignment_tests.bench.interleaved import Measurement, Outcome
from fixtures.runs.record import surroundings

FORMAT = 1


class Replay:
    """A clock that shows seconds measured elsewhere, in the contender's own process."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now = seconds

    def hand_over(self, benchmark: Any, times: Sequence[float]) -> None:
        """Let pytest-benchmark measure these rounds by this clock, which starts each at zero: no digit is lost."""
        left = iter(times)

        def setup() -> tuple[tuple[float], dict[str, Any]]:
            self.now = 0.0
            return (next(left),), {}

        benchmark.pedantic(self.advance, setup=setup, rounds=len(times))


@cache
def machine() -> dict[str, Any]:
    """Processor, cores, system, versions and commit, asked once."""
    return surroundings()


def extra_info(measurement: Measurement, outcome: Outcome) -> dict[str, Any]:
    """All that the times are worth nothing without."""
    case, contender, ratios = measurement.case, outcome.contender, measurement.ratios(outcome)
    low, middle, high = rounds.quartiles(outcome.times)
    missing = {
        name: other.failed or other.void_reason(case.what == "cold-start")
        for name, other in measurement.outcomes.items()
        if other.failed or other.void_reason(case.what == "cold-start")
    }
    return {
        "format": FORMAT,
        "case": case.name,
        "what": case.what,
        "work": WORK[case.what],
        "contender": contender.name,
        "framework": "jittor" if contender.package == "jt_impl" else "pytorch",
        "setting": contender.setting,
        "config": case.config,
        "form": case.form if case.what == "inference" else None,
        "device": case.device,
        "precision": case.precision,
        "batch": case.batch,
        "image_size": case.side,
        "round_seconds": outcome.times,
        "steps_per_round": outcome.steps,
        "median_seconds": middle,
        "quartile_seconds": [low, high],
        "iqr_seconds": high - low,
        "baseline": contender.baseline if ratios else None,
        "ratios": ratios,
        "ratio": rounds.quartiles(ratios)[1] if ratios else None,
        "warm_up_rounds": len(outcome.warm_up),
        "warm_up_seconds": sum(outcome.warm_up),
        "kernels_before": outcome.kernels[0],
        "kernels_after": outcome.kernels[1],
        "memory_bytes": outcome.memory,
        "not_measured": missing,
        "load_average_before": measurement.load,
        "environment": {**machine(), **outcome.facts},
        "commit": machine()["commit"],
        **outcome.more,
    }
