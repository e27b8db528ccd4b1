"""A training run stops in one framework and goes on in the other as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import torch

import converters
from alignment_tests.cases.small_trainers import (
    PACKAGES,
    make_trainer,
    native,
    optim_of,
    run,
    small_gradients,
    small_model,
    solver_config,
    worst_difference,
)
from converters import CheckpointError, StateMismatchError
from converters.optimizer_state import (
    TrainingState,
    match_training_state,
    read_training_state,
    write_training_state,
)
from converters.state import bits_equal

Array = npt.NDArray[Any]

OTHER = {"torch_ref": "jt_impl", "jt_impl": "torch_ref"}
OPTIMIZERS = ("sgd", "adam", "adamw")
STEPS = 3  # before the change of hands and after it; an odd number leaves a partial sum of gradients to hand over
BAR = 1e-9  # of scale: two float64 programs of the same formulas


def assert_same_bits(actual: dict[str, Array], expected: dict[str, Array]) -> None:
    """All arrays but the counters, which Jittor has not."""
    kept = {name: array for name, array in expected.items() if "num_batches_tracked" not in name}
    assert set(kept) == {name for name in actual if "num_batches_tracked" not in name}
    wrong = [name for name, array in kept.items() if not bits_equal(actual[name], array)]
    assert not wrong, f"{len(wrong)} arrays differ, first {wrong[:3]}"


# ---- the whole model


@dataclass(frozen=True)
class Course:
    """States of an uninterrupted run of twice ``STEPS`` steps, and its losses."""

    half: TrainingState
    end: TrainingState
    losses: list[dict[str, float]]


@lru_cache(maxsize=2)
def uninterrupted(package: str) -> Course:
    trainer = make_trainer(package)
    first = run(trainer, STEPS)
    half = trainer.state()
    second = run(trainer, STEPS)
    return Course(half, trainer.state(), first + second)


def taken_over(package: str, state: TrainingState) -> Any:
    """A new trainer of the package that goes on from the state."""
    trainer = make_trainer(package)
    trainer.load_state(state)
    return trainer


@pytest.mark.parametrize("package", PACKAGES)
def test_a_partial_sum_is_at_stake(package: str) -> None:
    state = uninterrupted(package).half
    reached = {"step": 2003, "last_update": 2001, "ema_updates": 1, "optimizer_steps": 1}
    assert state.position == reached | {"loss_scale": 16, "loss_scale_successes": 0}
    assert state.gradients.keys() == state.slots["momentum"].keys() - {"detect.proj_conv.weight"}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("receiver", PACKAGES)
def test_the_state_taken_over_has_the_same_bits(package: str, receiver: str) -> None:
    state = uninterrupted(package).half
    received = taken_over(receiver, state).state()
    assert_same_bits(received.arrays(), state.arrays())
    assert (received.position, received.optimizer) == (state.position, state.optimizer)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_same_framework_goes_on_bit_for_bit(package: str, tmp_path: Path) -> None:
    """Through a file."""
    course, path = uninterrupted(package), tmp_path / "run.safetensors"
    write_training_state(path, course.half)
    trainer = taken_over(package, read_training_state(path))
    assert run(trainer, STEPS) == course.losses[STEPS:]
    assert_same_bits(trainer.state().arrays(), course.end.arrays())


@pytest.mark.parametrize("package", PACKAGES)
def test_there_and_back_goes_on_bit_for_bit(package: str) -> None:
    course = uninterrupted(package)
    there = taken_over(OTHER[package], course.half)
    trainer = taken_over(package, there.state())
    assert run(trainer, STEPS) == course.losses[STEPS:]
    assert_same_bits(trainer.state().arrays(), course.end.arrays())


@pytest.mark.parametrize("package", PACKAGES)
def test_the_other_framework_goes_on_to_the_same_end(package: str) -> None:
    """Begun in ``package`` and ended in the other, against either framework alone."""
    trainer = taken_over(OTHER[package], uninterrupted(package).half)
    losses = run(trainer, STEPS)
    for alone in PACKAGES:
        course = uninterrupted(alone)
        for mine, other in zip(losses, course.losses[STEPS:], strict=True):
            assert mine == pytest.approx(other, rel=BAR)
        worst, where = worst_difference(trainer.state().arrays(), course.end.arrays())
        assert worst <= BAR, where
        assert trainer.state().position == course.end.position


@pytest.mark.parametrize("package", PACKAGES)
def test_a_model_taken_over_stays_trainable(package: str) -> None:
    trainer = taken_over(package, uninterrupted(OTHER[package]).half)
    fresh = make_trainer(package)
    assert list(trainer.parameters) == list(fresh.parameters)
    if package == "jt_impl":
        assert not any(value.is_stop_grad() for value in trainer.parameters.values())


def test_counters_are_reported() -> None:
    """Jittor's state has none: PyTorch keeps its own, and says so."""
    result = make_trainer("torch_ref").load_state(uninterrupted("jt_impl").half)
    assert len(result.ignored) == 157
    assert all(name.endswith("num_batches_tracked") for name in result.ignored)


