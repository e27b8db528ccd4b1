"""What a checkpoint's pickle may build: arrays of torch and numpy, and plain containers, over numpy alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.errors import CheckpointError
from converters.state import Array

# torch storage classes and what a .pt archive holds for them. numpy has no bfloat16: its bits are read as uint16.
STORAGE_DTYPES = {
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
MAX_SIZE = 2**40
DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]")


@dataclass(frozen=True)
class Storage:
    """A reference to the entry ``data/<key>`` of a ``.pt`` archive, which holds ``numel`` elements."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class TorchTensor:
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class NumpyDtype:
    """A dtype of bool, integers or floats. numpy's own unpickling is avoided: it trusts sizes and flags of the file."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not DTYPE_CODE.fullmatch(code):
            raise CheckpointError(
                f"an array of dtype {str(code)[:40]!r} cannot hold weights: expected bool, int or float"
            )
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise CheckpointError(f"an array's byte order must be one of < > = |. Received: {str(order)[:40]!r}")
        self.dtype = self.dtype.newbyteorder(order)


class NumpyArray:
    """An array under construction: pickle makes it empty and gives it shape, dtype and bytes afterwards."""

    def __init__(self, array: Array | None = None) -> None:
        self.array = array

    def set_state(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.array = from_bytes(raw, dtype, shape, "F" if is_fortran else "C")


def from_bytes(raw: Any, dtype: Any, shape: Any, order: str) -> Array:
    """A native, C-ordered array from ``raw``, whose length must be what dtype and shape make it."""
    data = raw.encode("latin-1") if isinstance(raw, str) else raw  # str: written by Python 2
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes | bytearray) or not is_shape(shape):
        raise CheckpointError("a numpy array of the pickle is malformed")
    expected = math.prod(shape) * dtype.dtype.itemsize
    if len(data) != expected:
        raise CheckpointError(f"a numpy array of shape {shape} should have {expected} bytes, but has {len(data)}")
    flat = np.frombuffer(data, dtype.dtype)
    return np.array(flat.reshape(shape, order="F" if order == "F" else "C"), dtype.dtype.newbyteorder("="), order="C")


def is_shape(value: Any) -> bool:
    """A tuple of sizes, strides or offsets, each small enough for the product of numpy's dimensions to be checked."""
    return isinstance(value, tuple) and all(type(size) is int and 0 <= size <= MAX_SIZE for size in value)


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TorchTensor:
    if not isinstance(storage, Storage) or not is_shape((offset,)) or not is_shape(shape) or not is_shape(stride):
        raise CheckpointError("a tensor of the pickle is malformed")
    return TorchTensor(storage, offset, shape, stride)


def rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def reconstruct_array(*_: Any) -> NumpyArray:
    return NumpyArray()


def array_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
    return NumpyArray(from_bytes(raw, dtype, shape, str(order)))


def numpy_scalar(dtype: Any, raw: Any) -> Any:
    return from_bytes(raw, dtype, (), "C").item()


def jittor_var(array: Any) -> NumpyArray:
    if not isinstance(array, NumpyArray):
        raise CheckpointError(f"a Jittor Var must be built from an array. Received: {type(array).__name__}")
    return array


def encode_latin(text: Any, encoding: Any) -> bytes:
    """Bytes in a pickle of protocol 2 or lower."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("the pickle encodes text otherwise than pickled bytes do")
    return text.encode("latin-1")


def plain_dict(*arguments: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in arguments[0] if arguments else ():
        if not isinstance(key, str | int):
            raise CheckpointError(f"an OrderedDict's keys must be plain values. Received: {type(key).__name__}")
        found[key] = value
    return found


def plain_set(*arguments: Any) -> set[str]:
    items = list(arguments[0]) if arguments else []
    if not all(isinstance(item, str | int) for item in items):
        raise CheckpointError("a set's items must be plain values")
    return set(items)


def plain_tuple(*arguments: Any) -> tuple[Any, ...]:
    return tuple(arguments[0]) if arguments else ()


NUMPY_CORES = ("numpy.core", "numpy._core")

# Names whose call is replaced by a function of this file.
REBUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): plain_dict,
    ("builtins", "set"): plain_set,
    ("__builtin__", "set"): plain_set,
    ("torch", "Size"): plain_tuple,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("jittor", "Var"): jittor_var,
    ("jittor", "jittor_core.Var"): jittor_var,
    ("jittor_core", "Var"): jittor_var,
    ("numpy", "dtype"): NumpyDtype,
    ("_codecs", "encode"): encode_latin,
    **{(f"{core}.multiarray", "_reconstruct"): reconstruct_array for core in NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): numpy_scalar for core in NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): array_from_buffer for core in NUMPY_CORES},
}

# Names that a pickle may mention but not call.
DATA_NAMES = {
    ("numpy", "ndarray"),
    *(("torch", kind) for kind in STORAGE_DTYPES),
    *(("torch", dtype) for dtype in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")),
}
