"""Which anchor learns which box: the task-aligned assigner and ATSS.

Both are vectorised over images and boxes; padded slots take part and never win. No gradient passes through them.

Ties are broken by position everywhere, so that two frameworks decide alike: among equal metrics the anchor with the
lower index is taken, among equal overlaps the box with the lower index. (The public code leaves ties to ``topk``.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from jt_impl.boxes import pairwise_iou
from jt_impl.kernels.functional import as_float, one_hot, take, top_k
from jt_impl.layers import Var, constant
from jt_impl.runtime import jittor as jt

TAL_TOPK, ATSS_TOPK = 13, 9
INSIDE_EPS = 1e-9  # an anchor point on a box's edge is outside
METRIC_EPS = 1e-9


@dataclass(frozen=True)
class Assignment:
    """What each anchor has to learn. ``scores`` aside, it means something only where
    ``foreground`` is set.

    Attributes:
        labels: (N, A) int32 classes.
        boxes: (N, A, 4) xyxy, pixels.
        scores: (N, A, classes) target scores, zero for background.
        foreground: (N, A) bool.
        matched: (N, A) int32, slot of the box in ``GroundTruth``.
    """

    labels: Var
    boxes: Var
    scores: Var
    foreground: Var
    matched: Var


@dataclass(frozen=True)
class GroundTruth:
    """Padded boxes of a batch in the model's precision.

    ``labels`` (N, M) int32, ``boxes`` (N, M, 4) xyxy in pixels, ``valid`` (N, M) bool.
    """

    labels: Var
    boxes: Var
    valid: Var


def without_gradient(function: Callable[..., Assignment]) -> Callable[..., Assignment]:
    """Nothing inside is recorded for gradients."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Assignment:
        with jt.no_grad():
            return function(*args, **kwargs)

    return wrapped


def points_inside(points: Var, boxes: Var) -> Var:
    """Whether each point (A, 2) lies within each box (N, M, 4): (N, M, A)."""
    boxes = boxes.unsqueeze(2)
    margins = jt.concat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
    return margins.min(-1) > constant(INSIDE_EPS, margins)


def resolve_conflicts(claims: Var, overlaps: Var) -> Var:
    """An anchor that several boxes claim goes to the box of the image that overlaps it most, claimed or not.

    ``claims`` (N, M, A) bool, ``overlaps`` (N, M, A); returns (N, M, A) bool with at most one box per anchor.
    """
    contested = claims.int32().sum(1, keepdims=True) > 1
    winner = jt.argmax(overlaps, 1)[0].unsqueeze(1)  # (N, 1, A)
    best = winner == jt.arange(claims.shape[1]).reshape(1, -1, 1)
    return (contested & best) | (jt.logical_not(contested) & claims)


def assignment_of(owned: Var, values: Var, truth: GroundTruth, classes: int) -> Assignment:
    """What follows from the one box that owns each anchor: ``owned`` (N, M, A) bool; slot 0 where none does.

    ``values`` (N, A) are the target scores, of the box's class.
    """
    matched = jt.argmax(owned.int32(), 1)[0]  # (N, A)
    boxes = take(truth.boxes, 1, matched.unsqueeze(-1))
    labels = jt.gather(truth.labels, 1, matched)
    return Assignment(labels, boxes, one_hot_scores(labels, values, classes), owned.int32().sum(1) > 0, matched)


def one_hot_scores(labels: Var, values: Var, classes: int) -> Var:
    """(N, A) labels and values to (N, A, classes): the value at the label, zero elsewhere."""
    return one_hot(labels, classes, values) * values.unsqueeze(-1)


def task_alignment(scores: Var, boxes: Var, points: Var, truth: GroundTruth) -> tuple[Var, Var, Var]:
    """Metric, overlap and whether the point is inside, of every box with every anchor: (N, M, A) each."""
    of_class = take(scores.permute(0, 2, 1), 1, truth.labels.unsqueeze(-1))
    overlaps = pairwise_iou(truth.boxes, boxes)
    cube = overlaps * overlaps * overlaps
    return of_class * (cube * cube), overlaps, points_inside(points, truth.boxes)


@without_gradient
def assign_task_aligned(scores: Var, boxes: Var, points: Var, truth: GroundTruth, top: int = TAL_TOPK) -> Assignment:
    """Task-aligned assignment (arXiv 2108.07755): metric = score of the box's class * IoU^6.

    Args:
        scores: (N, A, classes) predicted, after sigmoid.
        boxes: (N, A, 4) predicted, xyxy, pixels.
        points: (A, 2) anchor points, pixels.
        truth: the boxes to assign.
        top: candidates per box.
    """
    metrics, overlaps, inside = task_alignment(scores, boxes, points, truth)
    chosen = top_k(metrics * as_float(inside, metrics), top)
    owned = resolve_conflicts(chosen & inside & truth.valid.unsqueeze(-1), overlaps)
    weights = as_float(owned, metrics)
    metrics = metrics * weights
    best_metric, best_overlap = metrics.max(-1, keepdims=True), (overlaps * weights).max(-1, keepdims=True)
    values = (metrics * best_overlap / (best_metric + constant(METRIC_EPS, metrics))).max(1)
    return assignment_of(owned, values, truth, scores.shape[-1])


@without_gradient
def assign_atss(
    boxes: Var,
    points: Var,
    anchors: Var,
    level_sizes: tuple[int, ...],
    truth: GroundTruth,
    classes: int,
    top: int = ATSS_TOPK,
) -> Assignment:
    """Adaptive training sample selection (arXiv 1912.02424); target scores are IoUs with the predicted boxes.

    Args:
        boxes: (N, A, 4) predicted, xyxy, pixels.
        points: (A, 2) anchor points, pixels.
        anchors: (A, 4) anchor boxes, xyxy, pixels.
        level_sizes: anchors of each level.
        truth: the boxes to assign.
        classes: number of classes.
        top: candidates per box and level, by distance of the centres.
    """
    overlaps, _, candidates, threshold = sampling(points, anchors, level_sizes, truth, top)
    claims = candidates & (overlaps > threshold) & points_inside(points, truth.boxes) & truth.valid.unsqueeze(-1)
    owned = resolve_conflicts(claims, overlaps)
    values = (pairwise_iou(truth.boxes, boxes) * as_float(owned, overlaps)).max(1)
    return assignment_of(owned, values, truth, classes)


def sampling(
    points: Var, anchors: Var, level_sizes: tuple[int, ...], truth: GroundTruth, top: int = ATSS_TOPK
) -> tuple[Var, Var, Var, Var]:
    """What ATSS decides on, of every box with every anchor: overlap, distance of the centres, whether it is a candidate
    (N, M, A each), and the overlap that a box's candidates have to exceed (N, M, 1)."""
    overlaps = pairwise_iou(truth.boxes, anchors.unsqueeze(0))
    centres = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2
    offsets = centres.unsqueeze(2) - points  # (N, M, A, 2)
    distances = jt.sqrt((offsets * offsets).sum(-1))
    candidates = jt.concat([top_k(-part, top) for part in jt.split(distances, list(level_sizes), dim=-1)], dim=-1)
    taken = as_float(candidates, overlaps)
    count = sum(min(top, size) for size in level_sizes)
    mean = (overlaps * taken).sum(-1, keepdims=True) / count
    centred = (overlaps - mean) * taken
    spread = (centred * centred).sum(-1, keepdims=True) / (count - 1)
    return overlaps, distances, candidates, mean + jt.sqrt(spread)
