"""The form of a call's arguments: the very containers, of their own classes, with a mark in place of each tensor.

A framework's own call gives its form, and any call with the same tensors can be made in it: the candidate's classes
take the reference's recorded arrays. Forms live in memory; on disk there are structures only.
"""

from __future__ import annotations

import copy
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from enum import Enum
from typing import Any

import numpy as np

from alignment_tests.harness.record.nested import (
    PLAIN,
    IsTensor,
    OpaqueArgumentError,
    Structure,
    class_name,
    field_names,
    holds_tensors,
    inner_structures,
    is_exact,
    is_plain,
    items_of,
    partner,
    slots_of,
    unflatten,
)


class Mark:
    """Stands for a tensor; for the same one wherever it occurs."""

    def __repr__(self) -> str:
        return "tensor"


def form_of(value: Any, is_tensor: IsTensor) -> Any:
    """A copy of the nest with a mark for each tensor. What is no container is shared, numpy arrays are copied.

    Raises:
        OpaqueArgumentError: it holds what would be another thing the next time: an iterator, a module, a function that
            carries values along; or it holds itself.
    """
    return _form(value, is_tensor, {}, ())


def _form(value: Any, is_tensor: IsTensor, marks: dict[int, Mark], around: tuple[int, ...]) -> Any:
    if is_tensor(value):
        return marks.setdefault(id(value), Mark())
    if id(value) in around:
        raise OpaqueArgumentError(f"an argument of type {class_name(value)} holds itself")
    found = items_of(value)
    if found is None:
        if not _is_constant(value):
            raise OpaqueArgumentError(f"an argument of type {class_name(value)} cannot be made again")
        return np.array(value) if isinstance(value, np.ndarray) else value
    kind, pairs = found
    around = (*around, id(value))
    return remade(value, kind, [(key, _form(item, is_tensor, marks, around)) for key, item in pairs])


def _is_constant(value: Any) -> bool:
    """Whether the object is the same thing whenever it is used."""
    if isinstance(value, types.FunctionType):
        return not value.__closure__
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, (type, types.ModuleType))
    if isinstance(value, (type, Enum, types.ModuleType)):
        return True
    return not callable(value) and not isinstance(value, Iterator)


def fill(form: Any, structure: Structure, leaf: Callable[[str], Any]) -> Any:
    """The nest in this form, each tensor made by ``leaf`` of the slot that the structure has in its place.

    Items are matched by name where both sides have names, else by position. Numbers and strings are those of the
    structure, so that a call alone is not made with what its own parent got wrong.

    Args:
        form: of the side that makes the call.
        structure: of the call on record, perhaps of the other side.
        leaf: makes a tensor of what is recorded under a slot.

    Raises:
        OpaqueArgumentError: one of them holds a tensor, or a number, that has no partner in the other.
    """
    if isinstance(form, Mark):
        kind, content = next(iter(structure.items()))
        if kind != "leaf":
            raise OpaqueArgumentError(f"a tensor is given where the record has {content!r} ({kind})"[:300])
        return leaf(content)
    found = items_of(form)
    if found is None:
        return _filled_value(form, structure)
    kind, pairs = found
    inner = dict(enumerate(inner_structures(structure)))
    filled = []
    for index, (key, item) in enumerate(pairs):
        place = partner(_name(form, kind, index, key), index, inner)
        if place is not None:
            filled.append((key, fill(item, inner.pop(place).structure, leaf)))
        elif kind == "object" or not isinstance(item, PLAIN):
            filled.append((key, _without_tensors(item)))
        else:
            raise OpaqueArgumentError(f"the record has no partner of the argument {key!r}, {item!r}"[:300])
    named = "object" in structure  # what an object counts and caches beside its tensors is its own affair
    lost = [i for i in inner.values() if holds_tensors(i.structure) or (slots_of(i.structure) and not named)]
    if lost:
        raise OpaqueArgumentError(f"the record has an argument {lost[0].part!r} that is not given here")
    return remade(form, kind, filled)


def _name(form: Any, kind: str, index: int, key: Any) -> str | None:
    if kind in ("dict", "object"):
        return str(key)
    fields = field_names(form)
    return fields[index] if fields else None


