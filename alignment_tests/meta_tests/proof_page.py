"""The page of the proof: made from the JSON of a run, and from nothing else."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignment_tests.cases.batches import PHOTOGRAPHS
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.record.temporary import write_text_atomically
from alignment_tests.meta_tests.clean import CleanRun
from alignment_tests.meta_tests.clean_training import TrainingRun, boxes_of
from alignment_tests.meta_tests.experiments.outcome import PLAIN, Outcome
from alignment_tests.meta_tests.runner import Finding
from fixtures.runs.record import commit_of

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 3
LOCATING = "every array, 1e-5"  # the only plain check that can name a place
Data = dict[str, Any]


def as_json(
    findings: Iterable[Data], runs: Iterable[Data], trainings: Iterable[Data], seconds: float, jobs: int
) -> Data:
    """Of one run of the command, which may have been asked for some faults only, and took ``seconds`` in all."""
    made = {"commit": commit_of(ROOT, ("docs",)), "environment": environment() | {"processes": jobs}}
    return {
        "format": FORMAT,
        "seconds": round(seconds),
        "faults": [finding | made for finding in findings],
        "clean": [run | made for run in runs],
        "training": [run | made for run in trainings],
    }


def merged(older: Data | None, newer: Data, known: Sequence[str]) -> Data:
    """Faults and trainings that were not asked for, and runs without a fault where none were, keep what they have.

    Args:
        older: what is on disk, None if nothing is.
        newer: of this run.
        known: names of all faults there are, in order; others are dropped.
    """
    if older is None or older.get("format") != FORMAT:
        older = {"faults": [], "clean": [], "training": []}
    found = {one["name"]: one for one in [*older["faults"], *newer["faults"]]}
    trainings = {(one["seed"], one["images"]): one for one in [*older["training"], *newer["training"]]}
    return {
        "format": FORMAT,
        "seconds": newer["seconds"],
        "faults": [found[name] for name in known if name in found],
        "clean": newer["clean"] or older["clean"],
        "training": [trainings[key] for key in sorted(trainings)],
    }


def finding_as_json(finding: Finding) -> Data:
    fault = finding.fault
    return {
        "name": fault.name,
        "family": fault.family,
        "plants": fault.plants,
        "experiment": fault.experiment,
        "where": fault.where,
        "miss": fault.miss,
        "detected": finding.detected,
        "exact": finding.exact,
        "named": finding.named,
        "reason": finding.reason[:300],
        "plain": {title: {"detected": found[0], "exact": found[1]} for title, found in finding.plain.items()},
        "seconds": round(finding.seconds, 2),
    }


def clean_as_json(run: CleanRun, outcome: Outcome, seconds: float) -> Data:
    return {
        "experiment": run.experiment,
        "seed": run.seed,
        "size": None if run.size is None else list(run.size),
        "threads": run.threads,
        "aligned": outcome.aligned,
        "reason": outcome.reason[:300],
        "plain alarms": [title for title, blame in outcome.plain.items() if blame is not None],
        "seconds": round(seconds, 2),
    }


def training_as_json(run: TrainingRun, report: Report, seconds: float) -> Data:
    few, many = boxes_of(run.batches())
    compared = [row.accumulated for row in report.rows if row.precision == "float64" and row.accumulated is not None]
    used = [found.max_abs_error / found.budget for found in compared if found.max_abs_error and found.budget]
    return {
        "seed": run.seed,
        "model": run.model,
        "kind": run.kind,
        "images": "drawn scenes" if run.photographs is None else named(run.photographs),
        "boxes": [few, many],
        "size": list(run.size),
        "batch": run.batch,
        "steps": run.steps,
        "first step": run.first_step,
        "threads": run.threads,
        "free-running": run.free_running,
        "aligned": report.aligned,
        "reason": report.problems[0][:300] if report.problems else "",
        "rows": len(report.rows),
        "rows that needed further runs": sum("further runs" in row.reason for row in report.rows),
        "largest share of the float64 limit": round(max(used), 3) if used else None,
        "seconds": round(seconds, 2),
    }


def named(photographs: Path) -> str:
    return "photographs of blood cells" if photographs == PHOTOGRAPHS else f"photographs of {photographs.name}"


def environment() -> dict[str, Any]:
    import numpy as np
    import torch

    from jt_impl.runtime import jittor as jt

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "jittor": jt.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def json_of(page: Path) -> Path:
    return page.parent / "results" / f"{page.stem}.json"


def write(page: Path, data: Data, known: Sequence[str]) -> Data:
    """The page, and its JSON in ``results`` beside it; what was written."""
    target = json_of(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    older = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else None
    whole = merged(older, data, known)
    write_text_atomically(target, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(page, render(whole))
    return whole


def render(data: Data) -> str:
    parts = [INTRODUCTION, summary(data), WHAT_COUNTS, kinds(data), misses(data), clean(data), training(data)]
    parts += [table(data), again(data)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


INTRODUCTION = """
# What the harness finds

