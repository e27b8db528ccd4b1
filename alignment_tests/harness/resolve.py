"""A port map, applied to two models (or to two dumps of models): which of their modules and arrays belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from alignment_tests.harness.outline import COUNTER, Names, Outline, escaped, filled, followed, joined
from alignment_tests.harness.port_map import PortMap, PortMapError
from alignment_tests.harness.record.layout import CALL_PHASES, Layout, Link, LowRank, Packed, Shape, Tied

REARRANGED = "the other side has its weights in another place; its effect is compared in what follows"


def resolve(port_map: PortMap, reference: Outline, candidate: Outline) -> Layout:
    """The layout of the candidate by this map.

    Arrays without partner are listed in ``Layout.unmapped``; whether that is an error is for the caller to say.

    Raises:
        PortMapError: the map names what does not exist (the nearest names are listed), names something twice, or its
            entries do not fit the shapes.
    """
    return _Resolver(port_map, reference, candidate).layout()


@dataclass(frozen=True)
class Free:
    """What the entries of a map leave, by side and by names without prefixes.

    Attributes:
        paths: of modules -> their own path.
        arrays: of those that have no place yet -> shape and phase.
    """

    paths: Mapping[str, Mapping[str, str]]
    arrays: Mapping[str, Mapping[str, tuple[Shape, str]]]


def claimed(port_map: PortMap, reference: Outline, candidate: Outline) -> Free:
    """What is there still to be mapped, when the entries of this map have taken theirs.

    Raises:
        PortMapError: see ``resolve``.
    """
    made = _Resolver(port_map, reference, candidate)
    made.left_out()
    made.entries()
    sides = {"reference": made.theirs, "candidate": made.ours}
    return Free(
        paths={side: names.modules for side, names in sides.items()},
        arrays={
            side: {n: names.outline.arrays[name] for n, name in names.arrays.items() if name not in made.taken[side]}
            for side, names in sides.items()
        },
    )


class _Resolver:
    def __init__(self, port_map: PortMap, reference: Outline, candidate: Outline) -> None:
        self.map = port_map
        self.theirs = Names(reference, port_map.prefixes.get("reference", ()))
        self.ours = Names(candidate, port_map.prefixes.get("candidate", ()))
        self.links: list[Link] = []
        self.taken: dict[str, set[str]] = {"reference": set(), "candidate": set()}
        self.excused: dict[str, str] = {}
        for names in (self.theirs, self.ours):
            reason = f"a prefix of the {names.outline.side} that the map drops"
            for path in names.wrappers():
                self.excused |= dict.fromkeys(of_calls(path), reason)
        self.table = self.modules()  # path in the candidate -> path in the reference

    def layout(self) -> Layout:
        dropped = self.left_out()
        self.entries()
        self.same_names()
        links = tuple(self.arranged(link) for link in self.links)
        self.excuse_rearranged(links)
        return Layout(
            modules=self.table,
            links=links,
            phases={name: phase for name, (_, phase) in self.theirs.outline.arrays.items()},
            excused=self.excused,
            dropped=frozenset(dropped),
            unmapped=tuple(self.unmapped()),
        )

    # Modules

    def modules(self) -> dict[str, str]:
        """Candidate's path -> reference's. An entry of the map decides against equal names."""
        rules = [(own, other, "`modules`") for own, other in self.map.modules.items()]
        for own, other, section in rules:
            for path, stars in self.ours.matching(own, self.ours.owners, section):
                self.theirs.existing(filled(other, stars), self.theirs.owners, f"{section} maps {path} to")
        given: dict[str, str] = {}
        equal: dict[str, str] = {}
        for path, actual in self.ours.modules.items():
            target, named = followed(path, self.map.modules)
            (given if named else equal)[actual] = self.theirs.modules.get(target, target)
        twice = [path for path, target in given.items() if list(given.values()).count(target) > 1]
        if twice:
            raise PortMapError(f"`modules` maps {' and '.join(twice[:2])} to the same module {given[twice[0]]!r}")
        taken = set(given.values())
        # What loses its name to an entry has no partner; it must not be compared with somebody else's.
        kept = {path: f"{target} (candidate)" if target in taken else target for path, target in equal.items()}
        return given | kept

    # Arrays

    def left_out(self) -> set[str]:
        dropped = set()
        for side, names in (("reference", self.theirs), ("candidate", self.ours)):
            for pattern, reason in self.map.left_out.get(side, {}).items():
                section = f"`left_out` of the {side}"
                for path, _ in names.matching(pattern, [*names.arrays, *names.owners], section):
                    inside = [n for c, n in names.arrays.items() if c == path or c.startswith(f"{path}.")]
                    self.claim(side, inside, section)
                    actual = names.modules.get(path, path)
                    shown = actual if side == "reference" else self.table.get(actual, actual)
                    known = inside if side == "reference" else [self.shown_name(name) for name in inside]
                    self.excused |= dict.fromkeys(of_arrays(known), reason)
                    if path in names.modules:
                        self.excused |= dict.fromkeys(of_calls(shown, inside=True), reason)
                    dropped |= set(inside) if side == "candidate" else set()
        return dropped

    def shown_name(self, name: str) -> str:
        """Of a candidate's array in the rows."""
        path, _, leaf = name.rpartition(".")
        return joined(self.table.get(path, path), leaf)

    def entries(self) -> None:
        """Links of the sections that name arrays."""
        for own, other in self.map.arrays.items():
            for name, stars in self.ours.matching(own, self.ours.arrays, "`arrays`"):
                target = self.theirs.existing(filled(other, stars), self.theirs.arrays, f"`arrays` maps {name} to")
                self.link("`arrays`", Tied((self.theirs.arrays[target],), (self.ours.arrays[name],)))
        for name, made in self.map.merged.items():
            for (own,), others in self.expanded(self.ours, (name,), self.theirs, made.parts, "`merged`"):
                self.link("`merged`", self.packed(others, (own,), made.axis))
        for name, made in self.map.split.items():
            for (other,), owns in self.expanded(self.theirs, (name,), self.ours, made.parts, "`split`"):
                self.link("`split`", self.packed((other,), owns, made.axis))
        for name, low in self.map.low_rank.items():
            self.low_rank(name, (low.weight, low.a, low.b), low.scale)
        for side, pairs in self.map.tied.items():
            for name, other in pairs.items():
                self.tie(side, name, other)

    def expanded(
        self, names: Names, pattern: Sequence[str], others: Names, parts: Sequence[str], section: str
    ) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Arrays for a pattern of arrays; or of modules, whose arrays go by their last names."""
        known = [*names.arrays, *names.owners]
        for path, stars in names.matching(pattern[0], known, section):
            targets = [filled(part, stars) for part in parts]
            if path in names.arrays:
                found = [others.existing(part, others.arrays, f"{section} of {path} names") for part in targets]
                yield (names.arrays[path],), tuple(others.arrays[part] for part in found)
                continue
            leaves = names.leaves(path)
            if not leaves:
                raise PortMapError(f"{section} names {path}, which holds no arrays itself")
            for part in targets:
                others.existing(part, others.owners, f"{section} of {path} names")
                if others.leaves(part) != leaves:
                    raise PortMapError(
                        f"{section} of {path} needs arrays of the same names in all modules. Received: "
                        f"{', '.join(leaves) or 'none'} and, in {part}, {', '.join(others.leaves(part)) or 'none'}"
                    )
            for leaf in leaves:
                yield (
                    (names.arrays[joined(path, leaf)],),
                    tuple(others.arrays[joined(part, leaf)] for part in targets),
                )

    def low_rank(self, name: str, parts: tuple[str, str, str], scale: float) -> None:
        """The side that has ``a`` is the one with the low-rank form."""
        section = "`low_rank`"
        whole, threes = (self.theirs, self.ours) if self.ours.has(parts[1]) else (self.ours, self.theirs)
        for path, stars in whole.matching(name, whole.arrays, section):
            three = [filled(part, stars) for part in parts]
            for part in three:
                threes.existing(part, threes.arrays, f"{section} of {path} names")
            names = (whole.arrays[path],), tuple(threes.arrays[part] for part in three)
            reference, candidate = names if whole is self.theirs else names[::-1]
            self.link(section, LowRank(reference, candidate, scale, threes.shape(names[1][2])))
            if whole is self.ours:
                reason = f"{path} of the candidate is {three[0]} + {scale:g} * {three[2]} @ {three[1]}, checked as such"
                self.excused |= dict.fromkeys(of_arrays(reference), reason)

    def tie(self, side: str, name: str, other: str) -> None:
        """``name`` has no partner of its own: it is the array ``other`` of the same side once more."""
        names, section = (self.theirs, self.ours)[side == "candidate"], f"`tied` of the {side}"
        twin = names.arrays[names.existing(other, names.arrays, f"{section} names")]
        own = names.arrays[names.existing(name, names.arrays, f"{section} names")]
        if not any(twin in getattr(link, side) for link in self.links):
            self.same_name(twin, side)
        for number, link in enumerate(self.links):
            if twin in getattr(link, side):
                if not isinstance(link, Tied):
                    raise PortMapError(f"{section}: {other} must be one whole array of the other side")
                self.claim(side, [own], section)
                self.links[number] = replace(link, **{side: (*getattr(link, side), own)})
                self.excuse_alone(side, own, f"its weight is {other}; its effect is compared in what follows")
                return
        raise PortMapError(f"{section}: {other}, which {name} is tied to, must have a partner itself")

    def same_names(self) -> None:
        """What no entry names goes by its module and its last name."""
        for name in list(self.ours.outline.arrays):
            if name not in self.taken["candidate"]:
                self.same_name(name, "candidate")

    def same_name(self, name: str, side: str) -> None:
        own, other = name, self.partner(name)
        if side == "reference":
            own, other = next((n for n in self.ours.outline.arrays if self.partner(n) == name), ""), name
        if own and other is not None and other not in self.taken["reference"]:
            self.link("equal names", Tied((other,), (own,)))

    def partner(self, name: str) -> str | None:
        """The reference's array that the candidate's has by its module and its last name."""
        path, _, leaf = name.rpartition(".")
        if path in self.table:
            target = joined(self.table[path], leaf)
            return target if target in self.theirs.outline.arrays else None
        return self.theirs.arrays.get(followed(self.ours.canonical[name], self.map.modules)[0])

    def packed(self, reference: tuple[str, ...], candidate: tuple[str, ...], axis: int) -> Packed:
        shapes = tuple(self.theirs.shape(name) for name in reference), tuple(self.ours.shape(n) for n in candidate)
        return Packed(reference, candidate, *shapes, axis)

    def link(self, section: str, link: Link) -> None:
        self.claim("reference", link.reference, section)
        self.claim("candidate", link.candidate, section)
        self.links.append(link)

    def claim(self, side: str, names: Iterable[str], section: str) -> None:
        for name in names:
            if name in self.taken[side]:
                raise PortMapError(f"{section} names {name} of the {side}, which another entry names too")
            self.taken[side].add(name)

    def arranged(self, link: Link) -> Link:
        """With the order of axes and the shapes that the map gives for the candidate's arrays."""
        if isinstance(link, LowRank):
            return link
        orders = [self.order(name) for name in link.candidate]
        loose = any(self.ours.canonical[name] in self.reshaped for name in link.candidate)
        if isinstance(link, Tied):
            theirs, ours = self.theirs.shape(link.reference[0]), self.ours.shape(link.candidate[0])
            zero = {theirs, ours} == {(), (1,)}  # Jittor has no arrays of no axes
            if not any(orders) and not loose and not zero:
                return link
            if len(link.candidate) > 1 or len(link.reference) > 1:
                raise PortMapError(f"`tied` arrays must have equal shapes. Received: {', '.join(link.candidate)}")
            link = self.packed(link.reference, link.candidate, 0)
            loose = loose or zero
        assert isinstance(link, Packed)
        link = replace(link, order=tuple(orders) if any(orders) else ())
        self.refuse_misfit(link, loose)
        return link

    def order(self, name: str) -> tuple[int, ...]:
        return self.orders.get(self.ours.canonical[name], ())

    @cached_property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """Canonical names of the candidate's arrays that the map turns."""
        return {
            name: order
            for pattern, order in self.map.transposed.items()
            for name, _ in self.ours.matching(pattern, self.ours.arrays, "`transposed`")
        }

    @cached_property
    def reshaped(self) -> set[str]:
        return {
            name
            for pattern in self.map.reshaped
            for name, _ in self.ours.matching(pattern, self.ours.arrays, "`reshaped`")
        }

    def refuse_misfit(self, link: Packed, loose: bool) -> None:
        """The shapes must come out as the candidate has them; only named arrays may differ, by axes of size 1."""
        names = f"{', '.join(link.reference)} of the reference and {', '.join(link.candidate)} of the candidate"
        shapes = f"{list(link.reference_shapes)} and {list(link.candidate_shapes)}"
        problem = PortMapError(f"the shapes of {names} do not fit by the map. Received: {shapes}")
        for order, shape in zip(link.order, link.candidate_shapes, strict=False):
            if order and not loose and len(order) != len(shape):
                raise problem
        if len(link.reference) == len(link.candidate) == 1:
            shape, order = link.reference_shapes[0], link.order[0] if link.order else ()
            if order and len(order) != len(shape):
                raise problem
            turned = tuple(shape[axis] for axis in order) if order else shape
            fits = without_ones(turned) == without_ones(link.candidate_shapes[0])
            if not (fits if loose else turned == link.candidate_shapes[0]):
                raise problem
            return
        straight = link.straight()
        ranks = {len(shape) for shape in (*straight, *link.reference_shapes)}
        if len(ranks) != 1 or not -min(ranks) <= link.axis < min(ranks):
            raise problem
        sides = [packed_shape(shapes, link.axis) for shapes in (link.reference_shapes, straight)]
        if sides[0] is None or sides[0] != sides[1]:
            raise problem

    def excuse_rearranged(self, links: Iterable[Link]) -> None:
        """Modules that have no partner, since the other side keeps their weights elsewhere, or packed."""
        for link in links:
            for side in ("reference", "candidate"):
                for name in getattr(link, side):
                    self.excuse_alone(side, name, REARRANGED)

    def excuse_alone(self, side: str, name: str, reason: str) -> None:
        """The outputs of the module that holds this array are no row, if it has no partner."""
        path = name.rpartition(".")[0]
        shown = path if side == "reference" else self.table.get(path, path)
        if path and shown not in self.partners:
            for pattern in of_calls(shown):
                self.excused.setdefault(pattern, reason)

    @cached_property
    def partners(self) -> set[str]:
        """Paths of the reference's modules that one of the candidate's is."""
        return set(self.table.values()) & set(self.theirs.outline.modules)

    def unmapped(self) -> Iterator[tuple[str, str]]:
        """Another name of an array that has its place is no array by itself."""
        for names in (self.theirs, self.ours):
            side, ties = names.outline.side, names.outline.ties
            placed = {ties.get(name, name) for name in self.taken[side]}
            for name in names.outline.arrays:
                if ties.get(name, name) not in placed and name.rpartition(".")[2] != COUNTER:
                    yield side, name


def of_calls(path: str, *, inside: bool = False) -> list[str]:
    """Patterns on the rows of a module's calls; of the calls inside it too."""
    ends = ("#*", ".*") if inside else ("#*",)
    return [f"{phase}/{escaped(path)}{end}" for phase in CALL_PHASES for end in ends]


def of_arrays(names: Iterable[str]) -> list[str]:
    """Patterns on the rows of weights, and of what training keeps for them."""
    places = ("parameter", "buffer", "grad_parameter", "momentum", "momentum/*", "ema")
    return [f"{place}/{escaped(name)}" for name in names for place in places]


def without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def packed_shape(shapes: Sequence[Shape], axis: int) -> Shape | None:
    """Of arrays one behind the other; None if they do not fit."""
    axis %= len(shapes[0])
    others = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
    total = sum(shape[axis] for shape in shapes)
    return None if len(others) != 1 else (*shapes[0][:axis], total, *shapes[0][axis + 1 :])
