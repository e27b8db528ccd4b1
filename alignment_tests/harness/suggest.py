"""What names and shapes suggest of how one model's arrays lie beside another's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from alignment_tests.harness.match import Node, starred
from alignment_tests.harness.outline import Outline, match
from alignment_tests.harness.port_map import Parts
from alignment_tests.harness.record.layout import Shape
from alignment_tests.harness.resolve import packed_shape, without_ones

MOST_PARTS = 4  # of a packed weight: query, key, value, gate


@dataclass
class Suggested:
    """The sections of a map under way."""

    arrays: dict[str, str] = field(default_factory=dict)
    merged: dict[str, Parts] = field(default_factory=dict)
    split: dict[str, Parts] = field(default_factory=dict)
    transposed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    tied: dict[str, dict[str, str]] = field(default_factory=lambda: {"reference": {}, "candidate": {}})
    left_out: dict[str, dict[str, str]] = field(default_factory=lambda: {"reference": {}, "candidate": {}})

    def add(self, other: Suggested) -> None:
        for name in ("arrays", "merged", "split", "transposed"):
            getattr(self, name).update(getattr(other, name))
        self.reshaped += other.reshaped
        for side, reasons in other.left_out.items():
            self.left_out[side].update(reasons)


def guessed_prefixes(reference: Outline, candidate: Outline) -> dict[str, tuple[str, ...]]:
    """A first part that every array of one side has, if most names are the other side's without it."""
    for mine, other in ((reference, candidate), (candidate, reference)):
        dropped: list[str] = []
        names, known = list(mine.arrays), set(other.arrays)
        while names and len({first_part(name) for name in names}) == 1 and first_part(names[0]):
            dropped.append(f"{first_part(names[0])}.")
            names = [name.partition(".")[2] for name in names]
            if 2 * sum(name in known for name in names) > len(names) and not known.issuperset(mine.arrays):
                return {mine.side: tuple(dict.fromkeys(dropped))}
    return {}


def first_part(name: str) -> str:
    first, dot, _ = name.partition(".")
    return first if dot else ""


def shortened(entries: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The same entries, those that differ by an index only as one with a star, where that stands for no other name."""
    groups: dict[tuple[str, Any], list[str]] = {}
    for name, value in entries.items():
        groups.setdefault((starred(name), value), []).append(name)
    known = list(names)
    found: dict[str, Any] = {}
    for (pattern, value), members in groups.items():
        alone = len(members) < 2 or {name for name in known if match(pattern, name) is not None} != set(members)
        found |= dict.fromkeys(members, value) if alone else {pattern: value}
    return found


def indices(name: str, parts: Sequence[str]) -> bool:
    """Whether the parts have the indices of the whole, so that stars can stand for them."""
    numbers = [[part for part in path.split(".") if part.isdigit()] for path in (name, *parts)]
    return all(own == numbers[0] for own in numbers)


def arranged(found: Suggested, name: str, shape: Shape, original: Shape) -> bool:
    """Note how the axes of the original lie in the array; False if they do not."""
    if len(shape) == 2 and shape == original[::-1]:
        found.transposed[name] = (1, 0)
    elif {shape, original} == {(), (1,)}:
        pass  # Jittor has no arrays of no axes
    elif without_ones(shape) == without_ones(original):
        found.reshaped.append(name)
    else:
        return False
    return True


def runs(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """Neighbours among siblings that hold arrays of equal names, the longest runs first."""
    for count in range(min(len(nodes), MOST_PARTS), 1, -1):
        for start in range(len(nodes) - count + 1):
            part = list(nodes[start : start + count])
            if len({tuple(leaf for leaf, _ in node.tensors) for node in part}) == 1:
                yield part


class Packing(NamedTuple):
    """The axis of the reference's arrays along which the parts lie, and whether the candidate's are transposed."""

    axis: int
    turned: bool


def packing(whole: Node, parts: Sequence[Node], *, own_is_whole: bool, turned: bool) -> Packing | None:
    """How the parts make the whole, which is the candidate's or the reference's; None if they do not.

    A square matrix does not show whether it is transposed. Those of one class are not; ``turned`` tells that others of
    these two classes are; else those are whose parts lie along the last axis of a (in, out) matrix.
    """
    ways = [Packing(0, False), Packing(-1, True), Packing(0, True), Packing(-1, False)]
    if turned or whole.kind == parts[0].kind:
        ways.sort(key=lambda way: way.turned != turned)
    for way in ways:
        ours = [turned_over(node) if way.turned else node for node in ([whole] if own_is_whole else parts)]
        if is_packed(*((ours[0], parts) if own_is_whole else (whole, ours)), way.axis):
            return way
    return None


def turned_over(node: Node) -> Node:
    return replace(node, tensors=tuple((leaf, s[::-1] if len(s) == 2 else s) for leaf, s in node.tensors))


def is_packed(whole: Node, parts: Sequence[Node], axis: int) -> bool:
    """Whether each array of the whole has the shape of the parts' one behind the other."""
    if [leaf for leaf, _ in whole.tensors] != [leaf for leaf, _ in parts[0].tensors]:
        return False
    for number, (_, shape) in enumerate(whole.tensors):
        pieces = [part.tensors[number][1] for part in parts]
        if not shape or any(len(piece) != len(shape) for piece in pieces) or packed_shape(pieces, axis) != shape:
            return False
    return True
