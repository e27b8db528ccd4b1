"""Trainers and small optimizers of both frameworks from the same numbers, for the tests of training."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import converters
from fixtures.config import GoldYoloConfig, load_config
from fixtures.seeded import seeded_images, seeded_state, uniform
from fixtures.training.schedule import Schedule

Array = npt.NDArray[Any]

PACKAGES = ("torch_ref", "jt_impl")
SIZE, BATCH, CLASSES = 96, 4, 10  # at 64 the transformer sees one position: its norms of four values magnify rounding
# Images per step that the schedule is told: two steps per update.
SCALED_FOR = 32
# After warm-up, whose rate for biases (0.1) makes the first steps chaotic.
FIRST_STEP = 2000


def solver_config(optimizer: str = "sgd", lr0: float = 1e-4, **solver: Any) -> GoldYoloConfig:
    """Gold-YOLO-N for ten classes with this solver."""
    config = load_config("gold_yolo_n", CLASSES)
    return replace(config, solver=replace(config.solver, optimizer=optimizer, lr0=lr0, **solver))


def seeded(package: str, config: GoldYoloConfig, dtype: str) -> Any:
    """A model of the package with seeded weights."""
    model = importlib.import_module(package).build_model(config, dtype)
    shapes = {name: spec.shape for name, spec in converters.adapter(model).read_specs(model).items()}
    converters.load_into(model, seeded_state(shapes))
    return model


def make_trainer(package: str, config: GoldYoloConfig | None = None, dtype: str = "float64", **options: Any) -> Any:
    """A trainer of the package after warm-up, its model seeded."""
    config = config or solver_config()
    schedule = Schedule(config.solver, SCALED_FOR, steps_per_epoch=400, epochs=300)
    room = importlib.import_module(f"{package}.trainer")
    trainer = room.Trainer(seeded(package, config, dtype), config, SIZE, SCALED_FOR, schedule, **options)
    trainer.step_number, trainer.last_update = FIRST_STEP, FIRST_STEP - 1
    return trainer


def images() -> Array:
    return seeded_images((BATCH, 3, SIZE, SIZE))


def boxes(step: int) -> Array:
    """Targets of a step: 0 to 11 boxes, other numbers of boxes in other steps."""
    count = (5 * step + 3) % 12
    u = uniform(7000 + step, 6 * count).reshape(count, 6)
    rows = np.concatenate([np.floor(u[:, :2] * [BATCH, CLASSES]), 0.3 + 0.4 * u[:, 2:4], 0.1 + 0.4 * u[:, 4:]], axis=1)
    return np.asarray(rows, np.float64)


def run(trainer: Any, steps: int) -> list[dict[str, float]]:
    """Take steps from where the trainer is; their losses."""
    return [trainer.step(images(), boxes(trainer.step_number)).losses for _ in range(steps)]


def worst_difference(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> tuple[float, str]:
    """Largest difference in units of its array's scale, and where.

    Some gradients are zero in exact arithmetic (a batch norm absorbs the bias in front of it) and hold only rounding
    noise. So an array's scale is at least a millionth of the largest of its kind (weights, momentum, ...).
    """
    names = [name for name in expected if "num_batches_tracked" not in name]
    assert set(names) == {name for name in actual if "num_batches_tracked" not in name}
    largest: dict[str, float] = {}
    for name in names:
        kind = name.partition("/")[0]
        largest[kind] = max(largest.get(kind, 0.0), float(np.abs(expected[name]).max(initial=0.0)))
    return max((scaled_difference(actual[n], expected[n], 1e-6 * largest[n.partition("/")[0]]), n) for n in names)


def scaled_difference(actual: Array, expected: Array, floor: float = 0.0) -> float:
    """Largest difference of two arrays over the larger of the expected one's largest magnitude and ``floor``."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(float(np.abs(expected).max(initial=0.0)), floor) or 1.0
    worst = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)) / scale
    return worst if np.isfinite(worst) else np.inf


# ---- a small model, of which every optimizer's group has a share

SHAPES = {
    "0.weight": (4, 3, 3, 3),
    "0.bias": (4,),
    "1.weight": (4,),
    "1.bias": (4,),
    "2.weight": (2, 4, 1, 1),
    "2.bias": (2,),
}


def small_model(package: str, dtype: str) -> Any:
    """Convolution, norm, convolution, of the framework and precision, with seeded weights."""
    if package == "torch_ref":
        nn = torch.nn
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).to(getattr(torch, dtype))
    else:
        model = small_jittor(dtype)
    shapes = {name: spec.shape for name, spec in converters.adapter(model).read_specs(model).items()}
    converters.load_into(model, seeded_state(shapes))
    return model


def small_jittor(dtype: str) -> Any:
    from jt_impl.layers import BatchNorm2d, Conv2d, nn
    from jt_impl.model import replaced

    model = nn.Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), Conv2d(4, 2, 1))
    model.train()
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if hasattr(value, "is_stop_grad"):
                setattr(module, name, replaced(value, value.numpy().astype(dtype)))
    return model


def small_gradients(step: int, dtype: str, missing: tuple[str, ...] = ()) -> dict[str, Array]:
    """Gradients of a step by parameter, as numpy."""
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        if name not in missing:
            u = uniform(100 * step + number, int(np.prod(shape)))
            found[name] = (2.0 * u - 1.0).astype(dtype).reshape(shape)
    return found


def native(package: str, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Arrays as tensors of the framework."""
    if package == "torch_ref":
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    from jt_impl.runtime import jittor as jt

    return {name: (jt.array64 if a.dtype == np.float64 else jt.array)(a.copy()) for name, a in arrays.items()}


def optim_of(package: str) -> Any:
    return importlib.import_module(f"{package}.optim")
