"""Accuracy of two tests on the same images: recomputed from the detections, with intervals for the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_tests.comparison.pairs import Pair
from alignment_tests.comparison.records import JITTOR, METRICS, TORCH, Test
from fixtures.evaluation.coco_json import read_annotations, read_detections
from fixtures.evaluation.coco_metrics import BootstrapInterval, CocoMetrics, bootstrap_intervals, evaluate

SAMPLES, SEED = 1000, 0  # of the bootstrap


@dataclass(frozen=True)
class Tested:
    """A pair of tests, evaluated anew.

    Attributes:
        lacking: what was not found, so that nothing was evaluated: (what, where); else None.
        annotations: content of the COCO JSON.
        detections: COCO records of each side.
        metrics: of each side.
        intervals: of Jittor minus PyTorch, for "ap" and "ap50".
    """

    pair: Pair[Test]
    lacking: tuple[str, str] | None
    annotations_path: Path | None = None
    annotations: dict[str, Any] | None = None
    detections: dict[str, Sequence[Any]] | None = None
    metrics: dict[str, CocoMetrics] | None = None
    intervals: dict[str, BootstrapInterval] | None = None


def evaluated(pair: Pair[Test], annotations: Path | None) -> Tested:
    """Evaluate a pair on the annotations that the PyTorch test names, or on those given.

    Raises:
        ValueError: a file is there but is damaged, or does not belong to the other.
    """
    for test in pair.sides.values():
        if test.detections is None or not test.detections.is_file():
            return Tested(pair, ("no_detections", str(test.folder)))
    path = annotations or next(
        (test.annotations for test in (pair.torch, pair.jittor) if test.annotations and test.annotations.is_file()),
        None,
    )
    if path is None:
        return Tested(pair, ("no_annotations", str(pair.torch.folder)))
    truth = dict(read_annotations(path))
    found = {name: read_detections(test.detections or "", truth) for name, test in pair.sides.items()}
    metrics = {name: evaluate(truth, records) for name, records in found.items()}
    intervals = bootstrap_intervals(metrics[JITTOR], metrics[TORCH], samples=SAMPLES, seed=SEED)
    return Tested(pair, None, path, truth, found, metrics, intervals)


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds of one side."""

    runs: int
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


def spreads(tests: Sequence[Test]) -> dict[str, Spread]:
    """Of each metric that all tests of a side hold; empty for fewer than two tests."""
    found = {}
    for metric in METRICS:
        values = [value for test in tests if (value := test.accuracy.get(metric)) is not None]
        if len(values) == len(tests) > 1:
            found[metric] = Spread(len(values), min(values), max(values))
    return found
