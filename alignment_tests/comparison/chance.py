"""How far chance takes two trainings apart: what the reference's own seeds differ by, and what one more may add."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from alignment_tests.comparison.findings import AGAINST, HOLDS, UNLIKELY, UNPROVEN

DRAWS, SEED = 200_000, 0


@cache
def further_draw(seeds: int, chance: float) -> float:
    """By how many times the range of ``seeds`` normal draws one more draw is away from the first, with ``chance``.

    Few seeds underestimate their spread: with three, every third further seed is outside their range.
    """
    drawn = np.random.default_rng(SEED).standard_normal((DRAWS, seeds + 1))
    known = drawn[:, :seeds]
    return float(np.quantile(np.abs(drawn[:, seeds] - known[:, 0]) / np.ptp(known, axis=1), 1.0 - chance))


@dataclass(frozen=True)
class Allowed:
    """Up to ``limit`` a difference is what was seen between ``seeds`` seeds of the reference, or, with fewer than two,
    what a convention allows. Beyond ``bound`` it speaks against the candidate. Between the two, nobody can tell."""

    limit: float
    bound: float
    seeds: int

    def outcome(self, value: float) -> str:
        return HOLDS if value <= self.limit else UNPROVEN if value <= self.bound else AGAINST


def allowed(spread: float | None, seeds: int, *, least: float, convention: tuple[float, float], judged: int) -> Allowed:
    """What a difference may be.

    Args:
        spread: range of the reference's seeds; None for fewer than two.
        least: a limit that is never too strict.
        convention: limit and bound where no seeds tell.
        judged: how many differences are judged; the chance that any of them is beyond is UNLIKELY.
    """
    if spread is None:
        return Allowed(*convention, seeds)
    limit = max(least, spread)
    return Allowed(limit, limit * max(1.0, further_draw(seeds, UNLIKELY / judged)), seeds)
