"""Two environments, one report: dump each side to a folder, compare the folders later.

A dump folder holds one trace per run: ``float32`` and ``float64`` (the whole model), and ``float32.isolated`` and
``float64.isolated`` (each module alone on the reference's recorded inputs; on the reference's side only float32's is
kept, its oracle in float64, since in float64 the module's own recorded output is the oracle).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from alignment_tests.harness.align_layers import (
    Notify,
    chosen_map,
    environment,
    finish,
    record,
    record_reference,
)
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.judge.checks import hooks_fact, root_outputs, trained_fact
from alignment_tests.harness.judge.compare import same_values
from alignment_tests.harness.judge.isolated import ReferenceAlone, output_names, run_alone
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.judge.rows import PRECISIONS, Judge
from alignment_tests.harness.outline import Outline
from alignment_tests.harness.port_map import PortMap
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.layout import SAME, Layout
from alignment_tests.harness.record.nested import OpaqueArgumentError
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.temporary import write_text_atomically
from alignment_tests.harness.record.trace import Call, Trace, TraceWriter
from alignment_tests.harness.resolve import resolve

FORMAT = 1


def dump(
    model: Any,
    inputs: Any,
    folder: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    train: bool = False,
    precisions: tuple[str, ...] = PRECISIONS,
    port_map: PortMap | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    notify: Notify = lambda text: None,
) -> Path:
    """Run one side and write all that a later comparison needs.

    Args:
        model: of either framework.
        inputs: as for ``align``; for the candidate the same ones.
        folder: where; must not hold a dump yet.
        reference: the reference's dump, for the candidate (its modules run alone on those inputs); None writes the
            reference's own dump.
        train: train mode.
        precisions: the runs to make.
        port_map: of a candidate, as for ``align``; it is kept in the dump, and ``compare`` takes it from there.
        renamed: the section ``modules`` of such a map.
        kwargs: arguments by name, as for ``align``.
        settings: anything to show in the report.
        notify: called with a line of text at each step.

    Raises:
        FileExistsError: ``folder`` holds a dump already.
        ValueError: the reference's dump was made in the other mode.
        PortMapError: the map does not fit the model and the reference's dump.
    """
    place = Path(folder)
    if (place / "dump.json").exists():
        raise FileExistsError(f"`folder` must not hold a dump yet. Received: {place}")
    found = chosen_map(port_map, renamed)
    layout, exact = SAME, {}
    if reference is not None and found.to_data():
        layout = resolve(found, outline_of_dump("reference", reference), Outline.of("candidate", model))
        exact = layout.exact_sums(state_of_dump(reference))
    side = Side(adapter_for(model), model, inputs, train, layout, kwargs=kwargs or {}, exact=exact)
    write = _dump_reference if reference is None else _dump_candidate
    checks = write(side, place, precisions, notify, None if reference is None else Path(reference))
    facts = {
        "format": FORMAT,
        "role": "reference" if reference is None else "candidate",
        "train": train,
        "precisions": list(precisions),
        "model": type(model).__name__,
        "trained": side.adapter.trained(model),
        "port_map": found.to_data(),
        "settings": dict(settings or {}),
        "checks": checks,
        "environment": environment(side, None),
    }
    write_text_atomically(place / "dump.json", json.dumps(facts, indent=1))
    return place


def _dump_reference(
    side: Side, place: Path, precisions: tuple[str, ...], notify: Notify, reference: Path | None
) -> dict[str, str]:
    traces = record_reference(side, place, precisions, notify)
    if "float32" not in traces:
        return {}
    trace = traces["float32"]
    notify("reference, each module alone in float64")
    with TraceWriter(place / "float32.isolated") as writer, ReferenceAlone(side, traces) as alone:
        for call in trace.calls:
            if call.module and call.repeatable:
                for slot, array in (alone.outputs("float32", call) or {}).items():
                    writer.put(f"activation/{call.name}/{slot}", array)
                alone.repeats(call)  # whether it may be asked for is known only later, where nothing can be run
        writer.trace.meta["unrepeated"] = alone.unrepeated
    return {"hooks (reference)": hooks_fact(side, root_outputs(trace))}


def _dump_candidate(
    side: Side, place: Path, precisions: tuple[str, ...], notify: Notify, reference: Path | None
) -> dict[str, str]:
    assert reference is not None
    theirs = read_dump(reference, "reference")
    if theirs["train"] != side.train:
        raise ValueError(f"`train` must be as in the reference's dump ({theirs['train']}). Received: {side.train}")
    checks = {}
    for precision in precisions:
        notify(f"candidate, {precision}")
        trace = record(side, place / precision, precision, with_inputs=False)
        if precision == "float32":
            checks["hooks (candidate)"] = hooks_fact(side, root_outputs(trace))
        notify(f"candidate, {precision}, each module alone")
        recorded = Trace.open(reference / precision)
        _dump_isolated(side, place / f"{precision}.isolated", precision, recorded, trace.calls)
    return checks


def _dump_isolated(side: Side, place: Path, precision: str, trace: Trace, calls: Iterable[Call]) -> None:
    """Outputs of each call alone; a call that raises, or cannot be made alone, is told in the trace's meta.

    ``calls`` are this side's own.
    """
    failed: dict[str, str] = {}
    in_place: dict[str, str] = {}
    own = {f"{side.layout.module(call.module)}#{call.number}": call for call in calls}
    with (
        TraceWriter(place) as writer,
        side.in_precision(precision) as model,
        side.adapter.running(model, train=side.train),
        side.adapter.settled(model),
    ):
        modules = side.modules(model)
        for call in trace.calls:
            if not call.module or call.module not in modules:
                continue
            module, made = modules[call.module], own.get(call.name)
            try:
                found = run_alone(side.adapter, module, trace, call, precision, strict=True, own=made)
            except OpaqueArgumentError as error:
                in_place[call.name] = f"not run alone: {error}"
                continue
            except Exception as error:  # a finding about the candidate, judged in the report
                failed[call.name] = f"the candidate's module raises {type(error).__name__}: {error}"[:500]
                continue
            for slot, array in found.items():
                writer.put(f"activation/{call.name}/{slot}", array)
        writer.trace.meta.update(failed=failed, in_place=in_place)


def read_dump(folder: str | os.PathLike[str], role: str) -> dict[str, Any]:
    """The facts of a dump.

    Raises:
        FileNotFoundError: there is none in ``folder``.
        ValueError: it is of another format, or of the other role.
    """
    path = Path(folder) / "dump.json"
    if not path.is_file():
        raise FileNotFoundError(f"`{role}` must be a folder made by `dump` (with dump.json). Received: {folder}")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("format") != FORMAT or facts.get("role") != role:
        raise ValueError(
            f"`{role}` must be a {role}'s dump of format {FORMAT}. Received: {folder}, {facts.get('role')}"
        )
    return facts


def compare(
    reference: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    *,
    budget: Budget = DEFAULT_BUDGET,
    excused: Mapping[str, str] | None = None,
    port_map: PortMap | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Report:
    """The report of two dumps; the same, number by number, as ``align`` gives for the live models.

    Args:
        reference: folder of the reference's dump.
        candidate: folder of the candidate's dump, made with that reference.
        budget: the limits.
        excused: pattern on names -> reason.
        port_map: in place of the one that the candidate's dump was made with.
        renamed: the section ``modules`` of such a map.
        title: heading.

    Raises:
        FileNotFoundError, ValueError: a folder holds no dump, or one of the other role.
        PortMapError: the map does not fit the dumps.
    """
    theirs, ours = read_dump(reference, "reference"), read_dump(candidate, "candidate")
    precisions = tuple(p for p in PRECISIONS if p in ours["precisions"] and p in theirs["precisions"])
    traces = {p: Trace.open(Path(reference) / p) for p in PRECISIONS if (Path(reference) / p).is_dir()}
    given = port_map if port_map is not None or renamed else ours.get("port_map")
    found, layout = chosen_map(given, renamed), SAME
    if found.to_data():
        layout = resolve(found, outline_of_dump("reference", reference), outline_of_dump("candidate", candidate))
    judge = Judge(traces, budget, excused, layout)
    checks = {**theirs["checks"], "weights": "", **ours["checks"]}
    for precision in precisions:
        trace = Trace.open(Path(candidate) / precision)
        sink = judge.sink(precision)
        for call in trace.calls:
            judge.take_call(call)
        for name, stored in trace.entries.items():
            if stored == name:
                sink.put(name, trace[name])
            else:
                sink.alias(name, stored, partial(trace.__getitem__, name))
        _judge_isolated(judge, precision, Path(reference), Trace.open(Path(candidate) / f"{precision}.isolated"))
        if precision == "float32":
            checks["weights"] = _weights(traces[precision], trace, layout)
    if not checks["weights"]:
        del checks["weights"]
    if theirs["train"] and "trained" in theirs and "trained" in ours:
        checks["trained parameters"] = trained_fact(theirs["trained"], ours["trained"], layout)
    surroundings = {**ours["environment"], **theirs["environment"], "candidate": ours["environment"]["reference"]}
    title = title or f"{theirs['model']} and {ours['model']}"
    checks |= judge.facts(train=theirs["train"], trained=theirs.get("trained", {}))
    mapped = {"port map": found.to_data()} if found.to_data() else {}
    settings = {**mapped, **theirs["settings"], **ours["settings"]}
    return finish(judge, precisions, title, settings, checks, surroundings)


def _judge_isolated(judge: Judge, precision: str, reference: Path, alone: Trace) -> None:
    trace = judge.reference[precision]
    kept = Trace.open(reference / "float32.isolated") if (reference / "float32.isolated").is_dir() else None
    oracle = trace if precision == "float64" or kept is None else kept
    unrepeated = {} if kept is None else kept.meta.get("unrepeated", {})
    for call in trace.calls:
        names = output_names(trace, call)
        for name in names:
            if call.module == "":
                if (name, precision) in judge.accumulated:
                    judge.isolated[name, precision] = judge.accumulated[name, precision]
            elif name in alone and name in oracle:
                judge.take_isolated(precision, name, alone[name], oracle[name])
            elif call.name in alone.meta["failed"]:
                judge.fail_isolated(precision, name, alone.meta["failed"][call.name])
        if call.name in alone.meta.get("in_place", {}):
            judge.judge_in_place(call.name, alone.meta["in_place"][call.name])
        fails = any(not judge.isolated[n, precision].passed for n in names if (n, precision) in judge.isolated)
        if call.name in unrepeated and (fails or not all(name in oracle for name in names)):
            judge.judge_in_place(call.name, unrepeated[call.name])


def trace_of_dump(folder: str | os.PathLike[str]) -> Trace:
    """Of the whole model, in float64 if there is one."""
    return Trace.open(next(Path(folder) / p for p in PRECISIONS if (Path(folder) / p).is_dir()))


def outline_of_dump(side: str, folder: str | os.PathLike[str]) -> Outline:
    """What a port map may name of a dumped model."""
    return Outline.of_trace(side, trace_of_dump(folder))


def state_of_dump(folder: str | os.PathLike[str]) -> dict[str, Array]:
    trace = trace_of_dump(folder)
    return {name.split("/", 1)[1]: trace[name] for name in trace.names("parameter")}


def _weights(reference: Trace, candidate: Trace, layout: Layout) -> str:
    """Parameters are as before the run; buffers have moved in train mode and are judged as rows."""
    theirs, ours = (
        {name.split("/", 1)[1]: trace[name] for phase in phases for name in trace.names(phase)}
        for trace, phases in ((reference, ("parameter",)), (candidate, ("parameter", "buffer")))
    )
    equal = {name: same_values(own, other) for name, own, other in layout.pairs(theirs, ours)}
    different = [name for name, same in equal.items() if not same]
    if not equal:
        held = theirs or candidate.names("parameter")
        return "FAIL: the models share no parameter name" if held else "neither model has parameters"
    if different:
        return f"FAIL: {len(different)} of {len(equal)} arrays differ, first {different[0]}; convert first"
    return f"{len(equal)} parameters are equal bit for bit"
