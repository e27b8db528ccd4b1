"""How a port is laid out beside its original: a map that is read, written and edited by hand.

    port_map = PortMap(modules={"encoder.layers.*": "transformer.h.*"}, transposed={"head.weight": (1, 0)})
    port_map.write("port_map.yaml")
    align(torch_model, jittor_model, inputs, port_map="port_map.yaml")

One map serves ``align``, ``align_training``, ``dump``, ``compare`` and ``copy_weights``. Names on the left are the
candidate's, names on the right the reference's. ``*`` stands for one part of a path, such as an index.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from alignment_tests.harness.record.temporary import write_text_atomically

SIDES = ("reference", "candidate")
HEADER = """\
# How the candidate (left) is laid out beside the reference (right). `*` stands for one part of a path. Sections:
#   modules     path: path; children follow their parent
#   arrays      name: name, of single parameters and buffers
#   merged      candidate's array or module: {parts: [of the reference], axis: 0}; one is several, one behind the other
#   split       reference's array or module: {parts: [of the candidate], axis: 0}; the other way round
#   low_rank    array: {weight: ..., a: ..., b: ..., scale: 2.0}; one is weight + scale * b @ a of the other (LoRA)
#   transposed  candidate's array: [1, 0]; the reference's axes in the candidate's order
#   reshaped    [candidate's arrays]; shapes that differ by axes of size 1
#   tied        reference or candidate: {name: name of the same side}; has no partner, since it is the other array
#   prefixes    reference or candidate: [module., _orig_mod.]; dropped from that side's names
#   left_out    reference or candidate: {array or module: reason}; has no partner and is not compared
"""


class PortMapError(ValueError):
    """A port map is no map, or does not fit the two models."""


@dataclass(frozen=True)
class Parts:
    """Arrays (or modules, for each of their arrays) that lie one behind the other along an axis of the reference's."""

    parts: tuple[str, ...]
    axis: int = 0


@dataclass(frozen=True)
class LowRankParts:
    """``weight + scale * b @ a``: ``weight`` is (out, in), ``b`` (out, rank), ``a`` (rank, in)."""

    weight: str
    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class PortMap:
    """See HEADER for the sections. Whatever has equal names and shapes on both sides needs no entry.

    Every array of either side is mapped, by name or by an entry, or left out with a reason.

    Raises:
        PortMapError: an entry has the wrong form; the message names it.
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    arrays: Mapping[str, str] = field(default_factory=dict)
    merged: Mapping[str, Parts] = field(default_factory=dict)
    split: Mapping[str, Parts] = field(default_factory=dict)
    low_rank: Mapping[str, LowRankParts] = field(default_factory=dict)
    transposed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reshaped: tuple[str, ...] = ()
    tied: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for section in ("tied", "prefixes", "left_out"):
            refuse_unknown(getattr(self, section), SIDES, f"`{section}`")
        for section in ("modules", "arrays"):
            for own, other in getattr(self, section).items():
                refuse_stars(f"`{section}`", own, (other,))
        for section in ("merged", "split"):
            for name, made in getattr(self, section).items():
                refuse_stars(f"`{section}`", name, made.parts)
        for name, parts in self.low_rank.items():
            refuse_stars("`low_rank`", name, (parts.weight, parts.a, parts.b))
        for name, order in self.transposed.items():
            if sorted(order) != list(range(len(order))):
                raise PortMapError(f"`transposed` of {name} must be an order of all axes. Received: {list(order)}")
        for side, reasons in self.left_out.items():
            for name, reason in reasons.items():
                if not str(reason).strip():
                    raise PortMapError(f"`left_out` of the {side} must give a reason for {name}. Received: none")

    @staticmethod
    def of(data: Mapping[str, Any], source: str = "`port_map`") -> PortMap:
        """From plain data, the content of a YAML file. ``source`` is what an error calls it.

        Raises:
            PortMapError: a key is unknown, or a value has the wrong form.
        """
        if not isinstance(data, Mapping):
            raise PortMapError(f"{source} must hold sections with names. Received: {str(data)[:60]!r}")
        refuse_unknown(data, [one.name for one in fields(PortMap)], source)
        try:
            return PortMap(**{name: READERS[name](value or {}, f"`{name}`") for name, value in data.items()})
        except PortMapError as error:
            raise PortMapError(f"{source}: {error}") from None

    @staticmethod
    def read(path: str | os.PathLike[str]) -> PortMap:
        """Read a YAML file.

        Raises:
            PortMapError: it is no YAML, a key occurs twice or is unknown, or a value has the wrong form.
            OSError: it cannot be read.
        """
        try:
            data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Names)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PortMapError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
        return PortMap.of({} if data in (None, "") else data, str(path))

    def write(self, path: str | os.PathLike[str], remarks: Iterable[str] = ()) -> None:
        """Write a YAML file to be read and edited by hand, ``remarks`` as comments behind it."""
        write_text_atomically(Path(path), self.text(remarks))

    def text(self, remarks: Iterable[str] = ()) -> str:
        """The content of the file that ``write`` writes."""
        data = self.to_data()
        lines = "".join(f"# {line}\n" for line in remarks)
        body = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
        return HEADER + (body if data else "") + lines

    def to_data(self) -> dict[str, Any]:
        """Plain data, as ``of`` takes it; empty sections are left out."""
        found = {one.name: plain(getattr(self, one.name)) for one in fields(self)}
        return {name: value for name, value in found.items() if value}


def read_port_map(given: PortMap | Mapping[str, Any] | str | os.PathLike[str] | None) -> PortMap:
    """What every function takes as ``port_map``: a map, its content, or the path of its file.

    Raises:
        PortMapError: see ``PortMap.read``.
        OSError: the file cannot be read.
    """
    if given is None:
        return PortMap()
    if isinstance(given, PortMap):
        return given
    return PortMap.of(given) if isinstance(given, Mapping) else PortMap.read(given)


class _Names(yaml.BaseLoader):
    """Reads every scalar as text: ``0`` and ``1.10`` are names of modules here, and so is ``no``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def plain(value: Any) -> Any:
    if isinstance(value, (Parts, LowRankParts)):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """The most similar of some names, for an error to list."""
    known = list(names)
    found = difflib.get_close_matches(name, known, count, 0.4) or known[:count]
    return ", ".join(found) or "none"


