"""Read and write checkpoint files: ``.safetensors``, PyTorch's ``.pt`` and ``.pth``, Jittor's ``.pkl``.

Reading needs neither framework and runs nothing of the file. Writing needs PyTorch for ``.pt`` only.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from converters.errors import CheckpointError
from converters.find_state import FoundState, find_state, identify
from converters.pickle_constructors import NumpyArray, TorchTensor
from converters.state import State, check_state
from converters.torch_zip import TorchArchive
from converters.unpickle import read_pickle
from fixtures.config import GoldYoloConfig, load_config

T = TypeVar("T")
JITTOR_MARK = b"HCAJSLHD"  # ends a file of jittor.save, after the pickle and the SHA-1 of it


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what they belong to.

    Attributes:
        state: arrays by key, in the model's order, in the file's dtypes.
        config_name: ``gold_yolo_n`` and so on; None when the weights are of another model.
        num_classes: None when the weights are of another model.
        meta: facts such as ``epoch``, ``head``, ``norms`` (``[eps, momentum, count]`` rows). Values fit JSON.
        ignored: what a file held beside the weights, ``{name: reason}``.
    """

    state: State
    config_name: str | None = None
    num_classes: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    def require_config(self) -> tuple[str, int]:
        """``(config_name, num_classes)``, or a ``CheckpointError`` when the weights are not of a known model."""
        if self.config_name is None or self.num_classes is None:
            raise CheckpointError("the checkpoint does not tell its config: its shapes are not those of a Gold-YOLO")
        return self.config_name, self.num_classes

    def model_config(self) -> GoldYoloConfig:
        """The configuration to build the model from: size, classes, head and DFL as the weights' shapes tell them.

        Raises:
            CheckpointError: the weights are not of a known model.
        """
        name, classes = self.require_config()
        use_dfl = self.meta["reg_max"] > 0 if "reg_max" in self.meta else None
        return load_config(name, classes, use_dfl=use_dfl, head=self.meta.get("head", "plain"))


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read weights from a file, by its suffix: ``.safetensors``, ``.pt``, ``.pth`` or ``.pkl``.

    ``.pt`` may be a state dict or a public training checkpoint with whole pickled modules; of these, ``ema`` is taken
    if it is set, else ``model``. Arrays keep the file's dtype (float16 stays float16; bfloat16 becomes float32).

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        UnsafePickleError: the file names code that a checkpoint does not need; nothing was run.
        CheckpointError: the file is cut off, damaged, or no checkpoint of that suffix.
    """
    path = Path(path)
    reader = by_suffix(READERS, path)
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file. Received a directory: {path}")
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file. Received: {path}")
    try:
        return reader(path)
    except CheckpointError as error:
        message = str(error)
        raise type(error)(message if str(path) in message else f"{path}: {message}") from error


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the form its suffix names. The file appears whole or not at all.

    Only ``.safetensors`` keeps ``config_name``, ``num_classes`` and ``meta``. ``.pt`` and ``.pkl`` are plain state
    dicts, as ``torch.load`` and ``jittor.load`` give them; reading them infers these from the shapes.

    Raises:
        CheckpointError: the suffix is unknown.
        FileNotFoundError: the folder does not exist.
        TypeError: ``state`` holds other things than arrays, or ``meta`` does not fit JSON.
    """
    path = Path(path)
    dump = by_suffix(DUMPERS, path)
    check_state(checkpoint.state)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path` must lie in an existing folder. Received: {path}")
    data = dump(checkpoint)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def by_suffix(table: Mapping[str, T], path: Path) -> T:
    if path.suffix not in table:
        raise CheckpointError(f"`path` must end in {', '.join(table)}. Received: {path}")
    return table[path.suffix]


def read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"`path` is a cut off or damaged .safetensors file ({error}): {path}") from error
    try:
        order = json.loads(metadata.get("order", "[]"))
        meta = json.loads(metadata.get("meta", "{}"))
        classes = int(metadata["num_classes"]) if "num_classes" in metadata else None
    except ValueError as error:
        raise CheckpointError(f"the metadata of `path` is malformed ({error}): {path}") from error
    if isinstance(order, list) and sorted(map(str, order)) == sorted(state):
        state = {name: state[name] for name in order}
    name, inferred_classes, facts = identify(state)
    return Checkpoint(
        state,
        metadata.get("config_name", name),
        inferred_classes if classes is None else classes,
        facts | meta,
    )


def read_torch(path: Path) -> Checkpoint:
    with TorchArchive(path) as archive:
        return finish(find_state(archive.tree()), archive)


def read_jittor(path: Path) -> Checkpoint:
    data = path.read_bytes()
    if data.endswith(JITTOR_MARK):
        data, digest = data[:-28], data[-28:-8]
        if hashlib.sha1(data).digest() != digest:
            raise CheckpointError(f"`path` is damaged: its checksum does not match its content: {path}")
    elif data[:1] != b"\x80":
        raise CheckpointError(f"`path` must be a pickle as jittor.save writes it, but starts with {data[:4]!r}: {path}")
    return finish(find_state(read_pickle(data)), None)


def finish(found: FoundState, archive: TorchArchive | None) -> Checkpoint:
    """The checkpoint of a harvest, its arrays read."""
    state: State = {}
    for name, record in found.records.items():
        if isinstance(record, NumpyArray) and record.array is not None:
            state[name] = record.array.copy()
        elif isinstance(record, TorchTensor) and archive is not None:
            state[name] = archive.array(record)
        else:
            raise CheckpointError(f"the array under {name!r} was never filled")
    widened = sum(isinstance(r, TorchTensor) and r.storage.kind == "BFloat16Storage" for r in found.records.values())
    if widened:
        found.meta["widened"] = f"{widened} arrays bfloat16 -> float32"
    config_name, num_classes, facts = identify(state)
    return Checkpoint(state, config_name, num_classes, facts | found.meta, found.ignored)


def dump_safetensors(checkpoint: Checkpoint) -> bytes:
    """safetensors sorts its tensors, so the order of the keys is kept as metadata."""
    metadata = {"order": json.dumps(list(checkpoint.state)), "meta": json.dumps(dict(checkpoint.meta))}
    if checkpoint.config_name is not None:
        metadata["config_name"] = checkpoint.config_name
    if checkpoint.num_classes is not None:
        metadata["num_classes"] = str(checkpoint.num_classes)
    arrays = {name: np.array(array, order="C") for name, array in checkpoint.state.items()}
    data: bytes = safetensors.numpy.save(arrays, metadata)
    return data


def dump_torch(checkpoint: Checkpoint) -> bytes:
    from converters import torch_io

    return torch_io.dump_state(checkpoint.state)


def dump_jittor(checkpoint: Checkpoint) -> bytes:
    """As ``jittor.save`` does with numpy arrays; Vars would lose 64 bits when ``jittor.load`` makes them again."""
    data = pickle.dumps({name: np.array(array, order="C") for name, array in checkpoint.state.items()}, 4)
    return data + hashlib.sha1(data).digest() + JITTOR_MARK


READERS: dict[str, Callable[[Path], Checkpoint]] = {
    ".safetensors": read_safetensors,
    ".pt": read_torch,
    ".pth": read_torch,
    ".pkl": read_jittor,
}
DUMPERS: dict[str, Callable[[Checkpoint], bytes]] = {
    ".safetensors": dump_safetensors,
    ".pt": dump_torch,
    ".pth": dump_torch,
    ".pkl": dump_jittor,
}
