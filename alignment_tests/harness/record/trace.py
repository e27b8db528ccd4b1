"""A trace: the named arrays of one run, in order, on disk as safetensors with a manifest, read one at a time.

Names are ``phase/module.path#call/slot``. An array that occurs under several names (a container returns what its last
child returned) is stored once.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment_tests.harness.record import bfloat16
from alignment_tests.harness.record.nested import Structure, is_plain

Array = npt.NDArray[Any]
FORMAT = 1
PHASES = (
    "input",
    "activation",
    "loss",
    "assignment",
    "grad_activation",
    "grad_parameter",
    "parameter",
    "buffer",
    "momentum",
    "ema",
    "prediction",
)
SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
BF16 = "BF16"
DTYPES = {short: name for name, short in SAFETENSORS_NAMES.items()} | {BF16: bfloat16.NAME}
ARRAYS = "arrays.safetensors"
# Bytes kept for the header of the array file: it is written last, when all names are known. Enough for 12,000 arrays.
HEADER_ROOM = 1 << 21


@dataclass(frozen=True)
class Call:
    """One call of one module, in the order in which calls returned.

    ``form`` and ``output_form`` are the nests of arguments and output as they were, with marks in place of tensors (see
    ``forms``), where the structures do not say all. They are not written to disk.
    """

    module: str  # path, "" for the root
    number: int
    kind: str  # class name
    arguments: Structure  # of (args, kwargs)
    output: Structure
    written: tuple[str, ...] = ()  # slots of arguments that the call changed in place
    form: Any = field(default=None, compare=False, repr=False)
    output_form: Any = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.module}#{self.number}"

    @property
    def repeatable(self) -> bool:
        """Whether its arguments can be made again, at least by the side that made them."""
        return self.form is not None or is_plain(self.arguments)

    def to_json(self) -> dict[str, Any]:
        names = [f.name for f in fields(self) if f.name not in ("form", "output_form")]
        return {name: getattr(self, name) for name in names}


@dataclass
class Trace:
    """Named arrays of one run.

    Reading by name returns the array; nothing is held, so a trace may be larger than memory.
    """

    folder: Path
    entries: dict[str, str] = field(default_factory=dict)  # name -> name of the stored array
    calls: list[Call] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    _places: dict[str, tuple[str, tuple[int, ...], int]] | None = None

    def names(self, phase: str | None = None) -> list[str]:
        """All names, or those of one phase, in order."""
        return [name for name in self.entries if phase is None or name.split("/", 1)[0] == phase]

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __getitem__(self, name: str) -> Array:
        if name not in self.entries:
            raise KeyError(f"no array {name!r} in the trace {self.folder}")
        kind, shape, offset = self._layout()[self.entries[name]]
        path = self.folder / ARRAYS
        # Read, not mapped: mapped pages count as memory of this process for as long as the trace is open.
        stored = "uint16" if kind == bfloat16.NAME else kind
        array = np.fromfile(path, dtype=stored, count=math.prod(shape), offset=offset).reshape(shape)
        return bfloat16.from_bits(array) if kind == bfloat16.NAME else array

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, which is not read for it."""
        return self._layout()[self.entries[name]][1]

    def _layout(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """dtype, shape and place in the file of every stored array."""
        if self._places is None:
            with (self.folder / ARRAYS).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
                size = file.seek(0, os.SEEK_END) - 8 - length
            needed = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if size < needed:
                raise ValueError(f"trace {self.folder} is cut short: its arrays take {needed} bytes, {size} are there")
            self._places = {
                name: (DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
                for name, entry in header.items()
            }
        return self._places

    def same(self, name: str, other: str) -> bool:
        """Whether two names stand for one stored array."""
        return self.entries[name] == self.entries[other]

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> Trace:
        """Open a trace folder.

        Raises:
            FileNotFoundError: there is no trace in ``folder``.
            ValueError: its manifest is none, or of another format.
        """
        path = Path(folder)
        manifest = path / "manifest.json"
        if not manifest.is_file() or not (path / ARRAYS).is_file():
            raise FileNotFoundError(f"`folder` must hold a trace (manifest.json, {ARRAYS}). Received: {path}")
        try:
            data = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"`folder` must hold a trace, but {manifest} is not JSON: {error}") from None
        found = data.get("format") if isinstance(data, dict) else data
        if found != FORMAT or "entries" not in data:
            raise ValueError(f"trace {path} must be of format {FORMAT}. Received: {found}")
        return Trace(path, data["entries"], [_call(**call) for call in data["calls"]], data["meta"])


def _call(written: Sequence[str] = (), **rest: Any) -> Call:
    """From JSON, which has no tuples; traces of older versions do not tell what was written."""
    return Call(**rest, written=tuple(written))


class NoRoomError(OSError):
    """The disk that a trace goes to is full."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say where there is no room, and what to do: the system's own error names no file.

    Raises:
        NoRoomError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = "free some, or take a folder on a larger disk (TMPDIR is where temporary ones go)"
        raise NoRoomError(f"no room on the disk for the arrays of one run, in {folder}: {advice}") from error


class TraceWriter:
    """Writes a trace while it grows: each array goes straight to disk.

    The safetensors library wants all arrays at once; a whole model's activations would have to wait in memory. So this
    writes the same format in one pass: room for the header, the arrays, then the header.
    """

    def __init__(self, folder: str | os.PathLike[str], meta: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trace = Trace(self.folder, meta=dict(meta or {}))
        self._header: dict[str, Any] = {}
        self._offset = 0
        self._temporary = self.folder / ".arrays.safetensors.part"
        self._file = self._temporary.open("wb")
        self._file.seek(8 + HEADER_ROOM)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            with suppress(NoRoomError), disk_errors(self.folder):  # what waited to be written; said once already
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def put(self, name: str, array: Array) -> None:
        """Store an array.

        Raises:
            ValueError: the name was used before, its phase is unknown, or the dtype cannot be stored.
            NoRoomError: the disk is full.
        """
        self._claim(name)
        narrow = bfloat16.type_name(array) == bfloat16.NAME
        kind = BF16 if narrow else SAFETENSORS_NAMES.get(str(array.dtype))
        if kind is None:
            raise ValueError(f"`array` of {name} must be one of {sorted(SAFETENSORS_NAMES)}. Received: {array.dtype}")
        data = bfloat16.to_bits(array) if narrow else np.ascontiguousarray(array)
        with disk_errors(self.folder):
            self._file.write(data.reshape(-1).view(np.uint8).data)
        end = self._offset + data.nbytes
        self._header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [self._offset, end]}
        self._offset = end
        self.trace.entries[name] = name

    def alias(self, name: str, existing: str, values: Callable[[], Array] | None = None) -> None:
        """Another name for a stored array (``values``, for sinks that keep none, is not needed here)."""
        self._claim(name)
        self.trace.entries[name] = self.trace.entries[existing]

    def _claim(self, name: str) -> None:
        if name in self.trace.entries:
            raise ValueError(f"`name` must be new. Received twice: {name}")
        if name.split("/", 1)[0] not in PHASES:
            raise ValueError(f"`name` must start with a phase, one of {PHASES}. Received: {name}")

    def close(self) -> Trace:
        """Finish both files and return the trace, ready to read.

        Raises:
            ValueError: more names than the header has room for.
            NoRoomError: the disk is full.
        """
        manifest = {
            "format": FORMAT,
            "meta": self.trace.meta,
            "entries": self.trace.entries,
            "calls": [call.to_json() for call in self.trace.calls],
        }
        text = json.dumps(manifest, ensure_ascii=False)  # first: if this fails, an older trace stays whole
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > HEADER_ROOM:
            raise ValueError(f"too many names for one trace: the header takes {len(header)} of {HEADER_ROOM} bytes")
        with disk_errors(self.folder):
            self._file.seek(0)
            self._file.write(HEADER_ROOM.to_bytes(8, "little") + header.ljust(HEADER_ROOM))
            self._file.close()
            (self.folder / "manifest.json").unlink(missing_ok=True)  # an older one does not describe the new arrays
            os.replace(self._temporary, self.folder / ARRAYS)
            part = self.folder / ".manifest.json.part"
            part.write_text(text, encoding="utf-8")
            os.replace(part, self.folder / "manifest.json")
        return self.trace
