"""Run both frameworks and judge: ``align`` for two live models, ``dump`` and ``compare`` for two environments.

Both ways go through the same judge with the same arrays, so they give the same report. Live, the candidate's arrays
are judged as they appear and never stored; only the reference's two runs lie on disk.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.judge.checks import Outputs, check_weights, hooks_fact, root_outputs
from alignment_tests.harness.judge.isolated import arguments_of, judge_isolated, run_alone
from alignment_tests.harness.judge.localise import first_divergence
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.judge.rows import PRECISIONS, Judge
from alignment_tests.harness.port_map import match_names
from alignment_tests.harness.record.adapter import Scope
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import run_recorded, tensors_from
from alignment_tests.harness.record.nested import is_plain
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.temporary import Scratch
from alignment_tests.harness.record.trace import Trace, TraceWriter
from alignment_tests.harness.report.repro import write_repro

Notify = Callable[[str], None]


def align(
    torch_model: Any,
    jittor_model: Any,
    inputs: Any,
    *,
    train: bool = False,
    precisions: tuple[str, ...] = PRECISIONS,
    isolated: bool = True,
    budget: Budget = DEFAULT_BUDGET,
    excused: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
    names: str | None = None,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    build: tuple[str, str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    notify: Notify = lambda text: None,
    scopes: tuple[Scope, Scope] = (nullcontext, nullcontext),
) -> Report:
    """Compare every module's output of two models that hold the same weights.

    Args:
        torch_model: the reference. Modes, buffers and seeds of both models are restored.
        jittor_model: the candidate. (Any two models of the two frameworks will do, in either place.)
        inputs: one numpy array, or a list of positional arguments, floating ones float32 or float64.
        train: compare in train mode (batch statistics, and the running buffers after the run).
        precisions: "float64" (semantics) and "float32" (numerics), or one of them.
        isolated: also run each module alone on the reference's inputs, which names the first divergence exactly.
        budget: the limits.
        excused: pattern on names -> reason, for what one side has and the other has not.
        renamed: candidate's module path -> reference's, where names differ.
        names: "auto" finds what ``renamed`` does not tell, see ``match_names``; None takes names as they are.
        title: heading of the report.
        settings: anything to show with it.
        build: source code that binds ``model``, for the reference and the candidate, used in ``repro.py`` where the
            module itself cannot be pickled.
        folder: where the repro goes on divergence; "reports/<title>" if None.
        notify: called with a line of text at each step.
        scopes: make the context of the reference's and of the candidate's float32 runs, such as one of mixed
            precision, which ``budget`` must then be for.

    Returns:
        The report; ``report.raise_if_diverged()`` turns it into a test.

    Raises:
        TypeError: a model belongs to neither framework.
        ValueError: ``precisions`` holds an unknown one, or ``names`` is unknown.
        NameMatchError: with ``names="auto"``, a module has no partner or more than one.
    """
    if names not in (None, "auto"):
        raise ValueError(f"`names` must be 'auto' or None. Received: {names!r}")
    if names == "auto":
        renamed = match_names(torch_model, jittor_model, given=renamed).renamed
    if not precisions or set(precisions) - set(PRECISIONS):
        raise ValueError(f"`precisions` must be one or both of {PRECISIONS}. Received: {precisions}")
    reference = Side(adapter_for(torch_model), torch_model, inputs, train, scope=scopes[0])
    candidate = Side(adapter_for(jittor_model), jittor_model, inputs, train, renamed or {}, scopes[1])
    title = title or f"{type(torch_model).__name__} and {type(jittor_model).__name__}"
    with Scratch("align") as place:
        traces = record_reference(reference, place, precisions, notify)
        report = judged(
            reference,
            candidate,
            traces,
            precisions,
            isolated=isolated,
            budget=budget,
            excused=excused,
            title=title,
            settings=settings,
            notify=notify,
        )
        if report.first_divergence is None:
            return report
        target = Path(folder) if folder is not None else Path("reports") / slug(title)
        return with_repro(report, reference, candidate, traces, target, build)


def judged(
    reference: Side,
    candidate: Side,
    traces: Mapping[str, Trace],
    precisions: tuple[str, ...] = PRECISIONS,
    *,
    isolated: bool = True,
    budget: Budget = DEFAULT_BUDGET,
    excused: Mapping[str, str] | None = None,
    title: str = "candidate",
    settings: Mapping[str, Any] | None = None,
    notify: Notify = lambda text: None,
) -> Report:
    """The candidate against recorded runs of the reference; ``traces`` may serve any number of candidates."""
    judge = Judge(traces, budget, excused, candidate.renamed)
    checks = {"weights": check_weights(reference, candidate)}
    if "float32" in traces:
        checks["hooks (reference)"] = hooks_fact(reference, root_outputs(traces["float32"]))
    for precision in precisions:
        notify(f"candidate, {precision}")
        with candidate.adapter.in_precision(candidate.model, precision) as model, candidate.context(precision):
            prepare(replace(candidate, model=model), precision, traces[precision], isolated)
            hooked = Outputs(judge.sink(precision))
            run_recorded(candidate.adapter, model, candidate.inputs, precision, hooked, train=candidate.train)
            if precision == "float32":
                checks["hooks (candidate)"] = hooks_fact(candidate, hooked.outputs)
            if isolated:
                notify(f"candidate, {precision}, each module alone")
                judge_isolated(judge, precision, reference, replace(candidate, model=model), traces)
    return finish(judge, precisions, title, dict(settings or {}), checks, environment(reference, candidate))


def record_reference(side: Side, place: Path, precisions: tuple[str, ...], notify: Notify) -> dict[str, Trace]:
    """Traces of the reference with inputs; float64 is always among them: it is the oracle."""
    traces = {}
    for precision in PRECISIONS:
        if precision in precisions or precision == "float64":
            notify(f"reference, {precision}")
            traces[precision] = record(side, place / precision, precision, with_inputs=True)
    return traces


def record(side: Side, folder: Path, precision: str, *, with_inputs: bool) -> Trace:
    made = side.adapter.in_precision(side.model, precision)
    with TraceWriter(folder) as writer, made as model, side.context(precision):
        writer.trace.calls += run_recorded(
            side.adapter, model, side.inputs, precision, writer, train=side.train, with_inputs=with_inputs
        )
    return writer.trace


def prepare(side: Side, precision: str, trace: Trace, isolated: bool) -> None:
    """Let the framework compile what the model, and each module alone, will need."""
    adapter, modules = side.adapter, side.modules(side.model)

    def run() -> None:
        with suppress(Exception):  # what a module raises is a finding of the run that is judged
            side.model(*tensors_from(adapter, side.inputs, precision))
        for call in trace.calls if isolated else ():
            if call.module and call.module in modules and is_plain(call.arguments):
                with suppress(Exception):
                    arguments = arguments_of(adapter, trace, call, precision)
                    modules[call.module](*arguments["args"], **arguments["kwargs"])

    with adapter.running(side.model, train=side.train):
        adapter.prepare(side.model, run)


def finish(
    judge: Judge,
    precisions: tuple[str, ...],
    title: str,
    settings: dict[str, Any],
    checks: dict[str, str],
    surroundings: dict[str, dict[str, Any]],
) -> Report:
    rows, coverage = judge.rows(precisions), judge.coverage(precisions)
    opaque = [call.name for call in judge.oracle.calls if not is_plain(call.arguments)]
    if opaque:
        fact = f"{len(opaque)} calls take arguments that only their own framework knows; not run alone: {opaque[:5]}"
        checks = {**checks, "isolated": fact}
    return Report(
        title=title,
        rows=rows,
        coverage=coverage,
        first_divergence=first_divergence(rows, judge.oracle.calls, coverage.missing),
        budget=judge.budget,
        settings=settings,
        environment=surroundings,
        details=judge.details(),
        checks=checks,
    )


def with_repro(
    report: Report,
    reference: Side,
    candidate: Side,
    traces: Mapping[str, Trace],
    folder: Path,
    build: tuple[str, str] | None,
) -> Report:
    """Write the repro of the first divergence, where it is a module's call, and note its folder in the report."""
    blamed = report.first_divergence
    assert blamed is not None
    trace = traces.get(blamed.precision)
    call = None
    if trace is not None and blamed.name.startswith("activation/"):
        call = next((c for c in trace.calls if blamed.name.startswith(f"activation/{c.name}/")), None)
    if trace is None or call is None:
        return report
    outputs = {}
    for name, side in (("reference", reference), ("candidate", candidate)):
        with (
            side.adapter.in_precision(side.model, blamed.precision) as model,
            side.context(blamed.precision),
            side.adapter.running(model, train=side.train),
        ):
            module = side.modules(model).get(call.module)
            try:
                outputs[name] = run_alone(side.adapter, module, trace, call, blamed.precision)
            except Exception:  # the module itself is what fails; the repro shows it
                outputs[name] = {}
    target = write_repro(folder / "repro", blamed, call, trace, (reference, candidate), outputs, build)
    return replace(report, first_divergence=replace(blamed, repro=str(target)))


def environment(reference: Side | None, candidate: Side | None) -> dict[str, dict[str, Any]]:
    here = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
    }
    found: dict[str, dict[str, Any]] = {"harness": here}
    for name, side in (("reference", reference), ("candidate", candidate)):
        if side is not None:
            found[name] = side.adapter.describe()
    return found


def slug(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-") or "report"
