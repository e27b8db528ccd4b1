"""Strict mapping between a numpy state dict and what a model holds. No framework is known here.

A state maps the keys of the public checkpoints (``backbone.stem.rbr_dense.conv.weight``) to arrays. Nothing is
transposed, broadcast or reshaped, and an array is only ever widened (float16 -> float32 -> float64), which keeps its
value. Where Jittor has no such array, its own is as good: (1,) for (), and integers of another width if they hold the
same values. Each change is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.errors import StateMismatchError

Array = npt.NDArray[Any]
State = dict[str, Array]

COUNTER = "num_batches_tracked"
COUNTER_UNUSED = "the model keeps no such counter (Jittor's batch norm has none); it is not needed to compute outputs"
COUNTER_ABSENT = "the state holds no counter (Jittor keeps none); the model's own value stays"


@dataclass(frozen=True)
class TensorSpec:
    """What a model holds under a name; ``owner`` is the first name of the same tensor: its own unless tied."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: str


@dataclass(frozen=True)
class Match:
    """Arrays ready to be written, in the model's order, and what was not taken or not taken as it was."""

    arrays: State
    ignored: Mapping[str, str]
    converted: Mapping[str, str]


@dataclass(frozen=True)
class LoadResult:
    """What ``load_into`` did: names loaded, ``{name: reason}`` ignored, ``{name: "float16 -> float32"}`` converted."""

    loaded: tuple[str, ...]
    ignored: Mapping[str, str]
    converted: Mapping[str, str]


def bits_equal(a: Array, b: Array) -> bool:
    """Same dtype, same shape, same bits (so 0.0 and -0.0 differ, and equal NaNs do not)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat_a, flat_b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return bool(np.array_equal(flat_a, flat_b))


def widen(array: Array, dtype: np.dtype[Any]) -> Array:
    """``array`` in a dtype of the same kind that holds each of its values exactly.

    The way back is checked, since a thread that flushes subnormals to zero would change them here in silence. Integers
    may become narrower where their values are: Jittor's have 32 bits.

    Raises:
        ValueError: the dtype is of another kind, is narrower, or a value changed.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        integers = array.astype(dtype)
        if not np.array_equal(integers, array):
            raise ValueError(f"expected {dtype}, received {array.dtype} with values that it does not hold")
        return integers
    if array.dtype.kind != dtype.kind or not np.can_cast(array.dtype, dtype, casting="safe"):
        raise ValueError(f"expected {dtype}, received {array.dtype}, which does not widen to it without loss")
    wide = array.astype(dtype)
    if not same_values(wide.astype(array.dtype.newbyteorder("=")), array.astype(array.dtype.newbyteorder("="))):
        raise ValueError(f"expected {dtype}; widening from {array.dtype} changed a value (is flush-to-zero on?)")
    return wide


def same_values(a: Array, b: Array) -> bool:
    """Bit equality, except that a NaN may be any NaN (a conversion sets its quiet bit)."""
    if a.dtype.kind != "f":
        return bits_equal(a, b)
    both_nan = np.isnan(a) & np.isnan(b)
    zero = np.zeros((), a.dtype)
    return bits_equal(np.where(both_nan, zero, a), np.where(both_nan, zero, b))


def is_counter(name: str) -> bool:
    return name.rsplit(".", 1)[-1] == COUNTER


