"""Nested arguments and results of a module call: take the tensors out, keep the shape of the nest, put tensors back.

A structure is plain JSON: ``{"leaf": "0.1"}`` for a tensor, ``{"list": [...]}``, ``{"tuple": [...]}``,
``{"dict": {...}}``, ``{"value": 3}`` for a constant, ``{"object": {...}}`` for attributes that hold tensors,
``{"opaque": "type"}`` for anything else. A dictionary with keys other than strings is ``{"pairs": [[key, ...], ...]}``.
Containers of other types than list, tuple and dict have their class beside them (``"class": "module.Pair"``), named
tuples their fields too. A class cannot be made of its name: see ``forms`` for how such nests are put together again.
"""

from __future__ import annotations

import sys
import types
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

Structure = dict[str, Any]
IsTensor = Callable[[Any], bool]

PLAIN = (bool, int, float, str)
ORDERED = "collections.OrderedDict"
# What any framework takes for these classes.
NEUTRAL: dict[str, Callable[[list[Any]], Any]] = {
    ORDERED: OrderedDict,
    "jittor_core.NanoVector": tuple,
    "torch.Size": tuple,
}


class OpaqueArgumentError(TypeError):
    """A call cannot be repeated, since something in its arguments cannot be made again."""


def flatten(
    value: Any, is_tensor: IsTensor, prefix: str = "", values: dict[str, Any] | None = None
) -> tuple[dict[str, Any], Structure]:
    """Tensors by slot name ("0", "0.1", "mask"), and the structure around them. A lone tensor has the slot "0".

    Args:
        value: tensors in lists, tuples, mappings, dataclasses and other objects, nested.
        is_tensor: tells tensors.
        prefix: of the slots.
        values: takes up numbers, strings and numpy arrays by slot, except for attributes of objects.

    Raises:
        ValueError: two tensors have one slot, such as those of the keys 1 and "1".
    """
    flattening = _Flattening(is_tensor, values)
    return flattening.leaves, flattening.visit(value, prefix)


class _Flattening:
    def __init__(self, is_tensor: IsTensor, values: dict[str, Any] | None) -> None:
        self.is_tensor, self.values = is_tensor, values
        self.leaves: dict[str, Any] = {}
        self._open: set[int] = set()  # containers around the present item: a nest may hold itself

    def visit(self, value: Any, prefix: str) -> Structure:
        if self.is_tensor(value):
            return {"leaf": self._claim(self.leaves, prefix, value)}
        if type(value) not in (list, tuple, dict):  # the usual ones, for speed
            if value is None:
                return {"value": None}
            if isinstance(value, np.generic) and value.dtype.kind in "biuf":
                value = value.item()
            if isinstance(value, PLAIN) and not isinstance(value, Enum):
                if self.values is not None:
                    self._claim(self.values, prefix, value)
                return {"value": value}
            if self.values is not None and isinstance(value, np.ndarray):
                self._claim(self.values, prefix, value)
        found = None if id(value) in self._open else items_of(value)
        if found is None:
            return {"opaque": class_name(value)}
        self._open.add(id(value))
        kind, pairs = found
        structure = self._object(value, pairs, prefix) if kind == "object" else self._items(value, kind, pairs, prefix)
        self._open.discard(id(value))
        return structure

    def _items(self, value: Any, kind: str, pairs: list[tuple[Any, Any]], prefix: str) -> Structure:
        inner = [(key, self.visit(item, joined(prefix, key))) for key, item in pairs]
        if kind != "dict":
            structure: Structure = {kind: [item for _, item in inner]}
        elif all(type(key) is str for key, _ in inner):
            structure = {"dict": dict(inner)}
        elif all(is_plain_key(key) for key, _ in inner):
            structure = {"pairs": [[stored_key(key), item] for key, item in inner]}
        else:  # keys that are no plain data: like attributes
            structure = {"object": {str(key): item for key, item in inner}, "class": class_name(value)}
        if type(value) not in (list, tuple, dict):
            structure["class"] = class_name(value)
            fields = field_names(value)
            if fields:
                structure["fields"] = list(fields)
        return structure

    def _object(self, value: Any, pairs: list[tuple[Any, Any]], prefix: str) -> Structure:
        """Numbers among attributes are the object's own affair: two classes count and cache what they like."""
        before, values, self.values = len(self.leaves), self.values, None
        inner = {key: self.visit(item, joined(prefix, key)) for key, item in pairs}
        self.values = values
        holds = len(self.leaves) > before
        return {"object": inner, "class": class_name(value)} if holds else {"opaque": class_name(value)}

    def _claim(self, taken: dict[str, Any], prefix: str, value: Any) -> str:
        slot = prefix or "0"
        if slot in self.leaves or slot in taken:
            raise ValueError(f"two tensors of one call have the name {slot!r}")
        taken[slot] = value
        return slot


