"""Find the first module to blame, and write what reproduces its fault."""

from __future__ import annotations

from collections.abc import Sequence

from alignment_tests.harness.judge.report import Divergence, Row
from alignment_tests.harness.record.trace import Call


def first_divergence(rows: Sequence[Row], calls: Sequence[Call], missing: Sequence[str]) -> Divergence | None:
    """The deepest module, first in execution order, whose isolated error is over budget.

    A module alone is fed with the reference's recorded inputs, so what feeds it is clean by construction; a container
    fails with its child, so it is blamed only if no child that it called fails. float64 rows decide where any exist:
    there a difference of formula cannot hide in rounding. Without isolated errors, the first accumulated one counts.
    """
    for precision in ("float64", "float32"):
        rows_here = [row for row in rows if row.precision == precision and row.verdict == "fail"]
        blamed = _blamed_in_isolation(rows_here, calls) or _blamed_accumulated(rows_here)
        if blamed is not None:
            return Divergence(blamed.name, blamed.module, blamed.kind, precision, blamed.reason)
    if missing:
        name = missing[0]
        return Divergence(name, _module_of(name), "", "", "the candidate has no such array")
    return None


def _blamed_in_isolation(rows: Sequence[Row], calls: Sequence[Call]) -> Row | None:
    """Calls stand in the order in which they returned, children before their container: the first is the deepest."""
    failing: dict[str, Row] = {}
    for row in rows:
        if row.isolated is not None and not row.isolated.passed:
            failing.setdefault(row.name.split("/", 1)[1].rsplit("/", 1)[0], row)
    return next((failing[call.name] for call in calls if call.name in failing), None)


def _blamed_accumulated(rows: Sequence[Row]) -> Row | None:
    """State before activations: a wrong weight or input explains all that follows."""
    failing = [row for row in rows if row.accumulated is not None and not row.accumulated.passed]
    state = [row for row in failing if row.phase == "parameter"]
    return next(iter(state or failing), None)


def _module_of(name: str) -> str:
    rest = name.split("/", 1)[1]
    return rest.split("#")[0] if "#" in rest else rest.rpartition(".")[0]
