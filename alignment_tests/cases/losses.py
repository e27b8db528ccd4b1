"""Inputs of losses and assigners: those of the recordings, and boxes at the edges of what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import torch_ref.losses
from fixtures.config import GoldYoloConfig, load_config
from fixtures.seeded import uniform

Array = npt.NDArray[Any]

CLASSES, BATCH, SIDE = 10, 4, 320
LEVELS = (40, 20, 10)
ANCHORS = sum(side * side for side in LEVELS)
KINDS = ("iou", "giou", "diou", "ciou", "siou")
ASSIGNED = ("labels", "boxes", "scores", "foreground")
TERMS = ("total", "iou", "dfl", "cls")


@dataclass(frozen=True)
class LossRun:
    """Everything that one evaluation of a loss gives, as numpy arrays.

    ``terms`` and ``gradients`` (by scores and distances), and the assignment's four arrays by name.
    """

    terms: dict[str, float]
    gradients: tuple[Array, Array]
    assignment: dict[str, Array]


def loss_config(iou: str, use_dfl: bool, classes: int = CLASSES) -> GoldYoloConfig:
    config = load_config("gold_yolo_s", classes, use_dfl=use_dfl)
    return replace(config, loss=replace(config.loss, iou=iou))


@lru_cache(maxsize=4)
def recorded_outputs(use_dfl: bool) -> tuple[Array, Array]:
    """Scores (4, 2100, 10) and distances of the recorded losses and assignments."""
    scores = 0.02 + 0.9 * uniform(101, BATCH * ANCHORS * CLASSES) ** 2
    sides = 4 * uniform(102, BATCH * ANCHORS * 68) - 2 if use_dfl else 0.3 + 3 * uniform(103, BATCH * ANCHORS * 4)
    shape = (BATCH, ANCHORS, -1)
    return scores.astype(np.float32).reshape(shape), sides.astype(np.float32).reshape(shape)


def run_torch(config: GoldYoloConfig, outputs: Sequence[Array], targets: Any, assigner: str, dtype: str) -> LossRun:
    """The reference's loss on these scores and distances."""
    scores, distances = (torch.from_numpy(a.astype(dtype)).requires_grad_() for a in outputs)
    features = [torch.zeros(1, 1, side, side) for side in LEVELS]
    loss, whole = torch_ref.losses.build_loss(config, SIDE), (features, scores, distances)
    losses = loss(whole, targets, assigner)
    found = torch.autograd.grad(losses.total, [scores, distances], allow_unused=True)
    by = [torch.zeros_like(of) if grad is None else grad for of, grad in zip((scores, distances), found, strict=True)]
    made = loss.assign(whole, targets, assigner)
    return LossRun(
        {name: getattr(losses, name).item() for name in TERMS},
        (by[0].numpy(), by[1].numpy()),
        {name: getattr(made, name).numpy() for name in ASSIGNED},
    )


def run_jittor(config: GoldYoloConfig, outputs: Sequence[Array], targets: Any, assigner: str, dtype: str) -> LossRun:
    """The candidate's."""
    import jt_impl.losses
    from jt_impl.runtime import jittor as jt

    make = jt.array64 if dtype == "float64" else jt.array
    scores, distances = (make(a.astype(dtype)).start_grad() for a in outputs)
    features = [jt.zeros((1, 1, side, side)) for side in LEVELS]
    loss, whole = jt_impl.losses.build_loss(config, SIDE), (features, scores, distances)
    losses = loss(whole, targets, assigner)
    by = [gradient.numpy() for gradient in jt.grad(losses.total, [scores, distances])]
    made = loss.assign(whole, targets, assigner)
    return LossRun(
        {name: float(getattr(losses, name).numpy().reshape(-1)[0]) for name in TERMS},
        (by[0], by[1]),
        {name: getattr(made, name).numpy() for name in ASSIGNED},
    )


def rows(*boxes: tuple[float, ...]) -> Array:
    """Targets (M, 6) from (image, class, cx, cy, w, h) in pixels of the 320x320 image."""
    array = np.array(boxes, np.float64).reshape(-1, 6)
    array[:, 2:] /= SIDE
    return array


# What a data set can hold and a careless assigner trips over.
EDGE_CASES: dict[str, Array] = {
    "no box at all": rows(),
    "one box, three images empty": rows((2, 3, 160, 160, 90, 60)),
    "smaller than a stride": rows((0, 1, 100.5, 90.25, 3, 2), (1, 2, 12, 12, 1, 1), (1, 2, 8, 8, 0.5, 0.5)),
    "leaves the image": rows((0, 4, 0, 0, 120, 80), (1, 5, 320, 160, 200, 64), (3, 9, 310, 315, 60, 60)),
    "beyond the image": rows((0, 4, -100, 160, 50, 50), (2, 6, 160, 400, 90, 70)),
    "the same box twice": rows((0, 1, 100, 100, 64, 64), (0, 1, 100, 100, 64, 64), (0, 7, 100, 100, 64, 64)),
    "one inside another": rows((1, 0, 160, 160, 300, 300), (1, 8, 160, 160, 40, 40), (1, 8, 170, 150, 80, 80)),
    "no area": rows((0, 1, 100, 100, 0, 40), (1, 2, 50, 60, 30, 0), (2, 3, 200, 200, 50, 50)),
    "edges on anchor points": rows((0, 1, 24, 24, 40, 40), (3, 2, 160, 160, 8, 8), (3, 2, 164, 164, 16, 16)),
    "the whole image": rows((0, 2, 160, 160, 320, 320), (1, 2, 160, 160, 320, 320)),
    "forty boxes in one image": rows(*[(1, i % 10, 20 + 7 * i, 300 - 6 * i, 30 + i, 44 - i) for i in range(40)]),
}