def joined(prefix: str, key: Any) -> str:
    part = key if type(key) is int else str(key).replace("/", "|")  # a slash ends a slot's name
    return f"{prefix}.{part}" if prefix else f"{part}"


def class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def items_of(value: Any) -> tuple[str, list[tuple[Any, Any]]] | None:
    """What a container holds, by index, key or attribute, and its kind; None for what is none.

    The kinds are "list", "tuple", "dict" (any mapping) and "object" (its attributes).
    """
    if isinstance(value, (list, deque)):
        return "list", list(enumerate(value))
    if isinstance(value, tuple):
        return "tuple", list(enumerate(value))
    if isinstance(value, Mapping):
        return "dict", list(value.items())
    if class_name(value) == "jittor_core.NanoVector":  # a shape of Jittor's
        return "tuple", list(enumerate(value))
    attributes = attributes_of(value)
    return None if attributes is None else ("object", list(attributes.items()))


def attributes_of(value: Any) -> dict[str, Any] | None:
    """Attributes of an object that may carry tensors from module to module; None for modules, functions and the like.

    Objects of the standard library (loggers, locks, files) are left alone: they lead everywhere.
    """
    kind = type(value)
    if callable(value) or isinstance(value, (Enum, types.ModuleType, Iterator)):
        return None
    if kind.__module__.partition(".")[0] in sys.stdlib_module_names and kind not in (types.SimpleNamespace, Namespace):
        return None
    found = dict(getattr(value, "__dict__", {}))
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            hidden = name.startswith("__") and not name.endswith("__")
            stored = f"_{base.__name__.lstrip('_')}{name}" if hidden else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, stored):
                found.setdefault(stored, getattr(value, stored))
    return found or None


def field_names(value: Any) -> tuple[str, ...]:
    """Of a named tuple, or of what PyTorch's functions return in place of one."""
    names = getattr(value, "_fields", None)
    if names is None and hasattr(value, "n_sequence_fields"):
        names = type(value).__match_args__
    return tuple(names or ())


def is_plain_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(is_plain_key(part) for part in key)
    return key is None or (isinstance(key, PLAIN) and not isinstance(key, Enum))


def stored_key(key: Any) -> Any:
    """JSON has no tuples, and a list is no key: it stands for one."""
    return [stored_key(part) for part in key] if isinstance(key, tuple) else key


def _restored_key(key: Any) -> Any:
    return tuple(_restored_key(part) for part in key) if isinstance(key, list) else key


def unflatten(structure: Structure, leaf: Callable[[str], Any]) -> Any:
    """The nest again, each tensor made by ``leaf(slot)``.

    Raises:
        OpaqueArgumentError: the structure holds what neither is a tensor or a plain value nor can be made of such.
    """
    kind, content = next(iter(structure.items()))
    if kind == "leaf":
        return leaf(content)
    if kind == "value":
        return content
    name = structure.get("class")
    if kind in ("opaque", "object") or name not in (None, *NEUTRAL):
        raise OpaqueArgumentError(f"an argument of type {name or content} cannot be given to the other framework")
    if kind in ("list", "tuple"):
        items = [unflatten(item, leaf) for item in content]
        made: Any = items if kind == "list" else tuple(items)
    else:
        pairs = content.items() if kind == "dict" else ((_restored_key(key), item) for key, item in content)
        made = {key: unflatten(item, leaf) for key, item in pairs}
    return made if name is None else NEUTRAL[name](made)


