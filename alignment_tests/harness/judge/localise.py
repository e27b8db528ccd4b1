"""Find the module to blame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.judge.report import Divergence, Row
from alignment_tests.harness.record.trace import Call

# Evidence below this share of the strongest is not blamed while that exists. Two faults are seldom further apart; the
# float32 constant of a framework (2e-9 of the scale) and a wrong formula (4e-6) are.
WEAK = 0.01


def first_divergence(rows: Sequence[Row], calls: Sequence[Call], missing: Sequence[str]) -> Divergence | None:
    """The deepest module whose isolated error is over budget: by strength of evidence, then by execution order.

    A module alone is fed with the reference's recorded inputs, so what feeds it is clean by construction; a container
    fails with its child, so it is blamed only if no child that it called fails. A call that was not judged alone is
    judged by where it stands: it is blamed where the first accumulated error appears inside it and nothing inside
    explains it. The root is the last resort. float64 rows decide where any exist: there a difference of formula cannot
    hide in rounding.
    """
    for precision in ("float64", "float32"):
        rows_here = [row for row in rows if row.precision == precision]
        blamed = _blamed_call(rows_here, calls) or _blamed_accumulated(rows_here)
        if blamed is not None:
            return Divergence(blamed.name, blamed.module, blamed.kind, precision, blamed.reason)
    if missing:
        name = missing[0]
        return Divergence(name, _module_of(name), "", "", "the candidate has no such array")
    return None


@dataclass(frozen=True)
class Evidence:
    """A row that speaks against a call, and how strongly: its error in units of its limit."""

    row: Row
    strength: float


def _blamed_call(rows: Sequence[Row], calls: Sequence[Call]) -> Row | None:
    of_call: dict[str, list[Row]] = {}
    for row in rows:
        if row.phase == "activation":
            of_call.setdefault(row.name.split("/", 1)[1].rsplit("/", 1)[0], []).append(row)
    inside = _Inside(calls)
    alone = {call.name: found for call in calls if (found := _evidence(of_call.get(call.name, ()), "isolated"))}
    if not any(row.isolated is not None for found in of_call.values() for row in found):
        return None  # no module ran alone: what appears first is all there is
    root = [name for name in alone if name.startswith("#")]
    against = {name: found for name, found in alone.items() if name not in root and not inside.any(name, alone)}
    in_place = _in_place(of_call, calls, inside)
    if in_place is not None and not inside.any(in_place[0], against):
        against.setdefault(*in_place)
    if not against:
        return alone[root[0]].row if root else None
    strongest = max(found.strength for found in against.values())
    enough = strongest if math.isinf(strongest) else strongest * WEAK
    return next(against[c.name].row for c in calls if c.name in against and against[c.name].strength >= enough)


def _evidence(rows: Sequence[Row], measure: str) -> Evidence | None:
    """The first failing row of a call by one measure, with the largest strength among its rows."""
    failing = [
        (row, comparison)
        for row in rows
        if row.verdict == "fail" and (comparison := getattr(row, measure)) is not None and not comparison.passed
    ]
    return Evidence(failing[0][0], max(_strength(comparison) for _, comparison in failing)) if failing else None


def _strength(comparison: Comparison) -> float:
    """Error in units of the limit; without limit where the row fails by more than the size of its error."""
    if comparison.max_abs_error is None or not comparison.budget:
        return math.inf
    return comparison.max_abs_error / comparison.budget


def _in_place(of_call: dict[str, list[Row]], calls: Sequence[Call], inside: _Inside) -> tuple[str, Evidence] | None:
    """The innermost call that was not judged alone around the place where the first accumulated error appears."""
    first = next((call.name for call in calls if _evidence(of_call.get(call.name, ()), "accumulated")), None)
    if first is None:
        return None
    for name in (first, *inside.around(first)):
        rows = of_call.get(name, [])
        found = _evidence(rows, "accumulated")
        if found is not None and not name.startswith("#") and all(row.isolated is None for row in rows):
            return name, found
    return None


class _Inside:
    """Which calls ran inside which. Calls stand in the order in which they returned, children before containers."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.place = {call.name: place for place, call in enumerate(calls)}
        self.calls = list(calls)
        self.start: dict[str, int] = {}  # place from which calls below the module's path belong to this call
        returned: dict[str, int] = {}
        for place, call in enumerate(calls):
            self.start[call.name] = returned.get(call.module, -1) + 1
            returned[call.module] = place

    def any(self, name: str, others: dict[str, Evidence]) -> bool:
        """Whether one of ``others`` ran inside the call."""
        return any(other != name and self._holds(name, other) for other in others)

    def around(self, name: str) -> Iterator[str]:
        """The calls that it ran inside of, the innermost first."""
        for call in self.calls[self.place[name] + 1 :]:
            if self._holds(call.name, name):
                yield call.name

    def _holds(self, outer: str, inner: str) -> bool:
        if outer not in self.place or inner not in self.place:
            return False
        path = outer.rsplit("#", 1)[0]
        below = path == "" or inner.startswith(f"{path}.")
        return below and self.start[outer] <= self.place[inner] < self.place[outer]


def _blamed_accumulated(rows: Sequence[Row]) -> Row | None:
    """State before activations: a wrong weight or input explains all that follows."""
    failing = [
        row for row in rows if row.verdict == "fail" and row.accumulated is not None and not row.accumulated.passed
    ]
    state = [row for row in failing if row.phase == "parameter"]
    return next(iter(state or failing), None)


def _module_of(name: str) -> str:
    rest = name.split("/", 1)[1]
    return rest.split("#")[0] if "#" in rest else rest.rpartition(".")[0]
