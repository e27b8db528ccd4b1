"""Propose a port map for two models, as far as it can be told, and say of the rest what it could be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignment_tests.harness.match import (
    NameMap,
    NameMatchError,
    Node,
    entries_of,
    pair_holding,
    pair_rest,
    plain_class,
    starred,
)
from alignment_tests.harness.outline import COUNTER, Names, Outline, followed, joined
from alignment_tests.harness.port_map import Parts, PortMap, nearest
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.layout import Shape
from alignment_tests.harness.resolve import claimed
from alignment_tests.harness.suggest import (
    Packing,
    Suggested,
    arranged,
    guessed_prefixes,
    indices,
    packing,
    runs,
    shortened,
)

OTHER_WORDS = {"gamma": "weight", "beta": "bias"}  # what some implementations of norms call them
ONLY_HERE = "a buffer that only this side keeps; its effect is compared in what follows"


@dataclass(frozen=True)
class Proposal:
    """What was found out.

    Attributes:
        port_map: the map.
        by_shape: what of it the shapes alone suggest.
        unmatched: a line for each module that it has no place for, with the few best candidates.
    """

    port_map: PortMap
    by_shape: PortMap
    unmatched: tuple[str, ...]

    def text(self) -> str:
        """As a file to be edited."""
        remarks = ["", "Not matched; the nearest of the other side:", *self.unmatched] if self.unmatched else []
        return self.port_map.text(remarks)

    def whole(self) -> PortMap:
        """The map.

        Raises:
            NameMatchError: something was not matched.
        """
        if self.unmatched:
            more = "\n".join(self.unmatched)
            raise NameMatchError(f"weights without partner, or with more than one; give `port_map`:\n{more}")
        return self.port_map

    def by_names(self) -> PortMap:
        """The map, for weights to be written by it: no array is turned or cut because its shape suggests that.

        Raises:
            NameMatchError: something was not matched, or only by its shape.
        """
        found = self.whole()
        suggested = [*self.by_shape.transposed, *self.by_shape.merged, *self.by_shape.split]
        if suggested:
            kinds = ", ".join(kind for kind in ("transposed", "merged", "split") if getattr(self.by_shape, kind))
            raise NameMatchError(
                f"shapes suggest weights that are {kinds}: {', '.join(suggested[:5])}; "
                "look at the map that `propose` gives, and give it as `port_map`"
            )
        return found


def propose(reference: Any, candidate: Any, given: PortMap | None = None) -> Proposal:
    """The map that two models suggest.

    Prefixes that one side has in front of every name are dropped; modules that hold weights are paired by name, by what
    they hold and by order (see ``match_names``). Where equal names hold unequal arrays, a transposed or reshaped array,
    a buffer that only one side keeps and packed weights are recognised by their shapes.

    Args:
        reference: a model of either framework.
        candidate: the other one.
        given: what is known already; it is taken as it is.

    Raises:
        PortMapError: ``given`` does not fit the models.
    """
    return _Proposer(reference, candidate, given or PortMap()).proposal()


class _Proposer:
    def __init__(self, reference: Any, candidate: Any, given: PortMap) -> None:
        outlines = Outline.of("reference", reference), Outline.of("candidate", candidate)
        self.given = replace(given, prefixes=given.prefixes or guessed_prefixes(*outlines))
        taken = claimed(self.given, *outlines)
        self.buffers = {
            outline.side: {n for n, (_, phase) in taken.arrays[outline.side].items() if phase == "buffer"}
            for outline in outlines
        }
        models = {"reference": reference, "candidate": candidate}
        self.theirs, self.ours = (
            nodes_of(models[side], taken.paths[side], {n: shape for n, (shape, _) in taken.arrays[side].items()})
            for side in ("reference", "candidate")
        )
        self.ties = {o.side: ties_of(Names(o, self.given.prefixes.get(o.side, ()))) for o in outlines}
        self.names_of = {outline.side: list(taken.arrays[outline.side]) for outline in outlines}
        self.names, self.found = NameMap(), Suggested()
        self.kinds: set[tuple[str, str]] = set()  # classes of the candidate and the reference that are transposed
        self.remarks: list[str] = []

    def proposal(self) -> Proposal:
        self.pair_given()
        self.drop_lone_buffers()
        self.pair_exactly()
        self.pair_explained()
        try:
            pair_holding(self.names, self.theirs, self.ours)
        except NameMatchError as error:
            self.remarks.append(str(error))
        self.turn_alike()
        self.pair_packed()
        self.tie_names()
        left = [[node for node in side if node.tensors] for side in self.unpaired()]
        pair_rest(self.names, self.theirs, self.ours)
        shaped = PortMap(
            merged=self.packed_with_stars(self.found.merged, self.ours),
            split=self.packed_with_stars(self.found.split, self.theirs),
            transposed=shortened(self.found.transposed, self.names_of["candidate"]),
        )
        return Proposal(self.port_map(shaped), shaped, (*self.remarks, *remarks_on(*left)))

    def port_map(self, shaped: PortMap) -> PortMap:
        given, found = self.given, self.found
        given_names = {own: other for own, other in self.names.renamed.items() if self.names.how[own] == "given"}
        modules = entries_of(self.names.renamed, (node.path for node in self.ours))
        if all(followed(own, given.modules)[0] == other for own, other in given_names.items()):
            rest = {own: other for own, other in modules.items() if followed(own, given.modules)[0] != other}
            modules = {**given.modules, **rest}
        left_out = {
            side: {**given.left_out.get(side, {}), **shortened(reasons, self.names_of[side])}
            for side, reasons in found.left_out.items()
            if given.left_out.get(side) or reasons
        }
        tied = {
            side: {**given.tied.get(side, {}), **names}
            for side, names in found.tied.items()
            if given.tied.get(side) or names
        }
        return replace(
            given,
            modules=modules,
            tied=tied,
            arrays={**given.arrays, **found.arrays},
            merged={**given.merged, **shaped.merged},
            split={**given.split, **shaped.split},
            transposed={**given.transposed, **shaped.transposed},
            reshaped=(*given.reshaped, *shortened(dict.fromkeys(found.reshaped, ()), self.names_of["candidate"])),
            left_out=left_out,
        )

    @staticmethod
    def packed_with_stars(entries: Mapping[str, Parts], nodes: Iterable[Node]) -> dict[str, Parts]:
        paths = [node.path for node in nodes]
        keyed = {n: (tuple(starred(part) for part in p.parts), p.axis, indices(n, p.parts)) for n, p in entries.items()}
        found = {}
        for name, value in shortened(keyed, paths).items():
            parts, axis, same = value
            found[name] = Parts(parts, axis) if "*" in name and same else entries[name]
        return found

    def unpaired(self) -> tuple[list[Node], list[Node]]:
        taken = set(self.names.renamed.values())
        return (
            [node for node in self.theirs if node.path not in taken],
            [node for node in self.ours if node.path not in self.names.renamed],
        )

    def pair_given(self) -> None:
        by_path = {node.path: node for node in self.theirs}
        for node in self.ours:
            target, named = followed(node.path, self.given.modules)
            if named and target in by_path:
                self.pair(node, by_path[target], "given")

    def drop_lone_buffers(self) -> None:
        """Modules that hold nothing but buffers which the other side has not under that name."""
        for side, mine, others in (("reference", self.theirs, self.ours), ("candidate", self.ours, self.theirs)):
            held = {node.path for node in others if node.tensors}
            for index, node in enumerate(mine):
                names = [joined(node.path, leaf) for leaf, _ in node.tensors]
                if names and node.path not in held and self.buffers[side].issuperset(names):
                    self.found.left_out[side] |= dict.fromkeys(names, ONLY_HERE)
                    mine[index] = replace(node, tensors=())

    def pair_exactly(self) -> None:
        theirs, ours = self.unpaired()
        same = {(node.path, node.tensors): node for node in theirs if node.tensors}
        for node in ours:
            if (node.path, node.tensors) in same:
                self.pair(node, same[node.path, node.tensors], "name")

    def pair_explained(self) -> None:
        """Modules of one path whose arrays differ in a way that a map can say."""
        theirs, ours = self.unpaired()
        by_path = {node.path: node for node in theirs if node.tensors}
        for node in ours:
            other = by_path.get(node.path)
            if other is None or not node.tensors:
                continue
            explained = self.explained(node, other)
            if explained is not None:
                self.found.add(explained)
                self.pair(node, other, "name")

    def explained(self, own: Node, other: Node) -> Suggested | None:
        """The entries that make one module's arrays the other's; None if none can."""
        found, theirs = Suggested(), dict(other.tensors)
        for leaf, shape in own.tensors:
            name, target = joined(own.path, leaf), leaf if leaf in theirs else OTHER_WORDS.get(leaf, leaf)
            if target not in theirs:
                if name not in self.buffers["candidate"]:
                    return None
                found.left_out["candidate"][name] = ONLY_HERE
                continue
            if target != leaf:
                found.arrays[name] = joined(other.path, target)
            original = theirs.pop(target)
            if shape != original and not arranged(found, name, shape, original):
                return None
        for leaf in theirs:
            if joined(other.path, leaf) not in self.buffers["reference"]:
                return None
            found.left_out["reference"][joined(other.path, leaf)] = ONLY_HERE
        return found

    def pair_packed(self) -> None:
        """Weights that one side packs into one and the other keeps apart, under the same parent."""
        entries = entries_of(self.names.renamed, (node.path for node in self.ours))
        parents = {node.path: followed(node.parent, entries)[0] for node in self.ours}
        for own in self.left("candidate"):
            for parts in runs([node for node in self.left("reference") if node.parent == parents[own.path]]):
                way = packing(own, parts, own_is_whole=True, turned=(own.kind, parts[0].kind) in self.kinds)
                if way is not None:
                    self.found.merged[own.path] = Parts(tuple(part.path for part in parts), way.axis)
                    self.take([own], parts, way)
                    break
        for whole in self.left("reference"):
            for parts in runs([node for node in self.left("candidate") if parents[node.path] == whole.parent]):
                way = packing(whole, parts, own_is_whole=False, turned=(parts[0].kind, whole.kind) in self.kinds)
                if way is not None:
                    self.found.split[whole.path] = Parts(tuple(part.path for part in parts), way.axis)
                    self.take(parts, [whole], way)
                    break

    def tie_names(self) -> None:
        """Modules that hold nothing but further names of arrays, where the other side calls a function."""
        for side, mine in (("reference", self.theirs), ("candidate", self.ours)):
            for node in self.left(side):
                names = [joined(node.path, leaf) for leaf, _ in node.tensors]
                if self.ties[side].keys() >= set(names):
                    self.found.tied[side] |= {name: self.ties[side][name] for name in names}
                    mine[mine.index(node)] = replace(node, tensors=())

    def left(self, side: str) -> list[Node]:
        return [node for node in self.unpaired()[side == "candidate"] if node.tensors]

    def take(self, ours: Sequence[Node], theirs: Sequence[Node], way: Packing) -> None:
        """The arrays of these modules have their place now; the modules themselves are nobody's partner."""
        if way.turned:
            matrices = [joined(node.path, leaf) for node in ours for leaf, shape in node.tensors if len(shape) == 2]
            self.found.transposed |= dict.fromkeys(matrices, (1, 0))
        for side, done in ((self.ours, ours), (self.theirs, theirs)):
            paths = {node.path for node in done}
            side[:] = [replace(node, tensors=(), kind=node.path) if node.path in paths else node for node in side]

    def turn_alike(self) -> None:
        """A square matrix does not show that it is transposed; other layers of its two classes do."""
        by_path = {node.path: node for node in self.theirs}
        renamed = self.names.renamed
        pairs = [(node, by_path[renamed[node.path]]) for node in self.ours if node.path in renamed]
        turned = {name.rpartition(".")[0] for name in self.found.transposed}
        self.kinds = {(own.kind, other.kind) for own, other in pairs if own.kind != other.kind and own.path in turned}
        for own, other in pairs:
            for leaf, shape in own.tensors if (own.kind, other.kind) in self.kinds else ():
                if len(shape) == 2 and shape[0] == shape[1]:
                    self.found.transposed.setdefault(joined(own.path, leaf), (1, 0))

    def pair(self, own: Node, other: Node, how: str) -> None:
        self.names.pair(own, other, how)


