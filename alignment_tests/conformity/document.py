"""``docs/jittor_conformity.md`` from its JSON: nothing in it is typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Data = dict[str, Any]
FAILED_HEAD = ["| architecture | part | what the report says |", "|---|---|---|"]
TITLES = {"eval": "eval, forward", "train": "train, forward", "step": "one step of SGD"}

HEAD = """# Jittor beside PyTorch: models and operators

Made by `python -m alignment_tests.conformity` (part of `make proof`) from
[results/conformity.json](results/conformity.json), which its runs wrote. It says what the Jittor of the package index
computes, not this project's port. Three of the differences are bisected to scripts with their data in
[repros](repros); `python -m alignment_tests.conformity.repros` makes them.
"""
ZOO_HEAD = """## Models that both worlds ship

`torchvision.models` against `jittor.models`, the same seeded weights (no downloads), batches of two. Scales and shifts
of the norms are drawn from a seed, running statistics come from one batch. **Dropout is held at rate 0 on both sides**,
since the generators differ. The map of names is found by `match_names`. Compared are every module's output in both
modes, the running buffers, the loss (cross-entropy), every parameter's gradient, and momentum and weights after one
step of SGD (rate 2^-4, momentum 0.5, decay 2^-10: numbers that float32 holds exactly). Forward passes are compared in
float64 (formulas) and float32 (numerics), the step in float64, judged as in [method.md](method.md): in float32 a single
element of a ReLU's input on the other side of zero changes every gradient before it, and the operators below are
compared backward in float32 one by one.

"conforms": as it is. "explained": some rows fail as it is, and with the right operator put in Jittor's place for a
second run nothing else differs (in train mode, models with batch norms are run with the right norm only); of the step
it is enough that none but running statistics fail, if those are explained in train mode. No step is made of models
of more than 50 million weights. Figures are of the last run that was made: worst float64 error as a share of the scale
(limit 1e-9), worst float32 error of a forward pass in units of PyTorch's own (limit 16).
"""
OPERATOR_HEAD = """## Operators

Each row is a function or layer with the grid of arguments of
[operators/table.py](../alignment_tests/conformity/operators/table.py), in float64 and float32, forward and backward,
run in child processes. Elementwise ones also meet NaN, infinities, zeros, large, small and equal numbers and an empty
array. NaN in the same places is equal here. A count is a number of cases.

