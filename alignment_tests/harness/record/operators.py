"""The functional operators that one module's call is made of: what a run of them is as plain data, and how it is taken.

Of each operator the line that calls it is kept, and what it takes and gives as numbers of values; of each value a
signature, no array. An operator is what the model's own code calls: what PyTorch's and Jittor's functions and layers
call inside is theirs.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any

import numpy as np

from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.nested import flatten
from alignment_tests.harness.record.places import Place, place_of
from alignment_tests.harness.record.signatures import LARGEST, Signature, signature

DIMENSIONS = ("dim", "dims", "axis")
PLAIN = (bool, int, float, str)
ARITHMETIC = "add|sub|mul|div|truediv|floordiv|mod|pow|matmul|and|or|xor"
SAME_NAMES = {
    "truediv": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "bmm": "matmul",
    "mm": "matmul",
    "linear": "matmul",
    "matmultranspose": "matmul",
    "resize": "interpolate",
    "upsample": "interpolate",
    "ternary": "where",
    "maxpool": "pool",
    "avgpool": "pool",
}


@dataclass
class Operator:
    """One call. ``inputs`` and ``outputs`` are numbers of values; ``constants`` are the plain arguments by name."""

    name: str
    place: Place | None
    constants: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: list[int]


@dataclass
class Tracing:
    """What one call of one module did.

    Attributes:
        operators: in order.
        signatures: of each value; None for what is too large.
        outputs: slot -> the value that the module returns there.
        inner: of values inside of operators, where these were asked for.
        arrays: value -> what it holds, of those that were asked for.
    """

    operators: list[Operator] = field(default_factory=list)
    signatures: list[Signature | None] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)
    inner: list[Signature] = field(default_factory=list)
    arrays: dict[int, Array] = field(default_factory=dict)


class Recorder:
    """Takes operators as a framework's adapter shows them.

    Args:
        adapter: of the framework.
        inner: note the values inside of operators too.
        wanted: operators by number whose outputs are to be kept as arrays; with it, nothing else is computed.
        parts: gives what an operator of such arguments computes on its way, where that does not pass through ``call``.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        inner: bool = False,
        wanted: frozenset[int | None] | None = None,
        parts: Callable[[str, tuple[Any, ...], dict[str, Any]], list[Any]] | None = None,
    ) -> None:
        self.adapter, self.inner, self.wanted, self.parts = adapter, inner, wanted, parts
        self.trace = Tracing()
        self.outermost: FrameType | None = None
        self._busy = False
        self._room = 0  # elements that a value inside of the present operator may have
        self._known: dict[tuple[Any, ...], tuple[Any, int]] = {}
        self._names: dict[int, tuple[Any, ...]] = {}  # identity of a tensor -> its latest key
        self._written: Operator | None = None  # the last operator that changed one of its arguments

    def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the operator, and note it unless it is inside of another."""
        if self._busy:
            result = function(*args, **kwargs)
            if self.inner and self._room:
                self._note_inner(result)
            return result
        self._busy = True
        try:
            given = list(tensors_in(self.adapter, (args, kwargs)))
            inputs = tuple(self._value(tensor) for tensor in given)
            before = [self.adapter.key(tensor) for tensor in given]
            if self.inner:
                found = [self.trace.signatures[value] for value in inputs]
                self._room = max((s.count for s in found if s is not None), default=0)
                for part in self.parts(name, args, kwargs) if self.parts is not None else ():
                    self.trace.inner.append(signature(self.adapter.to_numpy(part)))
            result = function(*args, **kwargs)
            written = [t for t, key in zip(given, before, strict=True) if self.adapter.key(t) != key]
            self._note(
                name, function, args, kwargs, inputs, [*written, *tensors_in(self.adapter, result)], bool(written)
            )
        finally:
            self._busy, self._room = False, 0
        return result

    def finish(self, output: Any) -> None:
        """Take what the module returns."""
        self._busy = True
        found, _ = flatten(output, self.adapter.is_tensor)
        self.trace.outputs = {slot: self._value(tensor) for slot, tensor in found.items()}
        self._busy = False

    def _note(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: tuple[int, ...],
        made: list[Any],
        written: bool,
    ) -> None:
        new = [tensor for tensor in made if self._find(tensor) is None]
        if not new:
            return  # a number, or a tensor as it was
        place = place_of(sys._getframe(2), self.outermost)
        operator = Operator(name, place, self._constants(function, args, kwargs), inputs, [])
        number = len(self.trace.operators)
        self.trace.operators.append(operator)
        numbers = [self._value(tensor) for tensor in new]
        operator.outputs = list(dict.fromkeys(numbers))
        if written:
            self._written = operator
        if self.wanted is not None and number in self.wanted:
            arrays = (np.array(self.adapter.to_numpy(tensor)) for tensor in new)
            self.trace.arrays.update(zip(numbers, arrays, strict=True))

    def _find(self, tensor: Any) -> int | None:
        found = self._known.get(self.adapter.key(tensor))
        return found[1] if found is not None and self.adapter.alive(found[0]) else None

    def _value(self, tensor: Any) -> int:
        """Number of the value; a new one where it has not been seen."""
        found = self._find(tensor)
        if found is not None:
            return found
        key, number = self.adapter.key(tensor), len(self.trace.signatures)
        self.trace.signatures.append(self._signature(tensor))
        earlier = self._known.get(self._names.get(id(tensor), ()))
        if (
            self._written is not None
            and earlier is not None
            and earlier[0] is not None
            and self.adapter.alive(earlier[0])
        ):
            self._written.outputs.append(number)  # it was changed through a view of it
        self._known[key] = self.adapter.keep(tensor), number
        self._names[id(tensor)] = key
        return number

    def _signature(self, tensor: Any) -> Signature | None:
        if self.wanted is not None or _count(tensor) > LARGEST:
            return None
        return signature(self.adapter.to_numpy(tensor))

    def _note_inner(self, result: Any) -> None:
        room, self._room = self._room, 0
        self.trace.inner += [
            signature(self.adapter.to_numpy(tensor))
            for tensor in tensors_in(self.adapter, result)
            if _count(tensor) <= room
        ]
        self._room = room

    def _constants(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The plain arguments, by name where the function tells its names, with its defaults."""
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            named = dict(bound.arguments)
        except (TypeError, ValueError):  # of C++
            named = {**{str(index): value for index, value in enumerate(args)}, **kwargs}
        axes = next((len(tensor.shape) for tensor in tensors_in(self.adapter, (args, kwargs))), 0)
        found = {}
        for name, value in named.items():
            if name in DIMENSIONS and type(value) is int and value < 0:
                value += axes
            if is_plain(value):
                found[name] = value
        return found