def _without_tensors(form: Any) -> Any:
    """A copy of a part of a form that the record knows nothing of."""

    def refuse(form: Any) -> bool:
        if isinstance(form, Mark):
            raise OpaqueArgumentError("a tensor is given that the record does not have")
        return False

    return form_of(form, refuse)


def _filled_value(form: Any, structure: Structure) -> Any:
    if holds_tensors(structure):
        raise OpaqueArgumentError(f"the record has a tensor where {form!r} is given"[:300])
    if "value" in structure and (form is None or (isinstance(form, PLAIN) and not isinstance(form, Enum))):
        return structure["value"]
    return np.array(form) if isinstance(form, np.ndarray) else form


def remade(value: Any, kind: str, pairs: list[tuple[Any, Any]]) -> Any:
    """A container of the same class as ``value`` that holds other items; ``kind`` and keys as ``items_of`` gives them.

    No constructor of the user's is run: it may want other arguments, or look at them.
    """
    if type(value) in (list, tuple):
        return type(value)(item for _, item in pairs)
    if type(value) is dict:
        return dict(pairs)
    if kind == "object":
        return _with_attributes(value, pairs)
    if kind in ("list", "tuple"):
        made = _sequence(value, [item for _, item in pairs])
    elif isinstance(value, dict):
        made = _dictionary(value, pairs)
    else:
        return _with_entries(value, pairs)
    _copy_attributes(value, made, pairs)
    return made


def _sequence(value: Any, items: list[Any]) -> Any:
    cls: Any = type(value)
    if isinstance(value, deque):
        return cls(items, value.maxlen)
    if isinstance(value, list):
        made = cls.__new__(cls)
        list.extend(made, items)
        return made
    return tuple.__new__(cls, items) if hasattr(value, "_fields") else cls(items)


def _dictionary(value: dict[Any, Any], pairs: list[tuple[Any, Any]]) -> Any:
    cls: Any = type(value)
    made = cls.__new__(cls)
    put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
    for key, item in pairs:
        put(made, key, item)
    if isinstance(value, defaultdict):
        made.default_factory = value.default_factory
    return made


def _copy_attributes(value: Any, made: Any, pairs: list[tuple[Any, Any]]) -> None:
    """Those that a container has beside its items; some classes keep each item as an attribute too."""
    if not hasattr(value, "__dict__"):
        return
    old = dict(items_of(value)[1])  # type: ignore[index]
    new = dict(pairs)
    by_item = {id(old[key]): item for key, item in pairs if key in old}
    for name, held in vars(value).items():
        made.__dict__[name] = new[name] if name in old and held is old[name] else by_item.get(id(held), held)


def _with_attributes(value: Any, pairs: list[tuple[Any, Any]]) -> Any:
    try:
        made = object.__new__(type(value))
    except TypeError:  # its class is not written in Python
        made = copy.copy(value)
    for name, item in pairs:
        object.__setattr__(made, name, item)  # a frozen class refuses ``setattr``
    return made


def _with_entries(value: Mapping[Any, Any], pairs: list[tuple[Any, Any]]) -> Any:
    """For mappings that are no dict: their entries lie in some attribute, which a shallow copy would share."""
    if not isinstance(value, MutableMapping):
        return type(value)(dict(pairs))  # type: ignore[call-arg]
    made = copy.copy(value)
    for name, held in vars(made).items():
        if isinstance(held, (dict, list)):
            made.__dict__[name] = copy.copy(held)
    for key, item in pairs:
        made[key] = item
    return made


def arguments_again(recorded: Structure, own: tuple[Structure, Any] | None, leaf: Callable[[str], Any]) -> Any:
    """Arguments of a recorded call (or outputs of one), made for one side.

    Args:
        recorded: structure of the call on record.
        own: structure and form of that side's own call, the form None where the structure says all; None for no call.
        leaf: makes a tensor of what is recorded under a slot.

    Raises:
        OpaqueArgumentError: they cannot be made for that side.
    """
    if own is None:
        return unflatten(recorded, leaf)
    structure, form = own
    if structure == recorded and (form is None or is_exact(recorded)):
        return unflatten(recorded, leaf)
    try:
        return fill(unflatten(structure, lambda slot: Mark()) if form is None else form, recorded, leaf)
    except OpaqueArgumentError:
        if is_plain(recorded) and is_plain(structure):
            return unflatten(recorded, leaf)  # both sides take lists, tuples, dicts; the module's own code may mind
        raise
