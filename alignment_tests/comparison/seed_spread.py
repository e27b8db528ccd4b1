"""How far chance takes two trainings apart: what the reference's own seeds differ by, and what one more may add."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from alignment_tests.comparison.findings import AGAINST, HOLDS, UNLIKELY, UNPROVEN

DRAWS, SEED = 200_000, 0


@cache
def further_draw(seeds: int, chance: float, partners: int) -> float:
    """How far one more normal draw is from the nearest of the first ``partners`` of ``seeds``, in ranges of these.

    Few seeds underestimate their spread: with three, one further seed in three is further from a given one than any
    two of them are apart, and one in eight is that far from all of them.

    Args:
        chance: of being as far as what is returned.
    """
    drawn = np.random.default_rng(SEED).standard_normal((DRAWS, seeds + 1))
    known, further = drawn[:, :seeds], drawn[:, seeds:]
    away = np.abs(further - known[:, :partners]).min(axis=1)
    return float(np.quantile(away / np.ptp(known, axis=1), 1.0 - chance))


@dataclass(frozen=True)
class Allowed:
    """Up to ``limit`` a difference is what was seen between ``seeds`` seeds of the reference, or, with fewer than two,
    what a convention allows. Beyond ``bound`` it speaks against the candidate. Between the two, nobody can tell."""

    limit: float
    bound: float
    seeds: int

    def outcome(self, value: float) -> str:
        return HOLDS if value <= self.limit else UNPROVEN if value <= self.bound else AGAINST


def allowed(
    spread: float | None,
    seeds: int,
    *,
    least: float,
    convention: tuple[float, float],
    judged: int,
    most: float,
    partners: int | None = None,
) -> Allowed:
    """What a difference may be.

    Args:
        spread: range of the reference's seeds; None for fewer than two.
        least: a limit that is never too strict.
        convention: limit and bound where no seeds tell.
        most: the largest that the difference can be.
        judged: how many differences are judged; the chance that any of them is beyond is UNLIKELY.
        partners: the difference is that to the nearest of so many of the seeds; None takes all.
    """
    if spread is None:
        return Allowed(*convention, seeds)
    limit = max(least, spread)
    beyond = limit * max(1.0, further_draw(seeds, UNLIKELY / judged, partners or seeds))
    return Allowed(limit, min(beyond, most), seeds)
