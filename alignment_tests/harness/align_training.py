"""Compare training: forward, assignment, loss, gradients, update, average of the weights, step by step.

Teacher-forced, every step of the candidate starts from the state that the reference had: a difference cannot grow, and
the verdict comes from these steps. Free-running, the candidate trains on its own, and the reference must make each of
its steps from its state: what is carried beside the state shows there.

The core knows no trainer. A side is a ``Trainee``: a model with the phases of a step as methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment_tests.harness.align_layers import Notify
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.judge.rows import PRECISIONS
from alignment_tests.harness.training.blame import first_cause
from alignment_tests.harness.training.forced_steps import ForcedSteps
from alignment_tests.harness.training.free_runs import FreeRuns
from alignment_tests.harness.training.rows import coverage_of, rows_of
from alignment_tests.harness.training.steps import StepJudge
from alignment_tests.harness.training.trainee import Make


def align_training(
    reference: Make,
    candidate: Make,
    batches: Sequence[Any],
    *,
    precisions: tuple[str, ...] = PRECISIONS,
    deep_steps: tuple[int, ...] = (0,),
    isolated: bool = True,
    free_running: bool = True,
    fused_rounding: bool = False,
    taught_updates: bool = False,
    budget: Budget = DEFAULT_BUDGET,
    excused: Mapping[str, str] | None = None,
    title: str = "training",
    settings: Mapping[str, Any] | None = None,
    notify: Notify = lambda text: None,
) -> Report:
    """Compare as many training steps as there are batches.

    Args:
        reference: makes the reference in a precision ("float32", "float64"), each call a new one in the same state.
        candidate: the same for the candidate.
        batches: one per step, in the form that the trainees take.
        precisions: "float64" (formulas) and "float32" (numerics), or one of them.
        deep_steps: steps in which every activation and its gradient is compared too.
        isolated: in deep steps, also run loss and modules backward alone, on the reference's recorded inputs and
            gradients; that names the module whose gradient is wrong.
        free_running: also let the candidate train on its own, and the reference make its steps; tell the drift.
        fused_rounding: a framework rounds what it fuses into one kernel once (half precision on Jittor's CPU): hooks,
            which keep operations apart, then change results, and the report only tells by how much.
        taught_updates: the candidate updates with the reference's gradients in float64 too, as it does in float32. For
            optimizers that divide every gradient by its own size (Adam): there, an element that is nearly zero moves as
            far as any other, by whatever its rounding says.
        budget: the limits.
        excused: pattern on names -> reason.
        title: heading of the report.
        settings: anything to show with it.
        notify: called with a line of text at each step.

    Raises:
        ValueError: there is no batch, or a precision is unknown.
    """
    if not batches:
        raise ValueError("`batches` must hold at least one. Received: none")
    if not precisions or set(precisions) - set(PRECISIONS):
        raise ValueError(f"`precisions` must be one or both of {PRECISIONS}. Received: {precisions}")
    judge = StepJudge(budget, excused)
    forced = ForcedSteps(
        reference,
        candidate,
        precisions,
        judge,
        isolated=isolated,
        fused_rounding=fused_rounding,
        taught_updates=taught_updates,
    )
    free = None
    if free_running:
        start = forced.references["float64"].state()
        free = FreeRuns(reference, candidate, precisions, start, budget, taught_updates)
    for number, batch in enumerate(batches):
        notify(f"step {number + 1} of {len(batches)}")
        losses = forced.take(number, batch, deep=number in deep_steps)
        if free is not None:
            free.step(batch, forced.references, losses)
    rows, coverage = rows_of(judge), coverage_of(judge, precisions)
    return Report(
        title=title,
        rows=rows,
        coverage=coverage,
        first_divergence=first_cause(rows, judge.calls, coverage.missing),
        budget=budget,
        settings={"steps": len(batches), "deep steps": len(deep_steps), **(settings or {})},
        environment=forced.environment(),
        checks={**forced.checks, **(free.facts() if free else {}), **judge.noise.facts()},
        curves=free.curves if free else {},
    )