@contextmanager
def module_calls(recorder: Recorder, modules: Iterable[Any], name_of: Callable[[Any], str | None]) -> Iterator[None]:
    """Inside, a call of a module is one operator, by the name that ``name_of`` gives it, unless that is None."""
    with ExitStack() as stack:
        # Python looks ``__call__`` up on the class alone.
        for owner in {next(base for base in type(m).__mro__ if "__call__" in vars(base)) for m in modules}:
            call = vars(owner)["__call__"]
            stack.callback(setattr, owner, "__call__", call)
            owner.__call__ = _called(recorder, call, name_of)  # type: ignore[method-assign]
        yield


def _called(recorder: Recorder, call: Callable[..., Any], name_of: Callable[[Any], str | None]) -> Callable[..., Any]:
    def called(module: Any, *args: Any, **kwargs: Any) -> Any:
        name = name_of(module)
        if name is None:
            return call(module, *args, **kwargs)
        return recorder.call(name, partial(call, module), args, kwargs)

    return called


def plain_name(name: str) -> str:
    """One name for what is spelt in several ways: ``__rsub__`` and ``sub_``, ``BatchNorm2d`` and ``batch_norm``."""
    dunder = re.fullmatch(rf"__(?:[ri](?=(?:{ARITHMETIC})__))?(\w+?)__", name)
    plain = re.sub(r"[123]d$", "", (dunder[1] if dunder else name).lower().replace("_", ""))
    return SAME_NAMES.get(plain, plain)


def is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, PLAIN)


def _count(tensor: Any) -> int:
    return int(np.prod([int(length) for length in tensor.shape], dtype=np.int64))


def tensors_in(adapter: Adapter, nest: Any) -> Iterator[Any]:
    """The tensors in lists, tuples and dicts, as functions take and return them."""
    if adapter.is_tensor(nest):
        yield nest
    elif isinstance(nest, (list, tuple, dict)):
        for item in nest.values() if isinstance(nest, dict) else nest:
            yield from tensors_in(adapter, item)
