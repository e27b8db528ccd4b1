"""Names that one side has and the other has not: where nothing is lost by it, and why.

A right port may call a function where its original calls a module that holds no weights, or the other way round, and
may know a shared weight by fewer names. Whatever such a module does is in the outputs of the module around it, which
are compared. A call of a module that holds weights has to have a partner, unless the other side computes the module
around it as a whole (attention, a scripted module): then the weights and those outputs are compared.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from alignment_tests.harness.record.naming import owner_of

CALL_PHASES = ("activation", "grad_activation")
STATE = ("parameter", "buffer")
SIDES = ("reference", "candidate")
NO_WEIGHTS = "holds no weights of its own; its effect is compared in what follows"

PER_WEIGHT = (*STATE, "grad_parameter", "momentum", "ema")

Names = Mapping[str, str]  # name -> the first name of the same array


class Called(NamedTuple):
    """The name of an output of a module: ``phase/path#number/slot``."""

    phase: str
    path: str
    number: str

    @staticmethod
    def of(name: str) -> Called | None:
        phase, rest = name.split("/", 1)
        if phase not in CALL_PHASES:
            return None
        path, _, call = rest.rpartition("#")
        return Called(phase, path, call.split("/", 1)[0])


class Unmatched:
    """The names of both sides, and what was compared of them.

    Args:
        reference: its names.
        candidate: its names, as the reference would call them.
        compared: names that were, in every precision.
    """

    def __init__(self, reference: Names, candidate: Names, compared: Container[str]) -> None:
        self.sides, self.compared = (reference, candidate), compared
        self.numbers: tuple[dict[str, set[str]], ...] = ({}, {})  # path -> numbers of its calls, by side
        self.outputs: dict[str, list[str]] = {}  # path -> activations of it, of either side
        self.calls: set[tuple[str, str, str]] = set()  # of which something was compared
        self.owners: tuple[set[str], ...] = (set(), set())  # paths that hold weights of their own, by side
        for side, names in enumerate(self.sides):
            for name, first in names.items():
                self._note(side, name, first)

    def _note(self, side: int, name: str, first: str) -> None:
        called = Called.of(name)
        if called is None:
            phase, rest = name.split("/", 1)
            if phase in STATE and name == first:
                self.owners[side].add(owner_of(rest))
            return
        if name in self.compared:
            self.calls.add(called)
        if called.phase == "activation":
            self.numbers[side].setdefault(called.path, set()).add(called.number)
            self.outputs.setdefault(called.path, []).append(name)

    def excuse(self, name: str) -> str | None:
        """Why it is no fault that only one side has the name; None where it is one."""
        called = Called.of(name)
        if called is None:
            firsts = [names[name] for names in self.sides if names.get(name, name) != name]
            first = next((one for one in firsts if one in self.compared), None)
            return None if first is None else f"another name of {first}, which is compared"
        if called in self.calls or not self._is_contained(called.path):
            return None
        if not self._holds_weights(called.path):
            return NO_WEIGHTS
        side = 0 if name in self.sides[0] else 1
        whole = next((path for path in around(called.path) if path in self.numbers[1 - side]), "")
        inside = f"{whole}."
        if whole and not any(path.startswith(inside) for path in self.numbers[1 - side]) and self._has_pairs(called):
            return f"the {SIDES[1 - side]} computes {whole} as a whole; its weights and its outputs are compared"
        return None

    def miscounted(self, name: str) -> str | None:
        """Why a value at this place says nothing; None where it does.

        Of a module without weights that one side calls more often than the other, the calls cannot be told apart.
        """
        called = Called.of(name)
        if called is None:
            return None
        theirs, ours = (len(numbers.get(called.path, ())) for numbers in self.numbers)
        if theirs == ours or self._holds_weights(called.path) or not self._is_contained(called.path):
            return None
        counts = f"{theirs} calls by the reference and {ours} by the candidate, so that they cannot be told apart"
        return f"{counts}; {NO_WEIGHTS}"

    def _holds_weights(self, path: str) -> bool:
        return any(path in owners for owners in self.owners)

    def _is_contained(self, path: str) -> bool:
        """Whether the outputs of the module around it were compared; of one that holds no weights, of the next one."""
        for outer in around(path):
            outputs = self.outputs.get(outer, ())
            if outputs and all(name in self.compared for name in outputs):
                return True
            if outputs and (outer == "" or self._holds_weights(outer)):
                return False
        return False

    def _has_pairs(self, called: Called) -> bool:
        """Whether each weight of the module is compared."""
        held = [
            name
            for names in self.sides
            for name in names
            if name.split("/", 1)[0] in STATE and owner_of(name.split("/", 1)[1]) == called.path
        ]
        return all(name in self.compared or self.excuse(name) is not None for name in held)


def around(path: str) -> Iterator[str]:
    """The paths around a module's, inside out; the root is ""."""
    while path:
        path = owner_of(path)
        yield path


def with_ties(names: Iterable[str], ties: Names) -> dict[str, str]:
    """The names of a training step, where those of tied weights may stand for one another.

    Args:
        names: of arrays; a trainee may list a tied weight once or under each name.
        ties: name of a weight -> its first name.
    """
    others: dict[str, list[str]] = {}
    for alias, first in ties.items():
        if alias != first:
            others.setdefault(first, []).append(alias)
    found = {name: name for name in names}
    for name in list(found):
        place, _, weight = name.rpartition("/")
        if place.split("/", 1)[0] in PER_WEIGHT:
            found.update({f"{place}/{alias}": name for alias in others.get(weight, ())})
    return found


def ties_fact(reference: Names, candidate: Names, *, train: bool) -> str | None:
    """What the sides tie differently, of the parameters that both have; None where nothing is.

    In eval mode equal values are enough. In training the gradients of a tied weight add up.
    """
    shared = [n for n in reference if n.startswith("parameter/") and n in candidate]
    theirs, ours = (pairs(names, shared) for names in (reference, candidate))
    alone = {"reference": sorted(theirs - ours), "candidate": sorted(ours - theirs)}
    texts = [
        f"tied in the {side} only: {listed([f'{name} to {first}' for first, name in found])}"
        for side, found in alone.items()
        if found
    ]
    if not texts:
        return None
    text = "; ".join(texts)
    return f"FAIL: {text}; tied weights add up their gradients" if train else f"{text}; in eval mode no difference"


def pairs(names: Names, shared: Sequence[str]) -> set[tuple[str, str]]:
    """(first, other) of the shared names of one array, the first as they are in order."""
    first: dict[str, str] = {}
    found = {(first.setdefault(names[name], name), name) for name in shared}
    return {(one.split("/", 1)[1], other.split("/", 1)[1]) for one, other in found if one != other}


def listed(texts: Sequence[str], most: int = 5) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{', '.join(texts[:most])}{more}"
