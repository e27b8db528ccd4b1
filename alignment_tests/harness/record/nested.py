"""Nested arguments of a module call: take the tensors out, keep the shape of the nest, put tensors back.

A structure is plain JSON: ``{"leaf": "0.1"}`` for a tensor, ``{"list": [...]}``, ``{"tuple": [...]}``,
``{"dict": {...}}``, ``{"value": 3}`` for a constant, ``{"opaque": "type"}`` for anything else. A dictionary whose
keys are numbers is ``{"pairs": [[key, ...], ...]}``. Tensors are taken out of dataclasses, which cannot be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

Structure = dict[str, Any]


class OpaqueArgumentError(TypeError):
    """A call cannot be repeated, since one of its arguments is neither a tensor nor a plain value."""


def flatten(value: Any, is_tensor: Callable[[Any], bool], prefix: str = "") -> tuple[dict[str, Any], Structure]:
    """Tensors by slot name ("0", "0.1", "mask"), and the structure around them. A lone tensor has the slot "0"."""
    if is_tensor(value):
        slot = prefix or "0"
        return {slot: value}, {"leaf": slot}
    if isinstance(value, (list, tuple)):
        leaves, items = _flatten_items(enumerate(value), is_tensor, prefix)
        return leaves, {"list" if isinstance(value, list) else "tuple": [item for _, item in items]}
    if isinstance(value, Mapping):
        leaves, items = _flatten_items(value.items(), is_tensor, prefix)
        if all(isinstance(key, str) for key in value):
            return leaves, {"dict": dict(items)}
        plain = all(isinstance(key, (bool, int, float, str)) for key in value)
        return leaves, {"pairs": [[key, item] for key, item in items]} if plain else _opaque(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return {}, {"value": value}
    if is_dataclass(value) and not isinstance(value, type):
        leaves, _ = _flatten_items([(f.name, getattr(value, f.name)) for f in fields(value)], is_tensor, prefix)
        return leaves, _opaque(value)
    return {}, _opaque(value)


def _opaque(value: Any) -> Structure:
    return {"opaque": f"{type(value).__module__}.{type(value).__qualname__}"}


def _flatten_items(
    items: Iterable[tuple[Any, Any]], is_tensor: Callable[[Any], bool], prefix: str
) -> tuple[dict[str, Any], list[tuple[Any, Structure]]]:
    leaves: dict[str, Any] = {}
    inner: list[tuple[Any, Structure]] = []
    for key, item in items:
        part = str(key).replace("/", "|")  # a slash ends a slot's name
        found, structure = flatten(item, is_tensor, f"{prefix}.{part}" if prefix else part)
        if found.keys() & leaves.keys():
            raise ValueError(f"two tensors of one call have the name {min(found.keys() & leaves.keys())!r}")
        leaves.update(found)
        inner.append((key, structure))
    return leaves, inner


def unflatten(structure: Structure, leaf: Callable[[str], Any]) -> Any:
    """The nest again, each tensor made by ``leaf(slot)``.

    Raises:
        OpaqueArgumentError: the structure holds something that was neither tensor nor plain value, named by its type.
    """
    kind, content = next(iter(structure.items()))
    if kind == "leaf":
        return leaf(content)
    if kind == "list":
        return [unflatten(item, leaf) for item in content]
    if kind == "tuple":
        return tuple(unflatten(item, leaf) for item in content)
    if kind == "dict":
        return {key: unflatten(item, leaf) for key, item in content.items()}
    if kind == "pairs":
        return {key: unflatten(item, leaf) for key, item in content}
    if kind == "value":
        return content
    raise OpaqueArgumentError(f"an argument of type {content} cannot be given to the other framework")


def is_plain(structure: Structure) -> bool:
    """Whether ``unflatten`` can make the nest again: it holds tensors and plain values only."""
    kind, content = next(iter(structure.items()))
    if kind in ("list", "tuple"):
        return all(is_plain(item) for item in content)
    if kind == "dict":
        return all(is_plain(item) for item in content.values())
    return kind in ("leaf", "value")
