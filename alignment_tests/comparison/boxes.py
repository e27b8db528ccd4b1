"""Detections of two sides matched box by box, and the images in which they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment_tests.comparison.accuracy import Tested
from alignment_tests.comparison.records import JITTOR, TORCH

Floats = npt.NDArray[np.float64]

MATCH_IOU = 0.5  # as AP50 has it
SHOWN_SCORE = 0.25  # what a user would see; below it lie hundreds of boxes per image that only a metric reads
GALLERY, TYPICAL = 12, 4  # images shown, and how many of them are typical ones


@dataclass(frozen=True)
class Matched:
    """One image. ``jittor`` and ``torch`` are (M, 6): x1, y1, x2, y2, score, class; xyxy in pixels.

    Attributes:
        both: boxes that have a partner of the same class with an IoU of at least MATCH_IOU.
        alone_jittor, alone_torch: places of those that have none.
        score_difference: mean of |Jittor's score - PyTorch's| over them; None if there are none.
    """

    image_id: Any
    file_name: str
    jittor: Floats
    torch: Floats
    both: int
    alone_jittor: tuple[int, ...]
    alone_torch: tuple[int, ...]
    score_difference: float | None

    @property
    def only_jittor(self) -> int:
        return len(self.alone_jittor)

    @property
    def only_torch(self) -> int:
        return len(self.alone_torch)

    @property
    def disagreement(self) -> tuple[int, float]:
        """What images are ordered by: boxes without a partner, then the scores of the others."""
        return self.only_jittor + self.only_torch, self.score_difference or 0.0

    def to_json(self) -> dict[str, Any]:
        names = ("image_id", "file_name", "both", "only_jittor", "only_torch", "score_difference")
        return {name: getattr(self, name) for name in names}


def matched_images(tested: Tested) -> tuple[Matched, ...]:
    """Every image of an evaluated pair, in the order of the annotations."""
    if tested.annotations is None or tested.detections is None:
        return ()
    labels = {entry["id"]: label for label, entry in enumerate(tested.annotations["categories"])}
    rows = {name: _by_image(records, labels) for name, records in tested.detections.items()}
    none = np.zeros((0, 6))
    return tuple(
        match_image(
            image["id"],
            str(image.get("file_name", image["id"])),
            *(rows[side].get(image["id"], none) for side in (JITTOR, TORCH)),
        )
        for image in tested.annotations["images"]
    )


def match_image(image_id: Any, file_name: str, jittor: Floats, torch: Floats) -> Matched:
    """Pair boxes one to one, the greatest overlaps first; swapping the sides swaps the result."""
    overlap = np.where(jittor[:, None, 5] == torch[None, :, 5], iou(jittor, torch), 0.0)
    order = np.argsort(-overlap, axis=None, kind="stable")
    mine: set[int] = set()
    other: set[int] = set()
    apart = []
    for a, b in zip(*(places.tolist() for places in np.unravel_index(order, overlap.shape)), strict=True):
        if overlap[a, b] < MATCH_IOU:
            break
        if a not in mine and b not in other:
            mine.add(a)
            other.add(b)
            apart.append(abs(jittor[a, 4] - torch[b, 4]))
    alone = [tuple(sorted(set(range(len(rows))) - found)) for rows, found in ((jittor, mine), (torch, other))]
    mean = float(np.mean(apart)) if apart else None
    return Matched(image_id, file_name, jittor, torch, len(mine), alone[0], alone[1], mean)


def iou(a: Floats, b: Floats) -> Floats:
    """(M, N) overlaps of boxes (M, >=4) and (N, >=4), xyxy; 0 where both have no area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    shared = np.clip(high - low, 0.0, None).prod(-1)
    areas = [(rows[:, 2:4] - rows[:, :2]).prod(-1) for rows in (a, b)]
    whole = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def chosen(images: Sequence[Matched]) -> list[tuple[str, Matched]]:
    """Up to GALLERY images: those that differ most, then typical ones (around the median), each with that word.

    Images in which neither side found anything are left out.
    """
    seen = [image for image in images if len(image.jittor) or len(image.torch)]
    order = sorted(seen, key=lambda image: image.disagreement, reverse=True)
    most = min(len(order), GALLERY - min(TYPICAL, len(order) // 2))
    rest = order[most:]
    middle = max(0, min(len(order) // 2 - most - TYPICAL // 2, len(rest) - TYPICAL))
    typical = rest[middle : middle + TYPICAL]
    return [*(("different", image) for image in order[:most]), *(("typical", image) for image in typical)]


def _by_image(records: Sequence[Any], labels: dict[Any, int]) -> dict[Any, Floats]:
    """(M, 6) per image, best first, of what SHOWN_SCORE lets through."""
    rows: dict[Any, list[list[float]]] = {}
    for record in sorted(records, key=lambda record: -record["score"]):
        if record["score"] >= SHOWN_SCORE:
            left, top, width, height = record["bbox"]
            box = [left, top, left + width, top + height, record["score"], labels[record["category_id"]]]
            rows.setdefault(record["image_id"], []).append(box)
    return {image: np.array(found, np.float64) for image, found in rows.items()}
