"""Run a model once and hand every module's output (and, for the reference, its input) to a sink, in order."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from alignment_tests.harness.record.adapter import Adapter, Array, float_inputs
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.nested import Structure, flatten, unflatten
from alignment_tests.harness.record.temporary import Scratch
from alignment_tests.harness.record.trace import Call, Trace, TraceWriter


class Sink(Protocol):
    """Takes arrays as they come; must not keep a view of one after it returns."""

    def put(self, name: str, array: Array) -> None: ...

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        """``name`` is the same tensor as ``existing``; ``values()`` gives it once more."""


class Recorder:
    """Names the tensors that hooks see and gives each one to the sink once."""

    def __init__(self, adapter: Adapter, sink: Sink, *, with_inputs: bool) -> None:
        self.adapter, self.sink, self.with_inputs = adapter, sink, with_inputs
        self.calls: list[Call] = []
        self._counts: dict[str, int] = {}
        self._open: list[tuple[str, int, Structure, dict[str, tuple[Any, tuple[Any, ...]]]]] = []
        self._seen: dict[tuple[Any, ...], tuple[Any, str]] = {}

    def before(self, path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        tensors, structure = flatten({"args": list(args), "kwargs": kwargs}, self.adapter.is_tensor)
        given = {slot: (tensor, self.adapter.key(tensor)) for slot, tensor in tensors.items()}
        self._open.append((path, number, structure, given))
        if self.with_inputs:
            for slot, tensor in tensors.items():
                self._record(f"input/{path}#{number}/{slot}", tensor)

    def after(self, path: str, module: Any, output: Any) -> None:
        opened, number, arguments, given = self._open.pop()
        while opened != path:  # it raised, and the model went on without it
            opened, number, arguments, given = self._open.pop()
        written = tuple(slot for slot, (tensor, key) in given.items() if self.adapter.key(tensor) != key)
        tensors, structure = flatten(output, self.adapter.is_tensor)
        for slot, tensor in tensors.items():
            self._record(f"activation/{path}#{number}/{slot}", tensor)
        self.calls.append(Call(path, number, type(module).__name__, arguments, structure, written))

    def _record(self, name: str, tensor: Any) -> None:
        key = self.adapter.key(tensor)
        seen = self._seen.get(key)
        if seen is not None and self.adapter.alive(seen[0]):
            self.sink.alias(name, seen[1], lambda: self.adapter.to_numpy(tensor))
            return
        self.sink.put(name, self.adapter.to_numpy(tensor))
        self._seen[key] = (self.adapter.keep(tensor), name)


def tensors_from(adapter: Adapter, inputs: Any, precision: str) -> list[Any]:
    """Positional arguments of the model from a nest of numpy arrays (one array, or a list or tuple of arguments)."""
    arguments = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    leaves, structure = flatten(list(float_inputs(list(arguments), precision)), lambda v: isinstance(v, np.ndarray))
    return unflatten(structure, lambda slot: adapter.from_numpy(leaves[slot]))


def run_plain(adapter: Adapter, model: Any, inputs: Any, precision: str, *, train: bool) -> dict[str, Array]:
    """Outputs of the model without any hook, by slot."""
    with adapter.running(model, train=train):
        output = model(*tensors_from(adapter, inputs, precision))
        tensors, _ = flatten(output, adapter.is_tensor)
        return {slot: np.array(adapter.to_numpy(tensor)) for slot, tensor in tensors.items()}


def run_recorded(
    adapter: Adapter, model: Any, inputs: Any, precision: str, sink: Sink, *, train: bool, with_inputs: bool = False
) -> list[Call]:
    """Run the model, give every activation to the sink, and after the run its parameters and buffers."""
    recorder = Recorder(adapter, sink, with_inputs=with_inputs)
    with adapter.running(model, train=train):
        with adapter.hooks(adapter.modules(model), recorder.before, recorder.after):
            model(*tensors_from(adapter, inputs, precision))
        for name, (phase, array) in adapter.state(model).items():
            sink.put(f"{phase}/{name}", array)
    return recorder.calls


def capture(
    model: Any,
    inputs: Any,
    *,
    train: bool = False,
    precision: str = "float32",
    folder: str | os.PathLike[str] | None = None,
    with_inputs: bool = True,
) -> Trace:
    """Run ``model`` once and return the trace of every module's output, its state afterwards and its inputs.

    Args:
        model: a torch.nn.Module or jittor.Module. Modes, buffers and random seeds are restored.
        inputs: a numpy array, or a list of positional arguments; floating arrays are cast to ``precision``.
        train: run in train mode (batch statistics; the buffers in the trace are those after the run).
        precision: "float32" (the model as it is) or "float64" (exact casts of its values).
        folder: where to write; a temporary folder, removed when the trace is, if None.
        with_inputs: record the inputs of every call too, which isolated runs need.
    """
    adapter = adapter_for(model)
    scratch = None
    if folder is None:
        scratch = Scratch("trace")
        folder = scratch.path
    with ExitStack() as stack:
        writer = stack.enter_context(TraceWriter(folder))
        if scratch is not None:
            weakref.finalize(writer.trace, scratch.remove)
        made = stack.enter_context(adapter.in_precision(model, precision))
        calls = run_recorded(adapter, made, inputs, precision, writer, train=train, with_inputs=with_inputs)
        writer.trace.calls.extend(calls)
        writer.trace.meta.update(precision=precision, train=train, environment=adapter.describe())
    return writer.trace
