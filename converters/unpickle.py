"""A pickle reader that runs nothing: it turns the opcodes into plain data.

Python's ``pickle`` imports what a file names and calls it. Here a global is only a name (``Global``). A name on the
short list of ``pickle_constructors.REBUILDERS`` stands for a small function of ours over numpy; a name under
``INERT_PREFIXES`` (layers and models, as whole-module checkpoints hold them) makes an ``Instance`` that records what
was given to it; any other name is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from converters.errors import CheckpointError, UnsafePickleError
from converters.pickle_constructors import DATA_NAMES, REBUILDERS, NumpyArray, NumpyDtype

INERT_PREFIXES = ("torch.nn", "yolov6", "gold_yolo", "mmcv", "models", "addict")
REFUSED = (
    "`{name}` is not on the list of names that a checkpoint may hold; nothing was run. If you trust the file, open it "
    "with the program that wrote it and save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
)
PLAIN_KEYS = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class Global:
    """The name of a function or class in a pickle. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """A stand-in for an object of a foreign class: its class's name and the data that the pickle gave it."""

    origin: Any
    state: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


def is_inert(name: Global) -> bool:
    return any(name.module == prefix or name.module.startswith(f"{prefix}.") for prefix in INERT_PREFIXES)


def admit(module: str, name: str) -> Global:
    """The global of that name, if a checkpoint may hold it.

    Raises:
        UnsafePickleError: it may not.
    """
    found = Global(module, name)
    if (module, name) in REBUILDERS or (module, name) in DATA_NAMES or is_inert(found):
        return found
    raise UnsafePickleError(REFUSED.format(name=found))


def construct(target: Any, arguments: Any) -> Any:
    """What calling ``target`` stands for: our own function for a listed name, an inert instance for an inert one."""
    if isinstance(target, Global) and (target.module, target.name) in REBUILDERS:
        return REBUILDERS[target.module, target.name](*arguments)
    if isinstance(target, Instance) or (isinstance(target, Global) and is_inert(target)):
        return Instance(target)
    raise UnsafePickleError(REFUSED.format(name=f"call of {target if isinstance(target, Global) else type(target)}"))


def set_state(target: Any, state: Any) -> None:
    """Give an object its attributes, as data. No ``__setstate__`` of any foreign class exists here."""
    if isinstance(target, NumpyArray | NumpyDtype):
        target.set_state(state)
    elif isinstance(target, Instance):
        parts = state if isinstance(state, tuple) else (state,)  # (attributes, slots)
        for part in parts:
            if isinstance(part, dict):
                target.state.update(part)
    elif not isinstance(target, dict):  # a dict's attributes (`_metadata` of a state dict) hold no weights
        raise UnsafePickleError(REFUSED.format(name=f"state of a {type(target).__name__}"))


def check_key(key: Any) -> Any:
    """Only plain keys: Python hashes nested tuples by recursion in C, which a hostile file could exhaust."""
    if isinstance(key, PLAIN_KEYS) or (isinstance(key, tuple) and all(isinstance(item, PLAIN_KEYS) for item in key)):
        return key
    raise CheckpointError(f"a pickle's dictionary keys must be plain values. Received: {type(key).__name__}")


class Machine:
    """The stack machine of the pickle format, with plain data on its stack."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        end = 0
        for opcode, argument, position in pickletools.genops(data):
            end = (position or 0) + 1
            operation = OPERATIONS.get(opcode.name)
            if operation is None:
                raise UnsafePickleError(
                    f"the pickle uses {opcode.name}, which checkpoints do not need; nothing was run"
                )
            operation(self, argument)
        if end != len(data):
            raise CheckpointError(f"the pickle ends at byte {end} of {len(data)}: the file is cut off or damaged")
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def pop_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise CheckpointError("the pickle is malformed: its stack ran empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def memoize(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.elements if isinstance(target, Instance) else expect(target, list)).extend(values)

    def update(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        mapping = target.items if isinstance(target, Instance) else expect(target, dict)
        mapping.update(pairs(flat))

    def add(self, values: list[Any]) -> None:
        expect(self.stack[-1], set).update(check_key(value) for value in values)

    def reduce(self) -> None:
        arguments = expect(self.stack.pop(), tuple)
        self.push(construct(self.stack.pop(), arguments))

    def reduce_with_keywords(self) -> None:
        self.stack.pop()  # keyword arguments of __new__: only an inert class may have them, and it ignores arguments
        self.reduce()

    def reduce_named(self, name: str) -> None:
        arguments = tuple(self.pop_mark())
        self.push(construct(admit(*name.split(" ", 1)), arguments))

    def reduce_marked(self) -> None:
        target, *arguments = self.pop_mark()
        self.push(construct(target, tuple(arguments)))

    def build(self) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state)

    def stack_global(self) -> None:
        name = expect(self.stack.pop(), str)
        self.push(admit(expect(self.stack.pop(), str), name))


def expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise CheckpointError(f"the pickle is malformed: expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def pairs(flat: list[Any]) -> dict[Any, Any]:
    return {check_key(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


Operation = Callable[[Machine, Any], None]

# The value of each of these follows the opcode.
LITERALS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip

OPERATIONS: dict[str, Operation] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: void(m.pop_mark()),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.pop_tuple(1),
    "TUPLE2": lambda m, _: m.pop_tuple(2),
    "TUPLE3": lambda m, _: m.pop_tuple(3),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "DICT": lambda m, _: m.push(pairs(m.pop_mark())),
    "FROZENSET": lambda m, _: m.push({check_key(item) for item in m.pop_mark()}),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: m.update([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.update(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
    "PUT": lambda m, index: m.memoize(index),
    "BINPUT": lambda m, index: m.memoize(index),
    "LONG_BINPUT": lambda m, index: m.memoize(index),
    "MEMOIZE": lambda m, _: m.memoize(None),
    "GET": lambda m, index: m.push(m.memo[index]),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": lambda m, name: m.push(admit(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),
    "NEWOBJ_EX": lambda m, _: m.reduce_with_keywords(),
    "INST": lambda m, name: m.reduce_named(name),
    "OBJ": lambda m, _: m.reduce_marked(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.push(m.persistent(m.stack.pop())),
    **dict.fromkeys(LITERALS, Machine.push),
}


def void(_: Any) -> None:
    pass


def no_storage(identity: Any) -> Any:
    raise CheckpointError("the pickle refers to data outside of it, which only a .pt archive has")


def read_pickle(data: bytes, persistent: Callable[[Any], Any] = no_storage) -> Any:
    """The object tree of a pickle, as plain data, ``Instance``, ``TorchTensor`` and ``NumpyArray``.

    Args:
        data: the pickle, protocols 0 to 5.
        persistent: turns a persistent id (a ``.pt`` archive's reference to a storage) into a value.

    Raises:
        UnsafePickleError: the pickle names something that is neither listed nor inert.
        CheckpointError: the pickle is cut off or malformed.
    """
    try:
        return Machine(persistent).run(data)
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"the pickle is cut off or malformed ({type(error).__name__}: {error})") from error
