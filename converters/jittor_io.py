"""State of a Jittor model to and from numpy. Imported only when a Jittor model is at hand, so Jittor is loaded by then.

Jittor's own loader is not used: it skips missing keys in silence, changes dtypes, and freezes what it assigns under
``no_grad``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jittor as jt
import numpy as np

from converters.state import Array, State, TensorSpec, verify


def own_vars(module: Any) -> Iterator[tuple[str, Any]]:
    """The Vars that are attributes of this very module, without private (``_x``) and non-persistent ones."""
    attributes = module.params if isinstance(module, jt.nn.ParameterList) else vars(module)
    for name, value in attributes.items():
        if isinstance(value, jt.Var) and not str(name).startswith("_") and getattr(value, "persistent", True):
            yield str(name), value


def named_vars(model: Any) -> dict[str, Any]:
    """Every Var of the model by its PyTorch-like name (``a.b.0.weight``), modules in the order of their attributes."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, var in own_vars(module):
            found[f"{path}.{name}" if path else name] = var
    return found


def read_specs(model: Any) -> dict[str, TensorSpec]:
    """Shape, dtype and owner of each Var, in the order of ``named_vars``. Jittor has no 0-d: a scalar is ``(1,)``."""
    variables = named_vars(model)
    first: dict[int, str] = {}
    for name, var in variables.items():
        first.setdefault(id(var), name)
    return {name: TensorSpec(tuple(var.shape), dtype_of(name, var), first[id(var)]) for name, var in variables.items()}


def dtype_of(name: str, var: Any) -> np.dtype[Any]:
    try:
        return np.dtype(str(var.dtype))
    except TypeError:
        raise TypeError(f"`model` must be of a dtype that numpy has. Received: {var.dtype} under {name!r}") from None


def read_state(model: Any) -> State:
    """Copies of all Vars: exact dtypes and shapes, in the order of ``named_vars``."""
    return {name: np.array(var.numpy(), dtype_of(name, var), order="C") for name, var in named_vars(model).items()}


def write_state(model: Any, arrays: Mapping[str, Array]) -> None:
    """Set the named Vars in place, bit for bit, then read them back and check.

    Each Var stays as trainable as it was: Jittor gives a Var the flag of what is assigned, and freezes what is made
    under ``no_grad``, so the assignment runs with gradients on and frozen Vars are frozen again. 64-bit stays 64-bit.

    Args:
        model: a ``jittor.Module``.
        arrays: as ``match_states`` returns them: known names, equal shapes and dtypes.

    Raises:
        RuntimeError: the model does not hold the written bits.
    """
    variables = named_vars(model)
    with jt.flag_scope(auto_convert_64_to_32=0, no_grad=0, amp_reg=0):
        for name, array in arrays.items():
            var = variables[name]
            frozen = var.is_stop_grad()
            var.assign(np.array(array, order="C"))
            if frozen:
                var.stop_grad()
    verify(arrays, read_state(model))


def read_slots(optimizer: Any) -> dict[str, State]:
    """Copies of what an optimizer of ``jt_impl.optim`` carries along, as ``TrainingState.slots`` describes it."""
    slots: dict[str, State] = optimizer.state_dict()["slots"]
    return slots


def write_slots(optimizer: Any, slots: Mapping[str, State]) -> None:
    """Let the optimizer go on from such slots, bit for bit. Names and shapes must fit: see ``match_training_state``."""
    optimizer.load_state_dict({**optimizer.state_dict(), "slots": slots})


def to_array(var: Any) -> Array:
    """A copy in numpy."""
    return np.array(var.numpy(), order="C")