| verdict | meaning |
|---|---|
| conforms | all cases within the budget of a report: 1e-9 of scale in float64, 16 times PyTorch's error in float32 |
| rounded | float64 results are off by at most 1e-6 of the scale: a constant or a kernel of float32 inside |
| unproven | PyTorch's own float32 error is as large as the values: nothing is shown |
| differs | a value, a shape, a dtype, NaN or infinity differs |
| raises | Jittor refuses or fails where PyTorch computes |
| crashes, hangs | the process ended, or gave no answer |
| refused | PyTorch refuses these numbers; not compared |
"""


def document(data: Data) -> str:
    """The whole page."""
    parts = [HEAD, *zoo_section(data["zoo"]), *operator_section(data["operators"])]
    return "\n".join(parts).rstrip() + "\n"


def facts(part: Data) -> str:
    where = part["environment"]
    jittor, here = where["jittor"], where["harness"]
    note = f", {part['note']}" if part.get("note") else ""
    return (
        f"Measured in {part['seconds']} s, {commits(part)}: "
        f"Jittor {jittor['version']} ({jittor['kernel_flags']}), "
        f"PyTorch {where['torch']}, numpy {here['numpy']}, Python {here['python']}, {here['cores']} cores, "
        f"{where['threads']} threads, {part['processes']} processes at a time{note}.\n"
    )


def commits(part: Data) -> str:
    """Of the table, or of its rows with how many are of each."""
    if "commit" in part:
        return f"at commit {shown_commit(part['commit'])}"
    rows: dict[str, int] = {}
    for model in part["models"]:
        if "commit" in model:
            place = shown_commit(model["commit"])
            rows[place] = rows.get(place, 0) + 1
    return f"rows by commit: {', '.join(f'{place} ({count})' for place, count in rows.items())}"


def shown_commit(words: str) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", words)


def zoo_section(part: Data) -> list[str]:
    models = part["models"]
    run = [model for model in models if "parts" in model]
    other = [model for model in run if "other weights" in model]
    counts = f"{len(run) - len(other)} of {len(models)} architectures were compared, {len(other)} are other models.\n"
    lines = [ZOO_HEAD, facts(part), counts]
    lines += [
        "| architecture | images | " + " | ".join(TITLES.values()) + " | rows | float64 | float32 | time |",
        "|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [zoo_row(model) for model in run if model not in other]
    lines += [f"| {model['name']} | – | other weights | | | | | | |" for model in other]
    lines += [
        f"| {model['name']} | – | failed: {plain(model['failed'])} ||||||| " for model in models if "failed" in model
    ]
    absent: dict[str, list[str]] = {}
    for model in models:
        if "not run" in model:
            absent.setdefault(model["not run"], []).append(model["name"])
    lines += ["", *(f"Not run ({reason}): {', '.join(names)}." for reason, names in absent.items())]
    lines += [""] + [f"- {model['name']} is another model: {plain(model['other weights'])}." for model in other]
    return [*lines, "", *zoo_causes(run)]


def zoo_row(model: Data) -> str:
    parts = model["parts"]
    last = [found["corrected"] if "corrected" in found else found["as it is"] for found in parts.values()]
    verdicts = " | ".join(parts[name]["verdict"].removeprefix("differs, ") if name in parts else "–" for name in TITLES)
    settings = "".join(f", {key}={value}" for key, value in model["settings"].items())
    images = "x".join(map(str, model["images"]))
    explained = [f for f, found in zip(last, parts.values(), strict=True) if f.get("aligned") or "corrected" in found]
    double = max((float(found.get("float64", 0.0)) for found in explained), default=0.0)
    single = max((float(found.get("float32", 0.0)) for found in explained), default=0.0)
    rows = sum(found.get("rows", 0) for found in last)
    return (
        f"| {model['name']} | {images}{settings} | {verdicts} | {rows} | {double:.1e} | {single:.1f} | "
        f"{model['seconds']:.0f} s |"
    )


def zoo_causes(run: list[Data]) -> list[str]:
    """What explains the rows that fail, with the models that it was needed for, and the words of one report."""
    lines = ["### What differs in the models", ""]
    causes: dict[str, dict[str, list[str]]] = {}
    for model in run:
        for name, found in model["parts"].items():
            for cause in found.get("causes", []):
                causes.setdefault(cause, {}).setdefault(model["name"], []).append(name)
    for cause, where in causes.items():
        message = ", ".join(f"{model} ({', '.join(names)})" for model, names in where.items())
        lines.append(f"- {cause}: {message}")
    lines += ["", "The first failing row of each, as it is:", "", *FAILED_HEAD]
    lines += failed_rows(run, "as it is", lambda found: not found.get("as it is", {"aligned": True})["aligned"])
    rest = failed_rows(run, "corrected", lambda found: found["verdict"] == "differs")
    if rest:
        lines += ["", "What no known difference explains, with the corrected operators:", "", *FAILED_HEAD, *rest]
    return [*lines, ""]


def failed_rows(run: list[Data], which: str, wanted: Callable[[Data], bool]) -> list[str]:
    """What the report of a part says first, or what the candidate raised."""
    rows = []
    for model in run:
        for name, found in model["parts"].items():
            if wanted(found):
                message = found[which]
                rows.append(
                    f"| {model['name']} | {name} | {plain(message.get('raised') or (message['first'] or ['-'])[0])} |"
                )
    return rows


def operator_section(part: Data) -> list[str]:
    rows = part["operators"]
    totals: dict[str, int] = {}
    for row in rows:
        totals[row["verdict"]] = totals.get(row["verdict"], 0) + 1
    cases = sum(sum(row["counts"].values()) for row in rows)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in sorted(totals.items(), key=lambda item: -item[1]))
    lines = [OPERATOR_HEAD, facts(part), f"{len(rows)} rows, {cases} cases. By their worst case: {summary}.\n"]
    lines += ["| Jittor | PyTorch | worst case | cases |", "|---|---|---|---|"]
    for row in rows:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in row["counts"].items())
        lines.append(f"| `jt.{row['name']}` | `torch.{row['counterpart']}` | {row['verdict']} | {counts} |")
    return [*lines, "", *uncovered(part), *all_differences(rows)]


def uncovered(part: Data) -> list[str]:
    lines = ["### Without a row", ""]
    for reason, names in sorted(part["without row"].items()):
        lines.append(f"- {reason}: {', '.join(f'`{name}`' for name in names)}")
    lines += [
        "",
        "### Missing in Jittor",
        "",
        "Names of `torch.nn` and `torch.nn.functional` that neither `jittor.nn` nor `jittor` has:",
        "",
    ]
    for kind, names in part["missing"].items():
        lines.append(f"- {kind}: {', '.join(f'`{name}`' for name in names)}")
    return [*lines, ""]


def all_differences(rows: list[Data]) -> list[str]:
    lines = [
        "### Every difference, with what shows it",
        "",
        "The simplest case of each kind. The scripts need numpy, PyTorch and Jittor, and nothing of this project.",
        "",
    ]
    for row in rows:
        if not row["differences"]:
            continue
        lines += [f"#### jt.{row['name']}", ""]
        for found in row["differences"]:
            lines += difference(found)
    return lines


def difference(found: Data) -> list[str]:
    where = f" of {found['where']}" if found["direction"] != "forward" and found.get("where") else ""
    words = [f"**{found['verdict']}**, {found['direction']}{where}", found["dtype"]]
    words += [f"arguments `{found['arguments']}`"] if found["arguments"] else []
    words += [f"{found['numbers']} numbers"] if found["numbers"] != "ordinary" else []
    words += [f"{found['cases']} cases"] if found["cases"] > 1 else []
    values = ""
    if found.get("index") is not None:
        ours, theirs = float(found["candidate"]), float(found["reference"])
        values = f" At {tuple(found['index'])}: Jittor {ours:.9g}, PyTorch {theirs:.9g}."
    head = f"- {', '.join(words)}: {plain(found['reason'])}.{values}"
    return [head, "", "  ```python", *(f"  {line}" for line in found["repro"].splitlines()), "  ```", ""]


def plain(text: str) -> str:
    """One line that breaks no table."""
    return " ".join(str(text).split()).replace("|", "\\|")
