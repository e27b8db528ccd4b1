"""Run both tables and keep what they show, with environment and commit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignment_tests.conformity.inventory import missing, without_row
from alignment_tests.conformity.operators.cases import Case
from alignment_tests.conformity.operators.judge import CONFORMS, DIFFERS, ROUNDED, UNPROVEN
from alignment_tests.conformity.operators.run import CRASHES, HANGS, Outcome
from alignment_tests.conformity.operators.run import run_all as run_operators
from alignment_tests.conformity.operators.table import TABLE
from alignment_tests.conformity.operators.worker import RAISES, REFUSED, WORST, cases_by_key
from alignment_tests.conformity.repro import arguments, script
from alignment_tests.conformity.zoo.table import run_all as run_zoo
from alignment_tests.harness.align_layers import environment
from fixtures.runs.record import commit_of
from jt_impl.runtime import describe

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
ORDER = (CRASHES, HANGS, *WORST, REFUSED)
Data = dict[str, Any]
Notify = Callable[[str], None]


def measure(
    notify: Notify,
    parts: tuple[str, ...] = ("operators", "zoo"),
    older: Data | None = None,
    kept: Path | None = None,
    models: Sequence[str] | None = None,
    jobs: int = 1,
) -> Data:
    """The document's data; parts that are not measured again keep what ``older`` has of them.

    ``kept`` is a folder of rows as they came, so that a run that was cut goes on, ``models`` are those to run, ``jobs``
    is how many processes run at a time; see ``zoo.table.run_all``. Architectures that are not run keep the row that
    ``older`` has of them.

    Numbers that JSON lacks are strings, as ``repr`` has them.
    """
    data: Data = {**(older or {}), "format": FORMAT}
    for part, make in {
        "operators": lambda: operator_part(notify, kept, jobs),
        "zoo": lambda: zoo_part(notify, kept, models, jobs, (older or {}).get("zoo", {}).get("models", ())),
    }.items():
        if part in parts:
            start = time.perf_counter()
            data[part] = {**make(), "environment": surroundings(), "processes": jobs}
            # Of kept rows too, so that a run that went on tells the whole time.
            rows = sum(model.get("seconds", 0.0) for model in data[part].get("models", ()))
            data[part]["seconds"] = round(max(time.perf_counter() - start, rows / jobs))
    strict: Data = finite(data)
    return strict


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def operator_part(notify: Notify, kept: Path | None, jobs: int) -> Data:
    commit, cases = commit_of(ROOT, ("docs",)), cases_by_key()
    # A file for each commit: the thousands of rows of a table are of one.
    outcomes = run_operators(notify, None if kept is None else kept / f"operators_{commit}.jsonl", jobs)
    return {
        "commit": commit,
        "operators": [entry(place, outcomes, cases) for place in range(len(TABLE))],
        "without row": without_row(),
        "missing": missing(),
    }


def zoo_part(notify: Notify, kept: Path | None, models: Sequence[str] | None, jobs: int, older: Sequence[Data]) -> Data:
    before = {row["name"]: row for row in older}
    rows = run_zoo(models, kept, notify, jobs)
    return {"models": [before.get(row["name"], row) if "not run" in row else row for row in rows]}


def entry(place: int, outcomes: dict[str, Outcome], cases: dict[str, Case]) -> Data:
    """One operator: how many cases had which outcome, and the simplest case of every kind of difference."""
    operator = TABLE[place]
    own = {key: outcomes[key] for key in outcomes if key.startswith(f"{place}|")}
    counts: dict[str, int] = {}
    for outcome in own.values():
        counts[outcome["verdict"]] = counts.get(outcome["verdict"], 0) + 1
    return {
        "name": operator.name,
        "counterpart": operator.counterpart,
        "verdict": min(counts, key=ORDER.index),
        "counts": dict(sorted(counts.items(), key=lambda item: ORDER.index(item[0]))),
        "differences": differences(own, cases),
    }


def differences(own: dict[str, Outcome], cases: dict[str, Case]) -> list[Data]:
    """The simplest case of each kind of difference, and how many more there are."""
    found: dict[tuple[str, ...], Data] = {}
    for key in sorted(own, key=lambda k: simplicity(cases[k])):
        case, outcome = cases[key], own[key]
        for direction, finding in bad(outcome).items():
            kind = (finding["verdict"], direction, family(case, finding))
            if kind in found:
                found[kind]["cases"] += 1
                continue
            found[kind] = {
                **finding,
                "direction": direction,
                "numbers": case.variant,
                "dtype": case.dtype,
                "arguments": said(case),
                "cases": 1,
                "repro": script(case, direction, finding.get("where")),
            }
    return list(found.values())


def bad(outcome: Outcome) -> dict[str, Data]:
    """Findings that are differences, by direction; what was raised counts as the forward pass."""
    if "findings" in outcome:
        return {d: f for d, f in outcome["findings"].items() if f["verdict"] != CONFORMS}
    return {"forward": outcome} if outcome["verdict"] in (RAISES, CRASHES, HANGS) else {}


def family(case: Case, finding: Data) -> str:
    """Differing values are told apart by arguments or kind of numbers; a dtype or an error is the same everywhere."""
    if finding["verdict"] == DIFFERS and not finding["reason"].startswith("dtype"):
        return f"{case.variant}|{case.number if case.variant == 'ordinary' else ''}"
    return "" if finding["verdict"] in (ROUNDED, UNPROVEN) else finding["reason"].partition(":")[0]


def simplicity(case: Case) -> tuple[int, int, int, str]:
    size = sum(array.size for array in case.arrays())
    return int(case.variant != "ordinary"), len(case.call.args) + len(case.call.kwargs), size, case.dtype


def said(case: Case) -> str:
    return arguments(case.call.args, case.call.kwargs)


def surroundings() -> Data:
    import torch

    here = environment(None, None)["harness"]
    found = describe()
    found.pop("cache", None)
    return {"harness": here, "torch": torch.__version__, "threads": torch.get_num_threads(), "jittor": found}
