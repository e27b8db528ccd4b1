"""Modules alone in float64 with seeded weights, built the same way from either package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import converters
from fixtures.config import NormConfig, TransformerConfig
from fixtures.seeded import seeded_state, uniform

Array = npt.NDArray[np.float64]

NORM, GLOBAL_NORM = NormConfig(1e-3, 0.03), NormConfig(1e-5, 0.1)
TRANSFORMER = TransformerConfig(
    depth=2, dim=24, heads=4, key_dim=8, mlp_ratio=1, attention_ratio=2, pool_stride=2, drop_path=0.1
)


def signed(seed: int, *shape: int) -> Array:
    """Numbers in [-1, 1) that float32 holds exactly."""
    return (2.0 * uniform(seed, int(np.prod(shape))) - 1.0).astype(np.float32).astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class Unit:
    """``build(package_module)`` gives a module or a function; ``inputs`` are its positional arguments."""

    file: str
    build: Callable[[Any], Any]
    inputs: tuple[Any, ...]


def injection(local: tuple[int, int], gathered: tuple[int, int]) -> Unit:
    inputs = (signed(1, 2, 6, *local), signed(2, 2, 6, *gathered))
    return Unit("fusion", lambda room: room.Injection(6, 6, 6, norm=GLOBAL_NORM), inputs)


def pool(size: tuple[int, int], out: tuple[int, int], mode: str) -> Unit:
    return Unit("layers", lambda room: lambda x: room.adaptive_avg_pool2d(x, out, mode), (signed(3, 1, 3, *size),))


def bilinear(size: tuple[int, int], out: tuple[int, int]) -> Unit:
    return Unit("layers", lambda room: lambda x: room.resize_bilinear(x, out), (signed(4, 1, 3, *size),))


def pooling_block(kind: str, act: str) -> Unit:
    return Unit(
        "layers", lambda room: getattr(room, kind)(8, 8, norm=NORM, act=getattr(room, act)), (signed(18, 1, 8, 9, 7),)
    )


def csp(out: int, count: int, ratio: float, block: str) -> Unit:
    return Unit(
        "layers",
        lambda room: room.BepC3(12, out, count, ratio=ratio, block=block, norm=NORM),
        (signed(19, 1, 12, 6, 5),),
    )


PYRAMID = [signed(5, 1, 2, 52, 32), signed(6, 1, 3, 26, 16), signed(7, 1, 4, 13, 8)]
FOUR_MAPS = [signed(8, 1, 2, 32, 48), signed(9, 1, 2, 16, 24), signed(10, 1, 2, 8, 12), signed(11, 1, 2, 4, 6)]
THREE_MAPS = [signed(14, 1, 4, 16, 24), signed(15, 1, 4, 8, 12), signed(16, 1, 4, 4, 6)]
GEOMETRIES = [((13, 20), (7, 10)), ((52, 80), (7, 10)), ((7, 7), (4, 4)), ((20, 20), (10, 10)), ((8, 13), (4, 7))]

UNITS: dict[str, Unit] = {
    "inject_same": injection((8, 10), (8, 10)),
    "inject_up": injection((8, 10), (3, 5)),
    "inject_pool": injection((5, 7), (8, 10)),
    "inject_mixed": injection((8, 5), (5, 9)),
    **{f"pool_{mode}_{size}_{out}": pool(size, out, mode) for size, out in GEOMETRIES for mode in ("torch", "onnx")},
    **{f"bilinear_{out}_{size}": bilinear(out, size) for size, out in GEOMETRIES},
    "ppa_torch": Unit("fusion", lambda room: room.HighAlign(2, "torch"), (PYRAMID,)),
    "ppa_onnx": Unit("fusion", lambda room: room.HighAlign(2, "onnx"), (PYRAMID,)),
    "simfusion4": Unit("fusion", lambda room: room.LowAlign("torch"), (FOUR_MAPS,)),
    "advpool": Unit("fusion", lambda room: room.AdjacentFusion("torch"), (signed(12, 1, 2, 17, 24), signed(13, 1, 3, 9, 12))),
    "simfusion3": Unit("fusion", lambda room: room.ThreeMapFusion(4, 4, "torch", norm=NORM), (THREE_MAPS,)),
    "topbasic_eval": Unit(
        "attention", lambda room: room.Transformer(TRANSFORMER, norm=GLOBAL_NORM), (signed(17, 2, 24, 4, 5),)
    ),
    "simsppf": pooling_block("SPPF", "relu"),
    "sppf": pooling_block("SPPF", "silu"),
    "simcspsppf": pooling_block("CSPSPPF", "relu"),
    "bepc3_rep": csp(9, 7, 2 / 3, "repvgg"),
    "bepc3_conv": csp(8, 4, 1 / 2, "conv_silu"),
}


def unit_output(package: str, name: str) -> Array:
    """Output of one unit of ``package`` in float64 and eval mode."""
    unit = UNITS[name]
    module = unit.build(importlib.import_module(f"{package}.{unit.file}"))
    return torch_output(module, unit.inputs) if package == "torch_ref" else jittor_output(module, unit.inputs)


def seed_weights(module: Any) -> None:
    shapes = {key: value.shape for key, value in converters.read_state(module).items()}
    converters.load_into(module, seeded_state(shapes))


def nested(value: Any, convert: Callable[[Array], Any]) -> Any:
    return [nested(item, convert) for item in value] if isinstance(value, (list, tuple)) else convert(value)


def torch_output(module: Any, inputs: tuple[Any, ...]) -> Array:
    if isinstance(module, torch.nn.Module):
        module.double().eval()
        seed_weights(module)
    with torch.no_grad():
        return module(*nested(inputs, torch.from_numpy)).numpy()


def jittor_output(module: Any, inputs: tuple[Any, ...]) -> Array:
    from jt_impl.runtime import jittor as jt

    if isinstance(module, jt.nn.Module):
        to_double(module)
        seed_weights(module)
        module.eval()
    with jt.no_grad():
        return module(*nested(inputs, jt.array64)).numpy()


def to_double(module: Any) -> None:
    """Every Var of a Jittor module in float64, as trainable as it was."""
    from jt_impl.model import replaced
    from jt_impl.runtime import jittor as jt

    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, jt.Var):
                setattr(part, name, replaced(value, value.numpy().astype(np.float64)))
