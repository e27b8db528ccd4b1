"""Which anchor learns which box: the task-aligned assigner and ATSS.

Both are vectorised over images and boxes; padded slots take part and never win. No gradient passes through them.

Ties are broken by position everywhere, so that two frameworks decide alike: among equal metrics the anchor with the
lower index is taken, among equal overlaps the box with the lower index. (The public code leaves ties to ``topk``.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_ref.boxes import pairwise_iou

TAL_TOPK, ATSS_TOPK = 13, 9
INSIDE_EPS = 1e-9  # an anchor point on a box's edge is outside
METRIC_EPS = 1e-9


@dataclass(frozen=True)
class Assignment:
    """What each anchor has to learn. ``scores`` aside, it means something only where
    ``foreground`` is set.

    Attributes:
        labels: (N, A) int64 classes.
        boxes: (N, A, 4) xyxy, pixels.
        scores: (N, A, classes) target scores, zero for background.
        foreground: (N, A) bool.
        matched: (N, A) int64, slot of the box in ``GroundTruth``.
    """

    labels: Tensor
    boxes: Tensor
    scores: Tensor
    foreground: Tensor
    matched: Tensor


@dataclass(frozen=True)
class GroundTruth:
    """Padded boxes of a batch in the model's precision.

    ``labels`` (N, M) int64, ``boxes`` (N, M, 4) xyxy in pixels, ``valid`` (N, M) bool.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor


def top_k(values: Tensor, k: int) -> Tensor:
    """Mask of the ``k`` greatest along the last dimension; of equal ones the first."""
    bound = torch.topk(values, min(k, values.shape[-1]), dim=-1).values[..., -1:]
    above, level = values > bound, values == bound
    room = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def points_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether each point (A, 2) lies within each box (N, M, 4): (N, M, A)."""
    boxes = boxes.unsqueeze(2)
    margins = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
    return margins.min(-1).values > INSIDE_EPS


def resolve_conflicts(claims: Tensor, overlaps: Tensor) -> Tensor:
    """An anchor that several boxes claim goes to the box of the image that overlaps it most, claimed or not.

    ``claims`` (N, M, A) bool, ``overlaps`` (N, M, A); returns (N, M, A) bool with at most one box per anchor.
    """
    contested = claims.sum(1, keepdim=True) > 1
    best = F.one_hot(overlaps.argmax(1), claims.shape[1]).permute(0, 2, 1).bool()
    return torch.where(contested, best, claims)


def assignment_of(owned: Tensor, values: Tensor, truth: GroundTruth, classes: int) -> Assignment:
    """What follows from the one box that owns each anchor: ``owned`` (N, M, A) bool; slot 0 where none does.

    ``values`` (N, A) are the target scores, of the box's class.
    """
    matched = owned.int().argmax(1)  # (N, A)
    boxes = truth.boxes.gather(1, matched.unsqueeze(-1).expand(-1, -1, 4))
    labels = truth.labels.gather(1, matched)
    return Assignment(labels, boxes, one_hot_scores(labels, values, classes), owned.any(1), matched)


def one_hot_scores(labels: Tensor, values: Tensor, classes: int) -> Tensor:
    """(N, A) labels and values to (N, A, classes): the value at the label, zero elsewhere."""
    return F.one_hot(labels, classes).to(values.dtype) * values.unsqueeze(-1)


def task_alignment(scores: Tensor, boxes: Tensor, points: Tensor, truth: GroundTruth) -> tuple[Tensor, Tensor, Tensor]:
    """Metric, overlap and whether the point is inside, of every box with every anchor: (N, M, A) each."""
    of_class = scores.permute(0, 2, 1).gather(1, truth.labels.unsqueeze(-1).expand(-1, -1, scores.shape[1]))
    overlaps = pairwise_iou(truth.boxes, boxes)
    cube = overlaps * overlaps * overlaps
    return of_class * (cube * cube), overlaps, points_inside(points, truth.boxes)


@torch.no_grad()
def assign_task_aligned(
    scores: Tensor, boxes: Tensor, points: Tensor, truth: GroundTruth, top: int = TAL_TOPK
) -> Assignment:
    """Task-aligned assignment (arXiv 2108.07755): metric = score of the box's class * IoU^6.

    Args:
        scores: (N, A, classes) predicted, after sigmoid.
        boxes: (N, A, 4) predicted, xyxy, pixels.
        points: (A, 2) anchor points, pixels.
        truth: the boxes to assign.
        top: candidates per box.
    """
    metrics, overlaps, inside = task_alignment(scores, boxes, points, truth)
    chosen = top_k(metrics * inside, top)
    owned = resolve_conflicts(chosen & inside & truth.valid.unsqueeze(-1), overlaps)
    metrics = metrics * owned
    best_metric, best_overlap = metrics.amax(-1, keepdim=True), (overlaps * owned).amax(-1, keepdim=True)
    values = (metrics * best_overlap / (best_metric + METRIC_EPS)).amax(1)
    return assignment_of(owned, values, truth, scores.shape[-1])


@torch.no_grad()
def assign_atss(
    boxes: Tensor,
    points: Tensor,
    anchors: Tensor,
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
    values = (pairwise_iou(truth.boxes, boxes) * owned).amax(1)
    return assignment_of(owned, values, truth, classes)


def sampling(
    points: Tensor, anchors: Tensor, level_sizes: tuple[int, ...], truth: GroundTruth, top: int = ATSS_TOPK
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ATSS decides on, of every box with every anchor: overlap, distance of the centres, whether it is a candidate
    (N, M, A each), and the overlap that a box's candidates have to exceed (N, M, 1)."""
    overlaps = pairwise_iou(truth.boxes, anchors.unsqueeze(0))
    centres = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2
    offsets = centres.unsqueeze(2) - points  # (N, M, A, 2)
    distances = torch.sqrt((offsets * offsets).sum(-1))
    candidates = torch.cat([top_k(-part, top) for part in distances.split(level_sizes, dim=-1)], dim=-1)
    count = sum(min(top, size) for size in level_sizes)
    mean = (overlaps * candidates).sum(-1, keepdim=True) / count
    spread = ((overlaps - mean) * candidates).square().sum(-1, keepdim=True) / (count - 1)
    return overlaps, distances, candidates, mean + torch.sqrt(spread)
