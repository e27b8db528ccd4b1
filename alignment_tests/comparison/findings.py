"""What a check found, and every threshold. The reason of each stands in templates/strings.json under ``why_NAME``."""

from __future__ import annotations

from typing import Any, NamedTuple

HOLDS = "holds"
AGAINST = "against"  # evidence that the runs are not aligned
UNPROVEN = "unproven"  # something is missing, or the comparison proves nothing
NOTE = "note"  # informs only
OPEN = "open"  # not judged, since what it needs is missing; another finding says what

NEAR_ZERO = 0.01  # AP50
MARGIN = 0.01  # AP by which an interval may lie beside zero, where no seeds measure it
WIDEST = 0.1  # AP, half of an interval; further beside zero is evidence even where no seeds measure it
CURVES = 0.1  # distance of two loss curves, where no seeds measure it
LOOSEST = 0.3  # distance of two seeds of the reference, beyond which their spread measures nothing; evidence without
UNLIKELY = 0.05  # chance of a further seed of the reference to be beyond what counts as evidence
START, START_AMP = 1e-3, 1e-2  # relative difference of the first step's loss
RECOMPUTED = 1e-6  # AP
SCHEDULE = 1e-6  # relative difference of rates

THRESHOLDS = {
    "near_zero": NEAR_ZERO,
    "margin": MARGIN,
    "widest": WIDEST,
    "curves": CURVES,
    "loosest": LOOSEST,
    "unlikely": UNLIKELY,
    "start": START,
    "start_amp": START_AMP,
    "recomputed": RECOMPUTED,
    "schedule": SCHEDULE,
}

# Options in which two runs may differ, since losses and accuracy do not depend on them or another check covers them.
FREE_OPTIONS = (
    *("data", "device", "output_dir", "recipe", "resume", "save_interval", "weights", "workers"),
    *("speed_batches", "memory_batches", "warmup", "rounds", "samples"),  # of a test
)


class Finding(NamedTuple):
    """One outcome of one check. Its text is the string ``CHECK_FACT``, filled with ``values``."""

    check: str
    outcome: str
    fact: str
    values: dict[str, Any]


def holds(check: str, fact: str, **values: Any) -> Finding:
    return Finding(check, HOLDS, fact, values)


def against(check: str, fact: str, **values: Any) -> Finding:
    return Finding(check, AGAINST, fact, values)


def unproven(check: str, fact: str, **values: Any) -> Finding:
    return Finding(check, UNPROVEN, fact, values)


def note(check: str, fact: str, **values: Any) -> Finding:
    return Finding(check, NOTE, fact, values)


def not_judged(check: str) -> Finding:
    return Finding(check, OPEN, "open", {})
