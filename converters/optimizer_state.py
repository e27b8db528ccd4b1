"""Everything that a training run goes on from, in neither framework's terms, and its file.

A run may stop in one framework and go on in the other: weights, optimizer slots, average, partial sums of gradients and
counters are numpy arrays under the names of the parameters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from converters.errors import CheckpointError
from converters.state import LoadResult, State, TensorSpec, match_states

FORMAT = "gold-yolo-alignment/training-state/1"
POSITION = ("step", "last_update", "ema_updates", "optimizer_steps", "loss_scale", "loss_scale_successes")

# Slots by optimizer, and what stands in one where the framework has made none yet. Both frameworks go on from it as
# they begin: -0.0 * momentum + g is g bit for bit, as PyTorch's first velocity is.
FRESH: dict[str, dict[str, float]] = {
    "sgd": {"momentum": -0.0},
    "adam": {"first": 0.0, "second": 0.0, "step": 0},
    "adamw": {"first": 0.0, "second": 0.0, "step": 0},
}


@dataclass(frozen=True)
class TrainingState:
    """A training run between two steps.

    Attributes:
        weights: parameters and buffers by state key, as ``converters.read_state`` gives them.
        slots: by kind and parameter name: "momentum" for SGD; "first", "second" (float) and "step" (int64, no
            dimensions) for Adam and AdamW. Every trainable parameter of the optimizer has them, frozen ones have none.
        ema: the average by state key, floating entries only; empty if none is kept.
        gradients: sum since the last update, of the parameters that had a gradient; empty right after an update.
        position: ``step`` to come, ``last_update`` (step number, -1 for none), ``ema_updates``, ``optimizer_steps``,
            ``loss_scale`` (exponent of two) and ``loss_scale_successes`` (updates since it last moved).
        optimizer: "sgd", "adam" or "adamw".
        meta: facts to keep beside, such as the configuration's name. Values fit JSON.
    """

    weights: State
    slots: Mapping[str, State]
    ema: State
    gradients: State
    position: Mapping[str, int]
    optimizer: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizer not in FRESH:
            raise ValueError(f"`optimizer` must be one of {sorted(FRESH)}. Received: {self.optimizer!r}")
        if set(self.slots) != set(FRESH[self.optimizer]):
            raise ValueError(
                f"`slots` of {self.optimizer} must be {sorted(FRESH[self.optimizer])}. Received: {sorted(self.slots)}"
            )
        if set(self.position) != set(POSITION) or any(type(value) is not int for value in self.position.values()):
            raise ValueError(f"`position` must hold the integers {POSITION}. Received: {dict(self.position)}")

    def arrays(self) -> State:
        """All arrays under ``part/name``, where a slot's part is ``slots.KIND``."""
        parts = {"weights": self.weights, "ema": self.ema, "gradients": self.gradients}
        parts |= {f"slots.{slot}": named for slot, named in self.slots.items()}
        return {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}

    def with_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> TrainingState:
        """The same with the arrays of such a mapping in place of the own ones."""
        parts: dict[str, State] = {}
        for key, array in arrays.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = array
        return replace(
            self,
            weights=parts.get("weights", {}),
            ema=parts.get("ema", {}),
            gradients=parts.get("gradients", {}),
            slots={slot: parts.get(f"slots.{slot}", {}) for slot in FRESH[self.optimizer]},
        )


def match_training_state(
    state: TrainingState, own: TrainingState, trainable: Collection[str]
) -> tuple[TrainingState, LoadResult]:
    """``state`` ready to be written where ``own`` came from, in its dtypes and order.

    Strict as ``match_states``: arrays are at most widened, and only ``num_batches_tracked`` may be missing or too many.

    Args:
        state: what to go on from.
        own: the present state, for its names, shapes and dtypes.
        trainable: parameters that may have a partial gradient.

    Raises:
        StateMismatchError: names are missing or unexpected, or shapes or dtypes differ; all are listed.
        ValueError: it is of another optimizer.
    """
    if state.optimizer != own.optimizer:
        raise ValueError(f"`state` must be of the optimizer {own.optimizer!r}. Received: {state.optimizer!r}")
    like = own.arrays() | {f"gradients/{name}": own.weights[name] for name in trainable if name in state.gradients}
    like = {key: array for key, array in like.items() if not is_stale(key, state.gradients)}
    match = match_states(state.arrays(), {key: TensorSpec(a.shape, a.dtype, key) for key, a in like.items()})
    result = LoadResult(tuple(match.arrays), match.ignored, match.converted)
    return state.with_arrays(match.arrays), result


def is_stale(key: str, gradients: State) -> bool:
    """Whether an own array is a partial gradient that the new state has not."""
    part, _, name = key.partition("/")
    return part == "gradients" and name not in gradients


def fresh(optimizer: str, slot: str, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A slot of a parameter that was never updated."""
    value = FRESH[optimizer][slot]
    return np.array(value) if slot == "step" else np.full(like.shape, value, like.dtype)


def write_training_state(path: str | os.PathLike[str], state: TrainingState) -> None:
    """Write one ``.safetensors`` file; it appears whole or not at all.

    Raises:
        CheckpointError: the suffix is another.
        FileNotFoundError: the folder does not exist.
        TypeError: ``meta`` does not fit JSON.
    """
    path = Path(path)
    check_suffix(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path` must lie in an existing folder. Received: {path}")
    arrays = {name: np.array(array, order="C") for name, array in state.arrays().items()}
    metadata = {
        "format": FORMAT,
        "optimizer": state.optimizer,
        "position": json.dumps(dict(state.position)),
        "order": json.dumps(list(arrays)),
        "meta": json.dumps(dict(state.meta)),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_training_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read what ``write_training_state`` wrote, bit for bit and in order.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        CheckpointError: the file is cut off, damaged, or holds no training state (weights alone are none).
    """
    path = Path(path)
    check_suffix(path)
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file. Received a directory: {path}")
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file. Received: {path}")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"`path` is a cut off or damaged .safetensors file ({error}): {path}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"`path` must be a training state ({FORMAT}). Received: {metadata.get('format')!r}: {path}"
        )
    try:
        return assemble(arrays, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the metadata of `path` is malformed ({error!r}): {path}") from error


def assemble(arrays: State, metadata: Mapping[str, str]) -> TrainingState:
    order = json.loads(metadata["order"])
    if sorted(order) != sorted(arrays):
        raise ValueError("`order` does not list the arrays of the file")
    optimizer = metadata["optimizer"]
    slots: dict[str, State] = {slot: {} for slot in FRESH[optimizer]}
    position, meta = json.loads(metadata["position"]), json.loads(metadata["meta"])
    empty = TrainingState({}, slots, {}, {}, position, optimizer, meta)
    parts = {"weights", "ema", "gradients", *(f"slots.{slot}" for slot in slots)}
    unknown = sorted({name.partition("/")[0] for name in order} - parts)
    if unknown:
        raise ValueError(f"unknown parts {unknown}")
    return empty.with_arrays({name: arrays[name] for name in order})


def check_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"`path` must end in .safetensors. Received: {path}")
