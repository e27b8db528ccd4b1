"""The adapter for a model: PyTorch's or Jittor's, loaded only when a model of that framework is at hand."""

from __future__ import annotations

import sys
from typing import Any

from alignment_tests.harness.record.adapter import Adapter


def adapter_for(model: Any) -> Adapter:
    """The adapter of the framework that ``model`` belongs to.

    Raises:
        TypeError: it is a module of neither PyTorch nor Jittor.
    """
    bases = {f"{base.__module__.split('.')[0]}.{base.__name__}" for base in type(model).__mro__}
    if "torch.Module" in bases and "torch" in sys.modules:
        from alignment_tests.harness.record.torch_adapter import TorchAdapter

        return TorchAdapter.of(model)
    if "jittor.Module" in bases and "jittor" in sys.modules:
        from alignment_tests.harness.record.jittor_adapter import JittorAdapter

        return JittorAdapter()
    raise TypeError(f"`model` must be a torch.nn.Module or a jittor.Module. Received: {type(model)}")
