"""Efficient decoupled head: class scores and box distances per level, decoded to detections in eval mode.

Three kinds that share all but their predictions: the plain head, the anchor-aided one of the recipe's first training,
and the one of the small sizes' self-distillation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fixtures.anchors import anchor_points
from fixtures.config import GoldYoloConfig
from jt_impl.kernels.exponential import sigmoid
from jt_impl.layers import ConvNormAct, Var, conv2d, nn, silu, softmax, spatial_size, to_var
from jt_impl.runtime import jittor as jt

DFL_BINS = 17  # the public head keeps `proj` of 17 bins in every checkpoint, with DFL or without
ANCHORS_PER_CELL = 3  # of the anchor-aided head


class Head(nn.Module):
    """Input: maps at strides 8, 16, 32.

    Eval: detections (N, A, 5 + classes): cx, cy, w, h in input pixels, a constant 1, class scores after sigmoid.
    Train: (stem outputs, class scores (N, A, classes) after sigmoid, raw distances (N, A, 4 * (reg_max + 1))).
    """

    def __init__(self, config: GoldYoloConfig) -> None:
        super().__init__()
        self.strides, self.use_dfl = config.head.strides, config.head.use_dfl
        self.bins = config.head.reg_max + 1
        widths = [config.channels[i] for i in (6, 8, 10)]
        self.proj = jt.array(np.arange(DFL_BINS, dtype=np.float32)).stop_grad()
        self.proj_conv = conv2d(DFL_BINS, 1, 1)
        self.stems = nn.ModuleList([ConvNormAct(c, c, 1, norm=config.norm, act=silu) for c in widths])
        self.cls_convs = nn.ModuleList([ConvNormAct(c, c, 3, norm=config.norm, act=silu) for c in widths])
        self.reg_convs = nn.ModuleList([ConvNormAct(c, c, 3, norm=config.norm, act=silu) for c in widths])
        self.add_predictions(config, widths)

    def add_predictions(self, config: GoldYoloConfig, widths: list[int]) -> None:
        self.cls_preds = predictions(widths, config.num_classes)
        self.reg_preds = predictions(widths, 4 * self.bins)

    def execute(self, maps: tuple[Var, ...]) -> Var | tuple[Any, ...]:
        features, levels = [], []
        for level, x in enumerate(maps):
            features.append(self.stems[level](x))
            levels.append(self.predict(level, features[-1]))
        outputs = [jt.concat(parts, dim=1) for parts in zip(*levels, strict=True)]
        if self.is_training():
            return features, *outputs
        scores, distances = outputs
        return self.decode(distances, scores, [spatial_size(x) for x in maps])

    def predict(self, level: int, stem: Var) -> list[Var]:
        """What one level adds to the outputs, as rows (N, H * W, numbers).

        In eval mode: class scores and distances (N, H * W, 4), which are decoded.
        """
        scores = sigmoid(rows(self.cls_preds[level](self.cls_convs[level](stem))))
        distances = self.reg_preds[level](self.reg_convs[level](stem))
        return [scores, rows(distances if self.is_training() else self.expected_distances(distances))]

    def expected_distances(self, distances: Var) -> Var:
        """(N, 4 * bins, H, W), side-major, to the expected bin number (N, 4, H, W); without DFL as they are."""
        if not self.use_dfl:
            return distances
        batch, _, height, width = distances.shape
        bins = distances.reshape(batch, 4, self.bins, height * width).permute(0, 2, 1, 3)
        return self.proj_conv(softmax(bins, dim=1)).reshape(batch, 4, height, width)

    def decode(self, distances: Var, scores: Var, sizes: list[tuple[int, int]]) -> Var:
        """Distances (N, A, 4) to left, top, right, bottom in stride units, to detections (N, A, 5 + classes)."""
        points, strides = (to_var(a, distances) for a in anchor_points(tuple(sizes), self.strides))
        top_left, bottom_right = points - distances[..., :2], points + distances[..., 2:]
        centre, size = (top_left + bottom_right) / 2, bottom_right - top_left
        boxes = jt.concat([centre, size], dim=-1) * strides
        return jt.concat([boxes, jt.ones_like(scores[..., :1]), scores], dim=-1)


class AnchorAidedHead(Head):
    """Beside the plain branch (af) one with three anchors per cell (ab), which only training uses.

    Train: (stem outputs, anchored scores (N, 3A, classes), anchored boxes (N, 3A, 4), class scores (N, A, classes),
    raw distances (N, A, 4 * (reg_max + 1))). Anchored boxes are x, y from the cell's centre and w, h, in stride units;
    a level's rows are its whole grid for the first anchor, then for the second and the third.
    """

    def add_predictions(self, config: GoldYoloConfig, widths: list[int]) -> None:
        pixels = np.array(config.head.anchors, np.float64).reshape(len(widths), ANCHORS_PER_CELL, 2)
        self.anchors = pixels / np.array(config.head.strides).reshape(-1, 1, 1)
        self.cls_preds_af = predictions(widths, config.num_classes)
        self.reg_preds_af = predictions(widths, 4 * self.bins)
        self.cls_preds_ab = predictions(widths, config.num_classes * ANCHORS_PER_CELL)
        self.reg_preds_ab = predictions(widths, 4 * ANCHORS_PER_CELL)

    def predict(self, level: int, stem: Var) -> list[Var]:
        for_classes, for_boxes = self.cls_convs[level](stem), self.reg_convs[level](stem)
        scores = sigmoid(rows(self.cls_preds_af[level](for_classes)))
        distances = self.reg_preds_af[level](for_boxes)
        if not self.is_training():
            return [scores, rows(self.expected_distances(distances))]
        anchored_scores = sigmoid(anchor_rows(self.cls_preds_ab[level](for_classes)))
        anchored_boxes = self.anchored_boxes(level, anchor_rows(self.reg_preds_ab[level](for_boxes)))
        return [anchored_scores, anchored_boxes, scores, rows(distances)]

    def anchored_boxes(self, level: int, raw: Var) -> Var:
        """Raw (N, 3 * H * W, 4): x, y stay; w, h are (2 * sigmoid)^2 times the anchor's, in stride units."""
        anchors = np.repeat(self.anchors[level], raw.shape[1] // ANCHORS_PER_CELL, axis=0)  # (3 * H * W, 2)
        factor = sigmoid(raw[..., 2:]) * 2
        return jt.concat([raw[..., :2], factor * factor * to_var(anchors, raw)], dim=-1)


class DistillationHead(Head):
    """Beside distributions plain distances, which alone give boxes in eval mode.

    Train: (stem outputs, class scores (N, A, classes), raw distributions (N, A, 4 * (reg_max + 1)), plain distances
    (N, A, 4)).
    """

    def add_predictions(self, config: GoldYoloConfig, widths: list[int]) -> None:
        super().add_predictions(config, widths)
        self.reg_preds_lrtb = predictions(widths, 4)

    def predict(self, level: int, stem: Var) -> list[Var]:
        scores = sigmoid(rows(self.cls_preds[level](self.cls_convs[level](stem))))
        for_boxes = self.reg_convs[level](stem)
        plain = rows(self.reg_preds_lrtb[level](for_boxes))
        return [scores, rows(self.reg_preds[level](for_boxes)), plain] if self.is_training() else [scores, plain]


HEADS: dict[str, type[Head]] = {"plain": Head, "fuse_ab": AnchorAidedHead, "distill_ns": DistillationHead}


def predictions(widths: list[int], channels: int) -> nn.ModuleList:
    """A 1x1 convolution with bias for each level."""
    return nn.ModuleList([conv2d(width, channels, 1, bias=True) for width in widths])


def rows(x: Var) -> Var:
    """(N, C, H, W) to (N, H * W, C)."""
    return x.flatten(2).permute(0, 2, 1)


def anchor_rows(x: Var) -> Var:
    """(N, anchors * C, H, W), anchor-major, to (N, anchors * H * W, C)."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, ANCHORS_PER_CELL, channels // ANCHORS_PER_CELL, height * width)
    return parts.permute(0, 1, 3, 2).reshape(batch, ANCHORS_PER_CELL * height * width, -1)
