"""Losses of two trainings: how far their curves are apart, and where their steps part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from alignment_tests.comparison.pairs import Pair
from alignment_tests.comparison.records import LOSSES, Training

Floats = npt.NDArray[np.float64]

WINDOWS = 10  # of a run: a distance is a mean over at least a tenth of its epochs
FURTHEST = 2.0  # distance of a curve that is zero from one that is not
PARTED = 0.01  # relative difference of the total loss at which two runs are said to have parted


@dataclass(frozen=True)
class Distance:
    """One loss, over all candidates that have a partner of their seed.

    Attributes:
        nearest: of a candidate to the nearest seed of the reference, the largest; ``seed`` is that candidate's. Once
            rounding has grown, a run is as far from the partner of its seed as from any other seed.
        partner: that candidate's distance to its partner.
        spread: largest between two of the ``seeds`` of the reference whose curves are finite; None for fewer than two.
    """

    loss: str
    nearest: float
    partner: float
    seed: int
    spread: float | None
    seeds: int


def by_epoch(training: Training, loss: str) -> Floats:
    """(epochs,) means of a loss; NaN where there is none."""
    return as_floats([epoch["losses"].get(loss) for epoch in training.epochs])


def as_floats(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def distance(a: Floats, b: Floats) -> float:
    """Largest, over windows of a tenth of the run, of mean |a - b| / mean of both.

    The mean over a window lets a single lucky or unlucky epoch pass; the largest window keeps a difference that only
    the end of a run has. Runs of unequal length are compared as far as both go.
    """
    length = min(a.size, b.size)
    if not length:
        return math.nan
    a, b = a[:length], b[:length]
    window = np.ones(math.ceil(length / WINDOWS))
    apart = np.convolve(np.abs(a - b), window, "valid")
    size = np.convolve((np.abs(a) + np.abs(b)) / 2, window, "valid")
    return float(np.divide(apart, size, out=np.zeros_like(apart), where=apart != 0).max())


def distances(pairs: Sequence[Pair[Training]], references: Sequence[Training]) -> tuple[Distance, ...]:
    """Of each loss that any of the runs has; empty without pairs."""
    if not pairs:
        return ()
    found = []
    for loss in LOSSES:
        sides = [(by_epoch(pair.jittor, loss), by_epoch(pair.torch, loss)) for pair in pairs]
        if loss != "total" and not any(side.any() for both in sides for side in both):
            continue  # a configuration without this loss
        known = [curve for training in references if np.isfinite(curve := by_epoch(training, loss)).all()]
        apart = [distance(*both) for both in sides]
        nearest = [
            min([own, *(distance(mine, curve) for curve in known)]) if math.isfinite(own) else math.nan
            for own, (mine, _) in zip(apart, sides, strict=True)
        ]
        worst = int(np.argmax([math.inf if math.isnan(one) else one for one in nearest]))
        seed = pairs[worst].seed or 0
        found.append(Distance(loss, nearest[worst], apart[worst], seed, spread_of(known), len(known)))
    return tuple(found)


def spread_of(curves: Sequence[Floats]) -> float | None:
    """Largest distance between any two; None for fewer than two."""
    return max((distance(a, b) for a, b in combinations(curves, 2)), default=None)


def step_differences(pair: Pair[Training]) -> Floats:
    """(steps,) relative difference of the total loss at each step, as far as both runs go; NaN where one has none."""
    mine, other = (as_floats(run.steps["total"]) for run in (pair.jittor, pair.torch))
    length = min(mine.size, other.size)
    apart, size = np.abs(mine[:length] - other[:length]), np.abs(other[:length])
    return np.divide(apart, size, out=np.where(apart == 0, 0.0, np.inf), where=size > 0)


def parted_at(differences: Floats) -> int | None:
    """First step whose total losses differ by more than PARTED; None if none does."""
    beyond = np.flatnonzero(differences > PARTED)
    return int(beyond[0]) if beyond.size else None
