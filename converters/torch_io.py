"""State of a PyTorch model to and from numpy. Imported only when a PyTorch model or file is at hand."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from converters.optimizer_state import FRESH, fresh
from converters.state import Array, State, TensorSpec, verify


def named_tensors(model: Any) -> dict[str, Any]:
    """The model's own parameters and persistent buffers by name, in the order of its ``state_dict``.

    Raises:
        TypeError: an entry is no tensor (``get_extra_state``) or of a dtype that numpy lacks.
    """
    tensors = dict(model.state_dict(keep_vars=True))
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"`model` must hold tensors only. Received: a {type(tensor).__name__} under {name!r}")
        if tensor.dtype == torch.bfloat16:
            raise TypeError(f"`model` must be of a dtype that numpy has. Received: bfloat16 under {name!r}")
    return tensors


def read_specs(model: Any) -> dict[str, TensorSpec]:
    """Shape, dtype and owner of each entry of ``model.state_dict()``, in its order."""
    tensors = named_tensors(model)
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {
        name: TensorSpec(tuple(tensor.shape), np.dtype(str(tensor.dtype).removeprefix("torch.")), first[id(tensor)])
        for name, tensor in tensors.items()
    }


def read_state(model: Any) -> State:
    """Copies of all parameters and persistent buffers: exact dtypes and shapes, in the order of ``state_dict``."""
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in named_tensors(model).items()}


def write_state(model: Any, arrays: Mapping[str, Array]) -> None:
    """Set the named tensors in place, bit for bit, then read them back and check.

    Args:
        model: a ``torch.nn.Module``; ``requires_grad`` and device of its tensors stay.
        arrays: as ``match_states`` returns them: known names, equal shapes and dtypes.

    Raises:
        RuntimeError: the model does not hold the written bits.
    """
    tensors = named_tensors(model)
    with torch.no_grad():
        for name, array in arrays.items():
            tensors[name].copy_(torch.from_numpy(array.copy()))
    verify(arrays, read_state(model))


def dump_state(state: Mapping[str, Array]) -> bytes:
    """The bytes of a ``.pt`` file whose ``torch.load`` gives the state as an ``OrderedDict`` of tensors."""
    buffer = io.BytesIO()
    torch.save(OrderedDict((name, torch.from_numpy(array.copy())) for name, array in state.items()), buffer)
    return buffer.getvalue()


# PyTorch's names of optimizer slots.
NATIVE = {"momentum": "momentum_buffer", "first": "exp_avg", "second": "exp_avg_sq", "step": "step"}


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """ "sgd", "adam" or "adamw".

    Raises:
        TypeError: it is another one.
    """
    name = type(optimizer).__name__.lower()
    if name not in FRESH:
        raise TypeError(f"`optimizer` must be one of {sorted(FRESH)}. Received: {type(optimizer).__name__}")
    return name


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[tuple[int, str, torch.Tensor]]:
    """Number in ``state_dict``, name and tensor of each parameter, in order.

    Raises:
        TypeError: the optimizer was made of parameters without names.
    """
    found = []
    for packed, group in zip(optimizer.state_dict()["param_groups"], optimizer.param_groups, strict=True):
        if "param_names" not in group:
            raise TypeError("`optimizer` must know its parameters' names: give it (name, parameter) pairs")
        found += list(zip(packed["params"], group["param_names"], group["params"], strict=True))
    return found


def read_slots(optimizer: torch.optim.Optimizer) -> dict[str, State]:
    """Copies of what the optimizer carries from update to update, as ``TrainingState.slots`` describes it."""
    kind, state = optimizer_name(optimizer), optimizer.state_dict()["state"]
    slots: dict[str, State] = {slot: {} for slot in FRESH[kind]}
    for number, name, parameter in optimizer_parameters(optimizer):
        if not parameter.requires_grad:
            continue
        like = to_array(parameter)
        for slot in slots:
            value = state.get(number, {}).get(NATIVE[slot])
            array = fresh(kind, slot, like) if value is None else to_array(value)
            slots[slot][name] = array.astype(np.int64) if slot == "step" else array
    return slots


def write_slots(optimizer: torch.optim.Optimizer, slots: Mapping[str, State]) -> None:
    """Let the optimizer go on from such slots, bit for bit. Names and shapes must fit: see ``match_training_state``."""
    packed = optimizer.state_dict()
    packed["state"] = {
        number: {NATIVE[slot]: _slot_tensor(slot, named[name]) for slot, named in slots.items()}
        for number, name, parameter in optimizer_parameters(optimizer)
        if parameter.requires_grad
    }
    optimizer.load_state_dict(packed)


def _slot_tensor(slot: str, array: Array) -> torch.Tensor:
    return torch.tensor(float(array)) if slot == "step" else torch.from_numpy(array.copy())


def to_array(tensor: torch.Tensor) -> Array:
    """A copy in numpy."""
    return np.array(tensor.detach().cpu().numpy(), order="C")
