"""The comparison as one JSON object, from which the plots and the page are made too."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.comparison import boxes, curves, description
from alignment_tests.comparison.accuracy import SAMPLES, SEED, Spread, Tested, spreads
from alignment_tests.comparison.alignment_reports import Proof
from alignment_tests.comparison.evidence import Evidence
from alignment_tests.comparison.findings import THRESHOLDS, Finding
from alignment_tests.comparison.judge import Judgement
from alignment_tests.comparison.records import LOSSES, METRICS, Side, Test, Training
from alignment_tests.comparison.results import FACTS, JUDGED, allowed_distances, beside_zero, margin

FORMAT = 1
TIMED = ("latency_ms", "latency_ms_quartiles", "throughput_fps", "rounds", "warmup", "synchronized", "kernels_compiled")
HELD = ("peak_bytes", "allocator_bytes", "fits")
STEP_POINTS = 4000  # of a curve by step; of longer runs the largest value of each stretch is kept


def report_of(evidence: Evidence, judgement: Judgement, texts: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """All numbers of a comparison.

    Args:
        texts: strings of one language, for the findings in words.
        folder: where the report will lie; links start from there.
    """
    return {
        "format": FORMAT,
        "kind": "comparison",
        "verdict": judgement.verdict,
        "reasons": [_finding(one, texts) for one in judgement.reasons],
        "findings": [_finding(one, texts) for one in judgement.findings],
        "thresholds": [
            {"name": name, "value": value, "reason": texts[f"why_{name}"].format(value=f"{value:g}")}
            for name, value in THRESHOLDS.items()
        ],
        "subject": description.subject_of(evidence),
        "runs": [description.run_of(side, run) for side in evidence.sides.values() for run in side.runs],
        "environment": description.environment_of(evidence),
        "settings": description.settings_of(evidence),
        "model": description.model_of(evidence),
        "training": _training(evidence),
        "accuracy": _accuracy(evidence),
        "speed": {
            "stated": judgement.speed_stated,
            "findings": [_finding(one, texts) for one in judgement.speed],
            "rows": _speed(evidence, judgement.speed_stated),
        },
        "memory": _memory(evidence),
        "boxes": _boxes(evidence),
        "layers": _proof(evidence.layers, folder),
        "steps": _proof(evidence.steps, folder),
    }


def text_of(finding: Finding, texts: Mapping[str, str]) -> str:
    """A finding as a sentence."""
    key = "open" if finding.fact == "open" else f"{finding.check}_{finding.fact}"
    return texts[key].format(**finding.values)


def _finding(finding: Finding, texts: Mapping[str, str]) -> dict[str, Any]:
    values = {key: str(value) if isinstance(value, Path) else value for key, value in finding.values.items()}
    return {**finding._asdict(), "text": text_of(finding, texts), "values": values}


# ---- training ----------------------------------------------------------------------------------------------------


def _training(evidence: Evidence) -> dict[str, Any]:
    runs = [_curves(side, training) for side in evidence.sides.values() for training in side.trainings]
    pairs = []
    for pair in evidence.trainings:
        apart = curves.step_differences(pair)
        pairs.append({"seed": pair.seed, "steps": int(apart.size), "parted_at": curves.parted_at(apart),
                      "first_difference": _finite(apart[0]) if apart.size else None, **_thinned(apart)})  # fmt: skip
    distances = [
        {**asdict(one), "nearest": _finite(one.nearest), "partner": _finite(one.partner), "allowed": limit.limit,
         "bound": limit.bound, "status": FACTS[limit.outcome(one.nearest)] if np.isfinite(one.nearest) else "open"}
        for one, limit in zip(evidence.distances, allowed_distances(evidence), strict=True)
    ]  # fmt: skip
    return {"runs": runs, "pairs": pairs, "distances": distances, "parted": curves.PARTED, "windows": curves.WINDOWS}


def _curves(side: Side, training: Training) -> dict[str, Any]:
    epochs = training.epochs
    columns: dict[str, list[Any]] = {"epoch": [epoch["epoch"] for epoch in epochs]}
    columns |= {loss: [epoch["losses"].get(loss) for epoch in epochs] for loss in LOSSES}
    others = (*METRICS, "f1", "lr", "seconds", "images_per_second", "memory_bytes")
    columns |= {key: [epoch.get(key) for epoch in epochs] for key in others}
    later = epochs[1:] or epochs  # the first epoch has warm-up of allocators and compilation
    summary = {key: _median([epoch.get(key) for epoch in later]) for key in ("seconds", "images_per_second")}
    peaks = [peak for epoch in epochs if (peak := epoch.get("memory_bytes")) is not None]
    summary["memory_bytes"] = max(peaks, default=None)
    return {"side": side.name, "seed": training.seed, "folder": str(training.folder), "summary": summary, **columns}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _thinned(values: curves.Floats) -> dict[str, list[Any]]:
    """At most STEP_POINTS of a curve, the largest of each stretch, with the steps at which they stand."""
    stretch = max(1, -(-values.size // STEP_POINTS))
    ranked = np.where(np.isfinite(values), values, -1.0)
    at = [start + int(ranked[start : start + stretch].argmax()) for start in range(0, values.size, stretch)]
    return {"at": at, "difference": [_finite(values[place]) for place in at]}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---- accuracy ----------------------------------------------------------------------------------------------------


def _accuracy(evidence: Evidence) -> dict[str, Any]:
    """Rows of every pair; classes of the first one; the spread over seeds of each side."""
    found = {name: spreads(side.tests) for name, side in evidence.sides.items()}
    table = [
        {"metric": metric, **{name: _spread(spread.get(metric)) for name, spread in found.items()}}
        for metric in METRICS
    ]
    return {
        "pairs": [_tested(tested, evidence) for tested in evidence.tests],
        "spreads": table if any(found.values()) else [],
        "per_class": _per_class(evidence.tests[0].pair.sides) if evidence.tests else [],
        "bootstrap": {"samples": SAMPLES, "seed": SEED},
    }


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else {**asdict(spread), "width": spread.width}


def _tested(tested: Tested, evidence: Evidence) -> dict[str, Any]:
    rows = [_metric(tested, metric, evidence) for metric in METRICS]
    images = len(tested.annotations["images"]) if tested.annotations else None
    weights = {name: test.weights for name, test in tested.pair.sides.items()}
    return {"seed": tested.pair.seed, "images": images, "weights": weights, "rows": rows}


def _metric(tested: Tested, metric: str, evidence: Evidence) -> dict[str, Any]:
    """Both values and their difference; for a metric that is judged also interval, margin and status."""
    values = {name: test.accuracy.get(metric) for name, test in tested.pair.sides.items()}
    row = {"metric": metric, **values, "difference": _difference(values)}
    if metric not in JUDGED:
        return {**row, "low": None, "high": None, "margin": None, "bound": None, "status": "informs"}
    limit, one = margin(evidence, metric), (tested.intervals or {}).get(metric)
    status, low, high = "open", None, None
    if one is not None and math.isfinite(one.high - one.low):
        status = FACTS[limit.outcome(beside_zero(one.low, one.high))]
        low, high = one.low, one.high
    return {**row, "low": low, "high": high, "margin": limit.limit, "bound": limit.bound, "status": status}


def _difference(values: Mapping[str, float | None]) -> float | None:
    mine, other = values.values()
    return None if mine is None or other is None else mine - other


def _per_class(tests: Mapping[str, Test]) -> list[dict[str, Any]]:
    tables = {name: test.accuracy.get("per_class") or {} for name, test in tests.items()}
    rows = []
    for cls in dict.fromkeys(cls for table in tables.values() for cls in table):
        entries = {name: table.get(cls) or {} for name, table in tables.items()}
        row: dict[str, Any] = {"name": cls}
        for metric in ("ap50", "ap"):
            values = {name: _defined(entry.get(metric)) for name, entry in entries.items()}
            row[metric] = {**values, "difference": _difference(values)}
        for key in ("images", "boxes"):
            row[key] = next((entry[key] for entry in entries.values() if key in entry), None)
        rows.append(row)
    return rows


def _defined(value: float | None) -> float | None:
    """COCO's -1 stands for a class without a box."""
    return None if value is None or value < 0 else value


