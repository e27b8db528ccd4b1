"""Building blocks that backbone, neck and head share. Attribute names are those of the public checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.config import NormConfig

Activation = Callable[[], nn.Module]


def conv2d(in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Convolution that keeps the size at stride 1 (padding kernel // 2)."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)


def batch_norm(channels: int, norm: NormConfig) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=norm.eps, momentum=norm.momentum)


def relu() -> nn.Module:
    return nn.ReLU()


def relu6() -> nn.Module:
    return nn.ReLU6()


def silu() -> nn.Module:
    return nn.SiLU()


def identity() -> nn.Module:
    return nn.Identity()


def adaptive_avg_pool2d(x: Tensor, size: tuple[int, int], mode: str = "torch") -> Tensor:
    """Average-pool (N, C, H, W) to ``size``.

    ``mode="onnx"`` is the fixed-window stand-in of the public code's export: stride floor(H / out), window
    H - (out - 1) * stride. It equals the adaptive pool only where the sizes divide.
    """
    if mode == "torch":
        return F.adaptive_avg_pool2d(x, size)
    if mode != "onnx":
        raise ValueError(f"`mode` must be 'torch' or 'onnx'. Received: {mode!r}")
    height, width = x.shape[-2] // size[0], x.shape[-1] // size[1]
    window = (x.shape[-2] - (size[0] - 1) * height, x.shape[-1] - (size[1] - 1) * width)
    return F.avg_pool2d(x, window, (height, width))


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, H, W) to ``size``, bilinear with align_corners=False."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def spatial_size(x: Tensor) -> tuple[int, int]:
    return int(x.shape[-2]), int(x.shape[-1])


class ConvNormAct(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        norm: NormConfig,
        act: Activation = relu,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel, stride, bias)
        self.bn = batch_norm(out_channels, norm)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


def conv_and_norm(in_channels: int, out_channels: int, kernel: int, stride: int, norm: NormConfig) -> nn.Sequential:
    """The branch of a RepVGG block, keys ``conv`` and ``bn``."""
    branch = nn.Sequential()
    branch.add_module("conv", conv2d(in_channels, out_channels, kernel, stride))
    branch.add_module("bn", batch_norm(out_channels, norm))
    return branch


class RepVGGBlock(nn.Module):
    """3x3 and 1x1 convolution and, where shapes agree, identity, each with a norm, summed (arXiv 2101.03697).

    ``fuse`` replaces the branches by one 3x3 convolution, ``rbr_reparam``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, norm: NormConfig) -> None:
        super().__init__()
        self.nonlinearity = relu()
        self.se = identity()
        same = in_channels == out_channels and stride == 1
        self.rbr_identity = batch_norm(out_channels, norm) if same else None
        self.rbr_dense = conv_and_norm(in_channels, out_channels, 3, stride, norm)
        self.rbr_1x1 = conv_and_norm(in_channels, out_channels, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "rbr_reparam"):
            return self.nonlinearity(self.se(self.rbr_reparam(x)))
        kept = self.rbr_identity(x) if self.rbr_identity is not None else 0
        return self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + kept))


