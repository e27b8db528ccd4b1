"""The rules of a measurement, as functions of numbers alone: warm, how long, void, statistics, budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

WINDOW = 2  # rounds
SLOWEST_FALL = 0.95  # the best of a window is no longer much faster than the best of the window before
MOST_WARM_UP = 20  # rounds
ROUND_SECONDS, MOST_STEPS = 0.25, 50
LEAST_ROUNDS = 3  # of a duel that the budget cuts short


def is_warm(times: Sequence[float], kernels: Sequence[int]) -> bool:
    """Whether warm-up may end: times have stopped falling, and nothing was loaded in the last window.

    Args:
        times: seconds of each round of warm-up so far. The best of a window is taken, since noise only adds.
        kernels: loaded at the end of each of these rounds.
    """
    if len(times) < 2 * WINDOW:
        return False
    settled = min(times[-WINDOW:]) >= SLOWEST_FALL * min(times[-2 * WINDOW : -WINDOW])
    return settled and len(set(kernels[-WINDOW - 1 :])) == 1


def steps_per_round(fastest: float) -> int:
    """Steps of a round, so that the fastest contender's lasts ``ROUND_SECONDS`` where that takes few."""
    return max(1, min(MOST_STEPS, math.ceil(ROUND_SECONDS / max(fastest, 1e-9))))


def void_reason(times: Sequence[float], kernels_before: int, kernels_after: int, warm: bool) -> str | None:
    """Why the times count for nothing, or None."""
    if not times:
        return "no round was timed"
    if not warm:
        return f"times were still falling, or kernels still being loaded, after {MOST_WARM_UP} rounds of warm-up"
    if kernels_after != kernels_before:
        return f"{kernels_after - kernels_before} kernels were loaded in the timed rounds"
    return None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of one value that value three times."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(times: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Round by round, of rounds taken in turn.

    Raises:
        ValueError: the two have different numbers of rounds.
    """
    return [mine / other for mine, other in zip(times, baseline, strict=True)]


def may_start(left: float, earlier: Sequence[float]) -> bool:
    """Whether a case is begun.

    Args:
        left: seconds of the budget that remain.
        earlier: seconds that finished cases of this kind took; without any, the case is tried.
    """
    return left > max(earlier, default=0.0)


def may_go_on(left: float, done: int) -> bool:
    """Whether a duel takes a further round."""
    return left > 0 or done < LEAST_ROUNDS


def largest_that_fits(fits: Callable[[int], bool], first: int, most: int) -> tuple[int, int | None]:
    """The largest number that fits, to an eighth of itself, and the least that was seen not to; both found by trying.

    The first is 0 if not even ``first`` fits; the second is None if ``most`` fits.
    """
    good, bad, trial = 0, None, first
    while bad is None and good < most:
        good, bad = (trial, None) if fits(trial) else (good, trial)
        trial = min(2 * trial, most)
    while bad is not None and good and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good, bad
