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

from alignment_tests.harness.judge.branches import unproven
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.judge.checks import Outputs, check_weights, hooks_fact, root_outputs, trained_fact
from alignment_tests.harness.judge.isolated import ReferenceAlone, arguments_of, judge_isolated, run_alone
from alignment_tests.harness.judge.known import judge_known, known_operators, with_known
from alignment_tests.harness.judge.localise import first_divergence
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.judge.rows import PRECISIONS, Judge
from alignment_tests.harness.judge.traced_calls import with_arguments, with_lines
from alignment_tests.harness.outline import Outline
from alignment_tests.harness.port_map import PortMap, read_port_map
from alignment_tests.harness.proposal import propose
from alignment_tests.harness.record.adapter import Scope
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import RaisedInCallError, run_recorded, tensors_from
from alignment_tests.harness.record.layout import SAME, Layout
from alignment_tests.harness.record.nested import is_plain
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.temporary import Scratch
from alignment_tests.harness.record.trace import Trace, TraceWriter
from alignment_tests.harness.report.repro import write_repro
from alignment_tests.harness.resolve import resolve

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
    port_map: PortMap | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    names: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
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
        port_map: how the candidate is laid out beside the reference, or the path of the file that says it.
        renamed: the section ``modules`` of such a map: candidate's module path -> reference's.
        names: "auto" proposes what the map does not tell, see ``propose``; None takes names as they are.
        kwargs: arguments by name, of the same kinds as ``inputs``.
        strict: layers of Jittor's own that differ from PyTorch's count as faults too.
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
        PortMapError: the map does not fit the models; with ``names="auto"``, a module has no partner or more than one.
    """
    if names not in (None, "auto"):
        raise ValueError(f"`names` must be 'auto' or None. Received: {names!r}")
    if not precisions or set(precisions) - set(PRECISIONS):
        raise ValueError(f"`precisions` must be one or both of {PRECISIONS}. Received: {precisions}")
    found = chosen_map(port_map, renamed)
    if names == "auto":
        found = propose(torch_model, jittor_model, found).whole()
    layout = layout_of(found, torch_model, jittor_model)
    given = kwargs or {}
    reference = Side(adapter_for(torch_model), torch_model, inputs, train, scope=scopes[0], kwargs=given)
    exact = layout.exact_sums(reference.values()) if layout.links else {}
    candidate = Side(adapter_for(jittor_model), jittor_model, inputs, train, layout, scopes[1], given, exact)
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
            settings={**({"port map": found.to_data()} if found.to_data() else {}), **(settings or {})},
            strict=strict,
            notify=notify,
        )
        branches = unproven(reference, candidate) if "float32" in precisions else None
        checks = report.checks if branches is None else {**report.checks, "not proven": branches}
        report = replace(report, checks=checks)
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
    strict: bool = False,
    notify: Notify = lambda text: None,
) -> Report:
    """The candidate against recorded runs of the reference; ``traces`` may serve any number of candidates."""
    judge = Judge(traces, budget, excused, candidate.layout)
    checks = {"weights": check_weights(reference, candidate)}
    if candidate.train:
        theirs, ours = (side.adapter.trained(side.model) for side in (reference, candidate))
        checks["trained parameters"] = trained_fact(theirs, ours, candidate.layout)
    if "float32" in traces:
        checks["hooks (reference)"] = hooks_fact(reference, root_outputs(traces["float32"]))
    with ReferenceAlone(reference, traces) as alone:
        for precision in precisions:
            with candidate.in_precision(precision) as model, candidate.context(precision):
                side = replace(candidate, model=model)
                prepare(side, precision, traces[precision], isolated)
                checks |= judge_run(judge, precision, side, notify)
                if isolated:
                    notify(f"candidate, {precision}, each module alone")
                    judge_isolated(judge, precision, alone, side, traces[precision])
                judge_known(judge, precision, side, alone, isolated=isolated, notify=notify)
    checks |= judge.facts(train=reference.train, trained=reference.adapter.trained(reference.model))
    around = environment(reference, candidate)
    return finish(judge, precisions, title, dict(settings or {}), checks, around, strict=strict)


def judge_run(judge: Judge, precision: str, candidate: Side, notify: Notify) -> dict[str, str]:
    """The candidate's whole run, up to where it raises if it does. Facts beside the rows."""
    notify(f"candidate, {precision}")
    hooked = Outputs(judge.sink(precision))
    try:
        run_recorded(
            candidate.adapter,
            candidate.model,
            candidate.inputs,
            precision,
            hooked,
            train=candidate.train,
            kwargs=candidate.kwargs,
            told=judge.take_call,
        )
    except RaisedInCallError as error:
        judge.take_raised(precision, error.path, error.number, f"the candidate raises {error.reason}")
        return {f"run of the candidate ({precision})": f"FAIL: it raises in {error.path or 'its root'}: {error.reason}"}
    return {"hooks (candidate)": hooks_fact(candidate, hooked.outputs)} if precision == "float32" else {}


