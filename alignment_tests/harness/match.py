"""Which module of the candidate is which of the reference: by name, else by what it holds, its class and its order.

Nothing is guessed. Where two modules could be meant, the error shows both, and ``given`` decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment_tests.harness.outline import COUNTER, followed, match
from alignment_tests.harness.port_map import PortMapError
from alignment_tests.harness.record.adapter import Adapter
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.naming import first_names

Tensors = tuple[tuple[str, tuple[int, ...]], ...]


class NameMatchError(PortMapError):
    """A module has no partner, or more than one module could be it."""


@dataclass(frozen=True)
class Node:
    """A module: its path, its class without dialect, and the names and shapes of the tensors that it holds itself."""

    path: str
    kind: str
    tensors: Tensors
    tied: bool = False  # whether each tensor has another name before

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]

    def __str__(self) -> str:
        held = ", ".join(f"{name} {shape}" for name, shape in self.tensors)
        return f"{self.path or 'the root'} ({self.kind}{': ' if held else ''}{held})"


@dataclass
class NameMap:
    """What was found.

    Attributes:
        renamed: path in the candidate -> path in the reference, for every pair.
        how: the same paths of the candidate -> "given", "name", "last name", "order", "content" or "class".
        only_reference: modules without tensors that have no partner in the candidate.
        only_candidate: the same for the candidate.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    only_reference: tuple[str, ...] = ()
    only_candidate: tuple[str, ...] = ()

    def pair(self, ours: Node, theirs: Node, how: str) -> None:
        self.renamed[ours.path], self.how[ours.path] = theirs.path, how


def match_names(reference: Any, candidate: Any, *, given: Mapping[str, str] | None = None) -> NameMap:
    """Pair the modules of two models.

    Modules that hold tensors are paired first: by path; else, among those that hold tensors of the same names and
    shapes, by the last part of the path; else by the order in which the models define them. Containers are paired by
    what they contain, and modules without tensors (activations, pools) inside such pairs by name, then class and order.

    Args:
        reference: a model of either framework.
        candidate: the other one.
        given: candidate's path -> reference's, which is taken as it is.

    Raises:
        NameMatchError: a module with tensors has no partner or more than one possible partner, each one shown.
    """
    theirs, ours = nodes(adapter_for(reference), reference), nodes(adapter_for(candidate), candidate)
    found = NameMap()
    take_given(found, theirs, ours, given or {})
    pair_holding(found, theirs, ours)
    left, right = ([node for node in holding(side) if not node.tied] for side in (theirs, ours))
    refuse_leftovers(found, left, right)
    pair_rest(found, theirs, ours)
    return found


def pair_holding(found: NameMap, theirs: list[Node], ours: list[Node]) -> None:
    """Pair modules that hold tensors.

    Raises:
        NameMatchError: the order contradicts the names.
    """
    pair_by(found, "name", holding(theirs), holding(ours), lambda node: (node.path, node.tensors))
    pair_by(found, "last name", holding(theirs), holding(ours), lambda node: (node.name, node.kind, node.tensors))
    pair_by_order(found, holding(theirs), holding(ours))


def pair_rest(found: NameMap, theirs: list[Node], ours: list[Node]) -> None:
    """Pair the modules without tensors, and note those that have no partner."""
    pair_containers(found, theirs, ours)
    pair_inside(found, theirs, ours)
    taken = set(found.renamed.values())
    found.only_reference = tuple(node.path for node in theirs if node.path not in taken)
    found.only_candidate = tuple(node.path for node in ours if node.path not in found.renamed)


def nodes(adapter: Adapter, model: Any) -> list[Node]:
    """Every module in the order of definition, the root first."""
    held: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    owners: set[str] = set()
    first = first_names(adapter.variables(model))
    for name, (_, array) in adapter.state(model).items():
        path, _, leaf = name.rpartition(".")
        if leaf != COUNTER:
            held.setdefault(path, []).append((leaf, tuple(array.shape)))
            owners |= {path} if first[name] == name else set()
    return [
        Node(path, plain_class(type(module).__name__), tuple(sorted(held.get(path, []))), path not in owners)
        for path, module in adapter.modules(model)
    ]


def plain_class(name: str) -> str:
    """``Conv2d`` and ``Conv`` are "conv", ``MaxPool2d`` and ``Pool`` "pool", ``LeakyReLU`` and ``Leaky_relu`` alike."""
    plain = re.sub(r"[123]d$", "", name.lower().replace("_", ""))
    return "pool" if plain in ("maxpool", "avgpool") else plain


def holding(found: Iterable[Node]) -> list[Node]:
    return [node for node in found if node.tensors]


def take_given(found: NameMap, theirs: list[Node], ours: list[Node], given: Mapping[str, str]) -> None:
    by_path = {node.path: node for node in theirs}
    own = {node.path: node for node in ours}
    for path, target in given.items():
        if path not in own or target not in by_path:
            side, missing = ("candidate", path) if path not in own else ("reference", target)
            raise NameMatchError(f"`given` must name modules of both models. The {side} has no module {missing!r}")
        found.pair(own[path], by_path[target], "given")


def rest(found: NameMap, theirs: Iterable[Node], ours: Iterable[Node]) -> tuple[list[Node], list[Node]]:
    """The nodes of both sides that have no partner yet."""
    taken = set(found.renamed.values())
    return [n for n in theirs if n.path not in taken], [n for n in ours if n.path not in found.renamed]


def grouped(found: Iterable[Node], key: Callable[[Node], Any]) -> dict[Any, list[Node]]:
    groups: dict[Any, list[Node]] = {}
    for node in found:
        groups.setdefault(key(node), []).append(node)
    return groups


