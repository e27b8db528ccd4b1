"""Building blocks that backbone, neck and head share, with Jittor's own wherever they compute what PyTorch does.

The first half holds what they don't; each says what was measured (Jittor 1.3.11 against PyTorch, CPU). The second half
mirrors ``torch_ref/layers.py``. Attribute names are those of the public checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fixtures.config import NormConfig
from jt_impl import mixed
from jt_impl.kernels import convolution, exponential, float64, statistics
from jt_impl.runtime import jittor as jt

nn: Any = jt.nn
Var = Any
Activation = Callable[[], nn.Module]


def is_double(x: Var) -> bool:
    return str(x.dtype) == "float64"


def constant(value: float, like: Var) -> Any:
    """A constant in the precision of ``like``: Jittor takes Python floats as float32, 3e-9 off in a float64 graph."""
    return jt.array64(np.array([value])) if is_double(like) else value


def to_var(array: Any, like: Var) -> Var:
    """A numpy array as a Var of the dtype of ``like``; ``jt.array`` alone turns float64 into float32."""
    return jt.array64(np.asarray(array, np.float64)) if is_double(like) else jt.array(np.asarray(array, np.float32))


@mixed.product
def matmul(a: Var, b: Var) -> Var:
    """Product over the last two dimensions; in float64 by our own kernel, since Jittor has only loops there."""
    return float64.matmul(a, b) if is_double(a) else jt.matmul(a, b)


@mixed.in_single
def softmax(x: Var, dim: int) -> Var:
    """With exact float64; ``nn.softmax`` on CUDA switches kernels with the size of the last dimension."""
    exponent = exponential.exp(x - x.max(dim, keepdims=True).detach())  # the gradient by the maximum cancels
    return exponent / exponent.sum(dim, keepdims=True)


normalised, batch_normalise = (mixed.in_single(f) for f in (statistics.normalised, statistics.batch_normalise))


class Conv2d(nn.Module):
    """Square 2-d convolution: oneDNN in float32, ``jt_impl.kernels.float64`` in float64 (Jittor has naive loops)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if groups not in (1, in_channels):
            raise ValueError(f"`groups` must be 1 or `in_channels` ({in_channels}). Received: {groups}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel, self.stride, self.padding = kernel, stride, padding
        bound = 1.0 / math.sqrt(in_channels // groups * kernel * kernel)
        self.weight = jt.init.uniform((out_channels, in_channels // groups, kernel, kernel), "float32", -bound, bound)
        self.bias = jt.init.uniform((out_channels,), "float32", -bound, bound) if bias else None
        self.kept = convolution.Kept()

    def execute(self, x: Var) -> Var:
        if self.keeps(x):
            return self.by_kept(x)
        return self.convolve(x, self.weight, *([] if self.bias is None else [self.bias]))

    def keeps(self, x: Var) -> bool:
        return self.groups == 1 and convolution.applies(x)

    def by_kept(self, x: Var, *, relu: bool = False) -> Var:
        return convolution.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.kept, relu=relu)

    @mixed.product
    def convolve(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        if is_double(x):
            product = float64.conv2d if self.groups == 1 else float64.depthwise_conv2d
            y = product(x, weight, self.stride, self.padding)
        else:
            y = nn.conv2d(x, weight, None, self.stride, self.padding, 1, self.groups)
        return y if bias is None else statistics.add_bias(y, bias)


class BatchNorm2d(nn.Module):
    """``nn.BatchNorm`` keeps a biased running variance (ratio n / (n - 1)) and takes E[x^2] - E[x]^2 (at mean 1000
    its error is 1.27, a two-pass variance 5e-7)."""

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.num_features, self.eps, self.momentum = channels, eps, momentum
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))
        self.running_mean = jt.zeros((channels,)).stop_grad()
        self.running_var = jt.ones((channels,)).stop_grad()

    def execute(self, x: Var) -> Var:
        if not self.is_training():
            return normalised(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        count = x.shape[0] * x.shape[2] * x.shape[3]
        if count == 1:
            raise ValueError(f"batch norm needs more than one value per channel in training. Received: {x.shape}")
        y, mean, variance = batch_normalise(x, self.weight, self.bias, self.eps)
        with mixed.full():
            self.move_running_statistics(mean, variance * constant(count / (count - 1), mean))
        return y

    def move_running_statistics(self, mean: Var, variance: Var) -> None:
        """Towards the batch's mean and unbiased variance."""
        momentum = constant(self.momentum, mean)
        for running, batch in ((self.running_mean, mean), (self.running_var, variance)):
            running.update((running + (batch.detach() - running) * momentum).stop_grad())


class MaxPool2d(nn.Module):
    """``nn.Pool`` refuses maps no larger than its window, whatever the padding; so the map is padded before."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        if stride != 1 or 2 * padding != kernel - 1:
            raise ValueError(f"the pool must keep the size. Received: {kernel=}, {stride=}, {padding=}")
        self.kernel, self.padding = kernel, padding

    @mixed.in_single
    def execute(self, x: Var) -> Var:
        height, width = spatial_size(x)
        before, after = self.padding, self.padding + 1  # one more, or the padded map could be no larger than the window
        padded = nn.pad(x, [before, after, before, after], value=-3e38)
        return nn.pool(padded, self.kernel, "maximum", 0, 1)[:, :, :height, :width]


class DepthwiseConv2d(Conv2d):
    def __init__(self, channels: int, kernel: int, padding: int) -> None:
        super().__init__(channels, channels, kernel, 1, padding, groups=channels)


@lru_cache(maxsize=256)
def pooling_matrix(size: int, out: int) -> Any:
    """(out, size): each row averages the window floor(i * size / out) .. ceil((i + 1) * size / out)."""
    matrix = np.zeros((out, size))
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix


@lru_cache(maxsize=256)
def bilinear_matrix(size: int, out: int) -> Any:
    """(out, size): linear interpolation at the centres of ``out`` cells (align_corners=False)."""
    position = np.maximum((np.arange(out) + 0.5) * (size / out) - 0.5, 0.0)
    low = np.minimum(position.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out), low), 1.0 - (position - low))
    np.add.at(matrix, (np.arange(out), high), position - low)
    return matrix


def resample(x: Var, rows: Any, columns: Any) -> Var:
    """``rows @ x @ columns.T`` for each map of (N, C, H, W), as two plain matrix products."""
    batch, channels, height, width = x.shape
    x = matmul(x.reshape(batch * channels * height, width), to_var(columns.T, x))
    x = x.reshape(batch * channels, height, -1).transpose(0, 2, 1).reshape(-1, height)
    x = matmul(x, to_var(rows.T, x)).reshape(batch * channels, columns.shape[0], rows.shape[0])
    return x.transpose(0, 2, 1).reshape(batch, channels, rows.shape[0], columns.shape[0])


def window_average(x: Var, window: tuple[int, int], stride: tuple[int, int]) -> Var:
    """Average over fixed windows without padding."""
    rows, columns = ((n - w) // s + 1 for n, w, s in zip(x.shape[-2:], window, stride, strict=True))
    places = ["i0", "i1", f"i2*{stride[0]}+i4", f"i3*{stride[1]}+i5"]
    windows = x.reindex([x.shape[0], x.shape[1], rows, columns, *window], places)
    return windows.sum((4, 5)) / (window[0] * window[1])


def adaptive_avg_pool2d(x: Var, size: tuple[int, int], mode: str = "torch") -> Var:
    """Average-pool (N, C, H, W) to ``size``.

    ``nn.AdaptiveAvgPool2d`` uses one fixed window: 0.5 off at 13 -> 5, and it divides by zero when it enlarges.
    ``mode="onnx"`` is that fixed-window pool, which the public code exports.
    """
    if mode == "torch":
        if size == spatial_size(x):
            return x
        return resample(x, pooling_matrix(x.shape[2], size[0]), pooling_matrix(x.shape[3], size[1]))
    if mode != "onnx":
        raise ValueError(f"`mode` must be 'torch' or 'onnx'. Received: {mode!r}")
    height, width = x.shape[-2] // size[0], x.shape[-1] // size[1]
    window = (x.shape[-2] - (size[0] - 1) * height, x.shape[-1] - (size[1] - 1) * width)
    return window_average(x, window, (height, width))


def resize_bilinear(x: Var, size: tuple[int, int]) -> Var:
    """Resize (N, C, H, W) to ``size``, bilinear with align_corners=False.

    Matrix products: ``nn.interpolate`` takes its coordinates in float32, also for float64 maps, and twice the time.
    """
    if size == spatial_size(x):
        return x
    return resample(x, bilinear_matrix(x.shape[2], size[0]), bilinear_matrix(x.shape[3], size[1]))


def spatial_size(x: Var) -> tuple[int, int]:
    return int(x.shape[-2]), int(x.shape[-1])


class ReLU(nn.Module):
    """``nn.relu`` is a maximum: it turns NaN into 0, and its gradient at 0 is not PyTorch's."""

    def execute(self, x: Var) -> Var:
        return jt.ternary(x <= 0.0, jt.zeros_like(x), x)


class ReLU6(nn.Module):
    """``nn.relu6`` turns NaN into 0 too."""

    def execute(self, x: Var) -> Var:
        return jt.ternary(x <= 0.0, jt.zeros_like(x), jt.ternary(x >= 6.0, jt.full_like(x, 6.0), x))


class SiLU(nn.Module):
    """``nn.silu`` multiplies by the clamped sigmoid."""

    def execute(self, x: Var) -> Var:
        return exponential.silu(x)


class Identity(nn.Module):
    def execute(self, x: Var) -> Var:
        return x


def observed(module: nn.Module) -> bool:
    """Whether somebody wants to see the module's call: a hook of Jittor's, or an ``execute`` of the instance's own."""
    return any(name == "execute" or "hook__" in name for name in module.__dict__)


def chained(x: Var, conv: nn.Module, *rest: nn.Module) -> Var:
    """The modules one after the other. Convolution and ReLU take one pass in inference, where nobody looks in between:
    the same bits."""
    *between, last = rest
    joins = type(conv) is Conv2d and type(last) is ReLU and all(type(module) is Identity for module in between)
    if joins and conv.keeps(x) and not any(observed(module) for module in (conv, *rest)):
        return conv.by_kept(x, relu=True)
    for module in (conv, *rest):
        x = module(x)
    return x


def conv2d(in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> Conv2d:
    """Convolution that keeps the size at stride 1 (padding kernel // 2)."""
    return Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)


def batch_norm(channels: int, norm: NormConfig) -> BatchNorm2d:
    return BatchNorm2d(channels, eps=norm.eps, momentum=norm.momentum)


def relu() -> nn.Module:
    return ReLU()


def relu6() -> nn.Module:
    return ReLU6()


def silu() -> nn.Module:
    return SiLU()


def identity() -> nn.Module:
    return Identity()


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

    def execute(self, x: Var) -> Var:
        return chained(x, self.conv, self.bn, self.act)


class ConvAndNorm(nn.Module):
    """The branch of a RepVGG block, keys ``conv`` and ``bn``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, norm: NormConfig) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel, stride)
        self.bn = batch_norm(out_channels, norm)

    def execute(self, x: Var) -> Var:
        return self.bn(self.conv(x))


conv_and_norm = ConvAndNorm


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

    def execute(self, x: Var) -> Var:
        if hasattr(self, "rbr_reparam"):
            return chained(x, self.rbr_reparam, self.se, self.nonlinearity)
        kept = self.rbr_identity(x) if self.rbr_identity is not None else 0
        return self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + kept))


class ConvBlock(nn.Module):
    """The plain block of size L: 3x3 convolution with bias, norm, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, norm: NormConfig) -> None:
        super().__init__()
        self.block = ConvNormAct(in_channels, out_channels, 3, stride, norm=norm, act=silu, bias=True)

    def execute(self, x: Var) -> Var:
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
            self.alpha = jt.ones((1,))
        self.conv1 = BLOCKS[block](in_channels, out_channels, norm=norm)
        self.conv2 = BLOCKS[block](out_channels, out_channels, norm=norm)

    def execute(self, x: Var) -> Var:
        out = self.conv2(self.conv1(x))
        return out + self.alpha * x if self.shortcut else out


class RepBlock(nn.Module):
    """``count`` units in a row: ``conv1``, then the sequence ``block`` (absent for a single one)."""

    def __init__(self, in_channels: int, out_channels: int, count: int, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = make(in_channels, out_channels)
        rest = [make(out_channels, out_channels) for _ in range(count - 1)]
        self.block = nn.Sequential(*rest) if rest else None

    def execute(self, x: Var) -> Var:
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

    def execute(self, x: Var) -> Var:
        return self.cv3(jt.concat([self.m(self.cv1(x)), self.cv2(x)], dim=1))


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
        self.m = MaxPool2d(5, 1, 2)

    def execute(self, x: Var) -> Var:
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
        self.m = MaxPool2d(5, 1, 2)
        self.cv5 = ConvNormAct(4 * hidden, hidden, 1, norm=norm, act=act)
        self.cv6 = ConvNormAct(hidden, hidden, 3, norm=norm, act=act)
        self.cv7 = ConvNormAct(2 * hidden, out_channels, 1, norm=norm, act=act)

    def execute(self, x: Var) -> Var:
        inner = self.cv4(self.cv3(self.cv1(x)))
        past = self.cv2(x)
        return self.cv7(jt.concat([past, self.cv6(self.cv5(pyramid(inner, self.m)))], dim=1))


def pyramid(x: Var, pool: nn.Module) -> Var:
    """(N, C, H, W) -> (N, 4C, H, W): the map and its one, two and three times pooled forms."""
    once = pool(x)
    twice = pool(once)
    return jt.concat([x, once, twice, pool(twice)], dim=1)


POOLING: dict[str, type[nn.Module]] = {"sppf": SPPF, "csp_sppf": CSPSPPF}
