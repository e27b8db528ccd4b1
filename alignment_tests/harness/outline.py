"""What a port map can name of a model, and the patterns that it names it by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from alignment_tests.harness.port_map import PortMapError, nearest
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.layout import Shape
from alignment_tests.harness.record.naming import first_names
from alignment_tests.harness.record.trace import Trace

COUNTER = "num_batches_tracked"  # Jittor keeps none, and nothing computes with it


@dataclass(frozen=True)
class Outline:
    """What one side holds.

    Attributes:
        side: "reference" or "candidate".
        modules: their paths.
        arrays: name -> shape, and phase ("parameter" or "buffer").
        ties: name -> the first name of the same array, where that is another one.
    """

    side: str
    modules: tuple[str, ...]
    arrays: Mapping[str, tuple[Shape, str]]
    ties: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(side: str, model: Any) -> Outline:
        adapter = adapter_for(model)
        held = {name: (tuple(array.shape), phase) for name, (phase, array) in adapter.state(model).items()}
        paths = tuple(path for path, _ in adapter.modules(model))
        return Outline(side, paths, held, other_names(first_names(adapter.variables(model))))

    @staticmethod
    def of_trace(side: str, trace: Trace) -> Outline:
        """What a recorded run shows: the modules that were called or hold arrays, and those around them."""
        full = [name for phase in ("parameter", "buffer") for name in trace.names(phase)]
        held = {bare(name): (trace.shape(name), name.split("/", 1)[0]) for name in full}
        ties = other_names({bare(name): bare(trace.entries[name]) for name in full})
        paths = [call.module for call in trace.calls] + [name.rpartition(".")[0] for name in held]
        modules = dict.fromkeys(around for path in paths for around in (*outer(path), path))
        return Outline(side, tuple(modules), held, ties)

    def owners(self) -> set[str]:
        """Every path that a map may name: of modules, and of what holds arrays without being one."""
        return {*self.modules, *(path for name in self.arrays for path in outer(name))}


def bare(name: str) -> str:
    """Of an array of the state, without its phase."""
    return name.split("/", 1)[1]


def other_names(first: Mapping[str, str]) -> dict[str, str]:
    """The names that are another array's too, with its first name."""
    return {name: other for name, other in first.items() if name != other}


def outer(path: str) -> list[str]:
    """The paths around it, the root first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))] if path else []


class Names:
    """The names of one side without what the map drops in front of them.

    Attributes:
        modules: canonical path -> path.
        arrays: canonical name -> name.
        owners: canonical paths that a map may name.
        canonical: name of an array -> its canonical name.
    """

    def __init__(self, outline: Outline, prefixes: Sequence[str]) -> None:
        self.outline = outline
        self.prefixes = [prefix if prefix.endswith(".") else f"{prefix}." for prefix in prefixes]
        for prefix in self.prefixes:
            if not any(prefix in f"{path}." for path in outline.owners()):
                near = nearest(prefix, (f"{path}." for path in outline.modules if path))
                raise PortMapError(f"`prefixes` of the {outline.side}: no name has {prefix!r}. Nearest: {near}")
        self.canonical = {name: self.bare(name) for name in outline.arrays}
        self.arrays = self.unique({bare: name for name, bare in self.canonical.items()}, len(self.canonical))
        wrappers = self.wrappers()
        paths = [path for path in outline.modules if path not in wrappers]
        self.modules = self.unique({self.bare(path): path for path in paths}, len(paths))
        self.owners = {self.bare(path) for path in outline.owners() if path not in wrappers}

    def bare(self, name: str) -> str:
        while (prefix := next((p for p in self.prefixes if name.startswith(p)), None)) is not None:
            name = name.removeprefix(prefix)
        return name

    def wrappers(self) -> list[str]:
        """Modules whose path is nothing but prefixes: they pass everything on."""
        return [path for path in self.outline.modules if path and self.prefixes and not self.bare(f"{path}.")]

    def unique(self, found: dict[str, str], count: int) -> dict[str, str]:
        if len(found) != count:
            raise PortMapError(f"`prefixes` of the {self.outline.side}: without them, names occur twice")
        return found

    def shape(self, name: str) -> Shape:
        return self.outline.arrays[name][0]

    def has(self, pattern: str) -> bool:
        return any(match(pattern, name) is not None for name in self.arrays)

    def leaves(self, path: str) -> list[str]:
        """Last names of the arrays that stand directly in a module."""
        split = [name.rpartition(".") for name in self.arrays]
        return sorted(leaf for owner, _, leaf in split if owner == path and leaf != COUNTER)

    def existing(self, name: str, known: Iterable[str], what: str) -> str:
        names = sorted(known)
        if name not in names:
            raise PortMapError(f"{what} {name}, which the {self.outline.side} lacks. Nearest: {nearest(name, names)}")
        return name

    def matching(self, pattern: str, known: Iterable[str], section: str) -> list[tuple[str, list[str]]]:
        """Names that match a pattern, with what its stars stand for."""
        names = sorted(set(known))
        found = [(name, stars) for name in names if (stars := match(pattern, name)) is not None]
        if not found:
            near = nearest(pattern, names)
            raise PortMapError(f"{section} names {pattern}, which the {self.outline.side} lacks. Nearest: {near}")
        return found


@cache
def compiled(pattern: str, *, head: bool = False) -> re.Pattern[str]:
    text = r"\.".join(re.escape(part).replace(r"\*", r"([^.]+)") for part in pattern.split("."))
    rest = r"(?:\.(.+))?" if pattern else r"(?:(.+))?"
    return re.compile(f"{text}{rest}" if head else text)


def match(pattern: str, name: str) -> list[str] | None:
    """What the stars of a pattern stand for in a name; None if it does not match."""
    found = compiled(pattern).fullmatch(name)
    return None if found is None else list(found.groups())


def filled(pattern: str, stars: Sequence[str]) -> str:
    """The pattern with its stars replaced, from left to right."""
    values = iter(stars)
    return re.sub(r"\*", lambda _: next(values), pattern)


def followed(path: str, modules: Mapping[str, str]) -> tuple[str, bool]:
    """The reference's path by the most specific entry (the longest, then the one with fewest stars), and whether one
    names the path itself or a module around it."""
    best: tuple[tuple[int, int], str] | None = None
    for own, other in modules.items():
        found = compiled(own, head=True).fullmatch(path)
        if found is None:
            continue
        *stars, rest = found.groups()
        rank = (own.count(".") + 1 if own else 0, -own.count("*"))
        if best is None or rank > best[0]:
            target = filled(other, stars)
            best = rank, joined(target, rest) if rest else target
    return (path, False) if best is None else (best[1], True)


def joined(path: str, rest: str) -> str:
    return f"{path}.{rest}" if path else rest


def escaped(name: str) -> str:
    """For a pattern of fnmatch."""
    return re.sub(r"([*?[])", r"[\1]", name)
