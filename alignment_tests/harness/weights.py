"""Write the weights of one model into another that keeps them in its own way, as a port map says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from alignment_tests.harness.outline import Outline, outer
from alignment_tests.harness.port_map import PortMap, PortMapError, read_port_map
from alignment_tests.harness.proposal import propose
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.layout import Layout
from alignment_tests.harness.record.naming import first_names
from alignment_tests.harness.resolve import resolve

GivenMap = PortMap | Mapping[str, Any] | str | os.PathLike[str]


def copy_weights(reference: Any, candidate: Any, port_map: GivenMap | None = None) -> PortMap:
    """Write the reference's parameters and buffers into the candidate, bit for bit, and return the map that was used.

    Args:
        reference: the model with the weights.
        candidate: the model that gets them.
        port_map: a ``PortMap``, or the path of its file; None pairs modules by name, what they hold, and order.

    Raises:
        NameMatchError: without a map, a module has no partner, or more than one.
        PortMapError: the map does not fit the models, or an array of either side has no place. Nothing was written.
    """
    found = propose(reference, candidate).by_names() if port_map is None else read_port_map(port_map)
    state = {name: array for name, (_, array) in adapter_for(reference).state(reference).items()}
    layout = resolve(found, Outline.of("reference", reference), Outline.of("candidate", candidate))
    first = first_names(adapter_for(reference).variables(reference))
    write(candidate, state, without_ties(layout, "reference", first))
    return found


def load_weights(candidate: Any, state: Mapping[str, Array], port_map: GivenMap | None = None) -> None:
    """Write the weights of a checkpoint of the original into the candidate.

    Args:
        candidate: the model that gets them.
        state: arrays by the reference's names.
        port_map: as for ``copy_weights``; None takes names as they are.

    Raises:
        PortMapError: the map does not fit, or an array of either side has no place. Nothing was written.
    """
    modules = tuple(dict.fromkeys(path for name in state for path in outer(name)))
    held = {name: (tuple(array.shape), "parameter") for name, array in state.items()}
    outline = Outline("reference", modules, held)
    write(candidate, state, resolve(read_port_map(port_map), outline, Outline.of("candidate", candidate)))


def write(candidate: Any, state: Mapping[str, Array], layout: Layout) -> None:
    """Write arrays by the reference's names into the candidate, where all have a place."""
    adapter = adapter_for(candidate)
    first = first_names(adapter.variables(candidate))
    refuse_unmapped(without_ties(layout, "candidate", first))
    own = {name: array for name, (_, array) in adapter.state(candidate).items()}
    arrays = {name: fitting(name, array, own[name]) for name, array in layout.forward(state).items()}
    for name, array in arrays.items():
        twin = arrays.get(first[name])
        if twin is not None and twin.tobytes() != array.tobytes():
            raise PortMapError(f"the candidate ties {name} to {first[name]}, but the reference's arrays differ")
    adapter.write(candidate, arrays)


def without_ties(layout: Layout, side: str, first: Mapping[str, str]) -> Layout:
    """A further name of a tied array needs no place of its own. ``first``: name -> first name, of that side."""
    known = {(side, name) for name, own in first.items() if name != own}
    return replace(layout, unmapped=tuple(one for one in layout.unmapped if one not in known))


def refuse_unmapped(layout: Layout, most: int = 5) -> None:
    """An array that has no place would be lost, or keep what it holds, and nobody would know."""
    if layout.unmapped:
        names = [f"{name} of the {side}" for side, name in layout.unmapped]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        raise PortMapError(
            f"every array must be mapped, or left out with a reason. No place has {', '.join(names[:most])}{more}"
        )


def fitting(name: str, array: Array, own: Array) -> Array:
    """The array in the type of the one that it replaces, where that holds the same values."""
    if array.shape == own.shape:
        if array.dtype == own.dtype:
            return array
        cast = array.astype(own.dtype)
        widened = array.dtype.kind == own.dtype.kind == "f" and array.dtype.itemsize < own.dtype.itemsize
        if widened or (array.dtype.kind in "iu" and own.dtype.kind in "iu" and np.array_equal(cast, array)):
            return cast
    needed, received = (f"{one.dtype} {one.shape}" for one in (own, array))
    raise PortMapError(f"{name} of the candidate needs {needed}. Received: {received}")
