"""Float64 runs of both sides: what a model holds, what is left behind, and what reports say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.harness import align
from alignment_tests.harness.record.adapters import adapter_for
from jt_impl.runtime import jittor as jt

WIDE = np.array([[0.3, -0.7, 1.1], [2.3, -1.9, 0.2]])  # no float32 holds these numbers
TENTHS = np.array([0.1, 0.2, 0.3], np.float32)
COUNTS = np.array([1, 2, 3])
INPUTS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Function = Callable[[Any], Any]

maximum = jt.maximum  # as ``from jittor import maximum`` does


class TorchModel(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.tensor(TENTHS))

    def forward(self, x: Any) -> Any:
        return self.function(x)


class JittorModel(jt.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = jt.array(TENTHS)

    def execute(self, x: Any) -> Any:
        return self.function(x)


TORCH, JITTOR = (adapter_for(kind(abs)) for kind in (TorchModel, JittorModel))


# What a model holds


def held_by(model: Any, value: Any) -> Any:
    model.plain, model.listed, model.named = value, [value, 1], {"a": (value,)}
    return model


def values_in(model: Any) -> list[Any]:
    return [model.plain, model.listed[0], model.named["a"][0]]


@pytest.mark.parametrize("narrow", [torch.float32, torch.float16, torch.bfloat16])
def test_attributes_of_the_reference_are_cast_exactly(narrow: Any) -> None:
    model = held_by(TorchModel(abs), torch.tensor(TENTHS, dtype=narrow))
    with TORCH.in_precision(model, "float64") as made:
        assert {id(value) for value in values_in(made)} == {id(made.plain)}
        assert torch.equal(made.plain, model.plain.double())
        assert made.plain.dtype == torch.float64
    assert model.plain.dtype == narrow


@pytest.mark.parametrize("narrow", ["float32", "float16", "bfloat16"])
def test_attributes_of_the_candidate_are_cast_exactly(narrow: str) -> None:
    value = jt.array(TENTHS).cast(narrow)
    model = held_by(JittorModel(abs), value)
    with JITTOR.in_precision(model, "float64") as made:
        assert {id(held) for held in values_in(made)} == {id(made.plain)}
        assert made.plain.numpy().tolist() == value.float32().numpy().tolist()
        assert str(made.plain.dtype) == "float64"
    assert all(held is value for held in values_in(model))


def test_a_single_number_in_a_list_of_the_candidate_can_be_computed_with() -> None:
    """Jittor fuses one that is not computed yet into a kernel that does not compile, where the model must keep it."""
    model = JittorModel(lambda x: x * model.factors[0] + 0.5)
    model.factors = [jt.array([0.25])]
    with JITTOR.in_precision(model, "float64") as made, JITTOR.running(made, train=False):
        assert np.array_equal(made(jt.array64(WIDE)).numpy(), WIDE / 4 + 0.5)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_a_model_wholly_in_a_narrow_type_is_cast_exactly(narrow: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).to(narrow)
    with TORCH.in_precision(model, "float64") as made:
        for name, tensor in model.state_dict().items():
            assert torch.equal(made.state_dict()[name], tensor.double() if tensor.is_floating_point() else tensor)
        assert made(torch.from_numpy(WIDE).to(narrow)).dtype == torch.float64


def test_complex_weights_are_widened() -> None:
    model = TorchModel(abs)
    model.register_buffer("phases", torch.ones(2, dtype=torch.complex64))
    with TORCH.in_precision(model, "float64") as made:
        assert made.phases.dtype == torch.complex128


def test_a_tensor_that_was_computed_is_no_obstacle() -> None:
    """PyTorch refuses to copy one that has a history."""
    model = TorchModel(abs)
    model.last = model.weight * 2
    with TORCH.in_precision(model, "float64") as made:
        assert torch.equal(made.last, 2 * torch.from_numpy(TENTHS).double())


# Nothing is left behind, and nothing else is touched


def test_the_users_hooks_are_part_of_the_call() -> None:
    model = TorchModel(abs)
    model.register_forward_hook(lambda module, args, output: output.half())
    with TORCH.in_precision(model, "float64") as made:
        assert torch.equal(made(torch.from_numpy(WIDE)), torch.from_numpy(WIDE).abs())


def test_a_hook_of_jittors_is_part_of_the_call() -> None:
    model = JittorModel(lambda x: x * 1)
    model.register_forward_hook(lambda module, args, output: output.float16())
    with JITTOR.in_precision(model, "float64") as made:
        assert str(made(jt.array64(WIDE)).dtype) == "float64"


def torch_state() -> list[Any]:
    names = ("FloatTensor", "HalfTensor", "from_numpy", "set_default_dtype")
    held = [getattr(torch, name) for name in names]
    return [*held, torch.get_default_dtype(), torch.nn.Module.__call__, torch.ones(1).half().dtype]


def jittor_state() -> list[Any]:
    flags = [jt.flags.auto_convert_64_to_32, jt.flags.amp_reg]
    return [*vars(jt.Var).values(), *flags, jt.maximum, jt.array, jt.ops.maximum, maximum, vars(jt.Module)["__call__"]]


STATES: dict[str, tuple[Any, Any, Callable[[], list[Any]]]] = {
    "torch": (TORCH, TorchModel, torch_state),
    "jittor": (JITTOR, JittorModel, jittor_state),
}


def failing(x: Any) -> Any:
    raise ArithmeticError("inside the model")


@pytest.mark.parametrize("framework", STATES)
def test_nothing_is_left_behind(framework: str) -> None:
    adapter, kind, state = STATES[framework]
    before = state()
    with pytest.raises(ArithmeticError), adapter.in_precision(kind(failing), "float64") as model:
        model(adapter.from_numpy(WIDE))
    assert all(old is new or old == new for old, new in zip(before, state(), strict=True))


@pytest.mark.parametrize("framework", STATES)
def test_models_may_be_closed_in_any_order(framework: str) -> None:
    adapter, kind, state = STATES[framework]
    before = state()
    opened = [adapter.in_precision(kind(lambda x: x * 1), "float64") for _ in range(2)]
    models = [one.__enter__() for one in opened]
    opened[0].__exit__(None, None, None)
    assert np.asarray(adapter.to_numpy(models[1](adapter.from_numpy(WIDE)))).dtype == np.float64
    opened[1].__exit__(None, None, None)
    assert all(old is new or old == new for old, new in zip(before, state(), strict=True))


@pytest.mark.parametrize("framework", STATES)
def test_another_model_of_the_same_framework_stays_in_float32(framework: str) -> None:
    """The two of a comparison are open at the same time, and their calls take turns."""
    adapter, kind, _ = STATES[framework]
    other = kind(lambda x: (x.float() if framework == "torch" else x.float32()) * 0.1)
    with adapter.in_precision(kind(lambda x: x * 0.1), "float64") as model:
        wide = model(adapter.from_numpy(WIDE))
        assert adapter.to_numpy(other(adapter.from_numpy(WIDE.astype(np.float32)))).dtype == np.float32
        assert adapter.to_numpy(wide).dtype == np.float64


@pytest.mark.parametrize("framework", STATES)
def test_a_loss_beside_the_model_may_be_wide_too(framework: str) -> None:
    adapter, _, state = STATES[framework]
    before = state()
    with adapter.arithmetic("float64"):
        made = adapter.from_numpy(COUNTS) / 3
    assert adapter.to_numpy(made).tolist() == (COUNTS / 3).tolist()
    assert all(old is new or old == new for old, new in zip(before, state(), strict=True))


# Reports


class TorchBlock(torch.nn.Module):
    """Attention with a constant, then an activation."""

    def __init__(self, activation: Function) -> None:
        super().__init__()
        self.scaled, self.activation = TorchModel(self.attention), TorchModel(activation)

    @staticmethod
    def attention(x: Any) -> Any:
        return torch.softmax(x @ x.mT / math.sqrt(3), -1, dtype=torch.float32) @ x.float() * 0.7

    def forward(self, x: Any) -> Any:
        return self.activation(self.scaled(x))


class JittorBlock(jt.nn.Module):
    def __init__(self, activation: Function, factor: float = 0.7) -> None:
        super().__init__()
        self.factor = factor
        self.scaled, self.activation = JittorModel(self.attention), JittorModel(activation)

    def attention(self, x: Any) -> Any:
        weights = jt.nn.softmax(jt.matmul(x, x.transpose(0, 1)) / math.sqrt(3), -1)
        return jt.matmul(weights.float32(), x) * self.factor

    def execute(self, x: Any) -> Any:
        return self.activation(self.scaled(x))


def tanh_gelu(x: Any) -> Any:
    return torch.nn.functional.gelu(x, approximate="tanh")


def test_a_faultless_port_with_constants_and_casts_is_aligned() -> None:
    report = align(TorchBlock(torch.nn.functional.gelu), JittorBlock(jt.nn.gelu), INPUTS)
    assert report.aligned, report.problems
    errors = [
        row.accumulated.smallest_tolerance for row in report.rows if row.precision == "float64" and row.accumulated
    ]
    assert max(error for error in errors if error is not None) < 1e-14


def test_the_blame_goes_past_a_constant_to_the_fault(tmp_path: Any) -> None:
    report = align(TorchBlock(tanh_gelu), JittorBlock(jt.nn.gelu), INPUTS, folder=tmp_path)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "activation"


def test_a_constant_that_float32_would_hide_is_found(tmp_path: Any) -> None:
    wrong = JittorBlock(jt.nn.gelu, factor=0.7 + 1e-8)
    report = align(TorchBlock(torch.nn.functional.gelu), wrong, INPUTS, folder=tmp_path)
    assert report.first_divergence is not None
    assert (report.first_divergence.module, report.first_divergence.precision) == ("scaled", "float64")
