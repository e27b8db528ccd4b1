"""Inputs named on a command line: ``2x3x224x224``, ``int64:0..999:2x16``, ``mask=bool:2x16``, ``photo.npy``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
TYPES = (*FLOATS, *INTEGERS, "bool")
FORM = "must be [NAME=][TYPE[:LOW..HIGH]:]SHAPE or [NAME=]FILE.npy, such as 2x3x224x224 or int64:0..999:2x16"


@dataclass(frozen=True)
class Input:
    """One argument of the models: from a file, or drawn.

    Attributes:
        text: as it was given.
        name: of an argument by name; empty for a positional one.
        file: of the array, if there is one.
        dtype: of the array.
        low, high: bounds; whole numbers include the upper one. None draws from the standard normal distribution.
        shape: of the array.
    """

    text: str
    name: str = ""
    file: Path | None = None
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    shape: tuple[int, ...] = ()

    def array(self, random: np.random.Generator) -> Array:
        if self.file is not None:
            return np.asarray(np.load(self.file, allow_pickle=False))
        if self.dtype == "bool":
            return random.integers(0, 2, self.shape).astype(bool)
        if self.low is None or self.high is None:
            return random.standard_normal(self.shape).astype(self.dtype)
        if self.dtype in INTEGERS:
            return random.integers(int(self.low), int(self.high), self.shape, endpoint=True).astype(self.dtype)
        return random.uniform(self.low, self.high, self.shape).astype(self.dtype)


def input_of(text: str) -> Input:
    """Argument type.

    Raises:
        argparse.ArgumentTypeError: the text has another form, or there is no such file.
    """
    name, equals, rest = text.partition("=")
    name, rest = (name, rest) if equals else ("", text)
    if equals and not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{FORM}. Received: {text}")
    if rest.endswith(".npy"):
        return Input(text, name, checked_file(rest))
    *kind, size = rest.split(":")
    dtype = kind[0] if kind else "float32"
    sides = size.lower().split("x")
    if len(kind) > 2 or dtype not in TYPES or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{FORM}; types are {', '.join(TYPES)}. Received: {text}")
    bounds = limits(kind[1], dtype, text) if len(kind) == 2 else None
    if bounds is None and dtype in INTEGERS:
        raise argparse.ArgumentTypeError(f"needs bounds for whole numbers: {dtype}:0..9:{size}. Received: {text}")
    low, high = bounds or (None, None)
    return Input(text, name, None, dtype, low, high, tuple(int(side) for side in sides))


def checked_file(text: str) -> Path:
    file = Path(text).expanduser()
    try:
        np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be a .npy file of numbers: {error}. Received: {text}") from None
    return file


def limits(text: str, dtype: str, whole: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        found = (int(low), int(high)) if dtype in INTEGERS else (float(low), float(high))
    except ValueError:
        found = (1, 0)
    if not dots or dtype == "bool" or not found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"must have bounds LOW..HIGH of its type. Received: {whole}")
    if dtype in INTEGERS and not all(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max for value in found):
        raise argparse.ArgumentTypeError(f"must have bounds that {dtype} holds. Received: {whole}")
    return found


def drawn(inputs: list[Input], seed: int) -> tuple[list[Array], dict[str, Array]]:
    """Positional arguments and arguments by name, from one stream of random numbers."""
    random = np.random.Generator(np.random.Philox(seed))
    arrays = [(one.name, one.array(random)) for one in inputs]
    return [array for name, array in arrays if not name], {name: array for name, array in arrays if name}
