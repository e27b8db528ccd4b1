"""The layers that the model is made of, at the geometries that it uses, as cases for both frameworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from alignment_tests.cases.modules import (
    GLOBAL_NORM,
    NORM,
    TRANSFORMER,
    UNITS,
    Size,
    Unit,
    bilinear,
    pool,
    pooling_block,
    signed,
)


def primitive(build: Callable[[Any], Any], *shape: int, train: bool = False, shift: float = 0.0) -> Unit:
    inputs = (np.float32(signed(31, *shape) + shift).astype(np.float64),)  # exact in float32 after the shift too
    return Unit("primitives", build, inputs, train)


def conv(
    channels: Size, kernel: int, stride: int, size: Size, *, batch: int = 1, groups: int = 1, bias: bool = False
) -> Unit:
    def build(nn: Any) -> Any:
        return nn.Conv2d(*channels, kernel, stride, kernel // 2, groups=groups, bias=bias)

    return primitive(build, batch, channels[0], *size)


def norm(batch: int, size: Size, *, train: bool, shift: float = 0.0, eps: float = 1e-3, momentum: float = 0.03) -> Unit:
    return primitive(
        lambda nn: nn.BatchNorm2d(6, eps=eps, momentum=momentum), batch, 6, *size, train=train, shift=shift
    )


def activation(name: str) -> Unit:
    inputs = (8.0 * signed(35, 2, 3, 5, 7),)
    return Unit("primitives", lambda nn: getattr(nn, name)(), inputs)


def layer(
    build: Callable[[Any], Any], channels: int, size: Size = (7, 5), *, batch: int = 2, train: bool = False
) -> Unit:
    return Unit("layers", build, (signed(32, batch, channels, *size),), train)


def attention(build: Callable[[Any], Any], size: Size, *, train: bool = False) -> Unit:
    return Unit("attention", build, (signed(33, 2, 24, *size),), train)


CONVOLUTIONS = {
    "k1": conv((8, 12), 1, 1, (7, 5)),
    "k1 bias, batch 2": conv((8, 12), 1, 1, (6, 10), batch=2, bias=True),
    "k1 on 1x1": conv((8, 4), 1, 1, (1, 1)),
    "k1 s2, even": conv((8, 12), 1, 2, (8, 6)),
    "k1 s2, odd": conv((8, 12), 1, 2, (7, 5)),
    "k3": conv((8, 12), 3, 1, (7, 5)),
    "k3 bias, batch 2": conv((8, 12), 3, 1, (6, 10), batch=2, bias=True),
    "k3 on 1x1": conv((8, 4), 3, 1, (1, 1)),
    "k3 on 2x3": conv((8, 4), 3, 1, (2, 3)),
    "k3 s2, even": conv((3, 8), 3, 2, (16, 20)),
    "k3 s2, odd": conv((8, 12), 3, 2, (7, 5), batch=2),
    "k3 s2 to 1x1": conv((8, 4), 3, 2, (2, 2)),
    "depthwise": conv((12, 12), 3, 1, (7, 5), groups=12, bias=True),
    "depthwise, batch 2": conv((12, 12), 3, 1, (6, 10), batch=2, groups=12, bias=True),
    "depthwise on 1x1": conv((12, 12), 3, 1, (1, 1), groups=12, bias=True),
    "bins to a distance": conv((17, 1), 1, 1, (4, 35)),
}
NORMS = {
    "eval": norm(2, (7, 5), train=False),
    "eval on 1x1": norm(1, (1, 1), train=False),
    "train": norm(2, (7, 5), train=True),
    "train, batch 1": norm(1, (6, 10), train=True),
    "train, two values": norm(2, (1, 1), train=True),
    "train, SyncBN constants": norm(2, (7, 5), train=True, eps=1e-5, momentum=0.1),
    "train, mean 1000": norm(2, (7, 5), train=True, shift=1000.0),
}
POOLS = {
    f"{mode} {size} to {out}": pool(size, out, mode)
    for mode, size, out in [
        ("torch", (20, 20), (7, 7)),
        ("torch", (13, 13), (5, 5)),
        ("torch", (7, 7), (20, 20)),
        ("torch", (13, 20), (13, 7)),
        ("torch", (5, 4), (1, 1)),
        ("torch", (6, 6), (6, 6)),
        ("onnx", (20, 20), (7, 7)),
        ("onnx", (13, 20), (5, 7)),
    ]
}
RESIZES = {
    f"{size} to {out}": bilinear(size, out)
    for size, out in [
        ((5, 7), (10, 14)),
        ((4, 4), (7, 7)),
        ((1, 1), (3, 4)),
        ((13, 20), (7, 10)),
        ((5, 9), (8, 5)),
        ((6, 6), (6, 6)),
    ]
}
MAX_POOLS = {
    f"on {rows}x{columns}": primitive(lambda nn: nn.MaxPool2d(5, 1, 2), 2, 3, rows, columns, shift=shift)
    for rows, columns, shift in [(9, 7, 0.0), (5, 5, 0.0), (4, 3, -5.0), (1, 1, 0.0), (1, 8, -5.0)]
}
BLOCKS = {
    "ConvNormAct": layer(lambda room: room.ConvNormAct(8, 6, 3, 2, norm=NORM, act=room.silu), 8),
    "ConvNormAct, train": layer(lambda room: room.ConvNormAct(8, 6, 1, norm=NORM), 8, train=True),
    "RepVGG with identity": layer(lambda room: room.RepVGGBlock(8, 8, norm=NORM), 8),
    "RepVGG with identity, train": layer(lambda room: room.RepVGGBlock(8, 8, norm=NORM), 8, train=True),
    "RepVGG s2": layer(lambda room: room.RepVGGBlock(8, 8, 2, norm=NORM), 8),
    "RepVGG to other channels": layer(lambda room: room.RepVGGBlock(8, 6, norm=NORM), 8, batch=1),
    "ConvBlock": layer(lambda room: room.ConvBlock(8, 6, norm=NORM), 8),
    "ConvBlock s2": layer(lambda room: room.ConvBlock(3, 8, 2, norm=NORM), 3, (8, 12)),
    "bottle with shortcut": layer(lambda room: room.BottleRep(8, 8, block="repvgg", norm=NORM), 8),
    "bottle without": layer(lambda room: room.BottleRep(8, 6, block="conv_silu", norm=NORM), 8),
    "row of blocks": layer(
        lambda room: room.repeat_stage(8, 6, 3, kind="rep", block="repvgg", ratio=0.0, norm=NORM), 8
    ),
    "row of one": layer(lambda room: room.repeat_stage(8, 6, 1, kind="rep", block="repvgg", ratio=0.0, norm=NORM), 8),
    "CSP block, train": layer(lambda room: room.BepC3(8, 6, 4, ratio=0.5, block="repvgg", norm=NORM), 8, train=True),
    "SPPF below the window": pooling_block("SPPF", "silu", (3, 4)),
    "SPPF on 1x1": pooling_block("SPPF", "relu", (1, 1)),
    "CSP-SPPF below the window": pooling_block("CSPSPPF", "relu", (4, 3)),
    "attention": attention(lambda room: room.Attention(TRANSFORMER, norm=GLOBAL_NORM), (5, 7)),
    "MLP": attention(lambda room: room.Mlp(TRANSFORMER, norm=GLOBAL_NORM), (5, 7)),
    "transformer, train": attention(lambda room: room.Transformer(TRANSFORMER, norm=GLOBAL_NORM), (4, 3), train=True),
    "hard sigmoid": Unit("fusion", lambda room: room.HardSigmoid(), (8.0 * signed(34, 2, 3, 5, 7),)),
    **{name: activation(name) for name in ("ReLU", "ReLU6", "SiLU", "Identity")},
}
# The other recorded units have their like above.
FUSIONS = (
    "inject_same",
    "inject_up",
    "inject_pool",
    "inject_mixed",
    "ppa_torch",
    "simfusion4",
    "advpool",
    "simfusion3",
)
LAYERS: dict[str, Unit] = {
    f"{group}: {name}": unit
    for group, cases in {
        "conv": CONVOLUTIONS,
        "norm": NORMS,
        "pool": POOLS,
        "resize": RESIZES,
        "max pool": MAX_POOLS,
        "block": BLOCKS,
        "fusion": {name: UNITS[name] for name in FUSIONS},
    }.items()
    for name, unit in cases.items()
}
