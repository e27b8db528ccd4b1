"""The candidate's float64 run is float64 throughout: whatever narrower type the model's own code names is void."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.harness.record.adapters import adapter_for
from jt_impl.runtime import jittor as jt

WIDE = np.array([[0.3, -0.7, 1.1], [2.3, -1.9, 0.2]])  # no float32 holds these numbers
TENTHS = np.array([0.1, 0.2, 0.3], np.float32)
COUNTS = np.array([1, 2, 3])
CONSTANT = jt.array(TENTHS)
Function = Callable[[Any], Any]

maximum = jt.maximum  # as ``from jittor import maximum`` does


class Model(jt.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = jt.array(TENTHS)

    def execute(self, x: Any) -> Any:
        return self.function(x)


ADAPTER = adapter_for(Model(abs))


def run(function: Function) -> Any:
    """What the function gives of a float64 input in the float64 run of a model."""
    with ADAPTER.in_precision(Model(function), "float64") as model, jt.no_grad():
        return model(ADAPTER.from_numpy(WIDE))


def assert_wide(found: Any, expected: Any) -> None:
    array = found.numpy()
    assert array.dtype == np.float64
    np.testing.assert_allclose(array, expected, rtol=1e-15, atol=0.0)


def function(name: str) -> Function:
    return lambda x: getattr(jt, name)(x)


CASTS: dict[str, Function] = {
    **{name: methodcaller(name) for name in ("float", "float32", "half", "float16", "bfloat16")},
    **{f"jt.{name}": function(name) for name in ("float", "float32", "half", "float16", "bfloat16")},
    "float_auto": lambda x: x.float_auto(),
    "cast": lambda x: x.cast("float32"),
    "cast op=": lambda x: x.cast(op="float16"),
    "astype": lambda x: x.astype("bfloat16"),
    "by function": lambda x: x.cast(jt.float32),
    "by numpy's type": lambda x: x.astype(np.float32),
    "by numpy's dtype": lambda x: x.astype(np.dtype("float16")),
    "by Python's type": lambda x: x.astype(float),
    "by another's dtype": lambda x: x.cast(CONSTANT.dtype),
    "type_as": lambda x: x.type_as(CONSTANT),
    "to": lambda x: x.to(jt.float32),
    "unary": lambda x: jt.unary(x, "float32"),
    "unary op=": lambda x: x.unary(op="float32"),
    "jt.array dtype": lambda x: jt.array(x, "float32"),
    "there and back": lambda x: x.float16().cast(x.dtype),
}
TYPES: dict[str, tuple[Callable[[], Any], str]] = {
    "zeros": (lambda: jt.zeros((2,)), "float64"),
    "zeros, dtype": (lambda: jt.zeros((2,), dtype=jt.float32), "float64"),
    "ones, last": (lambda: jt.ones(2, 3, "float32"), "float64"),
    "empty": (lambda: jt.empty((2,), "float16"), "float64"),
    "eye": (lambda: jt.init.eye(2), "float64"),
    "rand": (lambda: jt.rand(2), "float64"),
    "numpy, half": (lambda: jt.array(TENTHS.astype(np.float16)), "float64"),
    "Var": (lambda: jt.Var([0.5]), "float64"),
    "of the program": (lambda: CONSTANT.reshape(3, 1), "float64"),
    "of integers": (lambda: jt.array(COUNTS) / 2, "float64"),
    "numbers chosen from": (lambda: jt.ternary(jt.array(COUNTS) > 1, 0.5, 0.25), "float64"),
    "a number beside a sum": (lambda: 2 * jt.array([0.5, 0.5]).sum(), "float64"),
    "integers": (lambda: jt.array(COUNTS), "int32"),
    "integers, 64": (lambda: jt.array64(COUNTS), "int64"),
    "list of integers": (lambda: jt.array([1, 2]), "int32"),
    "arange": (lambda: jt.arange(3), "int32"),
    "integers added": (lambda: jt.array(COUNTS) + 1, "int32"),
    "bool": (lambda: jt.array(COUNTS > 1), "bool"),
}


def added_in_place(x: Any) -> Any:
    x += 0.1
    return x


def integers_added_to(x: Any) -> Any:
    counts = jt.array(COUNTS)
    counts += 0.1
    return counts


def written(x: Any) -> Any:
    x[0, 1] = 0.1
    return x


# Each gives numbers that no float32 holds.
CONSTANTS: dict[str, tuple[Function, Any]] = {
    "multiplied": (lambda x: x * 0.1, WIDE * 0.1),
    "divided": (lambda x: x / math.sqrt(8), WIDE / math.sqrt(8)),
    "from the left": (lambda x: 0.1 - x, 0.1 - WIDE),
    "power": (lambda x: x.abs() ** 1.7, np.abs(WIDE) ** 1.7),
    "base": (lambda x: 2.7**x, 2.7**WIDE),
    "in place": (added_in_place, WIDE + 0.1),
    "in place, integers": (integers_added_to, COUNTS + 0.1),
    "add_": (lambda x: x.add_(0.1), WIDE + 0.1),
    "mul_": (lambda x: x.mul_(0.1), WIDE * 0.1),
    "maximum": (lambda x: jt.maximum(x, 0.1), np.maximum(WIDE, 0.1)),
    "maximum, imported": (lambda x: maximum(0.1, x), np.maximum(WIDE, 0.1)),
    "maximum, held by the model": (partial(maximum, 0.1), np.maximum(WIDE, 0.1)),
    "clamp": (lambda x: jt.clamp(x, -0.1, 0.1), np.clip(WIDE, -0.1, 0.1)),
    "ternary": (lambda x: jt.ternary(x > 0, 0.1, x), np.where(WIDE > 0, 0.1, WIDE)),
    "where": (lambda x: jt.where(x > 0, 0.1, 0.2), np.where(WIDE > 0, 0.1, 0.2)),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 0.1), np.where(WIDE > 0, 0.1, WIDE)),
    "written": (written, np.where(WIDE == -0.7, 0.1, WIDE)),
    "full": (lambda x: jt.full((2,), 0.1), [0.1, 0.1]),
    "array": (lambda x: jt.array([0.1, 0.2], dtype="float32"), [0.1, 0.2]),
    "array, numpy": (lambda x: jt.array(WIDE[:, ::2]), WIDE[:, ::2]),
    "list": (lambda x: x * [0.1, 0.2, 0.3], WIDE * [0.1, 0.2, 0.3]),
    "numpy's number": (lambda x: np.float64(0.1) * x, WIDE * 0.1),
    "numpy's array": (lambda x: x + TENTHS, WIDE + TENTHS),
    "of the program": (lambda x: x * CONSTANT, WIDE * TENTHS.astype(np.float64)),
    "integers divided": (lambda x: jt.array(COUNTS) / 3, COUNTS / 3),
    "integers scaled": (lambda x: jt.exp(jt.arange(3) * -0.1), np.exp(np.arange(3) * -0.1)),
    "linspace": (lambda x: jt.linspace(0, 1, 4), np.linspace(0, 1, 4)),
    "mean": (lambda x: x.mean(1), WIDE.mean(1)),
}


@pytest.fixture(scope="module")
def constants() -> dict[str, Any]:
    """Computed at once, so that Jittor compiles the kernels beside one another."""
    found = {name: run(function) for name, (function, _) in CONSTANTS.items()}
    jt.sync(list(found.values()))
    return found


@pytest.mark.parametrize("spelling", CASTS)
def test_a_narrow_type_is_void_in_the_candidate(spelling: str) -> None:
    assert_wide(run(CASTS[spelling]), WIDE)


@pytest.mark.parametrize("spelling", TYPES)
def test_what_the_candidate_makes_is_float64_or_stays_integers(spelling: str) -> None:
    make, expected = TYPES[spelling]
    assert str(run(lambda x: make()).dtype) == expected


@pytest.mark.parametrize("spelling", CONSTANTS)
def test_a_constant_is_float64_in_the_candidate(spelling: str, constants: dict[str, Any]) -> None:
    assert_wide(constants[spelling], np.asarray(CONSTANTS[spelling][1]))


@pytest.mark.parametrize("flags", [{"amp_level": 5}, {"auto_mixed_precision_level": 6}, {"amp_reg": 2}])
def test_mixed_precision_is_void_in_the_candidate(flags: dict[str, int]) -> None:
    def scaled(x: Any) -> Any:
        with jt.flag_scope(**flags):
            return x * 0.1

    assert_wide(run(scaled), WIDE * 0.1)


def test_random_numbers_of_the_candidate_are_those_of_its_own_run() -> None:
    def draw(x: Any) -> Any:
        jt.set_seed(0)
        return jt.rand(5)

    assert run(draw).numpy().tolist() == draw(None).numpy().tolist()


def doubled(x: Any) -> Any:
    made = x.exp()
    made *= 2
    return made * x


GRADIENTS: dict[str, tuple[Function, Function]] = {
    "mean": (lambda x: (x * x).mean(1), lambda x: (x * x).mean(1)),
    "reduced by name": (lambda x: (x * x).reduce("mean", 1), lambda x: (x * x).mean(1)),
    "gelu": (jt.nn.gelu, torch.nn.functional.gelu),
    "a number from the left": (lambda x: jt.log(1 + x.exp()), lambda x: torch.log(1 + x.exp())),
    "a number in place": (doubled, lambda x: x.exp() * 2 * x),
    "a number chosen": (lambda x: jt.ternary(x > 0, 1, x.exp()), lambda x: torch.where(x > 0, 1, x.exp())),
    "integers": (lambda x: jt.array(COUNTS) * x.exp(), lambda x: torch.from_numpy(COUNTS) * x.exp()),
}


@pytest.mark.parametrize("of", GRADIENTS)
def test_gradients_are_float64(of: str) -> None:
    ours, theirs = GRADIENTS[of]
    with ADAPTER.in_precision(Model(ours), "float64") as model:
        x = ADAPTER.variable(WIDE)
        found = ADAPTER.gradients(model(x).sum(), [x])[0]
    tensor = torch.tensor(WIDE, requires_grad=True)
    theirs(tensor).sum().backward()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, tensor.grad, rtol=1e-14)


def test_a_functions_own_gradient_is_float64_too() -> None:
    class Tenth(jt.Function):
        def execute(self, x: Any) -> Any:
            return x * 0.1

        def grad(self, gradient: Any) -> Any:
            return gradient.float32() * 0.1

    with ADAPTER.in_precision(Model(Tenth()), "float64") as model:
        x = ADAPTER.variable(WIDE)
        assert ADAPTER.gradients(model(x).sum(), [x])[0].tolist() == np.full((2, 3), 0.1).tolist()


def test_types_of_integers_are_named_as_ever() -> None:
    def named(x: Any) -> Any:
        counts = x.cast(jt.int32)
        return counts.astype("int64") if counts.dtype == jt.int32 else x

    assert str(run(named).dtype) == "int64"
