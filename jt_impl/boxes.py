"""Boxes: forms, overlaps, and the IoU losses of the public recipe.

Forms: xyxy (left, top, right, bottom), cxcywh (centre, width, height), ltrb (distances from a point to the sides).
The places of the eps are those of the public code; they differ between the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jt_impl.kernels.exponential import exp
from jt_impl.kernels.functional import absolute, clamp, clamp_min, maximum, minimum
from jt_impl.layers import Var, constant
from jt_impl.runtime import jittor as jt

EPS = 1e-10  # of the IoU losses
UNION_EPS = 1e-9  # of the overlaps that assigners compare
DFL_MARGIN = 0.01  # a target distance stays this far below the last bin


def cxcywh_to_xyxy(boxes: Var) -> Var:
    """(..., 4) to (..., 4)."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return jt.concat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Var) -> Var:
    """(..., 4) to (..., 4)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return jt.concat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def ltrb_to_xyxy(distances: Var, points: Var) -> Var:
    """Distances (..., A, 4) from points (A, 2) to boxes (..., A, 4)."""
    return jt.concat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def xyxy_to_ltrb(boxes: Var, points: Var, reg_max: int) -> Var:
    """Boxes (..., A, 4) to distances from points (A, 2), clipped to what ``reg_max`` + 1 bins can express."""
    distances = jt.concat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
    return clamp(distances, 0.0, reg_max - DFL_MARGIN)


def pairwise_iou(first: Var, second: Var) -> Var:
    """Overlap of every box of (N, M, 4) with every box of (N, A, 4), xyxy: (N, M, A)."""
    a, b = first.unsqueeze(2), second.unsqueeze(1)
    overlap = area(maximum(a[..., :2], b[..., :2]), minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - overlap + constant(UNION_EPS, overlap)
    return overlap / union


def area(top_left: Var, bottom_right: Var) -> Var:
    """Zero where a side is negative."""
    sides = clamp_min(bottom_right - top_left, 0.0)
    return sides[..., 0] * sides[..., 1]


def sides_of(boxes: Var) -> tuple[Var, Var]:
    """Width, and height plus eps."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1] + constant(EPS, boxes)


def hull_of(a: Var, b: Var) -> tuple[Var, Var]:
    """Width and height of the smallest box around both."""
    top_left, bottom_right = minimum(a[..., :2], b[..., :2]), maximum(a[..., 2:], b[..., 2:])
    sides = bottom_right - top_left
    return sides[..., 0], sides[..., 1]


def centre_offsets(a: Var, b: Var) -> tuple[Var, Var]:
    """From the centre of ``a`` to that of ``b``, in x and y."""
    twice = b[..., :2] + b[..., 2:] - a[..., :2] - a[..., 2:]
    return twice[..., 0] * 0.5, twice[..., 1] * 0.5


def overlap_and_union(a: Var, b: Var) -> tuple[Var, Var]:
    overlap = area(maximum(a[..., :2], b[..., :2]), minimum(a[..., 2:], b[..., 2:]))
    (w1, h1), (w2, h2) = sides_of(a), sides_of(b)
    return overlap, w1 * h1 + w2 * h2 - overlap + constant(EPS, overlap)


def no_penalty(a: Var, b: Var, iou: Var, union: Var) -> Var:
    return jt.zeros_like(iou)


def giou_penalty(a: Var, b: Var, iou: Var, union: Var) -> Var:
    """Share of the hull outside the union (arXiv 1902.09630)."""
    width, height = hull_of(a, b)
    hull = width * height + constant(EPS, width)
    return (hull - union) / hull


def diou_penalty(a: Var, b: Var, iou: Var, union: Var) -> Var:
    """Squared distance of the centres over the hull's squared diagonal (arXiv 1911.08287)."""
    width, height = hull_of(a, b)
    dx, dy = centre_offsets(a, b)
    return (dx * dx + dy * dy) / (width * width + height * height + constant(EPS, width))


def ciou_penalty(a: Var, b: Var, iou: Var, union: Var) -> Var:
    """DIoU and the difference of the aspect ratios, whose weight gets no gradient."""
    (w1, h1), (w2, h2) = sides_of(a), sides_of(b)
    angle = jt.arctan(w2 / h2) - jt.arctan(w1 / h1)
    v = angle * angle * constant(4 / math.pi**2, angle)
    alpha = (v / (v - iou + constant(1 + EPS, v))).detach()
    return diou_penalty(a, b, iou, union) + v * alpha


def siou_penalty(a: Var, b: Var, iou: Var, union: Var) -> Var:
    """Half of distance cost, which the angle of the line of centres weighs, and shape cost (arXiv 2205.12740)."""
    (w1, h1), (w2, h2) = sides_of(a), sides_of(b)
    width, height = hull_of(a, b)
    dx, dy = (offset + constant(EPS, offset) for offset in centre_offsets(a, b))
    distance = jt.sqrt(dx * dx + dy * dy)
    sine_x, sine_y = absolute(dx) / distance, absolute(dy) / distance
    sine = jt.ternary(sine_x > constant(math.sqrt(2) / 2, sine_x), sine_y, sine_x)
    gamma = jt.cos(jt.arcsin(sine) * 2 - constant(math.pi / 2, sine)) - 2
    rho_x, rho_y = dx / width, dy / height
    distance_cost = 2 - exp(gamma * rho_x * rho_x) - exp(gamma * rho_y * rho_y)
    omega_w, omega_h = absolute(w1 - w2) / maximum(w1, w2), absolute(h1 - h2) / maximum(h1, h2)
    shape_cost = fourth_power(1 - exp(-omega_w)) + fourth_power(1 - exp(-omega_h))
    return 0.5 * (distance_cost + shape_cost)


def fourth_power(x: Var) -> Var:
    square = x * x
    return square * square


PENALTIES: dict[str, Callable[[Var, Var, Var, Var], Var]] = {
    "iou": no_penalty,
    "giou": giou_penalty,
    "diou": diou_penalty,
    "ciou": ciou_penalty,
    "siou": siou_penalty,
}


def iou_loss(predicted: Var, target: Var, kind: str) -> Var:
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
