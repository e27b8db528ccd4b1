"""Efficient decoupled head: class scores and box distances per level, decoded to detections in eval mode."""

from __future__ import annotations

import numpy as np

from fixtures.anchors import anchor_points
from fixtures.config import GoldYoloConfig
from jt_impl.exponential import sigmoid
from jt_impl.layers import ConvNormAct, Var, conv2d, nn, silu, softmax, spatial_size, to_var
from jt_impl.runtime import jittor as jt

DFL_BINS = 17  # the public head keeps `proj` of 17 bins in every checkpoint, with DFL or without


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
        self.cls_preds = nn.ModuleList([conv2d(c, config.num_classes, 1, bias=True) for c in widths])
        self.reg_preds = nn.ModuleList([conv2d(c, 4 * self.bins, 1, bias=True) for c in widths])

    def execute(self, maps: tuple[Var, ...]) -> Var | tuple[list[Var], Var, Var]:
        features, scores, boxes = [], [], []
        for level, x in enumerate(maps):
            stem = self.stems[level](x)
            logits = self.cls_preds[level](self.cls_convs[level](stem))
            distances = self.reg_preds[level](self.reg_convs[level](stem))
            if self.use_dfl and not self.is_training():
                distances = self.expected_distances(distances)
            features.append(stem)
            scores.append(sigmoid(logits.flatten(2).permute(0, 2, 1)))
            boxes.append(distances.flatten(2).permute(0, 2, 1))
        all_scores, all_boxes = jt.concat(scores, dim=1), jt.concat(boxes, dim=1)
        if self.is_training():
            return features, all_scores, all_boxes
        return self.decode(all_boxes, all_scores, [spatial_size(x) for x in maps])

    def expected_distances(self, logits: Var) -> Var:
        """(N, 4 * bins, H, W), side-major, to the expected bin number (N, 4, H, W)."""
        batch, _, height, width = logits.shape
        bins = logits.reshape(batch, 4, self.bins, height * width).permute(0, 2, 1, 3)
        return self.proj_conv(softmax(bins, dim=1)).reshape(batch, 4, height, width)

    def decode(self, distances: Var, scores: Var, sizes: list[tuple[int, int]]) -> Var:
        """Distances (N, A, 4) to left, top, right, bottom in stride units, to detections (N, A, 5 + classes)."""
        points, strides = (to_var(a, distances) for a in anchor_points(tuple(sizes), self.strides))
        top_left, bottom_right = points - distances[..., :2], points + distances[..., 2:]
        centre, size = (top_left + bottom_right) / 2, bottom_right - top_left
        boxes = jt.concat([centre, size], dim=-1) * strides
        return jt.concat([boxes, jt.ones_like(scores[..., :1]), scores], dim=-1)
