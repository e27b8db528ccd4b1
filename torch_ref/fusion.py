"""Gather and distribute: align maps of several sizes, fuse them, inject the global map into a local one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fixtures.config import NormConfig
from torch_ref.layers import (
    ConvNormAct,
    adaptive_avg_pool2d,
    batch_norm,
    conv2d,
    relu6,
    resize_bilinear,
    spatial_size,
)


class LowAlign(nn.Module):
    """Bring (c2, c3, c4, c5) to c4's size and concatenate."""

    def __init__(self, pool_mode: str) -> None:
        super().__init__()
        self.pool_mode = pool_mode

    def forward(self, maps: list[Tensor]) -> Tensor:
        c2, c3, c4, c5 = maps
        size = spatial_size(c4)
        pooled = [adaptive_avg_pool2d(x, size, self.pool_mode) for x in (c2, c3)]
        return torch.cat([*pooled, c4, resize_bilinear(c5, size)], dim=1)


class HighAlign(nn.Module):
    """Pool every map to the last one's size divided by ``stride``, rounded up, and concatenate."""

    def __init__(self, stride: int, pool_mode: str) -> None:
        super().__init__()
        self.stride, self.pool_mode = stride, pool_mode

    def forward(self, maps: list[Tensor]) -> Tensor:
        height, width = spatial_size(maps[-1])
        size = ((height - 1) // self.stride + 1, (width - 1) // self.stride + 1)
        return torch.cat([adaptive_avg_pool2d(x, size, self.pool_mode) for x in maps], dim=1)


class ThreeMapFusion(nn.Module):
    """Local fusion of the low stage: (finer, middle, coarser) at the middle's size."""

    def __init__(self, channels: int, last_channels: int, pool_mode: str, *, norm: NormConfig) -> None:
        super().__init__()
        self.pool_mode = pool_mode
        self.cv1 = ConvNormAct(channels, last_channels, 1, norm=norm)
        self.cv_fuse = ConvNormAct(3 * last_channels, last_channels, 1, norm=norm)

    def forward(self, maps: list[Tensor]) -> Tensor:
        finer, middle, coarser = maps
        size = spatial_size(middle)
        pooled = adaptive_avg_pool2d(finer, size, self.pool_mode)
        return self.cv_fuse(torch.cat([pooled, self.cv1(middle), resize_bilinear(coarser, size)], dim=1))


class AdjacentFusion(nn.Module):
    """Local fusion of the high stage: pool the finer map to the coarser one's size and concatenate."""

    def __init__(self, pool_mode: str) -> None:
        super().__init__()
        self.pool_mode = pool_mode

    def forward(self, finer: Tensor, coarser: Tensor) -> Tensor:
        pooled = adaptive_avg_pool2d(finer, spatial_size(coarser), self.pool_mode)
        return torch.cat([pooled, coarser], dim=1)


class HardSigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = relu6()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + 3) / 6


class PlainConvNorm(nn.Module):
    """1x1 convolution without bias, and norm, keys ``conv`` and ``bn``."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormConfig) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, 1)
        self.bn = batch_norm(out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Injection(nn.Module):
    """Distribute: local embedding times the gate from the global map, plus the global embedding.

    Where the local map has fewer rows than the global one (widths are not compared), both global maps are pooled and
    the gate stays linear; else the gate is a hard sigmoid and both are resized.
    """

    def __init__(self, in_channels: int, out_channels: int, global_channels: int, *, norm: NormConfig) -> None:
        super().__init__()
        self.local_embedding = PlainConvNorm(in_channels, out_channels, norm=norm)
        self.global_embedding = PlainConvNorm(global_channels, out_channels, norm=norm)
        self.global_act = PlainConvNorm(global_channels, out_channels, norm=norm)
        self.act = HardSigmoid()

    def forward(self, local: Tensor, global_map: Tensor) -> Tensor:
        size, rows = spatial_size(local), global_map.shape[-2]
        local = self.local_embedding(local)
        gate, embedding = self.global_act(global_map), self.global_embedding(global_map)
        if size[0] < rows:
            gate, embedding = adaptive_avg_pool2d(gate, size), adaptive_avg_pool2d(embedding, size)
        else:
            gate, embedding = resize_bilinear(self.act(gate), size), resize_bilinear(embedding, size)
        return local * gate + embedding
