"""State of a PyTorch model to and from numpy. Imported only when a PyTorch model or file is at hand."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

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
