"""Mixed precision by Jittor's AMP level, with the guards that it lacks.

Inside ``autocast`` every float operation gives half precision, as inside ``torch.autocast`` every module of this
network does. What needs float32 inside is computed there: on a CPU convolutions and matrix products, everywhere
exponentials and the statistics of batch norms (Jittor's own would square in half precision and keep half-precision
running statistics).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from jt_impl.runtime import jittor as jt

LEVEL = 4  # half precision for what is computed, float32 for parameters
HALF = "float16"


def autocast() -> AbstractContextManager[None]:
    """Scope in which the network runs in mixed precision."""
    scope: AbstractContextManager[None] = jt.flag_scope(auto_mixed_precision_level=LEVEL)
    return scope


def active() -> bool:
    return jt.flags.auto_mixed_precision_level >= LEVEL


def full() -> AbstractContextManager[None]:
    scope: AbstractContextManager[None] = jt.flag_scope(auto_mixed_precision_level=0)
    return scope


def is_float(value: Any) -> bool:
    return isinstance(value, jt.Var) and str(value.dtype) in ("float16", "bfloat16", "float32")


def in_single(function: Callable[..., Any]) -> Callable[..., Any]:
    """Computed in float32 from what came, the first result rounded to half; outside of ``autocast`` as it is."""

    @wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        if not active():
            return function(*arguments, **options)
        with full():
            result = function(*(a.float32() if is_float(a) else a for a in arguments), **options)
            several = isinstance(result, tuple | list)  # Jittor's functions return lists
            return (result[0].cast(HALF), *result[1:]) if several else result.cast(HALF)

    return guarded


def product(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of factors that are rounded to half: on a GPU by Jittor's half-precision kernels, on a CPU (where it has naive
    loops for half precision) in float32 on the rounded factors. How a GPU sums was not tried."""

    @wraps(function)
    def guarded(*arguments: Any) -> Any:
        if not active():
            return function(*arguments)
        with full():
            rounded = [a.cast(HALF) if is_float(a) else a for a in arguments]
            if not jt.flags.use_cuda:
                rounded = [a.float32() if is_float(a) else a for a in rounded]
            return function(*rounded).cast(HALF)

    return guarded