def record_reference(side: Side, place: Path, precisions: tuple[str, ...], notify: Notify) -> dict[str, Trace]:
    """Traces of the reference with inputs; float64 is always among them: it is the oracle."""
    traces = {}
    for precision in PRECISIONS:
        if precision in precisions or precision == "float64":
            notify(f"reference, {precision}")
            traces[precision] = record(side, place / precision, precision, with_inputs=True)
    return traces


def record(side: Side, folder: Path, precision: str, *, with_inputs: bool) -> Trace:
    made = side.in_precision(precision)
    with TraceWriter(folder) as writer, made as model, side.context(precision):
        writer.trace.calls += run_recorded(
            side.adapter,
            model,
            side.inputs,
            precision,
            writer,
            train=side.train,
            with_inputs=with_inputs,
            kwargs=side.kwargs,
        )
    return writer.trace


def prepare(side: Side, precision: str, trace: Trace, isolated: bool) -> None:
    """Let the framework compile what the model, and each module alone, will need."""
    adapter, modules = side.adapter, side.modules(side.model)

    def run() -> None:
        with suppress(Exception):  # what a module raises is a finding of the run that is judged
            args, kwargs = tensors_from(adapter, side.model, side.inputs, precision, side.kwargs)
            side.model(*args, **kwargs)
        for call in trace.calls if isolated else ():
            if call.module and call.module in modules and is_plain(call.arguments):  # others: by their own calls
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
    *,
    strict: bool = False,
) -> Report:
    rows, coverage = with_known(judge.rows(precisions), judge, strict=strict), judge.coverage(precisions)
    alone = {name.split("/", 1)[1].rsplit("/", 1)[0] for name, _ in judge.isolated} | judge.in_place.keys()
    opaque = [call.name for call in judge.oracle.calls if not is_plain(call.arguments) and call.name not in alone]
    if opaque:
        fact = f"{len(opaque)} calls take arguments that only their own framework knows; not run alone: {opaque[:5]}"
        checks = {**checks, "isolated": fact}
    if judge.in_place:
        reasons = "; ".join(f"{call}: {reason}" for call, reason in list(judge.in_place.items())[:5])
        checks = {**checks, "judged in place only": f"{len(judge.in_place)} calls ({reasons})"}
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
        known=known_operators(rows, judge),
        strict=strict,
    )


def with_repro(
    report: Report,
    reference: Side,
    candidate: Side,
    traces: Mapping[str, Trace],
    folder: Path,
    build: tuple[str, str] | None,
) -> Report:
    """Tell the lines of the first divergence, write its repro where it is a module's call, and note that folder."""
    blamed = report.first_divergence
    assert blamed is not None
    blamed = with_arguments(blamed, reference, candidate)
    report = replace(report, first_divergence=blamed)
    trace = traces.get(blamed.precision)
    call = None
    if trace is not None and blamed.name.startswith("activation/"):
        call = next((c for c in trace.calls if blamed.name.startswith(f"activation/{c.name}/")), None)
    if trace is None or call is None:
        return report
    rows = [row for row in report.rows if (row.name, row.precision) == (blamed.name, blamed.precision)]
    blamed = with_lines(blamed, reference, candidate, trace, call, alone=any(row.isolated is not None for row in rows))
    if not is_plain(call.arguments):
        return replace(report, first_divergence=blamed)
    outputs = {}
    for name, side in (("reference", reference), ("candidate", candidate)):
        with (
            side.in_precision(blamed.precision) as model,
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


def chosen_map(
    port_map: PortMap | Mapping[str, Any] | str | os.PathLike[str] | None, renamed: Mapping[str, str] | None
) -> PortMap:
    """The given map, with further modules that are renamed."""
    found = read_port_map(port_map)
    return replace(found, modules={**found.modules, **renamed}) if renamed else found


def layout_of(port_map: PortMap, reference: Any, candidate: Any) -> Layout:
    """An empty map takes all names and shapes as they are, whether there is a partner or not.

    Raises:
        PortMapError: the map does not fit the models.
    """
    if not port_map.to_data():
        return SAME
    return resolve(port_map, Outline.of("reference", reference), Outline.of("candidate", candidate))


def slug(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-") or "report"
