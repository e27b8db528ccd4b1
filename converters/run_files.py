"""What a training run reads and writes of weights and state, for either framework."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import converters
from converters.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from converters.errors import CheckpointError
from converters.optimizer_state import read_training_state, write_training_state
from converters.state import State, is_counter, to_single
from fixtures.config import GoldYoloConfig

LOG = logging.getLogger("gold_yolo.train")  # that of the training commands
LEAST_SHARE = 0.5  # of the model's keys that a checkpoint must hold to be taken for one of this model


@dataclass(frozen=True)
class Start:
    """Weights to begin with.

    Attributes:
        state: by key, the whole model's.
        kept: keys that the checkpoint lacks, or has in another shape; they keep their first values.
        unused: keys of the checkpoint that the model lacks.
    """

    state: State
    kept: tuple[str, ...]
    unused: tuple[str, ...]


def fine_tune(first: State, checkpoint: Checkpoint, path: Path) -> Start:
    """First values of a model, replaced by what a checkpoint holds under equal names and shapes.

    So weights for 80 classes start a model of 10, whose class predictions stay fresh, as in the public recipe.

    Raises:
        CheckpointError: fewer than half of the model's keys are in the checkpoint: it is of another size or model.
    """
    given, _ = to_single(checkpoint.state)
    taken = {name for name, array in first.items() if name in given and given[name].shape == array.shape}
    wanted = [name for name in first if not is_counter(name)]
    found = [name for name in wanted if name in taken]
    if len(found) < LEAST_SHARE * len(wanted):
        what = f"{checkpoint.config_name}, {checkpoint.num_classes} classes" if checkpoint.config_name else "unknown"
        raise CheckpointError(
            f"`--weights` must be of this model: {path} ({what}) has only {len(found)} of its {len(wanted)} arrays"
        )
    state = {name: given[name].astype(array.dtype) if name in taken else array for name, array in first.items()}
    kept = tuple(name for name in wanted if name not in taken)
    unused = tuple(sorted(set(given) - set(first)))
    LOG.info("%s: %d arrays taken, %d keep first values, %d unused", path, len(found), len(kept), len(unused))
    return Start(state, kept, unused)


def read_weights(path: Path) -> Checkpoint:
    """Weights in float32, and what is known of them.

    ``.pt`` and ``.pkl`` hold nothing but weights. A run writes a ``.safetensors`` file beside them; where it holds the
    same weights, what it says of image size, class names and epoch is taken.

    Raises:
        CheckpointError, FileNotFoundError: see ``converters.read_checkpoint``.
    """
    checkpoint, beside = read_checkpoint(path), path.with_suffix(".safetensors")
    meta = dict(checkpoint.meta)
    if beside != path and beside.is_file():
        other = read_checkpoint(beside)
        same = list(other.state) == list(checkpoint.state) and all(
            np.array_equal(array, checkpoint.state[name]) for name, array in other.state.items()
        )
        meta |= other.meta if same else {}
    state, _ = to_single(checkpoint.state)
    return replace(checkpoint, state=state, meta=meta)


class TrainerFiles(ABC):
    """The part of ``fixtures.runs.train.Backend`` that is the same for both frameworks.

    Attributes:
        suffix: of weights in the framework's own form.
    """

    suffix: str

    def __init__(self, trainer: Any, config: GoldYoloConfig) -> None:
        self.trainer, self.config = trainer, config

    @property
    def position(self) -> int:
        return int(self.trainer.step_number)

    def weights(self) -> State:
        """The averaged ones where there are any."""
        own = converters.read_state(self.trainer.model)
        return own if self.trainer.ema is None else own | self.trainer.ema.state()

    def save_state(self, path: Path, meta: Mapping[str, Any]) -> None:
        write_training_state(path, replace(self.trainer.state(), meta=meta))

    def load_state(self, path: Path) -> None:
        self.trainer.load_state(read_training_state(path))

    def save_weights(self, folder: Path, name: str, meta: Mapping[str, Any]) -> None:
        """``name.safetensors``, which also says what the weights are, and ``name`` with the framework's own suffix."""
        facts = {**meta, "head": self.config.head.kind, "reg_max": self.config.head.reg_max}
        checkpoint = Checkpoint(self.weights(), self.config.name, self.config.num_classes, facts)
        for end in (self.suffix, ".safetensors"):
            write_checkpoint(folder / f"{name}{end}", checkpoint)

    def largest_batch(self, below: int) -> int:
        low, high = 0, below
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle) else (low, middle)
        return low

    @abstractmethod
    def fits(self, images: int) -> bool:
        """Whether a step of so many images fits; nothing of it is kept."""


def parameters_by_part(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Numbers of parameters below each first name of the keys: backbone, neck, detect."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        part = name.partition(".")[0]
        found[part] = found.get(part, 0) + math.prod(shape)
    return found


def detector_facts(
    config: GoldYoloConfig, shapes: Mapping[str, tuple[int, ...]], trainable: Sequence[str], form: str
) -> dict[str, Any]:
    """``model`` of the test results: parameters, and that the weights are those of the configuration.

    Loading was strict, so names and shapes agree; counts are told for the other framework's results to be held against.
    """
    by_part = parameters_by_part(shapes)
    return {
        "parameters": sum(by_part.values()),
        "trainable": sum(parameters_by_part({name: shapes[name] for name in trainable}).values()),
        "by_part": by_part,
        "form": form,
        "structure": "ok",
        "head": config.head.kind,
    }