def ties_of(names: Names) -> dict[str, str]:
    """Canonical name of an array -> its first name, for those that have an earlier one."""
    return {names.canonical[name]: names.canonical[own] for name, own in names.outline.ties.items()}


def nodes_of(model: Any, paths: Mapping[str, str], arrays: Mapping[str, Shape]) -> list[Node]:
    """Modules under their canonical paths, with those of their arrays that have no place yet."""
    held: dict[str, list[tuple[str, Shape]]] = {}
    for name, shape in arrays.items():
        path, _, leaf = name.rpartition(".")
        if leaf != COUNTER:
            held.setdefault(path, []).append((leaf, shape))
    canonical = {actual: bare for bare, actual in paths.items()}
    return [
        Node(canonical[path], plain_class(type(module).__name__), tuple(sorted(held.get(canonical[path], []))))
        for path, module in adapter_for(model).modules(model)
        if path in canonical
    ]


def remarks_on(theirs: Iterable[Node], ours: Iterable[Node]) -> list[str]:
    """A line for each node that is left, with the few nearest of the other side."""
    left = {"reference": list(theirs), "candidate": list(ours)}
    found = []
    for side, other in (("candidate", "reference"), ("reference", "candidate")):
        for node in left[side]:
            found.append(f"{side} {node}: {other} {best(node, left[other])}")
    return found


def best(node: Node, others: Sequence[Node], count: int = 3) -> str:
    """Those of equal shapes first, then by name."""
    shapes = [shape for _, shape in node.tensors]
    alike = [other for other in others if [shape for _, shape in other.tensors] == shapes]
    chosen = alike or list(others)
    near = nearest(node.path, (other.path for other in chosen), count).split(", ")
    return "; ".join(str(other) for other in chosen if other.path in near) or "has none left"
