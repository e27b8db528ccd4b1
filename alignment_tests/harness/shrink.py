"""Make the inputs of a diverging call small: fewer rows of every axis, then rounder numbers, as long as it diverges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from alignment_tests.harness.record.adapter import Array

Inputs = dict[str, Array]
DECIMALS = (0, 1, 2, 3)


def shrink(inputs: Mapping[str, Array], diverges: Callable[[Inputs], bool]) -> Inputs:
    """The smallest inputs found.

    Args:
        inputs: arrays by slot.
        diverges: whether a call on such inputs still diverges; False where it cannot be made.

    Raises:
        ValueError: the call does not diverge on the inputs as they are.
    """
    best = {slot: np.array(array) for slot, array in inputs.items()}
    if not diverges(best):
        raise ValueError("`inputs` must make the call diverge. Received: inputs on which both sides agree")
    while (smaller := next((cut for cut in cuts(best) if diverges(cut)), None)) is not None:
        best = smaller
    return next((rounded for rounded in roundings(best) if diverges(rounded)), best)


def cuts(inputs: Inputs) -> Iterator[Inputs]:
    """Smaller inputs: of every size that an axis has, the first or second half, then all but the last or first.

    Axes of one place and size are cut in all arrays at once, since they usually mean the same.
    """
    axes = {(axis, size) for array in inputs.values() for axis, size in enumerate(array.shape) if size > 1}
    for part in (
        lambda n: slice(0, n // 2),
        lambda n: slice(n // 2, n),
        lambda n: slice(0, n - 1),
        lambda n: slice(1, n),
    ):
        for axis, size in sorted(axes, key=lambda pair: -pair[1]):
            yield {slot: cut(array, axis, size, part(size)) for slot, array in inputs.items()}


def cut(array: Array, axis: int, size: int, part: slice) -> Array:
    if array.ndim <= axis or array.shape[axis] != size:
        return array
    return np.ascontiguousarray(array[(slice(None),) * axis + (part,)])


def roundings(inputs: Inputs) -> Iterator[Inputs]:
    for decimals in DECIMALS:
        yield {slot: np.round(a, decimals) if a.dtype.kind == "f" else a for slot, a in inputs.items()}
