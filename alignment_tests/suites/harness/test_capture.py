"""Capture in both frameworks: it sees every call, changes nothing, and leaves the model as it found it."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.harness import Trace, capture
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import RaisedInCallError, run_plain
from jt_impl.runtime import jittor as jt

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
WEIGHT = np.array([0.5, -1.5, 2.0, 1.0], np.float32)
FRAMEWORKS = ["torch", "jittor"]
NAMES = [
    "activation/scale#0/0",
    "activation/norm#0/0",
    "activation/scale#1/0",
    "activation/split#0/0",
    "activation/split#0/1.0",
    "activation/split#0/1.1",
    "activation/drop#0/0",
    "activation/#0/0",
    "activation/#0/1",
    "parameter/scale.weight",
    "buffer/norm.mean",
]
Model = Any


class TorchScale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(WEIGHT.copy()))

    def forward(self, x: Any) -> Any:
        return x * self.weight


class TorchNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        if self.training:
            self.mean.add_(x.mean(0))
        return x - self.mean


class TorchSplit(torch.nn.Module):
    def forward(self, x: Any, shift: Any, *, factor: float = 1.0) -> Any:
        return x + shift, [x * factor, x - shift]


class TorchTiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.norm, self.split = TorchScale(), TorchNorm(), TorchSplit()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: Any, fail: bool = False) -> Any:
        x = self.scale(self.norm(self.scale(x)))
        if fail:
            raise ArithmeticError("inside the model")
        a, (b, _) = self.split(x, shift=x, factor=2.0)
        return self.drop(a), b


class JittorScale(jt.Module):
    def __init__(self) -> None:
        self.weight = jt.array(WEIGHT)

    def execute(self, x: Any) -> Any:
        return x * self.weight


class JittorNorm(jt.Module):
    def __init__(self) -> None:
        self.mean = jt.array(np.zeros(4, np.float32)).stop_grad()

    def execute(self, x: Any) -> Any:
        if self.is_training():
            self.mean.update((self.mean + x.mean(0)).stop_grad())
        return x - self.mean


class JittorSplit(jt.Module):
    def execute(self, x: Any, shift: Any, *, factor: float = 1.0) -> Any:
        return x + shift, [x * factor, x - shift]


class JittorTiny(jt.Module):
    def __init__(self) -> None:
        self.scale, self.norm, self.split = JittorScale(), JittorNorm(), JittorSplit()
        self.drop = jt.nn.Dropout(0.5)

    def execute(self, x: Any, fail: bool = False) -> Any:
        x = self.scale(self.norm(self.scale(x)))
        if fail:
            raise ArithmeticError("inside the model")
        a, (b, _) = self.split(x, shift=x, factor=2.0)
        return self.drop(a), b


@pytest.fixture(params=FRAMEWORKS)
def model(request: pytest.FixtureRequest) -> Model:
    return TorchTiny() if request.param == "torch" else JittorTiny()


def state(model: Model) -> dict[str, Any]:
    """All that a capture must leave as it is, in plain values."""
    values = {name: (phase, array.tobytes()) for name, (phase, array) in adapter_for(model).state(model).items()}
    modules = adapter_for(model).modules(model)
    if isinstance(model, torch.nn.Module):
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for _, m in modules]
        return {"values": values, "modes": [m.training for _, m in modules], "hooks": hooks, "rng": rng_of_torch()}
    own = [sorted(m.__dict__) for _, m in modules]
    return {"values": values, "modes": [m.is_train for _, m in modules], "attributes": own, "seed": jt.get_seed()}


def rng_of_torch() -> bytes:
    return bytes(torch.get_rng_state().numpy())


def set_odd_modes(model: Model) -> None:
    """Not one mode for all: part of a model may be frozen."""
    for i, (_, module) in enumerate(adapter_for(model).modules(model)):
        setattr(module, "training" if isinstance(model, torch.nn.Module) else "is_train", i % 2 == 0)


def arrays(trace: Trace, *, but: str = "") -> dict[str, bytes]:
    return {name: trace[name].tobytes() for name in trace if name != but}


# What is seen


def test_every_output_has_its_name(model: Model) -> None:
    trace = capture(model, X, with_inputs=False)
    assert sorted(trace) == sorted(NAMES)


def test_names_are_in_the_order_of_the_calls(model: Model) -> None:
    calls = [call.name for call in capture(model, X).calls]
    assert calls == ["scale#0", "norm#0", "scale#1", "split#0", "drop#0", "#0"]


def test_values_are_those_of_each_call(model: Model) -> None:
    trace = capture(model, X)
    once, twice = X * WEIGHT, X * WEIGHT * WEIGHT
    expected = [once, once, twice, twice + twice, twice * 2, twice - twice, twice + twice, twice + twice, twice * 2]
    found = [trace[name] for name in NAMES[:9]]
    assert [np.array_equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * 9


def test_arguments_are_recorded_by_position_and_by_name(model: Model) -> None:
    trace = capture(model, X)
    assert [n for n in trace.names("input") if "split" in n] == ["input/split#0/args.0", "input/split#0/kwargs.shift"]
    call = next(call for call in trace.calls if call.module == "split")
    assert call.arguments["dict"]["kwargs"]["dict"]["factor"] == {"value": 2.0}


def test_one_tensor_under_several_names_is_stored_once(model: Model) -> None:
    trace = capture(model, X)
    assert trace.same("input/norm#0/args.0", "activation/scale#0/0")
    assert trace.same("input/split#0/args.0", "input/split#0/kwargs.shift")


def test_the_kind_of_a_call_is_its_class(model: Model) -> None:
    framework = "Torch" if isinstance(model, torch.nn.Module) else "Jittor"
    assert [call.kind for call in capture(model, X).calls][-1] == f"{framework}Tiny"


def test_a_trace_tells_how_it_was_made(model: Model) -> None:
    meta = capture(model, X, train=True).meta
    assert (meta["precision"], meta["train"]) == ("float32", True)
    assert meta["environment"]["framework"] in FRAMEWORKS


def test_train_mode_shows_the_buffers_after_the_run(model: Model) -> None:
    trace = capture(model, X, train=True)
    assert trace["buffer/norm.mean"] == pytest.approx((X * WEIGHT).mean(0), rel=1e-6)


def moved_in_place(x: Any) -> Any:
    """Twice ``x``, written over ``x``."""
    return x.mul_(2) if isinstance(x, torch.Tensor) else x.assign(x * 2)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_arguments_that_a_call_changes_in_place_are_reported(framework: str) -> None:
    """Only of the module that does it: what was handed on before is no argument of it."""
    model = TorchTiny() if framework == "torch" else JittorTiny()
    setattr(model.norm, "forward" if framework == "torch" else "execute", moved_in_place)
    written = {call.name: tuple(call.written) for call in capture(model, X).calls}
    assert written.pop("norm#0") == ("args.0",)
    assert set(written.values()) == {()}


def test_a_dropout_repeats(model: Model) -> None:
    assert arrays(capture(model, X, train=True)) == arrays(capture(model, X, train=True))


def test_another_object_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module or a jittor\.Module"):
        capture(lambda x: x, X)


# Nothing is changed


def test_a_buffer_that_moves_in_eval_mode_is_put_back() -> None:
    """A norm that does not know its mode moves its statistics in evaluation."""
    model: Model = JittorTiny()
    set_odd_modes(model)
    model.norm.is_training = lambda: True
    before = state(model)
    capture(model, X)
    assert state(model) == before


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_hooked_and_unhooked_are_bitwise_equal(precision: str, train: bool, model: Model) -> None:
    trace = capture(model, X, precision=precision, train=train)
    adapter = adapter_for(model)
    with adapter.in_precision(model, precision) as made:
        plain = run_plain(adapter, made, X, precision, train=train)
    assert {slot: array.tobytes() for slot, array in plain.items()} == {
        slot: trace[f"activation/#0/{slot}"].tobytes() for slot in ("0", "1")
    }
    assert {str(array.dtype) for array in plain.values()} == {precision}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_model_is_left_as_it_was(precision: str, train: bool, model: Model) -> None:
    set_odd_modes(model)
    before = state(model)
    capture(model, X, precision=precision, train=train)
    assert state(model) == before


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_model_that_raises_is_left_as_it_was(precision: str, model: Model, tmp_path: Path) -> None:
    set_odd_modes(model)
    before = state(model)
    with pytest.raises(RaisedInCallError, match="ArithmeticError: inside the model"):
        capture(model, [X, True], precision=precision, train=True, folder=tmp_path)
    assert state(model) == before
    assert list(tmp_path.iterdir()) == []


def test_the_input_is_left_as_it_was(model: Model) -> None:
    x = X.copy()
    capture(model, x, train=True)
    assert np.array_equal(x, X)


def test_parameters_of_torch_still_learn() -> None:
    model = TorchTiny()
    capture(model, X, train=True)
    model(torch.from_numpy(X))[1].sum().backward()
    assert model.scale.weight.grad is not None
    assert bool((model.scale.weight.grad != 0).any())


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_variables_of_jittor_are_the_same_and_still_learn(precision: str) -> None:
    model = JittorTiny()
    weight, mean = model.scale.weight, model.norm.mean
    capture(model, X, precision=precision, train=True)
    assert model.scale.weight is weight
    assert model.norm.mean is mean
    assert (str(weight.dtype), weight.is_stop_grad(), mean.is_stop_grad()) == ("float32", False, True)
    gradient = jt.grad(model(jt.array(X))[1].sum(), weight)
    assert bool((gradient.numpy() != 0).any())


def test_float64_casts_are_undone() -> None:
    cast = torch.Tensor.float
    capture(TorchTiny(), X, precision="float64")
    assert torch.Tensor.float is cast
    assert "float" not in torch.Tensor.__dict__


def test_float64_holds_the_same_numbers(model: Model) -> None:
    trace = capture(model, X, precision="float64")
    assert trace["parameter/scale.weight"].dtype == np.float64
    assert np.array_equal(trace["activation/scale#0/0"], X.astype(np.float64) * WEIGHT)


# The user's own hooks


def test_hooks_of_torch_work_and_survive() -> None:
    model, seen = TorchTiny(), []
    model.norm.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.norm.register_forward_hook(lambda module, args, output: seen.append("after"))
    trace = capture(model, X)
    model(torch.from_numpy(X))
    assert seen == ["before", "after"] * 2
    assert "activation/norm#0/0" in trace


def test_an_output_that_a_hook_replaces_is_recorded() -> None:
    model = TorchTiny()
    model.norm.register_forward_hook(lambda module, args, output: output * 0)
    assert not capture(model, X)["activation/norm#0/0"].any()


def test_hooks_of_jittor_work_and_survive() -> None:
    model, seen = JittorTiny(), []
    model.norm.register_pre_forward_hook(lambda module, args: seen.append("before"))
    model.norm.register_forward_hook(lambda module, args, output: seen.append("after"))
    trace = capture(model, X)
    model(jt.array(X))
    assert seen == ["before", "after"] * 2
    assert "activation/norm#0/0" in trace


def test_an_execute_that_the_user_replaced_survives() -> None:
    model = JittorTiny()

    def replaced(x: Any) -> Any:
        return x * 0

    setattr(model.norm, "execute", replaced)  # noqa: B010
    assert not capture(model, X)["activation/norm#0/0"].any()
    assert model.norm.execute is replaced


# Odd models


class TorchInPlace(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.relu = TorchScale(), torch.nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        y = self.scale(x)
        z = self.relu(y)
        y[:, 0] = 7
        return z


class JittorInPlace(jt.Module):
    def __init__(self) -> None:
        self.scale, self.relu = JittorScale(), jt.nn.ReLU()

    def execute(self, x: Any) -> Any:
        y = self.relu(self.scale(x))
        y[:, 0] = 7
        return y


@pytest.mark.parametrize("kind", [TorchInPlace, JittorInPlace])
def test_in_place_changes_do_not_reach_what_was_recorded(kind: Callable[[], Model]) -> None:
    trace = capture(kind(), X)
    rectified = np.maximum(X * WEIGHT, 0)
    changed = np.concatenate([np.full((2, 1), 7, np.float32), rectified[:, 1:]], 1)
    expected = {"scale": X * WEIGHT, "relu": rectified, "": changed}
    assert {path: trace[f"activation/{path}#0/0"].tolist() for path in expected} == {
        path: array.tolist() for path, array in expected.items()
    }


class TorchTied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = TorchScale()
        self.second = self.first

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


class JittorTied(jt.Module):
    def __init__(self) -> None:
        self.first = JittorScale()
        self.second = self.first

    def execute(self, x: Any) -> Any:
        return self.second(self.first(x))


@pytest.mark.parametrize("kind", [TorchTied, JittorTied])
def test_a_module_under_two_names_has_the_first_and_its_weights_both(kind: Callable[[], Model]) -> None:
    trace = capture(kind(), X)
    assert [call.name for call in trace.calls] == ["first#0", "first#1", "#0"]
    assert trace.names("parameter") == ["parameter/first.weight", "parameter/second.weight"]
    assert trace.same(*trace.names("parameter"))


class TorchCounter(torch.nn.Module):
    """Replaces its buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Any
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("cache", None)

    def forward(self, x: Any) -> Any:
        self.count = self.count + 1
        self.cache = x
        return x + self.count


