"""The transformer of the high stage: attention over a small map, and an MLP with a depth-wise convolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fixtures.config import NormConfig, TransformerConfig
from jt_impl.layers import (
    DepthwiseConv2d,
    Var,
    batch_norm,
    constant,
    conv2d,
    identity,
    matmul,
    nn,
    relu6,
    softmax,
    to_var,
)
from jt_impl.runtime import jittor as jt

Draw = Callable[[int], npt.NDArray[np.float32]]


class ConvNorm(nn.Module):
    """1x1 convolution without bias, and norm, keys ``c`` and ``bn``."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormConfig) -> None:
        super().__init__()
        self.c = conv2d(in_channels, out_channels, 1)
        self.bn = batch_norm(out_channels, norm)

    def execute(self, x: Var) -> Var:
        return self.bn(self.c(x))


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a whole sample's branch and scale the kept ones by 1 / keep.

    ``draw(batch)``, where set, gives the uniform numbers, so that two frameworks can drop the same samples.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.draw: Draw | None = None

    def execute(self, x: Var) -> Var:
        if not self.is_training() or self.rate == 0.0:
            return x
        keep, batch = 1.0 - self.rate, x.shape[0]
        uniform = jt.rand(batch) if self.draw is None else to_var(self.draw(batch), x)
        mask = jt.floor(constant(keep, x) + uniform).reshape(batch, 1, 1, 1)
        return x / constant(keep, x) * mask


class Attention(nn.Module):
    """Multi-head attention over all positions of a map, without scaling of the products."""

    def __init__(self, settings: TransformerConfig, *, norm: NormConfig) -> None:
        super().__init__()
        self.heads, self.key_dim = settings.heads, settings.key_dim
        self.value_dim = settings.attention_ratio * settings.key_dim
        self.to_q = ConvNorm(settings.dim, self.heads * self.key_dim, norm=norm)
        self.to_k = ConvNorm(settings.dim, self.heads * self.key_dim, norm=norm)
        self.to_v = ConvNorm(settings.dim, self.heads * self.value_dim, norm=norm)
        self.proj = nn.Sequential(relu6(), ConvNorm(self.heads * self.value_dim, settings.dim, norm=norm))

    def execute(self, x: Var) -> Var:
        batch, _, height, width = x.shape
        queries = self.to_q(x).reshape(batch, self.heads, self.key_dim, -1).permute(0, 1, 3, 2)  # (N, heads, HW, d)
        keys = self.to_k(x).reshape(batch, self.heads, self.key_dim, -1)  # (N, heads, d, HW)
        values = self.to_v(x).reshape(batch, self.heads, self.value_dim, -1).permute(0, 1, 3, 2)
        weights = softmax(matmul(queries, keys), dim=-1)  # (N, heads, HW, HW)
        mixed = matmul(weights, values).permute(0, 1, 3, 2)
        return self.proj(mixed.reshape(batch, self.heads * self.value_dim, height, width))


class Mlp(nn.Module):
    def __init__(self, settings: TransformerConfig, *, norm: NormConfig) -> None:
        super().__init__()
        dim, hidden = settings.dim, settings.mlp_ratio * settings.dim
        self.fc1 = ConvNorm(dim, hidden, norm=norm)
        self.dwconv = DepthwiseConv2d(hidden, 3, 1)
        self.act = relu6()
        self.fc2 = ConvNorm(hidden, dim, norm=norm)
        self.drop = nn.Dropout(0.0)

    def execute(self, x: Var) -> Var:
        x = self.drop(self.act(self.dwconv(self.fc1(x))))
        return self.drop(self.fc2(x))


class TransformerBlock(nn.Module):
    def __init__(self, settings: TransformerConfig, drop_path: float, *, norm: NormConfig) -> None:
        super().__init__()
        self.attn = Attention(settings, norm=norm)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else identity()
        self.mlp = Mlp(settings, norm=norm)

    def execute(self, x: Var) -> Var:
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.mlp(x))


class Transformer(nn.Module):
    """``depth`` blocks whose drop rates rise linearly from 0 to ``drop_path``. (N, dim, H, W) to the same."""

    def __init__(self, settings: TransformerConfig, *, norm: NormConfig) -> None:
        super().__init__()
        rates = np.linspace(0.0, settings.drop_path, settings.depth)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(settings, float(r), norm=norm) for r in rates])

    def execute(self, x: Var) -> Var:
        for block in self.transformer_blocks:
            x = block(x)
        return x
