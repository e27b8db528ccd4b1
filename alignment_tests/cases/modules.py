"""Modules alone with seeded weights, built the same way from either package and run in either precision."""

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

Array = npt.NDArray[Any]
Size = tuple[int, int]

NORM, GLOBAL_NORM = NormConfig(1e-3, 0.03), NormConfig(1e-5, 0.1)
TRANSFORMER = TransformerConfig(
    depth=2, dim=24, heads=4, key_dim=8, mlp_ratio=1, attention_ratio=2, pool_stride=2, drop_path=0.1
)
# Where "primitives" are built from: the framework's own modules on one side, what stands in for them on the other.
PRIMITIVES = {"torch_ref": "torch.nn", "jt_impl": "jt_impl.layers"}


def signed(seed: int, *shape: int) -> Array:
    """Numbers in [-1, 1) that float32 holds exactly."""
    return (2.0 * uniform(seed, int(np.prod(shape))) - 1.0).astype(np.float32).astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class Unit:
    """``build(file)`` gives a module or a function from a file of a package; ``inputs`` are positional arguments."""

    file: str
    build: Callable[[Any], Any]
    inputs: tuple[Any, ...]
    train: bool = False


def injection(local: Size, gathered: Size) -> Unit:
    inputs = (signed(1, 2, 6, *local), signed(2, 2, 6, *gathered))
    return Unit("fusion", lambda room: room.Injection(6, 6, 6, norm=GLOBAL_NORM), inputs)


def pool(size: Size, out: Size, mode: str = "torch") -> Unit:
    return Unit("layers", lambda room: lambda x: room.adaptive_avg_pool2d(x, out, mode), (signed(3, 1, 3, *size),))


def bilinear(size: Size, out: Size) -> Unit:
    return Unit("layers", lambda room: lambda x: room.resize_bilinear(x, out), (signed(4, 1, 3, *size),))


def pooling_block(kind: str, act: str, size: Size = (9, 7)) -> Unit:
    inputs = (signed(18, 1, 8, *size),)
    return Unit("layers", lambda room: getattr(room, kind)(8, 8, norm=NORM, act=getattr(room, act)), inputs)


def csp(out: int, count: int, ratio: float, block: str) -> Unit:
    inputs = (signed(19, 1, 12, 6, 5),)
    return Unit("layers", lambda room: room.BepC3(12, out, count, ratio=ratio, block=block, norm=NORM), inputs)


def fusion(build: Callable[[Any], Any], *inputs: Any) -> Unit:
    return Unit("fusion", build, inputs)


PYRAMID = [signed(5, 1, 2, 52, 32), signed(6, 1, 3, 26, 16), signed(7, 1, 4, 13, 8)]
FOUR_MAPS = [signed(8, 1, 2, 32, 48), signed(9, 1, 2, 16, 24), signed(10, 1, 2, 8, 12), signed(11, 1, 2, 4, 6)]
THREE_MAPS = [signed(14, 1, 4, 16, 24), signed(15, 1, 4, 8, 12), signed(16, 1, 4, 4, 6)]
GEOMETRIES = [((13, 20), (7, 10)), ((52, 80), (7, 10)), ((7, 7), (4, 4)), ((20, 20), (10, 10)), ((8, 13), (4, 7))]

# As recorded from the public implementation (fixtures/golden/public/modules/alone.npz).
UNITS: dict[str, Unit] = {
    "inject_same": injection((8, 10), (8, 10)),
    "inject_up": injection((8, 10), (3, 5)),
    "inject_pool": injection((5, 7), (8, 10)),
    "inject_mixed": injection((8, 5), (5, 9)),
    **{f"pool_{mode}_{size}_{out}": pool(size, out, mode) for size, out in GEOMETRIES for mode in ("torch", "onnx")},
    **{f"bilinear_{out}_{size}": bilinear(out, size) for size, out in GEOMETRIES},
    "ppa_torch": fusion(lambda room: room.HighAlign(2, "torch"), PYRAMID),
    "ppa_onnx": fusion(lambda room: room.HighAlign(2, "onnx"), PYRAMID),
    "simfusion4": fusion(lambda room: room.LowAlign("torch"), FOUR_MAPS),
    "advpool": fusion(lambda room: room.AdjacentFusion("torch"), signed(12, 1, 2, 17, 24), signed(13, 1, 3, 9, 12)),
    "simfusion3": fusion(lambda room: room.ThreeMapFusion(4, 4, "torch", norm=NORM), THREE_MAPS),
    "topbasic_eval": Unit(
        "attention", lambda room: room.Transformer(TRANSFORMER, norm=GLOBAL_NORM), (signed(17, 2, 24, 4, 5),)
    ),
    "simsppf": pooling_block("SPPF", "relu"),
    "sppf": pooling_block("SPPF", "silu"),
    "simcspsppf": pooling_block("CSPSPPF", "relu"),
    "bepc3_rep": csp(9, 7, 2 / 3, "repvgg"),
    "bepc3_conv": csp(8, 4, 1 / 2, "conv_silu"),
}


def unit_arrays(package: str, unit: Unit, dtype: str = "float64") -> dict[str, Array]:
    """Output of a unit of ``package`` ("torch_ref" or "jt_impl"); in train mode its running statistics too."""
    place = PRIMITIVES[package] if unit.file == "primitives" else f"{package}.{unit.file}"
    module = unit.build(importlib.import_module(place))
    run = torch_output if package == "torch_ref" else jittor_output
    arrays = {"output": run(module, unit.inputs, dtype, unit.train)}
    if unit.train:
        arrays |= {key: value for key, value in converters.read_state(module).items() if "running" in key}
    return arrays


def seed_weights(module: Any) -> None:
    shapes = {key: value.shape for key, value in converters.read_state(module).items()}
    converters.load_into(module, seeded_state(shapes))


def nested(value: Any, convert: Callable[[Array], Any]) -> Any:
    return [nested(item, convert) for item in value] if isinstance(value, (list, tuple)) else convert(value)


def share_draws(module: Any) -> None:
    """DropPath drops the same samples in both frameworks: every second one."""
    for part in module.modules():
        if type(part).__name__ == "DropPath":
            part.draw = lambda batch: np.resize(np.array([0.95, 0.05], np.float32), batch)


def torch_output(module: Any, inputs: tuple[Any, ...], dtype: str, train: bool = False) -> Array:
    if isinstance(module, torch.nn.Module):
        module.to(getattr(torch, dtype)).train(train)
        seed_weights(module)
        share_draws(module)
    with torch.no_grad():
        return module(*nested(inputs, lambda x: torch.from_numpy(x.astype(dtype)))).numpy()


def jittor_output(module: Any, inputs: tuple[Any, ...], dtype: str, train: bool = False) -> Array:
    from jt_impl.runtime import jittor as jt

    if isinstance(module, jt.nn.Module):
        if dtype == "float64":
            to_double(module)
        seed_weights(module)
        share_draws(module)
        module.train() if train else module.eval()
    with jt.no_grad():
        return module(*nested(inputs, lambda x: jittor_var(x, dtype))).numpy()


def jittor_var(array: Array, dtype: str = "float64") -> Any:
    """A Var of this very dtype: ``jt.array`` alone makes float32 of float64."""
    from jt_impl.runtime import jittor as jt

    return jt.array64(array) if dtype == "float64" else jt.array(array.astype(np.float32))


def to_double(module: Any) -> None:
    """Every Var of a Jittor module in float64, as trainable as it was."""
    from jt_impl.model import replaced
    from jt_impl.runtime import jittor as jt

    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, jt.Var):
                setattr(part, name, replaced(value, value.numpy().astype(np.float64)))
