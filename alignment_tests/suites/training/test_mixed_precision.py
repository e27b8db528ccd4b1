"""Mixed precision training: Jittor's AMP level with our guards against ``torch.autocast``, and the loss scale."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from alignment_tests.cases.batches import training_batches
from alignment_tests.cases.trainees import Run
from alignment_tests.harness import Report, compare_arrays
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.judge.budget import HALF_BUDGET
from fixtures.config import load_config
from fixtures.seeded import uniform
from fixtures.training.loss_scale import GROWTH_INTERVAL, LOWEST, LossScale
from fixtures.training.schedule import Schedule

Array = npt.NDArray[Any]
SIZE, BATCH = (192, 192), 2  # in smaller maps batch norms have so few values that half precision decides everything
SMALL = (64, 64)
PACKAGES = ("torch_ref", "jt_impl")


def mixed_run() -> Run:
    config = load_config("gold_yolo_n")
    schedule = Schedule(config.solver, 16, 400, 300)
    return Run(config, SIZE, BATCH, schedule, first_step=1201, amp=True, fresh=True, loss_scale=10)


def test_training_in_mixed_precision_is_aligned(check_alignment: Callable[[Report], None]) -> None:
    """A step of N: every activation, loss, gradient and the whole state, in units of PyTorch's own error, and every
    leaf module backward alone. Jittor fuses half-precision operations, so hooks change its results a little."""
    batches, what = training_batches(1, BATCH, SIZE)
    report = align_training(
        *mixed_run().makers(),
        batches,
        precisions=("float32",),
        free_running=False,
        fused_rounding=True,
        budget=HALF_BUDGET,
        excused={"assignment/*": "decided on half-precision scores: the reference differs from the oracle too"},
        title="training n, mixed precision",
        settings={"images": what, "mixed precision": "float16"},
    )
    half = [row for row in report.rows if row.accumulated is not None and row.accumulated.dtype == "float16"]
    assert {row.phase for row in half} == {"activation"}
    assert len(half) > 500
    alone = {row.phase for row in report.rows if row.isolated is not None}
    assert alone >= {"loss", "grad_activation", "grad_parameter"}
    check_alignment(report)


# ---- operations that need float32 inside


def numbers(seed: int, *shape: int, scale: float = 1.0) -> Array:
    return (scale * (2.0 * uniform(seed, int(np.prod(shape))) - 1.0)).astype(np.float32).reshape(shape)


def run_layer(make: str, package: str, x: Array, dtype: str, amp: bool) -> Array:
    """Output of a layer in train mode with seeded weights."""
    layers = importlib.import_module(f"{package}.layers")
    layer = LAYERS[make](layers)
    if package == "torch_ref":
        layer = layer.to(getattr(torch, dtype))
        with torch.no_grad():
            for number, parameter in enumerate(layer.parameters()):
                parameter.copy_(torch.from_numpy(1.0 + 0.5 * numbers(number, *parameter.shape)))
        with torch.autocast("cpu", torch.float16, enabled=amp):
            return layer(torch.from_numpy(x if amp else x.astype(dtype))).detach().numpy()
    from jt_impl import mixed
    from jt_impl.runtime import jittor as jt

    layer.train()
    for number, parameter in enumerate(layer.parameters()):
        parameter.assign(jt.array(1.0 + 0.5 * numbers(number, *parameter.shape)))
    with mixed.autocast():
        y = layer(jt.array(x))
    return y.numpy()  # outside: kernels that are chosen under AMP would have other dtypes


LAYERS: dict[str, Callable[[Any], Any]] = {
    "convolution": lambda layers: layers.conv2d(64, 8, 3, bias=True),
    "batch norm": lambda layers: layers.batch_norm(64, load_config("gold_yolo_n").norm),
    "silu": lambda layers: layers.silu(),
}
INPUTS = {  # sums beyond 2048, where half precision skips integers; squares beyond 65504, the largest half
    "convolution": numbers(7, 2, 64, 8, 8, scale=30.0).astype(np.float16),
    "batch norm": (300.0 + numbers(8, 2, 64, 8, 8, scale=40.0)).astype(np.float16),
    "silu": numbers(9, 2, 64, 8, 8, scale=20.0).astype(np.float16),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_mixed_precision(name: str) -> None:
    actual, expected = (run_layer(name, package, INPUTS[name], "float32", True) for package in ("jt_impl", "torch_ref"))
    oracle = run_layer(name, "torch_ref", INPUTS[name], "float64", False)
    assert actual.dtype == np.float16
    row = compare_arrays(actual, expected, oracle=oracle, budget=HALF_BUDGET)
    assert row.passed, row.reason


def test_running_statistics_stay_in_single_precision() -> None:
    """Jittor's own norm keeps them in half and overflows: x near 300 gives an infinite variance."""
    from jt_impl import mixed
    from jt_impl.layers import batch_norm
    from jt_impl.runtime import jittor as jt

    norm = batch_norm(64, load_config("gold_yolo_n").norm)
    norm.train()
    with mixed.autocast():
        moved = norm(jt.array(INPUTS["batch norm"]))
    moved.sync()
    expected = INPUTS["batch norm"].astype(np.float64).var((0, 2, 3), ddof=1)
    momentum = load_config("gold_yolo_n").norm.momentum
    assert str(norm.running_var.dtype) == "float32"
    assert np.allclose(norm.running_var.numpy(), 1.0 + momentum * (expected - 1.0), rtol=1e-4)


# ---- the loss scale


def trainer(package: str, **options: Any) -> Any:
    return replace(mixed_run(), **options).trainee(package, "float32").trainer


@pytest.mark.parametrize("package", PACKAGES)
def test_an_overflow_leaves_the_weights_alone_and_halves_the_scale(package: str) -> None:
    made = trainer(package, image_size=SMALL)
    made.accumulate = 1
    made.loss_scale.exponent = 60  # any half-precision gradient overflows
    before = made.state()
    batch = training_batches(1, BATCH, SMALL)[0][0]
    result = made.step(batch.images, batch.targets)
    after = made.state()
    assert not result.updated
    assert np.isfinite(result.losses["total"])
    assert after.position == before.position | {"step": 1202, "last_update": 1201, "loss_scale": 59}
    assert after.slots["momentum"].keys() == before.slots["momentum"].keys()
    moved = {name for name in before.weights if not np.array_equal(before.weights[name], after.weights[name])}
    assert {name.rsplit(".", 1)[1] for name in moved} <= {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("package", PACKAGES)
def test_mixed_precision_of_a_model_in_double_is_refused(package: str) -> None:
    module, config = importlib.import_module(package), load_config("gold_yolo_n")
    schedule = Schedule(config.solver, 16, 400, 300)
    with pytest.raises(ValueError, match="`amp` needs a model in float32"):
        module.Trainer(module.build_model(config, "float64"), config, SIZE, BATCH, schedule, amp=True)


def test_the_loss_scale_moves_as_pytorchs() -> None:
    theirs = torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    ours = LossScale()
    for step in range(2 * GROWTH_INTERVAL + 10):
        finite = step not in (3, 4, GROWTH_INTERVAL // 2)
        theirs.scale(parameter.sum() * 0.0)  # makes the scale exist
        parameter.grad = torch.full((1,), 1.0 if finite else float("inf"))
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        assert theirs.get_scale() == ours.factor, step


def test_a_scale_that_helps_nothing_ends_the_run() -> None:
    scale = LossScale(LOWEST)
    with pytest.raises(FloatingPointError, match="not finite at any loss scale"):
        scale.update(finite=False)
