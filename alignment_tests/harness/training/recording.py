"""One training step on the record: every array of every phase, named, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import Recorder, Sink, Told, ignored
from alignment_tests.harness.record.trace import Call, Trace, TraceWriter
from alignment_tests.harness.training.trainee import Trainee, modules_of

STATE_PHASES = ("momentum", "parameter", "buffer", "ema")


@dataclass
class Recording:
    """What later parts of the comparison need of a recorded step."""

    trace: Trace
    outputs: Any
    assignment: dict[str, Array] = field(default_factory=dict)
    gradients: dict[str, Array] = field(default_factory=dict)


class GradientRecorder(Recorder):
    """Also keeps the activations that have gradients, each tensor once, and the names that stand for it."""

    def __init__(self, adapter: Adapter, sink: Sink, *, with_inputs: bool, told: Told = ignored) -> None:
        super().__init__(adapter, sink, with_inputs=with_inputs, told=told)
        self.tensors: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}  # name -> name under which the same tensor is kept
        self._kept: dict[tuple[Any, ...], str] = {}

    def _record(self, name: str, tensor: Any) -> None:
        super()._record(name, tensor)
        if not name.startswith("activation/") or not self.adapter.trainable(tensor):
            return
        first = self._kept.setdefault(self.adapter.key(tensor), name)
        if first == name:
            self.tensors[name] = tensor
        else:
            self.aliases[name] = first


def perform(
    trainee: Trainee,
    batch: Any,
    sink: Sink,
    *,
    deep: bool,
    assignment: Callable[[], Mapping[str, Array] | None] = lambda: None,
    gradients: Mapping[str, Array] | None = None,
    with_inputs: bool = False,
    told: Told = ignored,
) -> tuple[list[Call], Recording]:
    """One step, phase by phase, every array to the sink; what is given of the reference takes the own one's place.

    ``assignment`` is asked when the sink has got the own one, ``told`` is as for ``Recorder``.
    """
    adapter = adapter_for(trainee.model)
    recorder = GradientRecorder(adapter, sink, with_inputs=with_inputs, told=told)
    with watching(adapter, trainee, recorder if deep else None):
        outputs = trainee.forward(batch)
    own = trainee.assign(outputs, batch)
    kept = Recording(Trace(Path()), outputs)
    for name, tensor in own.items():
        kept.assignment[name] = np.array(adapter.to_numpy(tensor))
        sink.put(f"assignment/{name}", kept.assignment[name])
    given = assignment()
    terms = trainee.losses(outputs, batch, own if given is None else given)
    for name, tensor in total_last(terms).items():
        sink.put(f"loss/{name}", np.array(adapter.to_numpy(tensor)).reshape(1))
    found, extra = trainee.backward(terms["total"], list(recorder.tensors.values()))
    adapter.compute([*found.values(), *extra])
    by_name = dict(zip(recorder.tensors, extra, strict=True))
    for name, tensor in by_name.items():
        sink.put(as_gradient(name), adapter.to_numpy(tensor))
    for name, first in recorder.aliases.items():
        sink.alias(as_gradient(name), as_gradient(first), partial(adapter.to_numpy, by_name[first]))
    for name, tensor in found.items():
        kept.gradients[name] = np.array(adapter.to_numpy(tensor))
        sink.put(f"grad_parameter/{name}", kept.gradients[name])
    trainee.update(gradients)
    for name, array in trainee.state().items():
        if name.split("/", 1)[0] in STATE_PHASES:
            sink.put(name, array)
    return recorder.calls, kept


def total_last(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Loss terms before their total: a wrong term is the cause, a wrong total its effect."""
    return {name: terms[name] for name in sorted(terms, key=lambda name: name == "total")}


def record_step(
    trainee: Trainee, batch: Any, folder: Path, *, deep: bool, taught: Recording | None = None
) -> Recording:
    """One step of the reference (or the oracle), on disk."""
    with TraceWriter(folder) as writer:
        calls, kept = perform(
            trainee,
            batch,
            writer,
            deep=deep,
            with_inputs=deep,
            assignment=lambda: None if taught is None else taught.assignment,
            gradients=None if taught is None else taught.gradients,
        )
        writer.trace.calls.extend(calls)
    kept.trace = writer.trace
    return kept


@contextmanager
def watching(adapter: Adapter, trainee: Trainee, recorder: Recorder | None) -> Iterator[None]:
    if recorder is None:
        yield
        return
    with adapter.hooks(modules_of(trainee), recorder.before, recorder.after):
        yield


class Nowhere:
    """A sink that drops everything."""

    def put(self, name: str, array: Array) -> None: ...

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None: ...


def gradients_of(trainee: Trainee, batch: Any, *, observed: bool) -> dict[str, Array]:
    """Total loss and gradients of one step that is not finished, with every module watched or none."""
    adapter = adapter_for(trainee.model)
    recorder = GradientRecorder(adapter, Nowhere(), with_inputs=False)
    with watching(adapter, trainee, recorder if observed else None):
        outputs = trainee.forward(batch)
    terms = trainee.losses(outputs, batch, trainee.assign(outputs, batch))
    gradients, _ = trainee.backward(terms["total"], list(recorder.tensors.values()))
    adapter.compute(list(gradients.values()))
    arrays = {name: np.array(adapter.to_numpy(tensor)) for name, tensor in gradients.items()}
    return {"loss": np.array(adapter.to_numpy(terms["total"])), **arrays}


def as_gradient(name: str) -> str:
    return f"grad_{name}"
