"""bfloat16 in numpy, which has no such type: float32 arrays that hold the same numbers and are marked.

The mark is metadata of the dtype. It goes along with copies and views and is lost in ``astype``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NAME = "bfloat16"
MARKED = np.dtype(np.float32, metadata={NAME: True})


def marked(array: Array) -> Array:
    """The float32 array, marked as one that was bfloat16."""
    return array.view(MARKED)


def type_name(array: Array) -> str:
    """Of the numbers in an array: "float32", "int64", "bfloat16", ..."""
    return NAME if array.dtype.metadata is not None and NAME in array.dtype.metadata else str(array.dtype)


def cast(array: Array, name: str) -> Array:
    """The floating array in the type of that name, rounded to the nearest number."""
    if name != NAME:
        return array.astype(name)
    bits = array.astype(np.float32).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    return from_bits((np.where(np.isnan(array), bits | np.uint32(1 << 22), nearest) >> 16).astype(np.uint16))


def from_bits(bits: Array) -> Array:
    """The numbers whose upper halves, as uint16, are given."""
    return marked((bits.astype(np.uint32) << 16).view(np.float32))


def to_bits(array: Array) -> Array:
    """uint16 of the same shape, for a marked array."""
    return (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16).reshape(array.shape)
