"""What is kept of a tensor in place of its values, to find the same values on the other side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment_tests.harness.record.adapter import Array

LARGEST = 1 << 25  # elements; what is larger gets no signature
WIDTH = 1 << 12
COLUMNS = np.random.default_rng(0).uniform(-1.0, 1.0, WIDTH)
ROWS = np.random.default_rng(1).uniform(-1.0, 1.0, LARGEST // WIDTH + 1)


@dataclass(frozen=True)
class Signature:
    """A tensor as a few numbers, which do not depend on its shape, but for ``order``.

    ``mean``, ``size`` (of magnitudes) and ``rms`` are in units of ``largest``. Of x / (1 + |x|) there are the same, in
    which values of usual size show beside a mask's -1e9. Numbers that are not finite are counted and left out.
    """

    shape: tuple[int, ...]  # without ones: Jittor has no 0-d
    count: int
    special: tuple[int, int, int]  # NaN, inf, -inf
    largest: float
    mean: float
    size: float
    rms: float
    bounded: tuple[float, float, float]  # mean, size, rms
    order: tuple[float, float]  # weighted sums, of values and bounded values


def signature(array: Array) -> Signature:
    """Of an array of any shape and dtype."""
    shape = tuple(length for length in array.shape if length != 1)
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], -1)
    values = np.ravel(array).astype(np.float64)
    special = (int(np.isnan(values).sum()), int(np.isposinf(values).sum()), int(np.isneginf(values).sum()))
    if any(special):
        values = np.where(np.isfinite(values), values, 0.0)
    if not values.size:
        return Signature(shape, 0, special, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0), (0.0, 0.0))
    magnitudes = np.abs(values)
    largest = float(magnitudes.max())
    unit, bounded = values / (largest or 1.0), values / (1.0 + magnitudes)
    order = _ordered_sum(unit), _ordered_sum(bounded)
    return Signature(shape, values.size, special, largest, *_means(unit), _means(bounded), order)


def _means(values: Array) -> tuple[float, float, float]:
    return float(values.mean()), float(np.abs(values).mean()), float(np.sqrt(np.square(values).mean()))


def _ordered_sum(values: Array) -> float:
    """With fixed weights around zero, of which no two are equal: the product of one by row and one by column."""
    rows, rest = divmod(values.size, WIDTH)
    sums = values[: rows * WIDTH].reshape(rows, WIDTH) @ COLUMNS
    return float(sums @ ROWS[:rows] + values[rows * WIDTH :] @ COLUMNS[:rest] * ROWS[rows])
