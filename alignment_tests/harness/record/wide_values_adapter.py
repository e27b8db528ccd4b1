"""What Jittor's operators are given in a float64 run in the place of narrower values.

Jittor's C++ takes Python's floats, lists of them and numpy's arrays as float32. Numbers that float32 holds exactly stay
as they are, so that kernels keep their constants.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jittor as jt
import jittor_core
import numpy as np

WIDE = "float64"
NARROW = ("float16", "float32", "bfloat16", "half", "float")
OPS: dict[str, Any] = {n: f for n, f in vars(jittor_core.ops).items() if isinstance(f, types.BuiltinFunctionType)}
OPS["ternary_out_hint"] = jittor_core.ternary_out_hint
METHODS: dict[str, Any] = dict(vars(jt.Var))
FUNCTIONS: dict[str, Any] = {"array": jt.array}


_active = False


def active() -> bool:
    return _active


@contextmanager
def wide() -> Iterator[None]:
    """Inside, operators are wide, where they are installed."""
    global _active
    before, _active = _active, True
    try:
        yield
    finally:
        _active = before


def widened(value: Any) -> Any:
    """What an operator is to be given in the place of ``value``; ``value`` itself where nothing needs changing."""
    kind = type(value)
    if kind is jt.Var:
        return OPS["float64"](value) if is_narrow(value.dtype) else value
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if ctypes.c_float(value).value == value else as_float64(value)
    if kind is str:
        return WIDE if value in NARROW else value
    if kind is list or kind is tuple:
        if _holds_floats(value):
            return as_float64(value)
        made = [widened(item) for item in value]
        return value if all(new is old for new, old in zip(made, value, strict=True)) else kind(made)
    if isinstance(value, (np.ndarray, np.floating)):
        return as_float64(value) if value.dtype.kind == "f" else value
    return WIDE if _names_narrow(value) else value


def as_float64(value: Any) -> Any:
    """A number, a list or an array as a float64 Var; Jittor's own default is float32."""
    before, jt.flags.auto_convert_64_to_32 = jt.flags.auto_convert_64_to_32, 0
    try:
        return OPS["array"](np.ascontiguousarray(value, np.float64))
    finally:
        jt.flags.auto_convert_64_to_32 = before


def is_narrow(dtype: Any) -> bool:
    return bool(dtype.dsize() < 8 and dtype.is_float())


def _holds_floats(value: Any) -> bool:
    if type(value) in (list, tuple):
        return any(_holds_floats(item) for item in value)
    return isinstance(value, (float, np.floating)) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")


def _names_narrow(value: Any) -> bool:
    """Whether it is a narrow dtype in another form that Jittor takes: jt.float32, np.float32, float."""
    if type(value) is jt.NanoString:
        return is_narrow(value)
    if isinstance(value, np.dtype):
        return value.kind == "f" and value.itemsize < 8
    return callable(value) and getattr(value, "__name__", "") in NARROW
