"""The reference's float64 run is float64 throughout: whatever narrower type the model's own code names is void."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.harness.record.torch_adapter import TorchAdapter

WIDE = np.array([[0.3, -0.7, 1.1], [2.3, -1.9, 0.2]])  # no float32 holds these numbers
TENTHS = np.array([0.1, 0.2, 0.3], np.float32)
CONSTANT = torch.tensor([0.1, 0.2, 0.3])
SOFTMAX = np.exp(WIDE[:, :1]) / np.exp(WIDE[:, :1]).sum()
COUNTS = np.array([1, 2, 3])
ADAPTER = TorchAdapter()
Function = Callable[[Any], Any]


class Model(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.tensor(TENTHS))

    def forward(self, x: Any) -> Any:
        return self.function(x)


def run(function: Function) -> Any:
    """What the function gives of a float64 input in the float64 run of a model."""
    with ADAPTER.in_precision(Model(function), "float64") as model:
        return model(ADAPTER.from_numpy(WIDE))


def assert_wide(found: Any, expected: Any) -> None:
    array = found.detach().numpy()
    assert array.dtype == np.result_type(expected, np.float64)
    np.testing.assert_allclose(array, expected, rtol=1e-15, atol=0.0)


CASTS: dict[str, Function] = {
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "to": lambda x: x.to(torch.float32),
    "to dtype=": lambda x: x.to(dtype=torch.float16),
    "to device": lambda x: x.to("cpu", torch.float32),
    "to another": lambda x: x.to(CONSTANT),
    "type": lambda x: x.type(torch.float32),
    "type FloatTensor": lambda x: x.type(torch.FloatTensor),
    "type by name": lambda x: x.type("torch.HalfTensor"),
    "type_as": lambda x: x.type_as(CONSTANT),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "there and back": lambda x: x.to(torch.bfloat16).to(x.dtype),
    "keyword": lambda x: torch.sum(x[None], 0, dtype=torch.float32),
    "out": lambda x: torch.mul(x, 1, out=torch.empty(2, 3)),
    "a module made narrow": lambda x: torch.nn.Identity().half()(x.half()),
    "copied into": lambda x: torch.zeros(2, 3, dtype=torch.float16).copy_(x),
    "written into": lambda x: torch.zeros(2, 3).index_copy_(0, torch.arange(2), x),
    "operator by name": lambda x: torch.ops.aten._to_copy(x, dtype=torch.float32),
}
CONSTANTS: dict[str, tuple[Function, Any]] = {
    "number": (lambda x: torch.tensor(0.1), 0.1),
    "list": (lambda x: torch.tensor([0.1, 0.2]), [0.1, 0.2]),
    "list, dtype": (lambda x: torch.tensor([0.1], dtype=torch.float32), [0.1]),
    "Tensor": (lambda x: torch.Tensor([0.1]), [0.1]),
    "FloatTensor": (lambda x: torch.FloatTensor([0.1]), [0.1]),
    "HalfTensor": (lambda x: torch.HalfTensor([0.1]), [0.1]),
    "full": (lambda x: torch.full((2,), 0.1), [0.1, 0.1]),
    "new_full": (lambda x: x.new_full((1,), 0.1, dtype=torch.float32), [0.1]),
    "arange": (lambda x: torch.arange(0.0, 0.3, 0.1), [0.0, 0.1, 0.2]),
    "linspace": (lambda x: torch.linspace(0, 1, 4, dtype=torch.float32), np.linspace(0, 1, 4)),
    "of integers": (lambda x: torch.arange(1, 4) / 3, COUNTS / 3),
    "integers cast": (lambda x: torch.arange(1, 4).float() * 0.1, COUNTS * 0.1),
    "exp of integers": (lambda x: torch.exp(torch.arange(3) * -0.1), np.exp(np.arange(3) * -0.1)),
    "bool summed": (lambda x: (x[:, 0] > 0).cumsum(0, dtype=torch.float32), [1.0, 2.0]),
    "numpy": (lambda x: torch.from_numpy(TENTHS), TENTHS.astype(np.float64)),
    "numpy, copied": (lambda x: torch.tensor(TENTHS.astype(np.float16)), TENTHS.astype(np.float16).astype(np.float64)),
    "of the program": (lambda x: CONSTANT + 0.0, TENTHS.astype(np.float64)),
    "of the program, in a product": (lambda x: x @ CONSTANT, WIDE @ TENTHS.astype(np.float64)),
    "default dtype": (lambda x: torch.zeros(1, dtype=torch.get_default_dtype()), [0.0]),
    "default dtype set": (lambda x: (torch.set_default_dtype(torch.float32), torch.tensor(0.1))[1], 0.1),
    "dtype of a function": (lambda x: torch.softmax(x[:, :1], 0, torch.float32), SOFTMAX),
    "where": (lambda x: torch.where(x[0] > 0, 0.1, 0.2), [0.1, 0.2, 0.1]),
    "parameter": (lambda x: torch.nn.Parameter(torch.tensor(0.1)), 0.1),
    "complex": (lambda x: torch.complex(CONSTANT, CONSTANT), TENTHS * (1.0 + 1.0j)),
    "complex cast": (lambda x: x[0].to(torch.complex64), WIDE[0] * (1.0 + 0.0j)),
}


@pytest.mark.parametrize("spelling", CASTS)
def test_a_narrow_type_is_void_in_the_reference(spelling: str) -> None:
    assert_wide(run(CASTS[spelling]), WIDE)


@pytest.mark.parametrize("spelling", CONSTANTS)
def test_a_constant_is_float64_in_the_reference(spelling: str) -> None:
    function, expected = CONSTANTS[spelling]
    assert_wide(run(function), np.asarray(expected))


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_autocast_is_void_in_the_reference(narrow: Any) -> None:
    def layer(x: Any) -> Any:
        with torch.autocast("cpu", narrow):
            return torch.nn.functional.linear(x, torch.eye(3))

    assert_wide(run(layer), WIDE)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_and_bool_of_the_reference_stay(kind: Any) -> None:
    assert run(lambda x: torch.ones(2, dtype=kind) * torch.ones(2, dtype=kind)).dtype == kind


def test_bits_are_read_in_the_type_that_is_named() -> None:
    bits = torch.tensor([1036831949], dtype=torch.int32)  # of the float32 next to 0.1
    assert run(lambda x: bits.view(torch.float32)).item() == np.float32(0.1)


def test_the_dtype_that_a_model_asks_for_is_float64() -> None:
    assert run(lambda x: x * torch.finfo(CONSTANT.dtype).eps).max() < 1e-15


DRAWS: dict[str, Function] = {
    "rand": lambda x: torch.rand(5),
    "randn": lambda x: torch.randn(5),
    "rand_like": torch.rand_like,
    "randn_like": lambda x: torch.randn_like(x, dtype=torch.float32),
    "in the dtype of another": lambda x: torch.rand(5, dtype=x.dtype),
    "in place": lambda x: torch.empty(5).uniform_(-1, 1),
    "in place, of another": lambda x: x.new_empty(5).normal_(),
    "dropout": lambda x: torch.nn.functional.dropout(torch.ones_like(x), 0.5),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_random_numbers_are_those_of_the_models_own_run(draw: str) -> None:
    def drawn(x: Any) -> Any:
        torch.manual_seed(0)
        return DRAWS[draw](x)

    assert torch.equal(run(drawn), drawn(torch.zeros(2, 3)).double())


# Tensors keep their meaning


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_what_is_cast_to_another_type_is_a_copy(cast: str) -> None:
    def moved(x: Any) -> Any:
        getattr(x, cast)().add_(1)
        return x

    assert_wide(run(moved), WIDE)


def test_what_is_cast_to_the_type_of_the_model_is_the_tensor_itself() -> None:
    def moved(x: Any) -> Any:
        x.float().add_(1)
        return x

    assert_wide(run(moved), WIDE + 1)


def test_a_constant_of_the_program_stays_what_it_is() -> None:
    def moved(x: Any) -> Any:
        held = CONSTANT.float()
        held += 1
        return held

    run(moved)
    assert (CONSTANT.dtype, CONSTANT.tolist()) == (torch.float32, TENTHS.tolist())


def test_gradients_pass_a_cast() -> None:
    def gradient(x: Any) -> Any:
        x.requires_grad_()
        return torch.autograd.grad((x.half() * x.float()).sum(), x)[0]

    assert_wide(run(gradient), 2 * WIDE)


def test_a_functions_own_gradient_is_float64_too() -> None:
    class Tenth(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            return x * 0.1

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return gradient.float() * torch.tensor([0.1])

    with ADAPTER.in_precision(Model(Tenth.apply), "float64") as model:
        x = ADAPTER.variable(WIDE)
        assert ADAPTER.gradients(model(x).sum(), [x])[0].tolist() == np.full((2, 3), 0.1).tolist()
