"""Two environments, one report: dump each side to a folder, compare the folders later.

A dump folder holds one trace per run: ``float32`` and ``float64`` (the whole model), and ``float32.isolated`` and
``float64.isolated`` (each module alone on the reference's recorded inputs; on the reference's side only float32's is
kept, its oracle in float64, since in float64 the module's own recorded output is the oracle).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from alignment_tests.harness.align_layers import (
    Notify,
    environment,
    finish,
    record,
    record_reference,
)
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.judge.checks import hooks_fact, root_outputs
from alignment_tests.harness.judge.compare import same_values
from alignment_tests.harness.judge.isolated import isolated_oracle, output_names, run_alone
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.judge.rows import PRECISIONS, Judge
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.nested import is_plain
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.temporary import write_text_atomically
from alignment_tests.harness.record.trace import Trace, TraceWriter

FORMAT = 1


def dump(
    model: Any,
    inputs: Any,
    folder: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    train: bool = False,
    precisions: tuple[str, ...] = PRECISIONS,
    renamed: Mapping[str, str] | None = None,
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
        renamed: this side's module path -> the reference's, where names differ.
        settings: anything to show in the report.
        notify: called with a line of text at each step.

    Raises:
        FileExistsError: ``folder`` holds a dump already.
        ValueError: the reference's dump was made in the other mode.
    """
    place = Path(folder)
    if (place / "dump.json").exists():
        raise FileExistsError(f"`folder` must not hold a dump yet. Received: {place}")
    side = Side(adapter_for(model), model, inputs, train, renamed or {})
    write = _dump_reference if reference is None else _dump_candidate
    checks = write(side, place, precisions, notify, None if reference is None else Path(reference))
    facts = {
        "format": FORMAT,
        "role": "reference" if reference is None else "candidate",
        "train": train,
        "precisions": list(precisions),
        "model": type(model).__name__,
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
    with TraceWriter(place / "float32.isolated") as writer, isolated_oracle(side, "float32", traces) as oracle_of:
        for call in trace.calls:
            if call.module and is_plain(call.arguments):
                for slot, array in oracle_of(call).items():
                    writer.put(f"activation/{call.name}/{slot}", array)
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
        _dump_isolated(side, place / f"{precision}.isolated", precision, Trace.open(reference / precision))
    return checks


def _dump_isolated(side: Side, place: Path, precision: str, trace: Trace) -> None:
    """Outputs of each call alone; a call that raises is told in the trace's meta."""
    failed: dict[str, str] = {}
    with (
        TraceWriter(place) as writer,
        side.adapter.in_precision(side.model, precision) as model,
        side.adapter.running(model, train=side.train),
        side.adapter.settled(model),
    ):
        modules = side.modules(model)
        for call in trace.calls:
            if not call.module or call.module not in modules or not is_plain(call.arguments):
                continue
            try:
                found = run_alone(side.adapter, modules[call.module], trace, call, precision, strict=True)
            except Exception as error:  # a finding about the candidate, judged in the report
                failed[call.name] = f"the candidate's module raises {type(error).__name__}: {error}"[:500]
                continue
            for slot, array in found.items():
                writer.put(f"activation/{call.name}/{slot}", array)
        writer.trace.meta["failed"] = failed


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
    renamed: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Report:
    """The report of two dumps; the same, number by number, as ``align`` gives for the live models.

    Args:
        reference: folder of the reference's dump.
        candidate: folder of the candidate's dump, made with that reference.
        budget: the limits.
        excused: pattern on names -> reason.
        renamed: candidate's module path -> reference's.
        title: heading.

    Raises:
        FileNotFoundError, ValueError: a folder holds no dump, or one of the other role.
    """
    theirs, ours = read_dump(reference, "reference"), read_dump(candidate, "candidate")
    precisions = tuple(p for p in PRECISIONS if p in ours["precisions"] and p in theirs["precisions"])
    traces = {p: Trace.open(Path(reference) / p) for p in PRECISIONS if (Path(reference) / p).is_dir()}
    judge = Judge(traces, budget, excused, renamed)
    checks = {**theirs["checks"], "weights": "", **ours["checks"]}
    for precision in precisions:
        trace = Trace.open(Path(candidate) / precision)
        sink = judge.sink(precision)
        for name, stored in trace.entries.items():
            if stored == name:
                sink.put(name, trace[name])
            else:
                sink.alias(name, stored, partial(trace.__getitem__, name))
        _judge_isolated(judge, precision, Path(reference), Trace.open(Path(candidate) / f"{precision}.isolated"))
        if precision == "float32":
            checks["weights"] = _weights(traces[precision], trace, judge)
    if not checks["weights"]:
        del checks["weights"]
    surroundings = {**ours["environment"], **theirs["environment"], "candidate": ours["environment"]["reference"]}
    title = title or f"{theirs['model']} and {ours['model']}"
    return finish(judge, precisions, title, {**theirs["settings"], **ours["settings"]}, checks, surroundings)


def _judge_isolated(judge: Judge, precision: str, reference: Path, alone: Trace) -> None:
    trace = judge.reference[precision]
    oracle = trace if precision == "float64" else Trace.open(reference / f"{precision}.isolated")
    for call in trace.calls:
        for name in output_names(trace, call):
            if call.module == "":
                if (name, precision) in judge.accumulated:
                    judge.isolated[name, precision] = judge.accumulated[name, precision]
            elif name in alone:
                judge.take_isolated(precision, name, alone[name], oracle[name])
            elif call.name in alone.meta["failed"]:
                judge.fail_isolated(precision, name, alone.meta["failed"][call.name])


def _weights(reference: Trace, candidate: Trace, judge: Judge) -> str:
    """Parameters are as before the run; buffers have moved in train mode and are judged as rows."""
    pairs = [(judge.reference_name(n), n) for n in candidate if n.split("/", 1)[0] in ("parameter", "buffer")]
    pairs = [(r, c) for r, c in pairs if r.startswith("parameter/") and r in reference]
    different = [r for r, c in pairs if not same_values(candidate[c], reference[r])]
    if not pairs:
        held = any(name.startswith("parameter/") for trace in (reference, candidate) for name in trace)
        return "FAIL: the models share no parameter name" if held else "neither model has parameters"
    if different:
        return f"FAIL: {len(different)} of {len(pairs)} arrays differ, first {different[0]}; convert first"
    return f"{len(pairs)} parameters are equal bit for bit"
