"""What an experiment finds: the harness's verdict, and what ``numpy.allclose`` would have said of the same arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment_tests.harness import Report

Array = npt.NDArray[Any]
# What people usually do: only the final outputs, or every array in the order of execution; rtol = atol.
PLAIN: dict[str, tuple[bool, float]] = {
    "final outputs, 1e-3": (True, 1e-3),
    "final outputs, 1e-5": (True, 1e-5),
    "every array, 1e-5": (False, 1e-5),
}


@dataclass(frozen=True)
class Blame:
    """The first divergence, by the name of an array and, where it is one of a module's, the module's path."""

    name: str
    module: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Of one run of the candidate.

    Attributes:
        aligned: the harness found no difference.
        blame: what it names first, None if aligned.
        reason: in its words.
        plain: by the names of ``PLAIN``: None if allclose, else the first array that is not.
    """

    aligned: bool
    blame: Blame | None
    reason: str
    plain: Mapping[str, Blame | None] = field(default_factory=dict)


def of_report(report: Report, plain: Mapping[str, Blame | None]) -> Outcome:
    first = report.first_divergence
    blame = None if first is None else Blame(first.name, first.module)
    return Outcome(report.aligned, blame, report.problems[0] if report.problems else "", plain)


def plain_outcomes(
    actual: Mapping[str, Array], expected: Mapping[str, Array], is_final: Callable[[str], bool]
) -> dict[str, Blame | None]:
    """``allclose`` on the candidate's and the reference's float32 arrays, in the order of ``expected``."""
    found: dict[str, Blame | None] = {}
    for title, (final, tolerance) in PLAIN.items():
        names = (name for name in expected if is_final(name) or not final)
        found[title] = first_apart(actual, expected, names, tolerance)
    return found


def first_apart(
    actual: Mapping[str, Array], expected: Mapping[str, Array], names: Iterable[str], tolerance: float
) -> Blame | None:
    for name in names:
        ours, theirs = actual.get(name), expected[name]
        if ours is None or ours.shape != theirs.shape or not close(ours, theirs, tolerance):
            return Blame(name, module_of(name))
    return None


def close(ours: Array, theirs: Array, tolerance: float) -> bool:
    return np.allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance)


def module_of(name: str) -> str | None:
    """Of ``activation/a.b#0/0`` and ``buffer/a.b.weight``; other arrays belong to none."""
    phase, _, rest = name.partition("/")
    if phase == "activation":
        return rest.split("#")[0]
    return rest.rpartition(".")[0] if phase in ("parameter", "buffer") else None