def refuse_unknown(data: Mapping[str, Any], known: Iterable[str], source: str) -> None:
    names = list(known)
    for key in data:
        if key not in names:
            raise PortMapError(f"{source} must hold only {', '.join(names)}. Received the unknown key {key!r}")


def refuse_stars(section: str, name: str, others: Iterable[str]) -> None:
    for other in others:
        if name.count("*") != other.count("*"):
            raise PortMapError(f"{section} must have as many `*` on both sides. Received: {name}: {other}")


def table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise PortMapError(f"{what} must hold `name: value` pairs. Received: {str(value)[:60]!r}")
    return {str(name): item for name, item in value.items()}


def names_of(value: Any, what: str) -> dict[str, str]:
    found = table(value, what)
    for name, item in found.items():
        if isinstance(item, (Mapping, list, tuple)):
            raise PortMapError(f"{what} of {name} must be text. Received: {item}")
    return {name: str(item) for name, item in found.items()}


def listed(value: Any, what: str) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise PortMapError(f"{what} must be a list. Received: {value!r}")
    return tuple(str(item) for item in value)


def listed_or_none(value: Any, what: str) -> tuple[str, ...]:
    return listed(value, what) if value else ()


def whole_number(value: Any, what: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise PortMapError(f"{what} must hold whole numbers. Received: {value!r}") from None


def parts_of(value: Any, what: str) -> dict[str, Parts]:
    found = {}
    for name, item in table(value, what).items():
        here = f"{what} of {name}"
        item = table(plain(item), here)
        refuse_unknown(item, ("parts", "axis"), here)
        parts = listed(item.get("parts", ()), here)
        if len(parts) < 2:
            raise PortMapError(f"{here} must have at least two `parts`. Received: {list(parts)}")
        found[name] = Parts(parts, whole_number(item.get("axis", 0), here))
    return found


def low_rank_of(value: Any, what: str) -> dict[str, LowRankParts]:
    found = {}
    wanted = [one.name for one in fields(LowRankParts)]
    for name, item in table(value, what).items():
        here = f"{what} of {name}"
        item = table(plain(item), here)
        refuse_unknown(item, wanted, here)
        lacking = [key for key in wanted if key not in item]
        if lacking:
            raise PortMapError(f"{here} must have {', '.join(wanted)}. Lacking: {', '.join(lacking)}")
        try:
            scale = float(item["scale"])
        except ValueError:
            raise PortMapError(f"{here} needs a number as scale. Received: {item['scale']}") from None
        found[name] = LowRankParts(str(item["weight"]), str(item["a"]), str(item["b"]), scale)
    return found


def orders_of(value: Any, what: str) -> dict[str, tuple[int, ...]]:
    rows = table(value, what).items()
    return {
        name: tuple(whole_number(axis, what) for axis in listed(order, f"{what} of {name}")) for name, order in rows
    }


def by_side(read: Callable[[Any, str], Any]) -> Callable[[Any, str], dict[str, Any]]:
    """Reads a section that has a part for each side."""
    return lambda value, what: {side: read(item, f"{what} of the {side}") for side, item in table(value, what).items()}


READERS: dict[str, Callable[[Any, str], Any]] = {
    "modules": names_of,
    "arrays": names_of,
    "merged": parts_of,
    "split": parts_of,
    "low_rank": low_rank_of,
    "transposed": orders_of,
    "reshaped": listed_or_none,
    "tied": by_side(names_of),
    "prefixes": by_side(listed),
    "left_out": by_side(names_of),
}