A port goes wrong in known ways. Here such faults are planted into the Jittor side one at a time, in attributes,
functions, weights and states; the code of the models stays as it is. Each fault has a place that was written down
beforehand: the module, or the array, that a report must name first. The same runs were judged by `numpy.allclose`
too, at the tolerances that people use, to show what float64 runs, isolated errors and the budget of noise add.

This page is made by `python -m alignment_tests.meta_tests` from [results/proof.json](results/proof.json).
"""
WHAT_COUNTS = """
*Found*: the report is not aligned. *Named exactly*: its first divergence is the fault's own module or array, and no
other. A place with a star is a quantity of several arrays, of which any may be named: an assignment (foreground,
labels, boxes, scores), the velocities, weights or averages of an update, the gradients that the loss itself gives.
After the faults of an experiment the candidate must be aligned again, or the command ends with an error.

A comparison of final outputs names nothing. In an experiment in which a check alarms without any fault, it cannot find
one there. `allclose` runs in float32 with rtol = atol; the final outputs are those of the part that runs (a whole
model's lie further away), of a training step the losses, of updates the new weights.
"""


def share(count: int, whole: int) -> str:
    return f"{count} of {whole} ({100 * count / whole:.1f} %)" if whole else "none"


def summary(data: Data) -> str:
    faults, runs = data["faults"], data["clean"]
    rows = [
        [
            "this harness",
            share(sum(f["detected"] for f in faults), len(faults)),
            share(sum(f["exact"] for f in faults), len(faults)),
            share(sum(not run["aligned"] for run in runs), len(runs)),
        ]
    ]
    for title in PLAIN:
        found = [f["plain"].get(title, {"detected": False, "exact": False}) for f in faults]
        exact = share(sum(one["exact"] for one in found), len(found)) if title == LOCATING else "–"
        alarms = sum(title in run["plain alarms"] for run in runs)
        detected = share(sum(one["detected"] for one in found), len(found))
        rows.append([f"`allclose`, {title}", detected, exact, share(alarms, len(runs))])
    return markdown(["judged by", "faults found", "named exactly", "false alarms without a fault"], rows)


def kinds(data: Data) -> str:
    grouped: dict[str, list[Data]] = {}
    for one in data["faults"]:
        grouped.setdefault(one["family"], []).append(one)
    rows = [
        [
            family,
            str(len(group)),
            str(sum(one["detected"] for one in group)),
            str(sum(one["exact"] for one in group)),
            *[str(sum(one["plain"].get(title, {}).get("detected", False) for one in group)) for title in PLAIN],
            str(sum(one["plain"].get(LOCATING, {}).get("exact", False) for one in group)),
        ]
        for family, group in grouped.items()
    ]
    heads = ["kind", "faults", "found", "named", *[f"`allclose` {title}" for title in PLAIN], "named by it"]
    return f"## By kind\n\n{markdown(heads, rows)}"


def misses(data: Data) -> str:
    missed = [one for one in data["faults"] if not one["exact"]]
    if not missed:
        return "## Not found, or named elsewhere\n\nNone."
    lines = [
        f"- **{one['name']}** ({'named elsewhere' if one['detected'] else 'not found'}: `{one['named']}` in place of"
        f" `{one['where']}`). {one['miss'] or 'Not explained yet.'}"
        for one in missed
    ]
    return "\n".join(["## Not found, or named elsewhere", "", *lines])


def clean(data: Data) -> str:
    runs = data["clean"]
    if not runs:
        return ""
    sizes = sorted({tuple(run["size"]) for run in runs if run["size"]})
    grouped: dict[str, list[Data]] = {}
    for run in runs:
        grouped.setdefault(run["experiment"], []).append(run)
    rows = [
        [
            name,
            str(len(group)),
            str(sum(not run["aligned"] for run in group)),
            *[str(sum(title in run["plain alarms"] for run in group)) for title in PLAIN],
        ]
        for name, group in grouped.items()
    ]
    text = (
        f"{len(runs)} runs, each with weights and inputs of its own seed, at {len(sizes)} sizes and with"
        f" {', '.join(str(n) for n in sorted({run['threads'] for run in runs}))} threads."
    )
    alarms = [f"- {run['experiment']}, seed {run['seed']}: {run['reason']}" for run in runs if not run["aligned"]]
    heads = ["experiment", "runs", "false alarms", *[f"`allclose` {title}" for title in PLAIN]]
    return "\n".join(
        ["## Runs without a fault", "", text, "", markdown(heads, rows), *(["", *alarms] if alarms else [])]
    )


def training(data: Data) -> str:
    runs = data["training"]
    if not runs:
        return ""
    grouped: dict[tuple[str, str], list[Data]] = {}
    for run in runs:
        grouped.setdefault((run["kind"], run["model"]), []).append(run)
    rows = []
    for (kind, model), group in sorted(grouped.items()):
        shares = [run["largest share of the float64 limit"] for run in group]
        rows.append(
            [
                kind,
                model if model == "narrow" else model.upper(),
                str(len(group)),
                str(sum(not run["aligned"] for run in group)),
                str(sum(run["rows"] for run in group)),
                str(sum(run["rows that needed further runs"] for run in group)),
                f"{max(shares):.2f}" if None not in shares else "–",
            ]
        )
    boxes = [run["boxes"] for run in runs]
    fewest, most = min(pair[0] for pair in boxes), max(pair[1] for pair in boxes)
    images = dict.fromkeys(f"{sum(r['images'] == one['images'] for r in runs)} on {one['images']}" for one in runs)
    threads = ", ".join(str(count) for count in sorted({run["threads"] for run in runs}))
    text = (
        f"{len(runs)} comparisons of one to three whole training steps of both frameworks, in one of them twenty"
        f" ({', '.join(images)}), each with weights, images and batch of its own, {fewest} to {most} boxes an image,"
        f" at {len({tuple(run['size']) for run in runs})} sizes, from the first step of warm-up, from its middle and"
        f" after it, with {threads} threads. {sum(not run['aligned'] for run in runs)} were alarmed about. The share is"
        " the largest of any row."
    )
    alarms = [f"- {r['model']}, {r['kind']}, seed {r['seed']}: {r['reason']}" for r in runs if not r["aligned"]]
    heads = [
        "kind",
        "model",
        "runs",
        "false alarms",
        "rows",
        "of these with further runs",
        "share of the float64 limit",
    ]
    lines = ["## Whole training steps without a fault", "", text, "", markdown(heads, rows)]
    return "\n".join([*lines, *(["", *alarms] if alarms else [])])


def table(data: Data) -> str:
    def mark(found: Data) -> str:
        return "named" if found.get("exact") else "found" if found.get("detected") else "–"

    rows = [
        [
            one["name"],
            one["plants"],
            one["experiment"],
            f"`{one['where']}`" if one["where"] else "the part itself",
            mark(one),
            *[mark(one["plain"].get(title, {}) | ({} if title == LOCATING else {"exact": False})) for title in PLAIN],
        ]
        for one in data["faults"]
    ]
    heads = ["fault", "what is planted", "experiment", "place", "harness", *[f"`allclose` {title}" for title in PLAIN]]
    return f"## Every fault\n\n{markdown(heads, rows)}"


def again(data: Data) -> str:
    parts = [*data["faults"], *data["clean"], *data["training"]]
    commits = ", ".join(dict.fromkeys(part["commit"] for part in parts))
    known = parts[-1]["environment"]
    faults, alone, whole = (sum(one["seconds"] for one in data[part]) for part in ("faults", "clean", "training"))
    text = (
        f"The second form runs some faults only; the others keep what they have. Commit {commits}; Python"
        f" {known['python']}, PyTorch {known['torch']}, Jittor {known['jittor']}, numpy {known['numpy']},"
        f" {known['cores']} cores, {known['processes']} processes. The command last took {data['seconds']} s;"
        f" of a process all faults together took {faults:.0f} s, all runs without one {alone:.0f} s, the trainings"
        f" {whole:.0f} s."
    )
    return f"""
## How to make this page again

```sh
python -m alignment_tests.meta_tests --output docs/proof.md
python -m alignment_tests.meta_tests --only "batch norm" --output docs/proof.md
```

{textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)}
"""


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *[list(row) for row in rows]]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
