"""Compare training: forward, assignment, loss, gradients, update, average of the weights, step by step.

Teacher-forced, every step of the candidate starts from the state that the reference had: a difference cannot grow, and
the verdict comes from these steps. Free-running, the candidate trains on its own, and the reference must make each of
its steps from its state: what is carried beside the state shows there.

A side is a ``Trainee``: a model with the phases of a step as methods. One is ready for a model, a loss and an
optimizer; the core knows no other trainer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from alignment_tests.harness.align_layers import Notify
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.judge.rows import PRECISIONS
from alignment_tests.harness.outline import Outline
from alignment_tests.harness.port_map import PortMap, read_port_map
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.layout import SAME, Layout
from alignment_tests.harness.resolve import resolve
from alignment_tests.harness.training.blame import first_cause
from alignment_tests.harness.training.forced_steps import ForcedSteps
from alignment_tests.harness.training.free_runs import FreeRuns
from alignment_tests.harness.training.mapped import mapped
from alignment_tests.harness.training.ready import Loss, maker, parts_of
from alignment_tests.harness.training.rows import coverage_of, rows_of
from alignment_tests.harness.training.steps import StepJudge
from alignment_tests.harness.training.trainee import Make


def align_training(
    reference: Any,
    candidate: Any,
    batches: Sequence[Any],
    *,
    losses: tuple[Loss, Loss] | None = None,
    optimizers: tuple[Any, Any] | None = None,
    optimizer_options: Mapping[str, Any] | tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    port_map: PortMap | Mapping[str, Any] | str | os.PathLike[str] | None = None,
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
        reference: the model, with ``losses`` and ``optimizers``. It stays as it is. Or a function that makes the
            reference's ``Trainee`` in a precision ("float32", "float64"), each call a new one in the same state.
        candidate: the same for the candidate. It starts from the reference's weights.
        batches: one per step: ``(inputs, targets)`` or ``{"inputs": ..., "targets": ..., "kwargs": ...}`` of numpy
            arrays; in the form that the trainees take, where they are given.
        losses: of each side: called with the model's output and the targets; gives a scalar, or scalars by name,
            "total" among them.
        optimizers: of each side: the framework's class, made of the model's parameters and ``optimizer_options``; or a
            function that makes an optimizer of a model.
        optimizer_options: of both classes, or of each.
        port_map: how the candidate is laid out beside the reference, as for ``align``.
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
        ValueError: there is no batch or one of another form, a precision is unknown, or models come without losses and
            optimizers.
        PortMapError: the map does not fit the models.
    """
    if not batches:
        raise ValueError("`batches` must hold at least one. Received: none")
    if not precisions or set(precisions) - set(PRECISIONS):
        raise ValueError(f"`precisions` must be one or both of {PRECISIONS}. Received: {precisions}")
    with ExitStack() as stack:
        makers, layout = sides_of(reference, candidate, batches, losses, optimizers, optimizer_options, port_map, stack)
        judge = StepJudge(budget, {**layout.excused, **(excused or {})})
        forced = ForcedSteps(
            *makers,
            precisions,
            judge,
            isolated=isolated,
            fused_rounding=fused_rounding,
            taught_updates=taught_updates,
        )
        free = None
        if free_running:
            start = forced.references["float64"].state()
            free = FreeRuns(*makers, precisions, start, budget, taught_updates)
        for number, batch in enumerate(batches):
            notify(f"step {number + 1} of {len(batches)}")
            found = forced.take(number, batch, deep=number in deep_steps)
            if free is not None:
                free.step(batch, forced.references, found)
    rows, coverage = rows_of(judge), coverage_of(judge, precisions)
    return Report(
        title=title,
        rows=rows,
        coverage=coverage,
        first_divergence=first_cause(rows, judge.calls, coverage.missing),
        budget=budget,
        settings={"steps": len(batches), "deep steps": len(deep_steps), **(settings or {})},
        environment=forced.environment(),
        checks={
            **forced.trained(),
            **forced.checks,
            **(free.facts() if free else {}),
            **judge.facts(),
            **judge.noise.facts(),
        },
        curves=free.curves if free else {},
    )


def sides_of(
    reference: Any,
    candidate: Any,
    batches: Sequence[Any],
    losses: tuple[Loss, Loss] | None,
    optimizers: tuple[Any, Any] | None,
    options: Mapping[str, Any] | tuple[Mapping[str, Any], Mapping[str, Any]] | None,
    port_map: PortMap | Mapping[str, Any] | str | os.PathLike[str] | None,
    stack: ExitStack,
) -> tuple[tuple[Make, Make], Layout]:
    """What makes the trainees of both sides, and the candidate's layout."""
    known, models = read_port_map(port_map), [is_model(side) for side in (reference, candidate)]
    if all(models):
        pairs = {"losses": losses, "optimizers": optimizers}
        for name, pair in pairs.items():
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"`{name}` must be a pair, the reference's and the candidate's. Received: {pair!r}")
        assert losses is not None
        assert optimizers is not None
        for batch in batches:
            parts_of(batch)
        each = options if isinstance(options, (tuple, list)) else (options, options)
        layout = resolve(known, Outline.of("reference", reference), Outline.of("candidate", candidate))
        sides = zip((reference, candidate), losses, optimizers, each, strict=True)
        first, second = (maker(*side, stack) for side in sides)
        return (first, mapped(second, layout)), layout
    if any(models) or losses is not None or optimizers is not None or options is not None:
        raise ValueError("`losses` and `optimizers` are for two models; functions that make trainees bring their own")
    if not known.to_data():
        return (reference, candidate), SAME
    made = [side("float64").model for side in (reference, candidate)]
    layout = resolve(known, Outline.of("reference", made[0]), Outline.of("candidate", made[1]))
    return (reference, mapped(candidate, layout)), layout


def is_model(side: Any) -> bool:
    """Whether it is a module of either framework; what makes trainees may be any callable."""
    try:
        adapter_for(side)
    except TypeError:
        return False
    return True