class Inner(NamedTuple):
    """An item of a structure: its part of the slot's name, its key, attribute or field if it has one, what it is."""

    part: str
    name: str | None
    structure: Structure


def inner_structures(structure: Structure) -> list[Inner]:
    """What a structure holds directly, in order."""
    kind, content = next(iter(structure.items()))
    if kind in ("list", "tuple"):
        names = structure.get("fields") or [None] * len(content)
        return [Inner(str(i), name, item) for i, (name, item) in enumerate(zip(names, content, strict=True))]
    if kind in ("dict", "object"):
        return [Inner(key, key, item) for key, item in content.items()]
    if kind == "pairs":
        return [Inner(str(key := _restored_key(stored)), str(key), item) for stored, item in content]
    return []


def is_plain(structure: Structure) -> bool:
    """Whether ``unflatten`` can make the nest, in either framework: it holds tensors and plain values only."""
    if "opaque" in structure or "object" in structure or structure.get("class") not in (None, *NEUTRAL):
        return False
    return all(map(is_plain, _held(structure)))


def is_exact(structure: Structure) -> bool:
    """Whether ``unflatten`` makes the nest as it was, of the same types."""
    if "opaque" in structure or "object" in structure or structure.get("class") not in (None, ORDERED):
        return False
    return all(map(is_exact, _held(structure)))


def holds_tensors(structure: Structure) -> bool:
    return "leaf" in structure or any(map(holds_tensors, _held(structure)))


def _held(structure: Structure) -> Iterable[Structure]:
    kind, content = next(iter(structure.items()))
    if kind in ("list", "tuple"):
        return content
    if kind in ("dict", "object"):
        return content.values()
    return [item for _, item in content] if kind == "pairs" else ()


def slots_of(structure: Structure, prefix: str = "") -> list[str]:
    """Slots of all tensors, and of what ``flatten`` gives in ``values``."""
    if _is_slot(structure):
        return [prefix or "0"]
    found = []
    for part, _, item in inner_structures(structure):
        # Numbers among attributes are no values.
        if "object" not in structure or holds_tensors(item):
            found += slots_of(item, joined(prefix, part))
    return found


def _is_slot(structure: Structure) -> bool:
    kind, content = next(iter(structure.items()))
    return kind == "leaf" or (kind == "value" and content is not None) or content == "numpy.ndarray"


def partner(name: str | None, index: int, others: Mapping[int, Inner]) -> int | None:
    """Place of the item of that name among others; of that position where one of both has no names."""
    for place, other in others.items():
        if (name == other.name) if name is not None and other.name is not None else (index == place):
            return place
    return None


def paired_slots(own: Structure, other: Structure) -> dict[str, str]:
    """Slots of one structure -> the slots of another that have the same name, or else stand in the same place: a named
    tuple here may be an object or a plain tuple there."""
    theirs = dict.fromkeys(slots_of(other))
    return _in_place(own, other, "", "") | {slot: slot for slot in slots_of(own) if slot in theirs}


def _in_place(own: Structure, other: Structure, prefix: str, other_prefix: str) -> dict[str, str]:
    if _is_slot(own):
        return {prefix or "0": other_prefix or "0"} if _is_slot(other) else {}
    others = dict(enumerate(inner_structures(other)))
    found: dict[str, str] = {}
    for index, (part, name, item) in enumerate(inner_structures(own)):
        place = partner(name, index, others)
        if place is not None:
            theirs = others.pop(place)
            found |= _in_place(item, theirs.structure, joined(prefix, part), joined(other_prefix, theirs.part))
    return found
