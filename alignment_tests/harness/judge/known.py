"""Faults of the port apart from Jittor's own: the run again with the right result where a layer of Jittor's is wrong.

A row that fails as it is and passes so is known: nothing that the porter wrote is the cause. The arguments and weights
are the port's own in both runs, so a wrong argument fails in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.isolated import ReferenceAlone, judge_isolated
from alignment_tests.harness.judge.report import Known, Row
from alignment_tests.harness.judge.rows import Judge
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import corrected_operators
from alignment_tests.harness.record.capture import RaisedInCallError, run_recorded
from alignment_tests.harness.record.side import Side

Notify = Callable[[str], None]


def judge_known(
    judge: Judge,
    precision: str,
    candidate: Side,
    reference: ReferenceAlone,
    *,
    isolated: bool,
    notify: Notify,
) -> None:
    """Where rows fail, run the candidate once more with corrected operators; ``judge.corrected`` takes what passes so.

    Args:
        judge: of the run as it is.
        precision: of that run, in which the candidate's model is.
        candidate: a side with that model.
        reference: its modules alone.
        isolated: whether modules are judged alone too.
        notify: called with a line of text.
    """
    corrected = corrected_operators(candidate.adapter)
    failing = [row for row in judge.rows((precision,)) if row.verdict == "fail"]
    if corrected is None or not failing:
        return
    notify(f"candidate, {precision}, with the right operator where one of Jittor's own differs")
    again = Judge(judge.reference, judge.budget, judge.excuses, judge.layout)
    calls = {row.name.split("/", 1)[1].rsplit("/", 1)[0] for row in failing if row.phase == "activation"}
    trace = judge.reference[precision]
    with corrected(list(candidate.modules(candidate.model).items()), differs_by(judge.budget)) as found:
        try:
            run_recorded(
                candidate.adapter,
                candidate.model,
                candidate.inputs,
                precision,
                again.sink(precision),
                train=candidate.train,
                kwargs=candidate.kwargs,
                told=again.take_call,
            )
            if isolated and found:
                judge_isolated(again, precision, reference, candidate, trace, only=calls)
        except RaisedInCallError:  # as the run before did
            return
    if not found:
        return
    judge.differences.update({(operator, place, precision): d.size for (operator, place), d in found.items()})
    judge.corrected.update(
        (row.name, row.precision) for row in again.rows((precision,)) if row.verdict in ("pass", "excused")
    )


def differs_by(budget: Budget) -> Callable[[Array, Array, Array], float | None]:
    """Whether a result of Jittor's is further from the exact one than the budget allows, and by how much.

    The function takes Jittor's result, the right one in the same precision, and that in float64; it returns the largest
    difference in units of the scale, or None.
    """

    def differs(own: Array, right: Array, exact: Array) -> float | None:
        if own.shape != right.shape or own.dtype.kind != right.dtype.kind:
            return float("inf")
        if own.dtype.kind != "f":
            return None if np.array_equal(own, right) else float("inf")
        if not own.size:
            return None
        finite = np.isfinite(exact)
        if not np.array_equal(finite, np.isfinite(own)):
            return float("inf")
        scale = float(np.abs(exact[finite]).max(initial=0.0)) or 1.0
        error, unit = (float(np.abs(side[finite] - exact[finite]).max(initial=0.0)) for side in (own, right))
        # A tenth of what a row may use, so that several differences of this size cannot add up unseen.
        return error / scale if error > 0.1 * budget.allowed(str(own.dtype), unit, scale) else None

    return differs


def with_known(rows: Sequence[Row], judge: Judge, *, strict: bool) -> tuple[Row, ...]:
    """The rows, those known that fail as they are and pass with corrected operators; ``strict`` lets them fail."""
    known = {(row.name, row.precision) for row in rows if row.verdict == "fail"} & judge.corrected
    reason, verdict = "with the right operator in the place of Jittor's own it passes", "fail" if strict else "known"
    return tuple(
        replace(row, verdict=verdict, reason=f"{row.reason}; {reason}") if (row.name, row.precision) in known else row
        for row in rows
    )


def known_operators(rows: Sequence[Row], judge: Judge) -> tuple[Known, ...]:
    """Jittor's operators that differed, the largest difference first; none where no row passes without it."""
    if not any(row.verdict in ("known", "fail") and (row.name, row.precision) in judge.corrected for row in rows):
        return ()
    found: dict[str, Known] = {}
    for (operator, place, precision), size in judge.differences.items():
        old = found.get(operator, Known(operator, (), 0.0, precision))
        places = old.places if place in old.places else (*old.places, place)
        found[operator] = Known(operator, places, max(size, old.size), precision if size > old.size else old.precision)
    return tuple(sorted(found.values(), key=lambda known: -known.size))