# ---- speed, memory, boxes, reports -------------------------------------------------------------------------------


def _speed(evidence: Evidence, stated: bool) -> list[dict[str, Any]]:
    """Rows by batch size; a ratio only where it means something."""
    rows = []
    for size, entries in _by_batch_size(evidence, "speed", TIMED).items():
        mine, other = (entry["latency_ms"] for entry in entries.values())
        rows.append({"batch_size": size, **entries, "ratio": mine / other if stated and mine and other else None})
    return rows


def _memory(evidence: Evidence) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for size, entries in _by_batch_size(evidence, "memory", HELD).items():
        peaks = {name: entry["peak_bytes"] for name, entry in entries.items()}
        rows.append({"batch_size": size, **entries, "difference": _difference(peaks)})
    largest = {
        name: max((row["batch_size"] for row in rows if row[name]["fits"]), default=None) for name in evidence.sides
    }
    return {"rows": rows, "largest": largest}


def _by_batch_size(evidence: Evidence, part: str, keys: Sequence[str]) -> dict[int, dict[str, dict[str, Any]]]:
    """Batch size -> side -> the entry's values, None for those that it lacks."""
    if not evidence.tests:
        return {}
    tables = {name: test.by_batch_size(part) for name, test in evidence.tests[0].pair.sides.items()}
    sizes = sorted({size for table in tables.values() for size in table})
    return {
        size: {name: {key: table.get(size, {}).get(key) for key in keys} for name, table in tables.items()}
        for size in sizes
    }


def _boxes(evidence: Evidence) -> dict[str, Any]:
    images = evidence.images
    both = sum(image.both for image in images)
    apart = sum((image.score_difference or 0.0) * image.both for image in images)
    return {
        "iou": boxes.MATCH_IOU,
        "score": boxes.SHOWN_SCORE,
        "both": both,
        "only_jittor": sum(image.only_jittor for image in images),
        "only_torch": sum(image.only_torch for image in images),
        "score_difference": apart / both if both else None,
        "images": [image.to_json() for image in images],
    }


def _proof(proof: Proof | None, folder: Path) -> dict[str, Any] | None:
    if proof is None:
        return None
    names = ("title", "config", "aligned", "passed", "failed", "excused", "float64", "ratio", "isolated_ratio", "steps")
    link = Path(os.path.relpath(proof.page.resolve(), folder.resolve())).as_posix()
    figures = {name: getattr(proof, name) for name in names}
    return {
        **figures,
        "problems": list(proof.problems[:10]),
        "checks": proof.checks,
        "path": str(proof.path),
        "link": link,
    }
