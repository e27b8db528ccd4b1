"""The detection loss of Gold-YOLO: varifocal class loss, IoU loss, distribution focal loss (DFL).

Every term is computed for all anchors and weighted by the assignment, so shapes do not depend on how many anchors are
positive and nothing waits for the device to count them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fixtures.anchors import CELL_SIZE, anchor_points, repeated_points
from fixtures.config import GoldYoloConfig
from fixtures.targets import pad_targets
from jt_impl.assigners import (
    TAL_TOPK,
    Assignment,
    GroundTruth,
    assign_atss,
    assign_task_aligned,
)
from jt_impl.boxes import cxcywh_to_xyxy, iou_loss, ltrb_to_xyxy, xyxy_to_ltrb
from jt_impl.kernels.functional import (
    absolute,
    as_float,
    binary_cross_entropy,
    clamp_min,
    log_softmax,
    one_hot,
    select,
    with_one_consumer,
)
from jt_impl.kernels.statistics import total
from jt_impl.layers import Var, softmax, spatial_size, to_var
from jt_impl.runtime import jittor as jt

ASSIGNERS = ("tal", "atss")
ALPHA = 0.75  # of the varifocal loss: weight of negatives
SAFE_BOXES = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 2.0, 2.0)  # stand in for background, so that no gradient is NaN
ANCHORS_PER_CELL, ANCHORED_TOPK = 3, 26


@dataclass(frozen=True)
class Losses:
    """Weighted loss terms; ``total`` is their sum."""

    total: Var
    iou: Var
    dfl: Var
    cls: Var

    def __add__(self, other: Losses) -> Losses:
        made = (getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        return Losses(with_one_consumer(next(made)), *made)


@dataclass(frozen=True)
class Grid:
    """Anchors of one image size: points (A, 2) in stride units, strides (A, 1)."""

    points: Var
    strides: Var
    level_sizes: tuple[int, ...]

    @property
    def pixel_points(self) -> Var:
        return self.points * self.strides

    @property
    def anchors(self) -> Var:
        """Squares of five strides around the points: (A, 4), xyxy in pixels."""
        half = 0.5 * CELL_SIZE * self.strides
        return jt.concat([self.pixel_points - half, self.pixel_points + half], dim=1)


def varifocal_loss(scores: Var, targets: Var, foreground: Var) -> Var:
    """Sum over all anchors and classes (arXiv 2008.13367).

    Args:
        scores: (N, A, classes) predicted, after sigmoid; the weight of negatives is not detached from them.
        targets: (N, A, classes) target scores.
        foreground: (N, A, classes), 1 at the assigned class.
    """
    weight = ALPHA * scores * scores * (1 - foreground) + targets * foreground
    return total(weight * binary_cross_entropy(scores, targets))


def distribution_focal_loss(logits: Var, distances: Var) -> Var:
    """Cross-entropy to the bins left and right of each target distance, mean over the sides (arXiv 2006.04388).

    Args:
        logits: (N, A, 4, bins).
        distances: (N, A, 4) in 0..bins - 1, exclusive.

    Returns:
        (N, A).
    """
    bins = to_var(np.arange(logits.shape[-1]), logits)
    share = clamp_min(1 - absolute(distances.unsqueeze(-1) - bins), 0.0)  # of the two bins nearest to the distance
    return -(log_softmax(logits, dim=-1) * share).sum(-1).mean(-1)


class DetectionLoss:
    """Loss of an anchor-free head; see ``build_loss``."""

    def __init__(self, config: GoldYoloConfig, image_size: tuple[int, int]) -> None:
        self.image_size, self.classes = image_size, config.num_classes
        self.strides, self.settings = config.head.strides, config.loss
        self.use_dfl, self.reg_max = config.head.use_dfl, config.head.reg_max

    def __call__(
        self, outputs: Any, targets: Any, assigner: str = "tal", assignment: Assignment | None = None
    ) -> Losses:
        """The loss of one batch.

        Args:
            outputs: of the model in train mode.
            targets: (M, 6) rows: image, class, cx, cy, w, h in 0..1.
            assigner: "tal" or "atss".
            assignment: use this one in place of computing it.

        Raises:
            ValueError: the assigner is unknown, or ``targets`` is malformed.
        """
        _, scores, distances = outputs
        if assignment is None:
            assignment = self.assign(outputs, targets, assigner)
        return self.weigh(*self.terms(scores, self.predicted_boxes(outputs), distances, self.grid(outputs), assignment))

    def assign(self, outputs: Any, targets: Any, assigner: str = "tal") -> Assignment:
        """Which anchor learns which box; arguments as for the loss."""
        grid, scores = self.grid(outputs), outputs[1].detach()
        boxes = self.predicted_boxes(outputs).detach() * grid.strides
        truth = self.ground_truth(targets, scores)
        return self.choose(scores, boxes, grid, truth, assigner)

    def choose(self, scores: Var, boxes: Var, grid: Grid, truth: GroundTruth, assigner: str) -> Assignment:
        if assigner not in ASSIGNERS:
            raise ValueError(f"`assigner` must be one of {ASSIGNERS}. Received: {assigner!r}")
        if assigner == "tal":
            return assign_task_aligned(scores, boxes, grid.pixel_points, truth, TAL_TOPK)
        return assign_atss(boxes, grid.pixel_points, grid.anchors, grid.level_sizes, truth, self.classes)

    def predicted_boxes(self, outputs: Any) -> Var:
        """(N, A, 4) xyxy in stride units, from raw distances or distributions."""
        distances = outputs[2]
        if self.use_dfl:
            bins = distances.reshape(*distances.shape[:2], 4, self.reg_max + 1)
            numbers = to_var(np.arange(self.reg_max + 1), distances)
            distances = (softmax(bins, dim=-1) * numbers).sum(-1)
        return ltrb_to_xyxy(distances, self.grid(outputs).points)

    def grid(self, outputs: Any) -> Grid:
        """Anchors for the sizes of the feature maps."""
        features, like = outputs[0], outputs[1]
        sizes = tuple(spatial_size(x) for x in features)
        points, strides = (to_var(a, like) for a in anchor_points(sizes, self.strides))
        return Grid(points, strides, tuple(rows * columns for rows, columns in sizes))

    def ground_truth(self, targets: Any, like: Var) -> GroundTruth:
        """Padded boxes in the precision and on the device of ``like``."""
        padded = pad_targets(targets, like.shape[0], self.image_size, self.classes)
        labels, valid = jt.array(padded.labels.astype(np.int32)), jt.array(padded.valid)
        return GroundTruth(labels, to_var(padded.boxes, like), valid)

    def terms(
        self, scores: Var, boxes: Var, distances: Var, grid: Grid, assignment: Assignment
    ) -> tuple[Var, Var, Var]:
        """Class, IoU and DFL loss, each over the sum of target scores, unweighted."""
        foreground, weight = assignment.foreground, assignment.scores.sum(-1)
        positive = as_float(foreground, scores)
        hot = one_hot(assignment.labels, self.classes, scores) * positive.unsqueeze(-1)
        norm = total(assignment.scores)
        norm = jt.ternary(norm > 0.0, norm, jt.ones_like(norm))  # a batch without boxes is not normalised
        target = assignment.boxes / grid.strides
        return (
            varifocal_loss(scores, assignment.scores, hot) / norm,
            total(self.box_loss(boxes, target, foreground) * weight) / norm,
            total(self.dfl_loss(distances, target, grid, foreground) * weight) / norm,
        )

    def box_loss(self, boxes: Var, target: Var, foreground: Var) -> Var:
        """(N, A), of stand-ins where an anchor is background."""
        mask = foreground.unsqueeze(-1)
        predicted_stand_in, target_stand_in = (to_var(np.array(box).reshape(1, 1, 4), boxes) for box in SAFE_BOXES)
        predicted = select(mask, boxes, predicted_stand_in)
        return iou_loss(predicted, select(mask, target, target_stand_in), self.settings.iou)

    def dfl_loss(self, distances: Var, target: Var, grid: Grid, foreground: Var) -> Var:
        """(N, A); zero without DFL."""
        if not self.use_dfl:
            return jt.zeros_like(target[..., 0])
        bins = distances.reshape(*distances.shape[:2], 4, self.reg_max + 1)
        return distribution_focal_loss(bins, xyxy_to_ltrb(target, grid.points, self.reg_max))

    def weigh(self, cls: Var, iou: Var, dfl: Var) -> Losses:
        settings = self.settings
        cls, iou, dfl = cls * settings.class_weight, iou * settings.iou_weight, dfl * settings.dfl_weight
        return Losses(with_one_consumer(cls + iou + dfl), iou, dfl, cls)


class AnchoredLoss(DetectionLoss):
    """Loss of the anchor-aided branch: three anchors per cell, boxes as offset and size, no DFL.

    Outputs: (features, scores (N, 3A, classes), boxes (N, 3A, 4): x, y from the cell's centre, w, h; stride units).
    """

    def __init__(self, config: GoldYoloConfig, image_size: tuple[int, int]) -> None:
        super().__init__(config, image_size)
        self.use_dfl = False

    def predicted_boxes(self, outputs: Any) -> Var:
        offsets = outputs[2]
        centres = offsets[..., :2] + self.grid(outputs).points
        return cxcywh_to_xyxy(jt.concat([centres, offsets[..., 2:]], dim=-1))

    def grid(self, outputs: Any) -> Grid:
        features, like = outputs[0], outputs[1]
        sizes = tuple(spatial_size(x) for x in features)
        repeated = repeated_points(sizes, self.strides, ANCHORS_PER_CELL)
        points, strides = (to_var(a, like) for a in repeated)
        return Grid(points, strides, ())

    def choose(self, scores: Var, boxes: Var, grid: Grid, truth: GroundTruth, assigner: str) -> Assignment:
        """Task-aligned whatever the assigner: the three anchors of a cell are one to ATSS."""
        return assign_task_aligned(scores, boxes, grid.pixel_points, truth, ANCHORED_TOPK)


class AnchorAidedLoss:
    """Sum of the losses of both branches of the anchor-aided head; called like ``DetectionLoss``.

    Outputs: (features, anchored scores, anchored boxes, scores, distances). An assignment is the pair of both.
    """

    def __init__(self, config: GoldYoloConfig, image_size: tuple[int, int]) -> None:
        self.free, self.anchored = DetectionLoss(config, image_size), AnchoredLoss(config, image_size)

    def __call__(
        self,
        outputs: Any,
        targets: Any,
        assigner: str = "tal",
        assignment: tuple[Assignment, Assignment] | None = None,
    ) -> Losses:
        free, anchored = self.branches(outputs)
        given = assignment or (None, None)
        return self.free(free, targets, assigner, given[0]) + self.anchored(anchored, targets, assigner, given[1])

    def assign(self, outputs: Any, targets: Any, assigner: str = "tal") -> tuple[Assignment, Assignment]:
        free, anchored = self.branches(outputs)
        return self.free.assign(free, targets, assigner), self.anchored.assign(anchored, targets, assigner)

    @staticmethod
    def branches(outputs: Any) -> tuple[Any, Any]:
        features, anchored_scores, anchored_boxes, scores, distances = outputs
        return (features, scores, distances), (features, anchored_scores, anchored_boxes)


def as_image_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(rows, columns).

    Raises:
        ValueError: it is no size, or a side is not a multiple of 32.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or any(side < 32 or side % 32 for side in size):
        raise ValueError(f"`image_size` must be a multiple of 32, or (rows, columns) of such. Received: {image_size}")
    return size[0], size[1]


def build_loss(config: GoldYoloConfig, image_size: int | tuple[int, int]) -> DetectionLoss | AnchorAidedLoss:
    """The loss that goes with the head of ``config``; call it with (outputs, targets, assigner="tal").

    Args:
        config: from ``fixtures.config.load_config``.
        image_size: of the network's input, pixels: a side, or (rows, columns).

    Raises:
        ValueError: ``image_size`` is none.
    """
    size = as_image_size(image_size)
    return AnchorAidedLoss(config, size) if config.head.kind == "fuse_ab" else DetectionLoss(config, size)