def pair_by(found: NameMap, how: str, theirs: list[Node], ours: list[Node], key: Callable[[Node], Any]) -> None:
    """Pair what is left and has the same key, which each side has once."""
    left, right = (grouped(side, key) for side in rest(found, theirs, ours))
    for value, group in right.items():
        if len(group) == len(left.get(value, [])) == 1:
            found.pair(group[0], left[value][0], how)


def pair_by_order(found: NameMap, theirs: list[Node], ours: list[Node]) -> None:
    """Pair what is left of one class and shape in the order of definition, where both sides have equally many.

    Raises:
        NameMatchError: the order contradicts pairs of the same shape that names made.
    """
    left, right = rest(found, theirs, ours)
    for key in (lambda node: (node.kind, node.tensors)), (lambda node: node.tensors):
        groups = grouped(rest(found, left, ours)[0], key)
        for value, group in grouped(rest(found, theirs, right)[1], key).items():
            if len(group) == len(groups.get(value, [])):
                for own, other in zip(group, groups[value], strict=True):
                    found.pair(own, other, "order")
                    refuse_crossing(found, own, other, theirs, ours)


def refuse_crossing(found: NameMap, own: Node, other: Node, theirs: list[Node], ours: list[Node]) -> None:
    place = {node.path: index for index, node in enumerate(theirs)}
    before = True
    for node in ours:
        if node.path == own.path:
            before = False
        elif (node.kind, node.tensors) == (own.kind, own.tensors) and "name" in found.how.get(node.path, ""):
            target = found.renamed[node.path]
            if (place[target] < place[other.path]) != before:
                raise NameMatchError(
                    f"ambiguous: by order the candidate's {own} is the reference's {other}, but the name of "
                    f"{node.path}, which holds the same shapes, makes it {target}, on the other side. Map both"
                )


def refuse_leftovers(found: NameMap, theirs: list[Node], ours: list[Node]) -> None:
    left, right = rest(found, theirs, ours)
    if not left and not right:
        return
    lines = []
    for group in grouped([*right, *left], lambda node: node.tensors).values():
        here = [str(node) for node in group if node in right]
        there = [str(node) for node in group if node in left]
        word = "ambiguous" if here and there else "without partner"
        lines.append(f"{word}: candidate {here or 'none'}, reference {there or 'none'}")
    raise NameMatchError("modules cannot be paired by name, shape and order; give `renamed`:\n" + "\n".join(lines))


def pair_containers(found: NameMap, theirs: list[Node], ours: list[Node]) -> None:
    """Pair modules without tensors of their own that contain the same pairs; nested ones of equal content from outside
    in, where both sides nest equally deep."""
    other = grouped(empty(theirs), lambda node: frozenset(inside(node, holding(theirs))))
    for paths, group in grouped(empty(ours), lambda node: frozenset(inside(node, holding(ours)))).items():
        content = frozenset(found.renamed[path] for path in paths if path in found.renamed)
        twins = other.get(content, [])
        if len(content) != len(paths) or not content:
            continue
        same = {node.path: node for node in twins}
        named = all(node.path in same for node in group)
        if named or len(group) == len(twins):
            for index, node in enumerate(group):
                found.pair(node, same[node.path] if named else twins[index], "name" if named else "content")


def empty(found: Iterable[Node]) -> list[Node]:
    return [node for node in found if not node.tensors]


def inside(node: Node, owners: Iterable[Node]) -> list[str]:
    prefix = f"{node.path}." if node.path else ""
    return [owner.path for owner in owners if owner.path.startswith(prefix)]


def pair_inside(found: NameMap, theirs: list[Node], ours: list[Node]) -> None:
    """Pair modules without tensors inside paired parents, parents before their children."""
    if not found.how.get(""):
        found.pair(ours[0], theirs[0], "name")
    for parent in [node.path for node in ours]:
        if parent not in found.renamed:
            continue
        there = [n for n in empty(theirs) if n.path and n.parent == found.renamed[parent]]
        here = [n for n in empty(ours) if n.path and n.parent == parent]
        pair_by(found, "name", there, here, lambda node: node.name)
        left, right = (grouped(side, lambda node: node.kind) for side in rest(found, there, here))
        for kind, group in right.items():
            if len(group) == len(left.get(kind, [])):
                for own, other in zip(group, left[kind], strict=True):
                    found.pair(own, other, "class")


def entries_of(renamed: Mapping[str, str], paths: Iterable[str]) -> dict[str, str]:
    """The fewest entries of a map from which these pairs follow: children follow their parent, a star takes indices.

    Args:
        renamed: candidate's path -> reference's.
        paths: all of the candidate's; an entry must not stand for one that has no partner.
    """
    found: dict[str, str] = {}
    for path in sorted(renamed, key=depth):
        if followed(path, found)[0] != renamed[path]:
            found[path] = renamed[path]
    known = list(paths)
    for (own, other), replaced in sorted(with_stars(found).items()):
        shorter = {path: target for path, target in found.items() if path not in replaced} | {own: other}
        whole = all(path in renamed for path in known if match(own, path) is not None)
        if whole and all(followed(path, shorter)[0] == target for path, target in renamed.items()):
            found = dict(sorted(shorter.items(), key=lambda entry: depth(entry[0])))
    return found


def depth(path: str) -> int:
    return path.count(".") + bool(path)


def with_stars(entries: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """Pairs of patterns -> the entries that each stands for, where there are at least two."""
    groups: dict[tuple[str, str], list[str]] = {}
    for own, other in entries.items():
        numbers = [[part for part in path.split(".") if part.isdigit()] for path in (own, other)]
        if numbers[0] and numbers[0] == numbers[1]:
            groups.setdefault((starred(own), starred(other)), []).append(own)
    return {pair: paths for pair, paths in groups.items() if len(paths) > 1}


def starred(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))
