"""``python -m alignment_tests.conformity.zoo.run resnet18``: one architecture, in a process of its own, as JSON."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from alignment_tests.conformity.zoo.corrected_operators import ADAPTIVE_POOL, BATCH_NORM, MEAN, corrected
from alignment_tests.conformity.zoo.models import Case, build, case_of, images_of, make_pair
from alignment_tests.conformity.zoo.trainee import Batch, trainee_of
from alignment_tests.harness import NameMatchError, Report, align
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.judge.report import Row as ReportRow
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.training.trainee import Make, Trainee

Row = dict[str, Any]
PARTS, LARGE = ("eval", "train", "step"), 50_000_000
CONFORMS, EXPLAINED, DIFFERS = "conforms", "differs, explained", "differs"
STATISTICS = {"buffer/running_mean", "buffer/running_var"}  # what the batch norm's difference touches in one step


def run(name: str, parts: tuple[str, ...] | None = None) -> Row:
    """Compare one architecture as it is, and where it differs once more with the known differences corrected."""
    case, start, images = case_of(name), time.perf_counter(), images_of(name)
    row: Row = {"name": name, "images": list(images.shape), "settings": {**case.reference}, "parts": {}}
    row["settings"].pop("init_weights", None)
    try:
        pair = make_pair(name)
    except NameMatchError:
        return {**row, "other weights": other_shapes(*build(name)), "seconds": 0.0}
    for part in parts or parts_of(pair[0]):
        row["parts"][part] = compare_part(part, name, case, pair, images, row["parts"])
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def other_shapes(reference: Any, candidate: Any) -> str:
    """Which arrays of a pair that is no pair have other shapes."""
    ours, theirs = (
        {name: array.shape for name, (_, array) in adapter_for(model).state(model).items()}
        for model in (candidate, reference)
    )
    wrong = [name for name, shape in ours.items() if theirs.get(name) != shape]
    first = wrong[0]
    return (
        f"{len(wrong)} of {len(ours)} arrays have other shapes, first {first}: Jittor {ours[first]}, "
        f"PyTorch {theirs.get(first)}"
    )


def parts_of(model: Any) -> tuple[str, ...]:
    """All three, but no step of models whose five copies of weights, gradients and momentum would fill the memory."""
    return PARTS if sum(weight.numel() for weight in model.parameters()) <= LARGE else PARTS[:2]


def compare_part(part: str, name: str, case: Case, pair: tuple[Any, Any], images: Any, done: Row) -> Row:
    def report(excused: dict[str, str]) -> Report:
        with TemporaryDirectory() as folder:
            if part == "step":
                return one_step(name, pair, images, excused)
            options: Any = {"isolated": False, "excused": excused, "strict": True, "title": name, "folder": folder}
            return align(*pair, images, train=part == "train", **options)

    found: Row = {}
    # In train mode every running variance differs; the step, which keeps the norms as they are, has that on record.
    if part != "train" or case.differences or case.adaptive or not has_norms(pair[0]):
        found["as it is"] = figures_of(report, case.places)
        if found["as it is"]["aligned"]:
            return {"verdict": CONFORMS, **found}
        if part == "step" and set(found["as it is"].get("kinds", [""])) <= STATISTICS:
            return {"verdict": done["train"]["verdict"], **found, "causes": [BATCH_NORM]}
    for corrections in corrections_of(case, pair[0]):
        with corrected(corrections):
            found["corrected"] = figures_of(report, {**case.places, **case.differences})
        if found["corrected"]["aligned"]:
            used = set(case.differences.values()) & set(found["corrected"]["excused"])
            return {"verdict": EXPLAINED, **found, "causes": [*corrections, *sorted(used)]}
    return {"verdict": DIFFERS, **found}


def corrections_of(case: Case, model: Any) -> list[tuple[str, ...]]:
    """What to try, least first."""
    first = (*((ADAPTIVE_POOL,) if case.adaptive else ()), *((BATCH_NORM,) if has_norms(model) else ()))
    return [*((first,) if first else ()), (*first, MEAN)]


def has_norms(model: Any) -> bool:
    return any("BatchNorm" in type(module).__name__ for module in model.modules())


def figures_of(make: Callable[[dict[str, str]], Report], excused: dict[str, str]) -> Row:
    """What a row says of one report; a candidate that raises is a finding."""
    try:
        report = make(excused)
    except Exception as error:  # of the candidate's own code
        return {"aligned": False, "raised": f"{type(error).__name__}: {error}"[:300], "rows": 0}
    for name, fact in report.checks.items():
        if name.startswith("run of the candidate"):
            return {"aligned": False, "raised": fact.removeprefix("FAIL: ")[:300], "rows": 0}
    compared = [row.accumulated for row in report.rows if row.accumulated is not None]
    relative = [c.max_abs_error / c.scale for c in compared if c.dtype == "float64" and c.scale and c.max_abs_error]
    ratios = [c.ratio for c in compared if c.dtype == "float32" and c.ratio is not None]
    failing = [row.name for row in report.failures]
    return {
        "aligned": report.aligned,
        "rows": len(report.rows),
        "failing": len(failing),
        "kinds": sorted({kind_of(row) for row in report.failures}),
        "first": report.problems[:2],
        "lacking": len(report.coverage.missing),
        "beyond": len(report.coverage.unexpected),
        "excused": sorted({*report.coverage.excused.values(), *excuses_of_rows(report, excused)}),
        "float64": max(relative, default=0.0),
        "float32": max(ratios, default=0.0),
    }


def excuses_of_rows(report: Report, excused: dict[str, str]) -> set[str]:
    """Those that a failing row needed; its reason begins with its excuse."""
    reasons = [row.reason for row in report.rows if row.verdict == "excused"]
    return {excuse for excuse in excused.values() if any(reason.startswith(excuse) for reason in reasons)}


def kind_of(row: ReportRow) -> str:
    """``buffer/running_var``, ``activation/BatchNorm2d``: what failing rows have in common."""
    return f"{row.phase}/{row.kind or row.name.rpartition('.')[2]}"


def one_step(name: str, pair: tuple[Any, Any], images: Any, excused: dict[str, str]) -> Report:
    """Loss, gradients, running buffers, momentum and weights of one step from the same state, in float64.

    In float32 one element of a ReLU's input on the other side of zero changes every gradient before it.
    """
    with ExitStack() as stack:

        def maker(model: Any) -> Make:
            def make(precision: str) -> Trainee:
                own = copied(model, name)
                return trainee_of(stack.enter_context(adapter_for(own).in_precision(own, precision)), precision)

            return make

        batch = Batch(images, np.arange(1, 1 + len(images)) * 7 % 1000)
        return align_training(
            maker(pair[0]),
            maker(pair[1]),
            [batch],
            precisions=("float64",),
            deep_steps=(),
            free_running=False,
            excused=excused,
            title=name,
        )


def copied(model: Any, name: str) -> Any:
    """The same model once more; Jittor's deepcopy loses which variables are frozen."""
    if adapter_for(model).name == "torch":
        return copy.deepcopy(model)
    return make_pair(name)[1]


def main() -> int:
    name, *rest = sys.argv[1:]
    row = run(name)
    text = json.dumps(row, indent=1)
    print(text) if not rest else Path(rest[0]).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