class JittorCounter(jt.Module):
    def __init__(self) -> None:
        self.count = jt.array(np.zeros(1, np.float32)).stop_grad()

    def execute(self, x: Any) -> Any:
        self.count = (self.count + 1).stop_grad()
        return x + self.count


@pytest.mark.parametrize("kind", [TorchCounter, JittorCounter])
@pytest.mark.parametrize("train", [False, True])
def test_a_replaced_buffer_is_put_back(train: bool, kind: Callable[[], Model]) -> None:
    model = kind()
    count = model.count
    assert capture(model, X, train=train)["buffer/count"] == 1
    assert model.count is count
    assert model.count.numpy() == 0
    assert getattr(model, "cache", None) is None


class TorchFallback(torch.nn.Module):
    """Goes on after a part of it raised."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = TorchTiny(), TorchScale()

    def forward(self, x: Any) -> Any:
        try:
            return self.inner(x, fail=True)
        except ArithmeticError:
            return self.scale(x)


def test_a_part_that_raises_and_is_caught_has_no_output() -> None:
    trace = capture(TorchFallback(), X)
    assert [call.name for call in trace.calls][-2:] == ["scale#0", "#0"]
    assert "activation/inner#0/0" not in trace


# Files and memory


def test_a_temporary_trace_goes_with_the_trace(model: Model) -> None:
    trace = capture(model, X)
    folder = trace.folder
    assert folder.is_dir()
    del trace
    gc.collect()  # warnings are errors: a folder that the garbage collector finds would fail here
    assert not folder.exists()


def test_a_trace_in_a_given_folder_stays(model: Model, tmp_path: Path) -> None:
    expected = arrays(capture(model, X, folder=tmp_path))
    gc.collect()
    assert arrays(Trace.open(tmp_path)) == expected


def watched_chain() -> tuple[Any, list[int]]:
    """A long chain, and how many of its outputs are alive as each one is made."""
    chain = torch.nn.Sequential(*[TorchScale() for _ in range(20)])
    born: list[Any] = []
    alive: list[int] = []

    def count(module: Any, args: Any, output: Any) -> None:
        born.append(weakref.ref(output))
        alive.append(sum(ref() is not None for ref in born))

    for module in chain:
        module.register_forward_hook(count)
    return chain, alive


def test_torch_activations_are_not_held() -> None:
    (plain, expected), (captured, found) = watched_chain(), watched_chain()
    plain(torch.from_numpy(X))
    capture(captured, X)
    assert len(found) == 20
    assert max(found) <= max(expected) + 1


def test_jittor_activations_are_not_held() -> None:
    chain = jt.nn.Sequential(*[JittorScale() for _ in range(20)])
    alive: list[int] = []
    chain[10].register_forward_hook(lambda *args: alive.append(jt.core.number_of_hold_vars()))
    chain[19].register_forward_hook(lambda *args: alive.append(jt.core.number_of_hold_vars()))
    capture(chain, X)
    assert alive[1] <= alive[0] + 1


def test_a_copy_of_a_captured_model_is_whole() -> None:
    model = TorchTiny()
    capture(model, X)
    assert arrays(capture(copy.deepcopy(model), X)) == arrays(capture(model, X))
