"""How the candidate keeps what the reference keeps: which module is which, which array, and how its axes lie.

Everything is compared in the reference's names and shapes. A ``Layout`` turns the candidate's arrays into them
(``back``), and the reference's into the candidate's (``forward``). Both only copy numbers, so gradients, momenta and
averages of the weights follow the same way as the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from alignment_tests.harness.record.adapter import Array

Shape = tuple[int, ...]
CALL_PHASES = ("activation", "grad_activation")


class Link(Protocol):
    """Arrays of both sides that hold the same numbers."""

    @property
    def reference(self) -> tuple[str, ...]: ...

    @property
    def candidate(self) -> tuple[str, ...]: ...

    def forward(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """The candidate's arrays by name, from those of the reference."""

    def back(self, arrays: Sequence[Array]) -> dict[str, Array] | None:
        """The reference's arrays by name, from those of the candidate; None where they do not follow from them."""


@dataclass(frozen=True)
class Tied:
    """One array under one or more names on either side; a mere renaming is the case of one name on each."""

    reference: tuple[str, ...]
    candidate: tuple[str, ...]

    def forward(self, arrays: Sequence[Array]) -> dict[str, Array]:
        return dict.fromkeys(self.candidate, arrays[0])

    def back(self, arrays: Sequence[Array]) -> dict[str, Array]:
        return dict.fromkeys(self.reference, arrays[0])


@dataclass(frozen=True)
class Packed:
    """Arrays of the reference one behind the other along ``axis`` are those of the candidate, one behind the other.

    Attributes:
        reference: names.
        candidate: names.
        reference_shapes: of each.
        candidate_shapes: of each.
        axis: of the reference's arrays; may be negative.
        order: for each array of the candidate, the reference's axes in the candidate's order; empty as they are.
    """

    reference: tuple[str, ...]
    candidate: tuple[str, ...]
    reference_shapes: tuple[Shape, ...]
    candidate_shapes: tuple[Shape, ...]
    axis: int = 0
    order: tuple[tuple[int, ...], ...] = ()

    def forward(self, arrays: Sequence[Array]) -> dict[str, Array]:
        refuse_shapes(arrays, self.reference_shapes)
        pieces = repacked(arrays, [shape[self.axis] for shape in self.straight()] if self._is_cut else [], self.axis)
        found = {}
        for number, (name, piece) in enumerate(zip(self.candidate, pieces, strict=True)):
            turned = piece.transpose(self.order[number]) if self.order and self.order[number] else piece
            found[name] = turned.reshape(self.candidate_shapes[number])
        return found

    def back(self, arrays: Sequence[Array]) -> dict[str, Array]:
        refuse_shapes(arrays, self.candidate_shapes)
        straight = []
        for number, (array, shape) in enumerate(zip(arrays, self.straight(), strict=True)):
            order = self.order[number] if self.order else ()
            if order:
                array = array.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
            straight.append(array.reshape(shape))
        sizes = [shape[self.axis] for shape in self.reference_shapes] if self._is_cut else []
        pieces = repacked(straight, sizes, self.axis)
        shaped = zip(self.reference, pieces, self.reference_shapes, strict=True)
        return {name: piece.reshape(shape) for name, piece, shape in shaped}

    @property
    def _is_cut(self) -> bool:
        return len(self.reference) > 1 or len(self.candidate) > 1

    def straight(self) -> list[Shape]:
        """Shapes of the candidate's arrays in the reference's order of axes."""
        if not self._is_cut:
            return [self.reference_shapes[0]]  # with other axes of size 1, perhaps
        found = []
        for number, shape in enumerate(self.candidate_shapes):
            order = self.order[number] if self.order else ()
            found.append(tuple(shape[order.index(axis)] for axis in range(len(shape))) if order else shape)
        return found


def refuse_shapes(arrays: Sequence[Array], shapes: Sequence[Shape]) -> None:
    """``reshape`` alone would take any array of the same size.

    Raises:
        ValueError: an array has another shape than the one that was mapped.
    """
    found = [array.shape for array in arrays]
    if found != list(shapes):
        raise ValueError(f"`arrays` must have the shapes {list(shapes)}. Received: {found}")