class ConvBlock(nn.Module):
    """The plain block of size L: 3x3 convolution with bias, norm, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, norm: NormConfig) -> None:
        super().__init__()
        self.block = ConvNormAct(in_channels, out_channels, 3, stride, norm=norm, act=silu, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


BLOCKS: dict[str, type[nn.Module]] = {"repvgg": RepVGGBlock, "conv_silu": ConvBlock}


def activation_of(block: str) -> Activation:
    """The activation of the 1x1 convolutions that go with a block."""
    return silu if block == "conv_silu" else relu


class BottleRep(nn.Module):
    """Two blocks and, where channels agree, ``alpha`` times the input."""

    def __init__(self, in_channels: int, out_channels: int, *, block: str, norm: NormConfig) -> None:
        super().__init__()
        self.shortcut = in_channels == out_channels
        if self.shortcut:
            self.alpha = nn.Parameter(torch.ones(1))
        self.conv1 = BLOCKS[block](in_channels, out_channels, norm=norm)
        self.conv2 = BLOCKS[block](out_channels, out_channels, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        return out + self.alpha * x if self.shortcut else out


class RepBlock(nn.Module):
    """``count`` units in a row: ``conv1``, then the sequence ``block`` (absent for a single one)."""

    def __init__(self, in_channels: int, out_channels: int, count: int, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = make(in_channels, out_channels)
        rest = [make(out_channels, out_channels) for _ in range(count - 1)]
        self.block = nn.Sequential(*rest) if rest else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.block(x) if self.block is not None else x


class BepC3(nn.Module):
    """CSP block: one half through ``count // 2`` bottles, the other past them."""

    def __init__(
        self, in_channels: int, out_channels: int, count: int, *, ratio: float, block: str, norm: NormConfig
    ) -> None:
        super().__init__()
        hidden, act = int(out_channels * ratio), activation_of(block)
        self.cv1 = ConvNormAct(in_channels, hidden, 1, norm=norm, act=act)
        self.cv2 = ConvNormAct(in_channels, hidden, 1, norm=norm, act=act)
        self.cv3 = ConvNormAct(2 * hidden, out_channels, 1, norm=norm, act=act)
        self.m = RepBlock(hidden, hidden, max(1, count // 2), lambda i, o: BottleRep(i, o, block=block, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))


def repeat_stage(
    in_channels: int, out_channels: int, count: int, *, kind: str, block: str, ratio: float, norm: NormConfig
) -> nn.Module:
    """A stage of ``count`` blocks: in a row, or inside a CSP block where ``kind`` is "csp"."""
    if kind == "csp":
        return BepC3(in_channels, out_channels, count, ratio=ratio, block=block, norm=norm)
    return RepBlock(in_channels, out_channels, count, lambda i, o: BLOCKS[block](i, o, norm=norm))


class SPPF(nn.Module):
    """Spatial pyramid: three 5x5 max pools in a row, all four maps concatenated."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormConfig, act: Activation) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = ConvNormAct(in_channels, hidden, 1, norm=norm, act=act)
        self.cv2 = ConvNormAct(4 * hidden, out_channels, 1, norm=norm, act=act)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(pyramid(self.cv1(x), self.m))


class CSPSPPF(nn.Module):
    """Spatial pyramid inside a CSP block."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormConfig, act: Activation) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = ConvNormAct(in_channels, hidden, 1, norm=norm, act=act)
        self.cv2 = ConvNormAct(in_channels, hidden, 1, norm=norm, act=act)
        self.cv3 = ConvNormAct(hidden, hidden, 3, norm=norm, act=act)
        self.cv4 = ConvNormAct(hidden, hidden, 1, norm=norm, act=act)
        self.m = nn.MaxPool2d(5, 1, 2)
        self.cv5 = ConvNormAct(4 * hidden, hidden, 1, norm=norm, act=act)
        self.cv6 = ConvNormAct(hidden, hidden, 3, norm=norm, act=act)
        self.cv7 = ConvNormAct(2 * hidden, out_channels, 1, norm=norm, act=act)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.cv4(self.cv3(self.cv1(x)))
        past = self.cv2(x)
        return self.cv7(torch.cat([past, self.cv6(self.cv5(pyramid(inner, self.m)))], dim=1))


def pyramid(x: Tensor, pool: nn.Module) -> Tensor:
    """(N, C, H, W) -> (N, 4C, H, W): the map and its one, two and three times pooled forms."""
    once = pool(x)
    twice = pool(once)
    return torch.cat([x, once, twice, pool(twice)], dim=1)


POOLING: dict[str, type[nn.Module]] = {"sppf": SPPF, "csp_sppf": CSPSPPF}
