"""Weights between PyTorch, Jittor and files, bit for bit.

    from converters import load_into, read_checkpoint, read_state, write_checkpoint

    checkpoint = read_checkpoint("gold_yolo_n.pt")      # also .safetensors and .pkl; nothing of the file is run
    result = load_into(model, checkpoint.state)         # a PyTorch or a Jittor model; strict
    print(result.ignored)                               # {name: reason}

``python -m converters SRC DST`` converts files.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from converters.errors import CheckpointError, StateMismatchError, UnsafePickleError
from converters.state import Array, LoadResult, State, match_states, to_half, to_single

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoadResult",
    "State",
    "StateMismatchError",
    "UnsafePickleError",
    "load_into",
    "read_checkpoint",
    "read_state",
    "to_half",
    "to_single",
    "write_checkpoint",
]

ADAPTERS = {"torch": "converters.torch_io", "jittor": "converters.jittor_io"}


def adapter(model: Any) -> Any:
    """The file for the model's framework, told by its base classes, so that the other framework is not imported."""
    for base in type(model).__mro__:
        framework = base.__module__.partition(".")[0]
        if base.__name__ == "Module" and framework in ADAPTERS:
            return importlib.import_module(ADAPTERS[framework])
    raise TypeError(f"`model` must be a torch.nn.Module or a jittor.Module. Received: {type(model).__name__}")


def read_state(model: Any) -> State:
    """Copies of the model's parameters and persistent buffers as numpy arrays by key, in the model's order.

    Raises:
        TypeError: the model is of neither framework, or holds bfloat16, which numpy lacks.
    """
    state: State = adapter(model).read_state(model)
    return state


def load_into(model: Any, state: Mapping[str, Array]) -> LoadResult:
    """Set all weights of a model of either framework, strictly and bit for bit.

    Every key is loaded or listed as ignored with the reason (only ``num_batches_tracked`` may be, and names that the
    model ties to one that the state holds). Arrays may be widened to the model's dtype (float16 -> float32 -> float64),
    never narrowed, reshaped or transposed, but for what Jittor has no array for: (1,) stands for (), and integers may
    have another width that holds their values. What was trainable stays trainable; what was not stays so.

    Raises:
        StateMismatchError: keys are missing or unexpected, or shapes or dtypes differ. Nothing was written.
        TypeError: ``model`` or ``state`` is something else.
    """
    framework = adapter(model)
    match = match_states(state, framework.read_specs(model))
    framework.write_state(model, match.arrays)
    return LoadResult(tuple(match.arrays), match.ignored, match.converted)
