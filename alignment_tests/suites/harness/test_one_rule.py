"""One rule on both sides: which names a model has, and which calls of its modules are seen."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.harness import capture
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.naming import first_names
from jt_impl.runtime import jittor as jt

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
Model = Any


def torch_model(parts: dict[str, Any], forward: Callable[..., Any] = lambda m, x: x) -> Model:
    """A module that holds these and computes that."""

    class Made(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Made()


def jittor_model(parts: dict[str, Any], execute: Callable[..., Any] = lambda m, x: x) -> Model:
    class Made(jt.Module):
        def __init__(self) -> None:
            for name, part in parts.items():
                setattr(self, name, part)

        def execute(self, x: Any) -> Any:
            return execute(self, x)

    return Made()


def linear(framework: str) -> Model:
    return torch.nn.Linear(4, 4) if framework == "torch" else jt.nn.Linear(4, 4)


def model_of(framework: str, parts: dict[str, Any], call: Callable[..., Any] = lambda m, x: x) -> Model:
    return torch_model(parts, call) if framework == "torch" else jittor_model(parts, call)


def parameter(framework: str) -> Any:
    return torch.nn.Parameter(torch.ones(3)) if framework == "torch" else jt.array(np.ones(3, np.float32))


# Names of tensors


def tied(framework: str) -> Model:
    first, second = linear(framework), linear(framework)
    second.weight = first.weight
    return model_of(framework, {"tokens": first, "head": second})


def shared(framework: str) -> Model:
    one = linear(framework)
    return model_of(framework, {"first": one, "second": one})


def listed(framework: str) -> Model:
    nn: Any = torch.nn if framework == "torch" else jt.nn
    one = parameter(framework)
    return model_of(framework, {"gains": nn.ParameterList([one, parameter(framework), one])})


def by_key(framework: str) -> Model:
    nn: Any = torch.nn if framework == "torch" else jt.nn
    return model_of(framework, {"gains": nn.ParameterDict({"low": parameter(framework), "high": parameter(framework)})})


def numbered_buffers(framework: str) -> Model:
    made = model_of(framework, {})
    for index in range(2):
        value = np.full(2, index, np.float32)
        made.register_buffer(str(index), torch.from_numpy(value) if framework == "torch" else jt.array(value))
    return made


def buffer_of_one_run(framework: str) -> Model:
    value = np.ones(2, np.float32)
    made = model_of(framework, {})
    made.register_buffer("mask", torch.from_numpy(value) if framework == "torch" else jt.array(value), persistent=False)
    return made


NAMES: dict[Callable[[str], Model], dict[str, str]] = {
    tied: {"tokens.weight": "", "tokens.bias": "", "head.weight": "tokens.weight", "head.bias": ""},
    shared: {
        "first.weight": "",
        "first.bias": "",
        "second.weight": "first.weight",
        "second.bias": "first.bias",
    },
    listed: {"gains.0": "", "gains.1": "", "gains.2": "gains.0"},
    by_key: {"gains.low": "", "gains.high": ""},
    numbered_buffers: {"0": "", "1": ""},
    buffer_of_one_run: {"mask": ""},
}


@pytest.mark.parametrize("framework", ["torch", "jittor"])
@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_every_name_counts_and_knows_the_first(make: Callable[[str], Model], framework: str) -> None:
    model = make(framework)
    found = first_names(adapter_for(model).variables(model))
    assert {name: "" if name == first else first for name, first in found.items()} == NAMES[make]


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_state_is_read_and_written_under_every_name(framework: str) -> None:
    model = shared(framework)
    adapter = adapter_for(model)
    adapter.write(model, {"second.bias": np.full(4, 7, np.float32)})
    state = adapter.state(model)
    assert [state[name][1].tolist() for name in ("first.bias", "second.bias")] == [[7] * 4] * 2


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_a_tied_array_is_stored_once(framework: str) -> None:
    trace = capture(tied(framework), X)
    assert trace.same("parameter/head.weight", "parameter/tokens.weight")


@pytest.mark.parametrize("framework", ["torch", "jittor"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_list_of_parameters_is_widened_too(precision: str, framework: str) -> None:
    trace = capture(listed(framework), X, precision=precision)
    assert {str(trace[f"parameter/gains.{index}"].dtype) for index in range(3)} == {precision}


def keeps(m: Any, x: Any) -> Any:
    m.last = x * 2
    return m.last


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_what_a_run_adds_is_no_state(framework: str) -> None:
    trace = capture(model_of(framework, {"part": linear(framework)}, keeps), X)
    assert trace.names("parameter") + trace.names("buffer") == ["parameter/part.weight", "parameter/part.bias"]


# Names of modules


def paths(model: Model) -> list[str]:
    return [path for path, _ in adapter_for(model).modules(model) if path]


JITTOR_LAYERS = {
    "MaxPool2d": lambda: jt.nn.MaxPool2d(2),
    "AvgPool2d": lambda: jt.nn.AvgPool2d(2),
    "MaxPool3d": lambda: jt.nn.MaxPool3d(2),
    "AvgPool3d": lambda: jt.nn.AvgPool3d(2),
}


@pytest.mark.parametrize("layer", JITTOR_LAYERS)
def test_a_pool_in_a_pool_of_jittor_is_no_module_of_the_port(layer: str) -> None:
    assert paths(jittor_model({"pool": JITTOR_LAYERS[layer]()})) == ["pool"]


def test_what_holds_weights_in_a_layer_of_the_framework_is_listed() -> None:
    model = torch_model({"layer": torch.nn.TransformerEncoderLayer(4, 2, 8)})
    assert paths(model) == [
        "layer", "layer.self_attn", "layer.self_attn.out_proj", "layer.linear1", "layer.linear2", "layer.norm1",
        "layer.norm2",
    ]  # fmt: skip


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_children_of_containers_are_listed(framework: str) -> None:
    nn: Any = torch.nn if framework == "torch" else jt.nn
    inner = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout(0.5)))
    assert paths(model_of(framework, {"body": inner})) == ["body", "body.0", "body.1", "body.1.0"]


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_modules_of_the_user_inside_a_layer_of_the_framework_are_listed(framework: str) -> None:
    nn: Any = torch.nn if framework == "torch" else jt.nn
    layer = nn.Linear(4, 4)
    layer.extra = model_of(framework, {})
    assert paths(model_of(framework, {"layer": layer})) == ["layer", "layer.extra"]


# Calls


def call(m: Any, x: Any) -> Any:
    return m.part(x) + 1


def direct_call(m: Any, x: Any) -> Any:
    part = m.part
    return (part.forward if isinstance(part, torch.nn.Module) else part.execute)(x) + 1


@pytest.mark.parametrize("framework", ["torch", "jittor"])
@pytest.mark.parametrize("how", [call, direct_call])
def test_a_child_is_seen_however_it_is_called(how: Callable[..., Any], framework: str) -> None:
    trace = capture(model_of(framework, {"part": linear(framework)}, how), X)
    assert [one.name for one in trace.calls] == ["part#0", "#0"]
    assert np.array_equal(trace["activation/part#0/0"] + 1, trace["activation/#0/0"])
    assert np.array_equal(trace["input/part#0/args.0"], X)


def each_of_a_list(m: Any, x: Any) -> Any:
    method = m.forward if isinstance(m, torch.nn.Module) else m.execute
    return [method(item) for item in x] if isinstance(x, list) else x + 1


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_a_module_that_calls_itself_is_called_once(framework: str) -> None:
    inner = model_of(framework, {}, each_of_a_list)
    trace = capture(model_of(framework, {"part": inner}, lambda m, x: m.part([x, x])), X)
    assert [one.name for one in trace.calls] == ["part#0", "#0"]


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_what_a_hook_of_the_user_makes_of_an_output_is_recorded(framework: str) -> None:
    part = linear(framework)
    part.register_forward_hook(lambda module, args, output: output * 0)
    model = model_of(framework, {"part": part}, call)
    assert not capture(model, X)["activation/part#0/0"].any()
    assert (run(model) == 1).all()


def zeros_by_call(base: type) -> Any:
    class Zeros(base):
        def __call__(self, x: Any) -> Any:
            return super().__call__(x) * 0

    return Zeros(4, 4)


@pytest.mark.parametrize("base", [torch.nn.Linear, jt.nn.Linear], ids=["torch", "jittor"])
def test_a_call_that_a_class_overrides_is_seen_as_a_whole(base: type) -> None:
    part = zeros_by_call(base)
    own = vars(type(part))["__call__"]
    model = model_of("torch" if base is torch.nn.Linear else "jittor", {"part": part}, call)
    assert not capture(model, X)["activation/part#0/0"].any()
    assert vars(type(part))["__call__"] is own


def run(model: Model) -> Any:
    if isinstance(model, torch.nn.Module):
        return model(torch.from_numpy(X)).detach().numpy()
    return model(jt.array(X)).numpy()


def doubled(module: Any, x: Any) -> Any:
    return x * 2


REPLACED = {
    "a function": lambda part: functools.partial(doubled, None),
    "a method": lambda part: types.MethodType(doubled, part),
}


@pytest.mark.parametrize("framework", ["torch", "jittor"])
@pytest.mark.parametrize("kind", REPLACED)
def test_a_method_that_the_user_put_on_an_instance_is_seen_and_stays(kind: str, framework: str) -> None:
    part, entry = linear(framework), "forward" if framework == "torch" else "execute"
    own = REPLACED[kind](part)
    setattr(part, entry, own)
    trace = capture(model_of(framework, {"part": part}, call), X)
    assert np.array_equal(trace["activation/part#0/0"], X * 2)
    assert vars(part)[entry] is own


def raising(m: Any, x: Any) -> Any:
    raise ArithmeticError("of the user's")


@pytest.mark.parametrize("framework", ["torch", "jittor"])
def test_nothing_stays_on_a_model_that_raises(framework: str) -> None:
    model = model_of(framework, {"part": model_of(framework, {}, raising)}, call)
    before = [dict(vars(module)) for _, module in adapter_for(model).modules(model)]
    with pytest.raises(Exception, match="of the user's"):
        capture(model, X)
    assert [dict(vars(module)) for _, module in adapter_for(model).modules(model)] == before


def sequence() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())


def compiled_in_place() -> Any:
    model = sequence()
    model.compile(backend="eager")
    return model


WRAPPED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "scripted": (lambda: torch.jit.script(sequence()), ["part"]),
    "traced": (lambda: torch.jit.trace(sequence(), torch.from_numpy(X)), ["part"]),
    "parallel": (
        lambda: torch.nn.DataParallel(sequence()),
        ["part.module.0", "part.module.1", "part.module", "part"],
    ),
    "compiled": (
        lambda: torch.compile(sequence(), backend="eager"),
        ["part._orig_mod.0", "part._orig_mod.1", "part._orig_mod", "part"],
    ),
    "compiled in place": (compiled_in_place, ["part.0", "part.1", "part"]),
    "of a graph": (lambda: torch.fx.symbolic_trace(sequence()), ["part.0", "part.1", "part"]),
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_modules_run_and_show_what_python_runs_of_them(kind: str, precision: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        part = WRAPPED[kind][0]()
        trace = capture(torch_model({"part": part}, call), X, precision=precision)
    assert [one.module for one in trace.calls] == [*WRAPPED[kind][1], ""]
    assert np.array_equal(trace["activation/part#0/0"] + 1, trace["activation/#0/0"])


def test_a_fast_path_hides_no_module() -> None:
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    trace = capture(torch_model({"layer": layer}, lambda m, x: m.layer(x[None])), X)
    assert "layer.linear1" in [one.module for one in trace.calls]
    assert torch.backends.mha.get_fastpath_enabled()
