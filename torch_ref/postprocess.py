"""From raw predictions to detections: thresholds, labels and greedy non-maximum suppression by torchvision."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torchvision.ops import nms

from fixtures.evaluation.detections import CLASS_OFFSET, NotFiniteError, Suppression, suppression
from torch_ref.boxes import cxcywh_to_xyxy

GROWTH = 4


def non_max_suppression(
    predictions: Tensor,
    conf_threshold: float = 0.03,
    iou_threshold: float = 0.65,
    classes: Iterable[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = True,
    max_detections: int = 300,
) -> list[Tensor]:
    """The detections of each image, best first; equal scores in the order of anchor, then class.

    An anchor counts if its objectness and its best class score are greater than the threshold. A label's score is
    their product. Boxes of different classes are moved apart by 4096 pixels per class, in their own dtype.

    Args:
        predictions: (N, A, 5 + classes), float32 or float64: cx, cy, w, h in pixels, objectness, class scores.
        conf_threshold: a score must be greater.
        iou_threshold: a box goes if its IoU with a better one that stays is greater.
        classes: only these, or None for all.
        agnostic: boxes suppress those of other classes too.
        multi_label: every class above the threshold gives a detection, not only the best; without effect on one class.
        max_detections: the best so many are kept.

    Returns:
        Per image (M, 6): x1, y1, x2, y2, score, class, in the dtype and on the device of ``predictions``.

    Raises:
        ValueError: an argument is out of its range; ``NotFiniteError`` if a prediction is not finite.
    """
    dtype = str(predictions.dtype).removeprefix("torch.")
    settings = suppression(
        predictions.shape, dtype, conf_threshold, iou_threshold, classes, agnostic, multi_label, max_detections
    )
    predictions = predictions.detach()
    finite = torch.isfinite(predictions).flatten(1).all(1).tolist()
    if not all(finite):
        raise NotFiniteError(finite.index(False))
    return [suppress(candidates(image, settings), settings) for image in predictions]


def candidates(image: Tensor, settings: Suppression) -> Tensor:
    """Rows (M, 6) of (A, 5 + classes) above the threshold, in the order of anchor, then class."""
    threshold, wanted = settings.conf_threshold, torch.from_numpy(settings.wanted).to(image.device)
    certain = (image[:, 4] > threshold) & (image[:, 5:].amax(1) > threshold)
    scores = image[:, 4:5] * image[:, 5:]
    if settings.every_label:
        anchors, labels = (certain.unsqueeze(1) & (scores > threshold) & wanted).nonzero(as_tuple=True)
    else:
        best, labels = scores.max(1)
        anchors = (certain & (best > threshold) & wanted[labels]).nonzero().squeeze(1)
        labels = labels[anchors]
    columns = [cxcywh_to_xyxy(image[anchors, :4]), scores[anchors, labels, None], labels.unsqueeze(1).to(image.dtype)]
    return torch.cat(columns, 1)


def suppress(rows: Tensor, settings: Suppression) -> Tensor:
    """Those of (M, 6) that no better one suppresses, best first, at most ``max_detections``.

    What is kept of the best candidates does not depend on the others, so these are tried alone first.
    """
    limit = settings.max_detections
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
    boxes = rows[:, :4] if settings.agnostic else rows[:, :4] + rows[:, 5:] * CLASS_OFFSET
    tried = GROWTH * limit
    while True:
        kept = nms(boxes[:tried], rows[:tried, 4], settings.iou_threshold)
        if len(kept) >= limit or tried >= len(rows):
            return rows[kept[:limit]]
        tried *= GROWTH
