"""Boxes: forms, overlaps, and the IoU losses of the public recipe.

Forms: xyxy (left, top, right, bottom), cxcywh (centre, width, height), ltrb (distances from a point to the sides).
The places of the eps are those of the public code; they differ between the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-10  # of the IoU losses
UNION_EPS = 1e-9  # of the overlaps that assigners compare
DFL_MARGIN = 0.01  # a target distance stays this far below the last bin


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) to (..., 4)."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) to (..., 4)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def ltrb_to_xyxy(distances: Tensor, points: Tensor) -> Tensor:
    """Distances (..., A, 4) from points (A, 2) to boxes (..., A, 4)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def xyxy_to_ltrb(boxes: Tensor, points: Tensor, reg_max: int) -> Tensor:
    """Boxes (..., A, 4) to distances from points (A, 2), clipped to what ``reg_max`` + 1 bins can express."""
    distances = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
    return distances.clamp(0, reg_max - DFL_MARGIN)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of every box of (N, M, 4) with every box of (N, A, 4), xyxy: (N, M, A)."""
    a, b = first.unsqueeze(2), second.unsqueeze(1)
    overlap = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - overlap + UNION_EPS
    return overlap / union


def area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """Zero where a side is negative."""
    sides = (bottom_right - top_left).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def sides_of(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Width, and height plus eps."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1] + EPS


def hull_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around both."""
    top_left, bottom_right = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    sides = bottom_right - top_left
    return sides[..., 0], sides[..., 1]


def centre_offsets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """From the centre of ``a`` to that of ``b``, in x and y."""
    twice = b[..., :2] + b[..., 2:] - a[..., :2] - a[..., 2:]
    return twice[..., 0] * 0.5, twice[..., 1] * 0.5


def overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    overlap = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    (w1, h1), (w2, h2) = sides_of(a), sides_of(b)
    return overlap, w1 * h1 + w2 * h2 - overlap + EPS


def no_penalty(a: Tensor, b: Tensor, iou: Tensor, union: Tensor) -> Tensor:
    return torch.zeros_like(iou)


def giou_penalty(a: Tensor, b: Tensor, iou: Tensor, union: Tensor) -> Tensor:
    """Share of the hull outside the union (arXiv 1902.09630)."""
    width, height = hull_of(a, b)
    hull = width * height + EPS
    return (hull - union) / hull


def diou_penalty(a: Tensor, b: Tensor, iou: Tensor, union: Tensor) -> Tensor:
    """Squared distance of the centres over the hull's squared diagonal (arXiv 1911.08287)."""
    width, height = hull_of(a, b)
    dx, dy = centre_offsets(a, b)
    return (dx * dx + dy * dy) / (width * width + height * height + EPS)


def ciou_penalty(a: Tensor, b: Tensor, iou: Tensor, union: Tensor) -> Tensor:
    """DIoU and the difference of the aspect ratios, whose weight gets no gradient."""
    (w1, h1), (w2, h2) = sides_of(a), sides_of(b)
    angle = torch.atan(w2 / h2) - torch.atan(w1 / h1)
    v = angle * angle * (4 / math.pi**2)
    alpha = (v / (v - iou + (1 + EPS))).detach()
    return diou_penalty(a, b, iou, union) + v * alpha


def siou_penalty(a: Tensor, b: Tensor, iou: Tensor, union: Tensor) -> Tensor:
    """Half of distance cost, which the angle of the line of centres weighs, and shape cost (arXiv 2205.12740)."""
    (w1, h1), (w2, h2) = sides_of(a), sides_of(b)
    width, height = hull_of(a, b)
    dx, dy = (offset + EPS for offset in centre_offsets(a, b))
    distance = torch.sqrt(dx * dx + dy * dy)
    sine_x, sine_y = torch.abs(dx) / distance, torch.abs(dy) / distance
    sine = torch.where(sine_x > math.sqrt(2) / 2, sine_y, sine_x)
    gamma = torch.cos(torch.asin(sine) * 2 - math.pi / 2) - 2
    rho_x, rho_y = dx / width, dy / height
    distance_cost = 2 - torch.exp(gamma * rho_x * rho_x) - torch.exp(gamma * rho_y * rho_y)
    omega_w, omega_h = torch.abs(w1 - w2) / torch.maximum(w1, w2), torch.abs(h1 - h2) / torch.maximum(h1, h2)
    shape_cost = fourth_power(1 - torch.exp(-omega_w)) + fourth_power(1 - torch.exp(-omega_h))
    return 0.5 * (distance_cost + shape_cost)


def fourth_power(x: Tensor) -> Tensor:
    square = x * x
    return square * square


PENALTIES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "iou": no_penalty,
    "giou": giou_penalty,
    "diou": diou_penalty,
    "ciou": ciou_penalty,
    "siou": siou_penalty,
}


def iou_loss(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """1 - (IoU - penalty) of each pair of boxes.

    Args:
        predicted: (..., 4), xyxy.
        target: (..., 4), xyxy, with positive sides.
        kind: "iou", "giou", "diou", "ciou" or "siou".

    Raises:
        ValueError: ``kind`` is none of these.
    """
    if kind not in PENALTIES:
        raise ValueError(f"`kind` must be one of {sorted(PENALTIES)}. Received: {kind!r}")
    overlap, union = overlap_and_union(predicted, target)
    iou = overlap / union
    return 1.0 - (iou - PENALTIES[kind](predicted, target, iou, union))
