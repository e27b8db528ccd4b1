"""The adapter for a model: PyTorch's or Jittor's, loaded only when a model of that framework is at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
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


def corrected_operators(adapter: Adapter) -> Callable[..., AbstractContextManager[dict[Any, Any]]] | None:
    """What puts right results in the place of Jittor's own; None for PyTorch, and where PyTorch is not installed."""
    if adapter.name != "jittor" or (sys.modules.get("torch") is None and find_spec("torch") is None):
        return None
    from alignment_tests.harness.record.corrected_jittor_adapter import corrected

    return corrected


def shown_operators(adapter: Adapter) -> tuple[Callable[..., AbstractContextManager[None]], Callable[..., Any] | None]:
    """What shows the functional operators that a model calls to a recorder, and what tells the parts of one."""
    if adapter.name == "jittor":
        from alignment_tests.harness.record import operators_jittor_adapter

        return operators_jittor_adapter.shown, None  # what its functions call is seen
    from alignment_tests.harness.record import operators_torch_adapter

    return operators_torch_adapter.shown, operators_torch_adapter.parts
