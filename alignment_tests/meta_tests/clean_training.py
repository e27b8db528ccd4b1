"""Whole training steps without any fault, of the full-size N and S among others: none may be alarmed about.

Each run has weights, images, boxes, size and number of threads of its own: drawn scenes with one to thirty boxes an
image, and photographs. The first step is compared in depth; every third run also lets the candidate train on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.cases.batches import PHOTOGRAPHS, Photographs
from alignment_tests.cases.trainees import Batch, Run
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.judge.budget import HALF_BUDGET
from alignment_tests.harness.judge.report import Report
from alignment_tests.meta_tests.clean import THREADS, threads
from alignment_tests.meta_tests.experiments.forward import Size, narrow_config
from fixtures.config import GoldYoloConfig, load_config
from fixtures.images import drawn_boxes, drawn_images
from fixtures.seeded import uniform
from fixtures.training.schedule import Schedule

MODELS = ("n", "s", "n", "narrow", "n")
KINDS = ("task-aligned", "ATSS", "anchor-aided", "task-aligned", "teacher", "AdamW", "half precision")
SIZES: tuple[Size, ...] = ((128, 128), (160, 160), (96, 160), (160, 128), (192, 192), (160, 96))
# In smaller maps batch norms have so few values that half precision decides everything.
SIZES_IN_HALF: tuple[Size, ...] = ((192, 192), (224, 192), (192, 256))
BOXES = (1, 2, 5, 9, 13, 20, 30)  # in each image of a drawn scene
FIRST_STEPS = (0, 650, 1201)  # of 1200 steps of warm-up
CHANGING = {"teacher": {"head": "distill_ns"}, "anchor-aided": {"head": "fuse_ab"}}
HALF = "half precision"


@dataclass(frozen=True)
class TrainingRun:
    """One comparison of a few steps; ``boxes`` is None for photographs, which have as many as they have."""

    seed: int
    model: str
    kind: str
    size: Size
    batch: int
    steps: int
    first_step: int
    threads: int
    boxes: int | None
    photographs: Path | None

    @property
    def free_running(self) -> bool:
        return self.seed % 3 == 0 and self.kind != HALF

    def run(self) -> Report:
        with threads(self.threads):
            return align_training(*self.made().makers(), self.batches(), title=str(self), **self.settings())

    def made(self) -> Run:
        config = self.config(**CHANGING.get(self.kind, {}))
        if self.kind == "AdamW":
            config = replace(config, solver=replace(config.solver, optimizer="adamw", lr0=1e-3))
        run = Run(config, self.size, self.batch, Schedule(config.solver, 16, 400, 300), self.first_step, seed=self.seed)
        if self.kind == "teacher":
            return replace(run, teacher=self.config(head="fuse_ab"))
        if self.kind == HALF:
            return replace(run, amp=True, fresh=True, loss_scale=10)
        return replace(run, assigner="atss" if self.kind == "ATSS" else "tal")

    def config(self, **options: Any) -> GoldYoloConfig:
        if self.model == "narrow":
            return narrow_config(**options)
        return load_config(f"gold_yolo_{self.model}", use_dfl=bool(options), **options)

    def settings(self) -> Mapping[str, Any]:
        common = {"free_running": self.free_running, "taught_updates": self.kind == "AdamW"}
        if self.kind != HALF:
            return common
        excused = {"assignment/*": "decided on half-precision scores: the reference differs from the oracle too"}
        return common | {
            "precisions": ("float32",),
            "fused_rounding": True,
            "budget": HALF_BUDGET,
            "excused": excused,
        }

    def batches(self) -> list[Batch]:
        if self.photographs is not None:
            first = self.seed * self.batch
            return Photographs(self.photographs).batches(self.steps, self.batch, self.size, first)
        assert self.boxes is not None
        return [scene(self.batch, self.size, 100 * self.seed + step, self.boxes) for step in range(self.steps)]


def boxes_of(batches: Iterable[Batch]) -> tuple[int, int]:
    """Fewest and most boxes of an image."""
    counts = [int((batch.targets[:, 0] == image).sum()) for batch in batches for image in range(len(batch.images))]
    return min(counts), max(counts)


def scene(batch: int, size: Size, seed: int, boxes: int) -> Batch:
    """Drawn images with so many boxes each: those of the shapes, then others anywhere, which overlap them."""
    drawn = drawn_boxes(batch, seed)
    numbers = uniform(7919 + seed, batch * boxes * 5).reshape(batch, boxes, 5)
    rows = []
    for image, more in enumerate(numbers):
        half = 0.02 + 0.2 * more[:, 3:] * (1 + more[:, :1]) / 2
        centre = half + (1 - 2 * half) * more[:, 1:3]
        others = np.column_stack([np.full(boxes, image), np.floor(3 * more[:, 0]), centre, 2 * half])
        rows.append(np.concatenate([drawn[drawn[:, 0] == image], others])[:boxes])
    return Batch(drawn_images(batch, size, seed), np.concatenate(rows))


def training_runs(count: int, photographs: Path = PHOTOGRAPHS) -> Iterator[TrainingRun]:
    """The first ``count`` of an endless list; the lengths of the lists share few factors, so that all are mixed.

    The first one has twenty steps.
    """
    if count:
        yield TrainingRun(0, "s", "task-aligned", (128, 128), 2, 20, FIRST_STEPS[-1], 2, None, photographs)
    for seed in range(1, count):
        kind = KINDS[seed % len(KINDS)]
        sizes = SIZES_IN_HALF if kind == HALF else SIZES
        yield TrainingRun(
            seed=seed,
            model=MODELS[seed % len(MODELS)] if kind != HALF else "n",
            kind=kind,
            size=sizes[seed % len(sizes)],
            batch=2 + seed % 3,
            steps=1 if kind == HALF else 2 + seed % 2,
            first_step=FIRST_STEPS[(seed // 2) % len(FIRST_STEPS)],
            threads=THREADS[seed % len(THREADS)],
            boxes=BOXES[(seed // 2) % len(BOXES)] if seed % 2 else None,
            photographs=None if seed % 2 else photographs,
        )