def repacked(arrays: Sequence[Array], sizes: Sequence[int], axis: int) -> list[Array]:
    """The arrays one behind the other, cut again into pieces of these sizes; no sizes mean that nothing is cut."""
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)
    return np.split(whole, list(accumulate(sizes))[:-1], axis) if len(sizes) > 1 else [whole]


@dataclass(frozen=True)
class LowRank:
    """``weight + scale * b @ a``, three arrays on one side (LoRA) and their sum on the other.

    Attributes:
        reference: the names weight, a, b, or that of the sum.
        candidate: the other of the two.
        scale: usually alpha / rank.
        b_shape: of b.
    """

    reference: tuple[str, ...]
    candidate: tuple[str, ...]
    scale: float
    b_shape: Shape

    def forward(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """Of a candidate with three arrays, b becomes zero and a stays what it is."""
        if len(self.reference) == 3:
            return {self.candidate[0]: self._sum(arrays)}
        return {self.candidate[0]: arrays[0], self.candidate[2]: np.zeros(self.b_shape, arrays[0].dtype)}

    def back(self, arrays: Sequence[Array]) -> dict[str, Array] | None:
        return {self.reference[0]: self._sum(arrays)} if len(self.candidate) == 3 else None

    def _sum(self, arrays: Sequence[Array]) -> Array:
        weight, a, b = arrays
        product = b.astype(np.float64) @ a.astype(np.float64)
        found: Array = (weight.astype(np.float64) + self.scale * product).astype(weight.dtype)
        return found


@dataclass(frozen=True)
class Layout:
    """The candidate's modules and arrays in terms of the reference's. An empty one means equal names and shapes.

    Attributes:
        modules: path in the candidate -> path in the reference; others have the same path on both sides.
        links: of the arrays; arrays without one follow their module.
        phases: reference's array -> "parameter" or "buffer": frameworks differ about what is frozen.
        excused: pattern on names of rows -> why they are not compared.
        dropped: the candidate's arrays that are left out.
        unmapped: what has no partner, ("reference" or "candidate", name).
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    phases: Mapping[str, str] = field(default_factory=dict)
    excused: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    unmapped: tuple[tuple[str, str], ...] = ()

    def module(self, path: str) -> str:
        """The reference's path of the candidate's module."""
        return self.modules.get(path, path)

    def own_module(self, path: str) -> str:
        """The candidate's path of the reference's module."""
        return self._own_modules.get(path, path)

    def call(self, name: str) -> str:
        """``activation/path#0/slot`` with the reference's path."""
        phase, rest = name.split("/", 1)
        path, number = rest.split("#", 1)
        return f"{phase}/{self.modules.get(path, path)}#{number}"

    def back(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The candidate's arrays under the reference's names, in the reference's shapes.

        What belongs together (the parts of a packed weight) is lacking unless all of it is there. Arrays that do not
        have the shape that they were mapped with keep it, for the comparison to say so. What is left out keeps its
        name, for the ledger, unless the reference has one of that name.
        """
        found: dict[str, Array] = {}
        done: set[int] = set()
        for name, array in arrays.items():
            link = self.by_candidate.get(name)
            if link is None:
                followed = self._follow(name, self.modules)
                if name not in self.dropped or followed not in self.phases:
                    found[followed] = array
            elif id(link) not in done and all(part in arrays for part in needed(link, link.candidate)):
                done.add(id(link))
                parts = needed(link, link.candidate)
                found |= _mapped(link.back, [arrays[part] for part in parts], link.reference)
        return found

    def forward(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The reference's arrays under the candidate's names, in the candidate's shapes; see ``back``."""
        found: dict[str, Array] = {}
        done: set[int] = set()
        for name, array in arrays.items():
            link = self.by_reference.get(name)
            if link is None:
                if not self.links:
                    found[self._follow(name, self._own_modules)] = array
            elif id(link) not in done and all(part in arrays for part in needed(link, link.reference)):
                done.add(id(link))
                parts = needed(link, link.reference)
                found |= _mapped(link.forward, [arrays[part] for part in parts], link.candidate)
        return found

    def pairs(self, theirs: Mapping[str, Array], ours: Mapping[str, Array]) -> Iterator[tuple[str, Array, Array]]:
        """Arrays that must hold the same numbers: name, the candidate's, the reference's, in one side's shape."""
        sums = [link for link in self.links if isinstance(link, LowRank) and len(link.candidate) == 3]
        summed = {name for link in sums for name in link.candidate}
        for name, array in self.forward(theirs).items():
            if name in ours and name not in summed:
                yield name, ours[name], array
        for name, array in self.back({name: array for name, array in ours.items() if name in summed}).items():
            if name in theirs:
                yield name, array, theirs[name]

    def exact_sums(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Sums of the reference's arrays that the candidate holds rounded, in float64 by the candidate's names."""
        sums = [link for link in self.links if isinstance(link, LowRank) and len(link.reference) == 3]
        found: dict[str, Array] = {}
        for link in sums:
            if all(name in arrays for name in link.reference):
                found |= link.forward([arrays[name].astype(np.float64) for name in link.reference])
        return found

    def partners(self, name: str) -> tuple[str, ...]:
        """The reference's arrays that the candidate's array shares its numbers with."""
        link = self.by_candidate.get(name)
        if link is not None:
            return link.reference
        return () if name in self.dropped else (self._follow(name, self.modules),)

    def is_plain(self, name: str) -> bool:
        """Whether the candidate's array has at most another name in the reference."""
        link = self.by_candidate.get(name)
        return link is None or (isinstance(link, Tied) and len(link.reference) == len(link.candidate) == 1)

    @cached_property
    def by_candidate(self) -> dict[str, Link]:
        return {name: link for link in self.links for name in link.candidate}

    @cached_property
    def by_reference(self) -> dict[str, Link]:
        return {name: link for link in self.links for name in link.reference}

    @cached_property
    def _own_modules(self) -> dict[str, str]:
        return {path: own for own, path in self.modules.items()}

    @staticmethod
    def _follow(name: str, modules: Mapping[str, str]) -> str:
        path, dot, leaf = name.rpartition(".")
        path = modules.get(path, path)
        return f"{path}{dot or '.'}{leaf}" if path else leaf


SAME = Layout()


def needed(link: Link, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a side's names without which the other side's arrays cannot be made."""
    return names[:1] if isinstance(link, Tied) else names


def _mapped(
    way: Callable[[Sequence[Array]], dict[str, Array] | None], arrays: Sequence[Array], names: Sequence[str]
) -> dict[str, Array]:
    try:
        return way(arrays) or {}
    except ValueError:  # another shape than the one that was mapped
        return dict(zip(names, arrays, strict=False))


class Translated:
    """A sink that passes the candidate's arrays on under the reference's names and in its shapes.

    Arrays that make one of the reference's together wait for one another.
    """

    def __init__(self, sink: Any, layout: Layout) -> None:
        self.sink, self.layout = sink, layout
        self._waiting: dict[int, dict[str, Array]] = {}

    def put(self, name: str, array: Array) -> None:
        phase, rest = name.split("/", 1)
        if "#" in rest:
            self.sink.put(self.layout.call(name), array)
            return
        link, arrays = self.layout.by_candidate.get(rest), {rest: array}
        parts = () if link is None else needed(link, link.candidate)
        if link is not None and len(parts) > 1:
            arrays = self._waiting.setdefault(id(link), {})
            arrays[rest] = np.array(array)
            if len(arrays) < len(parts):
                return
            del self._waiting[id(link)]
        first = ""
        for own, found in self.layout.back(arrays).items():
            other = f"{self.layout.phases.get(own, phase)}/{own}"
            if isinstance(link, Tied) and first:  # one array of the candidate, whatever it is in the reference
                self.sink.alias(other, first, partial(np.asarray, found))
            else:
                self.sink.put(other, found)
            first = first or other

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        bare, known = (text.split("/", 1)[1] for text in (name, existing))
        if "#" in bare:
            self.sink.alias(self.layout.call(name), self.layout.call(existing), values)
        elif all(self.layout.is_plain(rest) and rest not in self.layout.dropped for rest in (bare, known)):
            new, old = (self._plain(text) for text in (name, existing))
            self.sink.alias(new, old, values)
        else:
            self.put(name, values())

    def _plain(self, name: str) -> str:
        phase, rest = name.split("/", 1)
        (own,) = self.layout.back({rest: np.empty(0)})
        return f"{self.layout.phases.get(own, phase)}/{own}"
