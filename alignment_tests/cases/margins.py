"""By how much the assigners decided, in units of what a budget allows there: below 1, rounding may decide otherwise.

Every margin is taken from the oracle. What it is measured by is the reference's own error in the very numbers that were
compared, over a couple of dozen of them, since its error in a single one is luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment_tests.harness.training.trainee import Share
from torch_ref.assigners import ATSS_TOPK, GroundTruth, points_inside, sampling, task_alignment, top_k

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Decided:
    """What an assigner decides on, in one precision: its arguments.

    Attributes:
        scores: (N, A, classes) predicted.
        boxes: (N, A, 4) predicted, xyxy, pixels.
        points: (A, 2) anchor points, pixels.
        truth: the boxes to assign.
        anchors: (A, 4) anchor boxes, xyxy, pixels; of ATSS.
        level_sizes: anchors of each level; of ATSS.
    """

    scores: Tensor
    boxes: Tensor
    points: Tensor
    truth: GroundTruth
    anchors: Tensor
    level_sizes: tuple[int, ...]


@torch.no_grad()
def task_aligned_margins(exact: Decided, single: Decided, top: int, share: Share) -> Tensor:
    """(N, A): of each anchor, the closest of three decisions: a rank around ``top``, which of several boxes that claim
    it, and whether it lies inside.

    Args:
        exact: of the oracle.
        single: of the reference in the precision that is judged.
        top: candidates per box.
        share: relative gaps, in units of what is allowed where the reference has these relative errors.
    """
    metrics, overlaps, inside = task_alignment(exact.scores, exact.boxes, exact.points, exact.truth)
    own = task_alignment(single.scores, single.boxes, single.points, single.truth)
    ranked = metrics * inside
    around = top_k(ranked, 2 * top) & (ranked > 0)
    error = largest(relative_error(own[0], metrics), around)
    by_rank = share(rank_gaps(ranked, top), error)
    # Of metrics that are zero the first by position are taken; in a narrower precision others may be zero too.
    by_rank = torch.where(ranked > 0, by_rank, share(torch.ones_like(ranked), error))
    claims = top_k(ranked, top) & inside & exact.truth.valid.unsqueeze(-1)
    by_box = box_margins(claims, overlaps, largest(relative_error(own[1], overlaps), around), exact.truth, share)
    return torch.minimum(of_anchor(torch.minimum(by_rank, edge_margins(exact, single, share)), exact.truth), by_box)


@torch.no_grad()
def atss_margins(exact: Decided, single: Decided, share: Share, top: int = ATSS_TOPK) -> Tensor:
    """(N, A): of each anchor, the closest of four decisions: a rank by distance, whether the overlap is above the
    threshold, which of several boxes that claim it, and whether it lies inside."""
    made, own = (sampling(d.points, d.anchors, d.level_sizes, d.truth, top) for d in (exact, single))
    overlaps, distances, candidates, threshold = made
    nearness = [rank_gaps(-part, top) for part in distances.split(exact.level_sizes, dim=-1)]
    by_rank = share(torch.cat(nearness, dim=-1), largest(relative_error(own[1], distances), candidates))
    above, own_above = overlaps - threshold, own[0].double() - own[3].double()
    scale = threshold.abs() + TINY
    by_overlap = share(above.abs() / scale, largest((own_above - above).abs() / scale, candidates))
    by_overlap = torch.where(candidates, by_overlap, torch.inf)
    claims = candidates & (above > 0) & points_inside(exact.points, exact.truth.boxes)
    claims = claims & exact.truth.valid.unsqueeze(-1)
    by_box = box_margins(claims, overlaps, largest(relative_error(own[0], overlaps), candidates), exact.truth, share)
    closest = torch.minimum(torch.minimum(by_rank, by_overlap), edge_margins(exact, single, share))
    return torch.minimum(of_anchor(closest, exact.truth), by_box)


def rank_gaps(ranked: Tensor, top: int) -> Tensor:
    """How far each value is from the other side of rank ``top`` along the last axis, over the larger of both."""
    best = torch.topk(ranked, min(top + 1, ranked.shape[-1]), dim=-1).values
    last_in, first_out = best[..., min(top, best.shape[-1]) - 1, None], best[..., -1:]
    bound = torch.where(top_k(ranked, top), first_out, last_in)
    if best.shape[-1] <= top:  # all are in, whatever their order
        return torch.ones_like(ranked)
    return (ranked - bound).abs() / (torch.maximum(ranked.abs(), bound.abs()) + TINY)


def edge_margins(exact: Decided, single: Decided, share: Share) -> Tensor:
    """(N, M, A): the distance of a point from the nearest edge of a box, relative to the box's coordinates."""
    boxes = exact.truth.boxes.unsqueeze(2)
    edges = torch.cat([exact.points - boxes[..., :2], boxes[..., 2:] - exact.points], dim=-1).min(-1).values.abs()
    size = exact.truth.boxes.abs().amax(-1, keepdim=True).clamp(min=1.0)
    moved = (single.truth.boxes.double() - exact.truth.boxes).abs().amax(-1, keepdim=True)
    return share(edges / size, moved / size)


def box_margins(claims: Tensor, overlaps: Tensor, errors: Tensor, truth: GroundTruth, share: Share) -> Tensor:
    """(N, A): of an anchor that several boxes claim, the gap between the two largest overlaps; else infinite.

    Between boxes that are equal there is no gap to close: their overlaps are the same numbers on every side, and
    position decides. Boxes of one size inside a larger prediction have equal overlaps too, but rounded each by itself.

    ``errors`` (N, M, 1) are those of the overlaps of each box.
    """
    best = overlaps.max(1, keepdim=True)
    equal = (truth.boxes.unsqueeze(2) == truth.boxes.unsqueeze(1)).all(-1)  # (N, M, M)
    like_best = torch.gather(equal, 1, best.indices.transpose(1, 2).expand(-1, -1, equal.shape[2]).contiguous())
    second = torch.where(like_best.transpose(1, 2), 0.0, overlaps).amax(1)
    gap = (best.values[:, 0] - second) / (best.values[:, 0] + TINY)
    error = torch.where(claims, errors, 0.0).amax(1)
    return torch.where(claims.sum(1) > 1, share(gap, error), torch.inf)


def of_anchor(margins: Tensor, truth: GroundTruth) -> Tensor:
    """The closest over the boxes that count: (N, M, A) to (N, A)."""
    return torch.where(truth.valid.unsqueeze(-1), margins, torch.inf).amin(1)


def relative_error(single: Tensor, exact: Tensor) -> Tensor:
    return (single.double() - exact).abs() / (exact.abs() + TINY)


def largest(errors: Tensor, counted: Tensor) -> Tensor:
    """The largest one along the last axis among those that count; 0 where none does."""
    return torch.where(counted, errors, 0.0).amax(-1, keepdim=True)
