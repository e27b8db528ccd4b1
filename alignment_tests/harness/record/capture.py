"""Run a model once and hand every module's output (and, for the reference, its input) to a sink, in order."""

from __future__ import annotations

import inspect
import os
import traceback
import weakref
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.bfloat16 import cast
from alignment_tests.harness.record.forms import fill, form_of
from alignment_tests.harness.record.naming import first_names
from alignment_tests.harness.record.nested import OpaqueArgumentError, Structure, flatten, is_exact
from alignment_tests.harness.record.temporary import Scratch
from alignment_tests.harness.record.trace import Call, Trace, TraceWriter

FLOATING = ("float64", "float32", "float16", "bfloat16")
HARNESS = str(Path(__file__).resolve().parents[1])


class Sink(Protocol):
    """Takes arrays as they come; must not keep a view of one after it returns."""

    def put(self, name: str, array: Array) -> None: ...

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        """``name`` is the same tensor as ``existing``; ``values()`` gives it once more."""


class RaisedInCallError(RuntimeError):
    """A model's own code raised.

    Attributes:
        path, number: the innermost call that was under way.
        reason: exception, message and the line of the model's code.
    """

    def __init__(self, path: str, number: int, error: Exception) -> None:
        self.path, self.number, self.reason = path, number, described(error)
        super().__init__(f"the model raises in {path or 'its own code'}: {self.reason}")


def described(error: Exception) -> str:
    """Exception and message, and where the deepest line outside of installed packages stands."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    own = [frame for frame in lines if not frame.filename.startswith(HARNESS)]
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {error}{where}"[:1000]


Told = Callable[[Call], None]


def ignored(call: Call) -> None:
    """For whom nobody waits."""


class _OpenCall(NamedTuple):
    """A call that has not returned."""

    path: str
    number: int
    arguments: Structure
    form: Any
    given: dict[str, tuple[Any, tuple[Any, ...]]]  # slot -> tensor and its key when the call began


class Recorder:
    """Names the tensors that hooks see and gives each one to the sink once.

    Args:
        adapter: of the model's framework.
        sink: gets every array.
        with_inputs: record what modules are given too.
        told: called with each call that has returned, before the sink gets its outputs.
    """

    def __init__(self, adapter: Adapter, sink: Sink, *, with_inputs: bool, told: Told = ignored) -> None:
        self.adapter, self.sink, self.with_inputs, self.told = adapter, sink, with_inputs, told
        self.calls: list[Call] = []
        self._counts: dict[str, int] = {}
        self._open: list[_OpenCall] = []
        self._seen: dict[tuple[Any, ...], tuple[Any, str]] = {}

    def before(self, path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        arguments = {"args": list(args), "kwargs": kwargs}
        tensors, structure = flatten(arguments, self.adapter.is_tensor)
        given = {slot: (tensor, self.adapter.key(tensor)) for slot, tensor in tensors.items()}
        self._open.append(_OpenCall(path, number, structure, self._form(arguments, structure), given))
        if self.with_inputs:
            for slot, tensor in tensors.items():
                self._record(f"input/{path}#{number}/{slot}", tensor)

    def after(self, path: str, module: Any, output: Any) -> None:
        call = self._open.pop()
        while call.path != path:  # it raised, and the model went on without it
            call = self._open.pop()
        written = tuple(slot for slot, (tensor, key) in call.given.items() if self.adapter.key(tensor) != key)
        values: dict[str, Any] = {}
        tensors, structure = flatten(output, self.adapter.is_tensor, values=values)
        forms = call.form, self._form(output, structure)
        self.calls.append(Call(path, call.number, type(module).__name__, call.arguments, structure, written, *forms))
        self.told(self.calls[-1])
        for slot, tensor in tensors.items():
            self._record(f"activation/{self.calls[-1].name}/{slot}", tensor)
        for slot, value in values.items():
            self.sink.put(f"activation/{self.calls[-1].name}/{slot}", value_array(value))

    def _form(self, nest: Any, structure: Structure) -> Any:
        """Of what its structure does not say all about; None if it cannot be made again."""
        if is_exact(structure):
            return None
        try:
            return form_of(nest, self.adapter.is_tensor)
        except Exception:  # its classes are the user's, and may refuse to be copied
            return None

    def under_way(self) -> tuple[str, int]:
        """Path and number of the innermost call that has not returned."""
        return (self._open[-1].path, self._open[-1].number) if self._open else ("", 0)

    def _record(self, name: str, tensor: Any) -> None:
        key = self.adapter.key(tensor)
        seen = self._seen.get(key)
        if seen is not None and self.adapter.alive(seen[0]):
            self.sink.alias(name, seen[1], lambda: self.adapter.to_numpy(tensor))
            return
        self.sink.put(name, self.adapter.to_numpy(tensor))
        self._seen[key] = (self.adapter.keep(tensor), name)


def value_array(value: Any) -> Array:
    """A number, a string or a numpy array among a module's outputs, as an array; of a string, its bytes in UTF-8."""
    array = np.asarray(value)
    return array if array.dtype.kind in "biuf" else np.frombuffer(str(value).encode(), np.uint8)