def check_state(state: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` unless ``state`` maps strings to numpy arrays."""
    if not isinstance(state, Mapping):
        raise TypeError(f"`state` must map names to numpy arrays. Received: {type(state).__name__}")
    for name, array in state.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError(
                f"`state` must map names to numpy arrays. Received: a {type(array).__name__} under {name!r}"
            )


def match_states(state: Mapping[str, Array], specs: Mapping[str, TensorSpec]) -> Match:
    """Map every key of ``state`` to the model's tensor of that name, or list it as ignored with the reason.

    A tied tensor may come under some of its names only, as files that store each tensor once have it.

    Args:
        state: arrays by key.
        specs: the model's tensors by key, in its order.

    Raises:
        StateMismatchError: keys are missing or unexpected, or shapes or dtypes differ; all are listed, sorted.
    """
    check_state(state)
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "shape": [], "dtype": [], "tied": []}
    arrays: State = {}
    ignored: dict[str, str] = {}
    converted: dict[str, str] = {}
    tied: dict[str, list[str]] = {}
    for name, spec in specs.items():
        tied.setdefault(spec.owner, []).append(name)
    for name in state.keys() - specs.keys():
        if is_counter(name):
            ignored[name] = COUNTER_UNUSED
        else:
            problems["unexpected"].append(f"{name} {state[name].shape} {state[name].dtype}")
    for name, spec in specs.items():
        if name in state:
            place(name, state[name], spec, arrays, converted, problems)
        elif is_counter(name):
            ignored[name] = COUNTER_ABSENT
        elif (twin := next((other for other in tied[spec.owner] if other in state), None)) is not None:
            ignored[name] = f"the model ties it to {twin}, which the state holds"
        else:
            problems["missing"].append(f"{name} {spec.shape} {spec.dtype}")
    if any(problems.values()):
        raise StateMismatchError(problems)
    return Match(arrays, dict(sorted(ignored.items())), converted)


def place(
    name: str,
    array: Array,
    spec: TensorSpec,
    arrays: State,
    converted: dict[str, str],
    problems: dict[str, list[str]],
) -> None:
    """Put one array into ``arrays``, or a line into ``problems``."""
    if array.shape != spec.shape and {array.shape, spec.shape} != {(), (1,)}:
        problems["shape"].append(f"{name}: expected {spec.shape}, received {array.shape}")
        return
    try:
        arrays[name] = widen(array, spec.dtype).reshape(spec.shape)
    except ValueError as error:
        problems["dtype"].append(f"{name}: {error}")
        return
    changes = [(array.shape, spec.shape), (array.dtype, spec.dtype)]
    if any(before != after for before, after in changes):
        converted[name] = ", ".join(f"{before} -> {after}" for before, after in changes if before != after)
    owner = arrays.get(spec.owner)
    if owner is not None and not bits_equal(owner, arrays[name]):
        problems["tied"].append(f"{name}: the model ties it to {spec.owner}, but their arrays differ")


def verify(written: Mapping[str, Array], read_back: Mapping[str, Array]) -> None:
    """Raise ``RuntimeError`` unless the model now holds each written array bit for bit."""
    wrong = sorted(name for name, array in written.items() if not bits_equal(array, read_back[name]))
    if wrong:
        raise RuntimeError(f"the model does not hold what was written to it: {', '.join(wrong)}")


def to_single(state: Mapping[str, Array]) -> tuple[State, dict[str, str]]:
    """All floating arrays as float32, each value kept exactly, and ``{name: "float16 -> float32"}``.

    Raises:
        ValueError: a float64 array holds a value that float32 does not.
    """
    single = np.dtype(np.float32)
    result: State = {}
    converted: dict[str, str] = {}
    for name, array in state.items():
        result[name] = array
        if array.dtype.kind == "f" and array.dtype != single:
            with np.errstate(over="ignore"):
                result[name] = array.astype(single)
            if not same_values(result[name].astype(array.dtype), array):
                raise ValueError(f"`{name}` holds {array.dtype} values that float32 does not hold exactly")
            converted[name] = f"{array.dtype} -> float32"
    return result, converted


def to_half(state: Mapping[str, Array]) -> tuple[State, dict[str, str]]:
    """All floating arrays rounded to float16, and for each how far its worst value moved.

    Raises:
        ValueError: a finite value is beyond float16 (65504).
    """
    result: State = {}
    converted: dict[str, str] = {}
    for name, array in state.items():
        result[name] = array
        if array.dtype.kind == "f" and array.dtype != np.float16:
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if np.any(np.isinf(half) & np.isfinite(array)):
                raise ValueError(
                    f"`{name}` holds values beyond float16: its greatest magnitude is {np.abs(array).max():g}"
                )
            result[name] = half
            with np.errstate(invalid="ignore"):
                moved = np.nan_to_num(np.abs(half.astype(array.dtype) - array))
            converted[name] = f"{array.dtype} -> float16, off by at most {moved.max(initial=0.0):.2g}"
    return result, converted
