"""Which row of a training comparison is the cause of the others."""

from __future__ import annotations

from alignment_tests.harness.judge.report import Divergence, Row
from alignment_tests.harness.record.phases import GRADIENTS, PHASES, module_of
from alignment_tests.harness.record.trace import Call


def first_cause(rows: tuple[Row, ...], calls: list[Call], missing: tuple[str, ...]) -> Divergence | None:
    """The first row to blame, float64 before float32, causes before effects.

    Among gradients a module that fails alone is blamed before what it spoils, and a container only if nothing that it
    called fails: calls stand in the order in which they returned.
    """
    place = {call.name: number for number, call in enumerate(calls)}
    for precision in ("float64", "float32"):
        failing = [row for row in rows if row.precision == precision and row.verdict == "fail"]
        for phase in (*PHASES[:4], "gradients", *PHASES[6:]):
            here = [row for row in failing if row.phase == phase or (phase == "gradients" and row.phase in GRADIENTS)]
            if not here:
                continue
            alone = [row for row in here if row.isolated is not None and not row.isolated.passed]
            blamed = min(alone, key=lambda row: place.get(call_of(row), -1)) if alone else here[0]
            return Divergence(
                blamed.name, blamed.module, blamed.kind, precision, blamed.reason + hint(rows, blamed, here)
            )
    if missing:
        return Divergence(missing[0], module_of(missing[0]), "", "", "the candidate has no such array")
    return None


def call_of(row: Row) -> str:
    """Name of the call that a gradient row belongs to; parameters belong to the first call of their module."""
    rest = row.name.split("/", 1)[1]
    return rest.rsplit("/", 1)[0] if "#" in rest else f"{row.module}#0"


def hint(rows: tuple[Row, ...], blamed: Row, failing: list[Row]) -> str:
    """How the failure spreads over its phase: over all of it, or over one kind of name."""
    phase = [row for row in rows if row.phase == blamed.phase and row.precision == blamed.precision]
    wrong = [row for row in failing if row.phase == blamed.phase]
    if len(wrong) < 3:
        return ""
    leaves = {row.name.rsplit(".", 1)[-1].split("/")[-1] for row in wrong}
    kind = f", all of them named {next(iter(leaves))}" if len(leaves) == 1 and "#" not in blamed.name else ""
    return f"; {len(wrong)} of {len(phase)} rows of the phase {blamed.phase} fail{kind}"
