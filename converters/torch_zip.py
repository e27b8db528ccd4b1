"""Read a ``.pt`` archive (of ``torch.save`` since PyTorch 1.6, or ``jittor.save``) with zipfile and numpy alone."""

from __future__ import annotations

import math
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.errors import CheckpointError
from converters.pickle_constructors import STORAGE_DTYPES, Storage, TorchTensor
from converters.state import Array
from converters.unpickle import Global, read_pickle

MAX_DIMENSIONS = 32  # of numpy 1
RESAVE = "Save it anew with PyTorch: torch.save(torch.load(path, weights_only=True), path)"


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, or a ``CheckpointError`` that says what the file is instead."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        raise CheckpointError(f"`path` is a .pt file of the form before PyTorch 1.6 (no zip archive): {path}. {RESAVE}")
    if start[:2] != b"PK":
        raise CheckpointError(
            f"`path` must be a zip archive as torch.save writes it, but starts with {start!r}: {path}"
        )
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise CheckpointError(f"`path` is a cut off or damaged zip archive ({error}): {path}") from error


class TorchArchive:
    """An open ``.pt`` file. Storages are read when a tensor needs them, and once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip = open_zip(path)
        self.storages: dict[Storage, Array] = {}
        entries = [name for name in self.zip.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(entries) != 1:
            raise CheckpointError(f"`path` must hold one data.pkl, but holds {len(entries)}: {path}")
        self.prefix = entries[0].removesuffix("data.pkl")
        if f"{self.prefix}constants.pkl" in self.zip.namelist():
            raise CheckpointError(f"`path` is a TorchScript program, not a checkpoint: {path}")
        self.order = self.read_order()

    def __enter__(self) -> TorchArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def read_order(self) -> Literal["<", ">"]:
        """``<`` or ``>``, by the entry ``byteorder``; archives without it were written on little-endian machines."""
        if f"{self.prefix}byteorder" not in self.zip.namelist():
            return "<"
        name = self.read("byteorder", 16).decode("ascii", "replace")
        if name not in ("little", "big"):
            raise CheckpointError(f"the entry `byteorder` must be little or big. Received: {name!r} in {self.path}")
        return "<" if name == "little" else ">"

    def read(self, name: str, most: int | None = None) -> bytes:
        """One entry. It must be stored uncompressed, as torch does, so that it cannot outgrow the file."""
        try:
            info = self.zip.getinfo(self.prefix + name)
            if info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"the entry `{name}` must not be compressed: {self.path}")
            if most is not None and info.file_size > most:
                raise CheckpointError(f"the entry `{name}` should have {most} bytes, has {info.file_size}: {self.path}")
            return self.zip.read(info)
        except KeyError:
            raise CheckpointError(f"the archive lacks its entry `{name}`: {self.path}") from None
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
            raise CheckpointError(f"the entry `{name}` is cut off or damaged ({error}): {self.path}") from error

    def tree(self) -> Any:
        """The pickled object as plain data; its tensors are ``TorchTensor`` references."""
        return read_pickle(self.read("data.pkl"), storage_reference)

    def storage(self, reference: Storage) -> Array:
        """A 1-D array of the storage's elements. bfloat16 is widened to float32, which holds it exactly."""
        if reference not in self.storages:
            dtype = np.dtype(STORAGE_DTYPES[reference.kind]).newbyteorder(self.order)
            expected = reference.numel * dtype.itemsize
            raw = self.read(f"data/{reference.key}", expected)
            if len(raw) != expected:
                raise CheckpointError(
                    f"the entry `data/{reference.key}` should have {expected} bytes, has {len(raw)}: {self.path}"
                )
            self.storages[reference] = elements_of(raw, reference.kind, dtype)
        return self.storages[reference]

    def array(self, tensor: TorchTensor) -> Array:
        """The tensor as a C-ordered array of its own. Its elements must lie inside of its storage."""
        shape, stride, flat = tensor.shape, tensor.stride, self.storage(tensor.storage)
        view = f"a tensor of shape {shape}, stride {stride}, offset {tensor.offset}"
        elements = math.prod(shape)
        if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS or elements > flat.size:
            raise CheckpointError(f"{view} does not fit its storage of {flat.size} elements: {self.path}")
        if not elements:
            return np.zeros(shape, flat.dtype)  # is_shape has bounded each size
        last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if last >= flat.size:
            raise CheckpointError(f"{view} reaches beyond its storage of {flat.size} elements: {self.path}")
        steps = tuple(step * flat.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, steps).copy(order="C")


def elements_of(raw: bytes, kind: str, dtype: np.dtype[Any]) -> Array:
    """The elements of a storage in native byte order; a bool is any byte but 0, a bfloat16 becomes a float32."""
    if kind == "BoolStorage":
        return np.frombuffer(raw, np.uint8) != 0
    flat = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="), copy=False)
    if kind == "BFloat16Storage":
        return (flat.astype(np.uint32) << 16).view(np.float32)
    return flat


def storage_reference(identity: Any) -> Storage:
    """The storage that a persistent id ``("storage", torch.FloatStorage, key, device, numel)`` stands for."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise CheckpointError("the pickle holds a reference that is no torch storage")
    _, kind, key, _, numel = identity
    if not isinstance(kind, Global) or kind.module != "torch" or kind.name not in STORAGE_DTYPES:
        raise CheckpointError(f"storages must be of {', '.join(STORAGE_DTYPES)}. Received: {kind!s:.60}")
    if not isinstance(key, str | int) or type(numel) is not int or not 0 <= numel < sys.maxsize:
        raise CheckpointError("the pickle holds a malformed reference to a storage")
    return Storage(kind.name, str(key), numel)