def tensors_from(
    adapter: Adapter, model: Any, inputs: Any, precision: str, kwargs: Mapping[str, Any] | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of the model from nests of numpy arrays.

    Args:
        adapter: of the framework whose tensors are wanted.
        model: whose parameters may be named in ``inputs``.
        inputs: a list or tuple of positional arguments; a dictionary whose keys name parameters of the model, for
            keyword arguments; or anything else as the only argument. Beside arrays there may be None, numbers and
            strings, in lists, tuples, mappings, dataclasses and other objects. An array that occurs twice becomes one
            tensor.
        precision: what floating arrays are cast to; a model wholly in half precision, bfloat16 or float64 gets that in
            place of float32.
        kwargs: keyword arguments.

    Raises:
        TypeError: something in them is a tensor, or no plain value and cannot be given twice.
    """
    nest: dict[str, Any] = {"args": [inputs], "kwargs": dict(kwargs or {})}
    if type(inputs) in (list, tuple):
        nest["args"] = list(inputs)
    elif type(inputs) is dict and _names_parameters(model, inputs):
        nest = {"args": [], "kwargs": {**inputs, **nest["kwargs"]}}
    leaves, structure = flatten(nest, _is_array)
    kind = _type_of_weights(adapter, model) if precision == "float32" else precision
    made: dict[int, Any] = {}

    def leaf(slot: str) -> Any:
        array = leaves[slot]
        if id(array) not in made:
            made[id(array)] = adapter.from_numpy(cast(array, kind) if array.dtype.kind == "f" else array)
        return made[id(array)]

    try:
        found = fill(form_of(nest, _is_array), structure, leaf)
    except OpaqueArgumentError as error:
        raise TypeError(f"`inputs` must hold numpy arrays and plain values, but {error}") from error
    return found["args"], found["kwargs"]


def _type_of_weights(adapter: Adapter, model: Any) -> str:
    """Of a model that is of one floating type; else "float32"."""
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in adapter.variables(model).values()}
    found = {name for name in found if name in FLOATING}
    return found.pop() if len(found) == 1 else "float32"


def _names_parameters(model: Any, given: Mapping[Any, Any]) -> bool:
    """Whether the model takes all of these by name: each is a parameter of it, and no other is required."""
    try:
        signature = inspect.signature(getattr(model, "execute", None) or model.forward)
        signature.bind(**given)
    except (TypeError, ValueError, AttributeError):  # another one is required, or a name is no string; no signature
        return False
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name for name, parameter in signature.parameters.items() if parameter.kind in by_name}
    return bool(given) and named >= given.keys()


def _is_array(value: Any) -> bool:
    if callable(getattr(type(value), "numpy", None)):
        raise TypeError(f"`inputs` must hold numpy arrays, for both frameworks. Received: {type(value)}")
    return isinstance(value, np.ndarray)


def run_plain(
    adapter: Adapter,
    model: Any,
    inputs: Any,
    precision: str,
    *,
    train: bool,
    kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """Outputs of the model without any hook, by slot; numbers and strings too."""
    with adapter.running(model, train=train):
        args, named = tensors_from(adapter, model, inputs, precision, kwargs)
        return output_arrays(adapter, model(*args, **named))[0]


def output_arrays(adapter: Adapter, output: Any) -> tuple[dict[str, Array], Structure]:
    """Tensors, numbers and strings of what a module returned, by slot; and the structure around them."""
    values: dict[str, Any] = {}
    tensors, structure = flatten(output, adapter.is_tensor, values=values)
    found = {slot: np.array(adapter.to_numpy(tensor)) for slot, tensor in tensors.items()}
    return found | {slot: value_array(value) for slot, value in values.items()}, structure


def run_recorded(
    adapter: Adapter,
    model: Any,
    inputs: Any,
    precision: str,
    sink: Sink,
    *,
    train: bool,
    with_inputs: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    told: Told = ignored,
) -> list[Call]:
    """Run the model, give every activation to the sink, and after the run its parameters and buffers.

    Raises:
        RaisedInCallError: the model's own code raised.
    """
    recorder = Recorder(adapter, sink, with_inputs=with_inputs, told=told)
    held = adapter.variables(model).keys()  # what the run itself adds is no state
    with adapter.running(model, train=train):
        args, named = tensors_from(adapter, model, inputs, precision, kwargs)
        with adapter.hooks(adapter.modules(model), recorder.before, recorder.after):
            try:
                model(*args, **named)
            except Exception as error:
                raise RaisedInCallError(*recorder.under_way(), error) from error
        put_state(adapter, model, held, sink)
    return recorder.calls


def put_state(adapter: Adapter, model: Any, names: Container[str], sink: Sink) -> None:
    """Parameters and buffers of these names to the sink, a tied one as an alias of the first."""
    state = adapter.state(model)
    first = first_names({name: tensor for name, tensor in adapter.variables(model).items() if name in names})
    for name, own in first.items():
        phase, array = state[name]
        if name == own:
            sink.put(f"{phase}/{name}", array)
        else:
            sink.alias(f"{phase}/{name}", f"{state[own][0]}/{own}", partial(np.asarray, array))


def capture(
    model: Any,
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: bool = False,
    precision: str = "float32",
    folder: str | os.PathLike[str] | None = None,
    with_inputs: bool = True,
) -> Trace:
    """Run ``model`` once and return the trace of every module's output, its state afterwards and its inputs.

    Args:
        model: a torch.nn.Module or jittor.Module. Modes, buffers and random seeds are restored.
        inputs: a numpy array, or a list or tuple of positional arguments; floating arrays are cast to ``precision``.
            See ``tensors_from`` for what else there may be.
        kwargs: keyword arguments of the model.
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
        calls = run_recorded(
            adapter, made, inputs, precision, writer, train=train, with_inputs=with_inputs, kwargs=kwargs
        )
        writer.trace.calls.extend(calls)
        writer.trace.meta.update(precision=precision, train=train, environment=adapter.describe())
    return writer.trace