def test_a_single_precision_state_is_widened_and_reported() -> None:
    trainer = make_trainer("torch_ref", dtype="float32")
    result = make_trainer("jt_impl").load_state(trainer.state())
    assert result.converted["slots.momentum/detect.stems.0.conv.weight"] == "float32 -> float64"


def test_a_double_precision_state_is_not_narrowed() -> None:
    with pytest.raises(StateMismatchError, match="expected float32, received float64"):
        make_trainer("torch_ref", dtype="float32").load_state(uninterrupted("jt_impl").half)


def dropped(part: str, name: str) -> Callable[[TrainingState], TrainingState]:
    return lambda state: state.with_arrays({n: a for n, a in state.arrays().items() if n != f"{part}/{name}"})


def added(part: str, name: str, array: Array) -> Callable[[TrainingState], TrainingState]:
    return lambda state: state.with_arrays({**state.arrays(), f"{part}/{name}": array})


MISFITS = {
    "weight_missing": (dropped("weights", "detect.stems.0.conv.weight"), "missing: weights/detect.stems.0.conv.weight"),
    "momentum_missing": (dropped("slots.momentum", "detect.stems.0.conv.weight"), "missing: slots.momentum/detect"),
    "momentum_of_a_frozen_one": (
        added("slots.momentum", "detect.proj_conv.weight", np.zeros((1, 17, 1, 1))),
        "unexpected: slots.momentum/detect.proj_conv.weight",
    ),
    "momentum_transposed": (
        added("slots.momentum", "detect.stems.0.conv.weight", np.zeros((32, 1, 1, 32))),
        r"shape: slots.momentum/detect.stems.0.conv.weight: expected \(32, 32, 1, 1\)",
    ),
    "average_missing": (dropped("ema", "detect.stems.0.conv.weight"), "missing: ema/detect.stems.0.conv.weight"),
    "gradient_of_a_buffer": (
        added("gradients", "detect.stems.0.bn.running_mean", np.zeros(32)),
        "unexpected: gradients/detect.stems.0.bn.running_mean",
    ),
    "gradient_of_another_shape": (
        added("gradients", "detect.stems.0.bn.bias", np.zeros(1)),
        r"shape: gradients/detect.stems.0.bn.bias: expected \(32,\), received \(1,\)",
    ),
    "integers": (added("ema", "detect.stems.0.bn.bias", np.zeros(32, np.int64)), "dtype: ema/detect.stems.0.bn.bias"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("package", PACKAGES)
def test_a_misfit_is_refused_before_anything_is_written(package: str, misfit: str) -> None:
    spoil, message = MISFITS[misfit]
    trainer = receivers(package)
    before = trainer.state()
    with pytest.raises(StateMismatchError, match=message):
        trainer.load_state(spoil(uninterrupted("torch_ref").half))
    assert_same_bits(trainer.state().arrays(), before.arrays())
    assert trainer.state().position == before.position


@lru_cache(maxsize=2)
def receivers(package: str) -> Any:
    """A trainer that refused states, and nothing else, were given to."""
    return make_trainer(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_state_of_another_optimizer_is_refused(package: str) -> None:
    state = make_trainer("torch_ref", solver_config("adam")).state()
    with pytest.raises(ValueError, match=r"`state` must be of the optimizer 'sgd'\. Received: 'adam'"):
        receivers(package).load_state(state)


# ---- optimizers alone


def begun(package: str, optimizer: str, steps: int) -> tuple[Any, Any]:
    """A small model and its optimizer after some updates; ``2.bias`` never has a gradient, ``1.weight`` is frozen."""
    model = small_model(package, "float64")
    if package == "torch_ref":
        model[1].weight.requires_grad_(False)
    else:
        model[1].weight.stop_grad()
    made = optim_of(package).build_optimizer(model, solver_config(optimizer, lr0=0.1), 16)
    proceed(package, made, range(steps))
    return model, made


def proceed(package: str, optimizer: Any, steps: range) -> None:
    for step in steps:
        gradients = small_gradients(step, "float64", missing=("2.bias",))
        optim_of(package).apply_gradients(optimizer, native(package, gradients))


def everything(model: Any, optimizer: Any) -> dict[str, Array]:
    slots = converters.adapter(model).read_slots(optimizer)
    found = {f"{kind}/{name}": array for kind, named in slots.items() for name, array in named.items()}
    return found | {f"weights/{name}": array for name, array in converters.read_state(model).items()}


def hand_over(source: tuple[Any, Any], target: tuple[Any, Any]) -> None:
    """Weights and slots of one model and optimizer to those of the other framework."""
    converters.load_into(target[0], converters.read_state(source[0]))
    slots = converters.adapter(source[0]).read_slots(source[1])
    converters.adapter(target[0]).write_slots(target[1], slots)


@pytest.mark.parametrize("updates", [0, 1, 3])
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_there_and_back_goes_on_bit_for_bit(optimizer: str, package: str, updates: int) -> None:
    """Before the first update too, when PyTorch has no momentum yet and the other side must not seem to have any."""
    alone, there = begun(package, optimizer, updates), begun(OTHER[package], optimizer, 0)
    back = begun(package, optimizer, 0)
    hand_over(alone, there)
    assert_same_bits(everything(*there), everything(*alone))
    hand_over(there, back)
    for made in (alone[1], back[1]):
        proceed(package, made, range(updates, updates + 2))
    assert_same_bits(everything(*back), everything(*alone))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_goes_on_in_the_other_framework(optimizer: str, package: str) -> None:
    alone, there = begun(package, optimizer, 5), begun(OTHER[package], optimizer, 0)
    hand_over(begun(package, optimizer, 2), there)
    proceed(OTHER[package], there[1], range(2, 5))
    worst, where = worst_difference(everything(*there), everything(*alone))
    assert worst <= 1e-12, where


def test_the_first_momentum_is_the_gradient_even_where_it_is_minus_zero() -> None:
    minus_zero = {"0.bias": np.array([-0.0, 0.0, 1.0, -1.0])}
    for package in PACKAGES:
        model, made = begun(package, "sgd", 0)
        optim_of(package).apply_gradients(made, native(package, minus_zero))
        assert bits_equal(converters.adapter(model).read_slots(made)["momentum"]["0.bias"], minus_zero["0.bias"])


def test_a_torch_state_dict_survives() -> None:
    """What ``read_slots`` and ``write_slots`` leave in PyTorch's own form is what ``torch.optim`` had made."""
    source, target = begun("torch_ref", "adam", 2), begun("torch_ref", "adam", 0)
    hand_over(source, target)
    mine, other = target[1].state_dict(), source[1].state_dict()
    assert mine["param_groups"] == other["param_groups"]
    for number, slots in other["state"].items():
        assert {key: value.dtype for key, value in mine["state"][number].items()} == {
            key: value.dtype for key, value in slots.items()
        }
        assert all(torch.equal(mine["state"][number][key], value) for key, value in slots.items())


def test_optimizers_that_do_not_tell_names_or_kind_are_refused() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    framework = converters.adapter(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"give it \(name, parameter\) pairs"):
        framework.read_slots(torch.optim.SGD(parameters, lr=0.1))
    with pytest.raises(TypeError, match=r"`optimizer` must be one of .* Received: RMSprop"):
        framework.read_slots(torch.optim.RMSprop(parameters, lr=0.1))


# ---- files

POSITION = {
    "step": 5,
    "last_update": -1,
    "ema_updates": 0,
    "optimizer_steps": 0,
    "loss_scale": 12,
    "loss_scale_successes": 3,
}


def small_state(**changes: Any) -> TrainingState:
    hard = np.array([-0.0, np.nan, np.inf, 1e-45, 0.1], np.float32)
    state = TrainingState(
        weights={"z.weight": hard, "a.bias": hard[::2], "a.num_batches_tracked": np.array(2**40)},
        slots={"first": {"z.weight": hard}, "second": {"z.weight": hard[::-1]}, "step": {"z.weight": np.array(7)}},
        ema={"z.weight": hard.astype(np.float64)},
        gradients={},
        position=POSITION,
        optimizer="adam",
        meta={"config": "gold_yolo_n"},
    )
    return replace(state, **changes)


def test_a_file_returns_every_bit_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_training_state(path, small_state())
    read = read_training_state(path)
    assert list(read.arrays()) == list(small_state().arrays())
    assert all(bits_equal(array, small_state().arrays()[name]) for name, array in read.arrays().items())
    assert (read.position, read.optimizer, read.meta) == (POSITION, "adam", {"config": "gold_yolo_n"})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_training_state(path, small_state())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_training_state(path, small_state(meta={"a": object()}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_cut_off_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    write_training_state(path, small_state())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        read_training_state(path)


def test_weights_alone_are_no_training_state(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    converters.write_checkpoint(path, converters.Checkpoint({"a": np.zeros(2, np.float32)}))
    with pytest.raises(CheckpointError, match="must be a training state"):
        read_training_state(path)


BROKEN = {
    "position": ("position", json.dumps({"step": 1})),
    "position_text": ("position", "{"),
    "position_float": ("position", json.dumps({**POSITION, "step": 1.5})),
    "optimizer": ("optimizer", "lion"),
    "order": ("order", json.dumps(["weights/z.weight"])),
    "parts": ("optimizer", "sgd"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_malformed_metadata_is_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "a.safetensors"
    write_training_state(path, small_state())
    with safetensors.safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    key, value = BROKEN[fault]
    safetensors.numpy.save_file(arrays, path, {**metadata, key: value})
    with pytest.raises(CheckpointError, match="the metadata of `path` is malformed"):
        read_training_state(path)


@pytest.mark.parametrize("name", ["a.pt", "a"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    for call in (lambda path: write_training_state(path, small_state()), read_training_state):
        with pytest.raises(CheckpointError, match=r"`path` must end in \.safetensors"):
            call(tmp_path / name)


def test_paths_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match="`path` must be an existing file"):
        read_training_state(tmp_path / "a.safetensors")
    with pytest.raises(IsADirectoryError, match="`path` must be a file"):
        read_training_state(tmp_path / "folder.safetensors")
    with pytest.raises(FileNotFoundError, match="`path` must lie in an existing folder"):
        write_training_state(tmp_path / "none" / "a.safetensors", small_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, r"`optimizer` must be one of \['adam', 'adamw', 'sgd'\]. Received: 'lion'"),
        ({"optimizer": "sgd"}, r"`slots` of sgd must be \['momentum'\]"),
        ({"position": {"step": 1}}, "`position` must hold the integers"),
    ],
)
def test_a_state_is_checked_when_it_is_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_state(**changes)


def test_matching_keeps_the_receivers_order() -> None:
    state = small_state()
    turned = replace(state, weights=dict(reversed(state.weights.items())))
    matched, _ = match_training_state(turned, state, ())
    assert list(matched.weights) == list(state.weights)
