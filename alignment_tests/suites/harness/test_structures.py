"""What a call takes and returns, in both frameworks: containers, numbers, integers, narrow types, keyword arguments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from alignment_tests.harness import Report, align, capture, compare, dump
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.judge.report import Row
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.bfloat16 import cast, type_name
from alignment_tests.harness.record.capture import run_plain, tensors_from
from alignment_tests.harness.record.trace import ARRAYS, HEADER_ROOM, Trace
from jt_impl.runtime import jittor as jt

X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
IDS = np.array([[0, 1, 2], [5, 4, 3]])
Function = Callable[..., Any]
FRAMEWORKS = ("torch", "jittor")


def model(framework: str, function: Function, **children: Any) -> Any:
    """A module whose forward is ``function(self, ...)``."""
    base, entry = {"torch": (torch.nn.Module, "forward"), "jittor": (jt.Module, "execute")}[framework]
    made = type("Model", (base,), {entry: function})()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def both(theirs: Function, ours: Function | None = None) -> tuple[Any, Any]:
    """Reference and candidate of the same code, or of two."""
    return model("torch", theirs), model("jittor", ours or theirs)


def rows_of(report: Report, path: str) -> list[Row]:
    return [row for row in report.rows if row.module == path and row.phase == "activation"]


# Containers that modules hand to one another


class Pair(NamedTuple):
    hidden: Any
    pooled: Any = None


@dataclass
class Data:
    hidden: Any
    pooled: Any = None


class Bag:
    def __init__(self, hidden: Any, pooled: Any) -> None:
        self.hidden, self.pooled = hidden, pooled


class OtherBag:
    __slots__ = ("hidden", "mode", "pooled")

    def __init__(self, hidden: Any, pooled: Any) -> None:
        self.pooled, self.hidden, self.mode = pooled, hidden, "own"


class Named(OrderedDict):  # type: ignore[type-arg]
    def __init__(self, hidden: Any, pooled: Any) -> None:
        super().__init__(hidden=hidden, pooled=pooled)
        self.hidden, self.pooled = hidden, pooled


Make = Callable[[Any, Any], Any]
CONTAINERS: dict[str, tuple[Make, Make]] = {
    "named tuples": (Pair, Pair),
    "dataclasses": (Data, Data),
    "objects": (Bag, Bag),
    "objects of two classes": (Bag, OtherBag),
    "mappings": (Named, Named),
    "a mapping and a dataclass": (Named, Data),
    "a named tuple and an object": (Pair, Bag),
    "namespaces, nested": (lambda a, b: Data(SimpleNamespace(x=a), [b]), lambda a, b: Data(SimpleNamespace(x=a), [b])),
}


def read(pair: Any) -> tuple[Any, Any]:
    nested = isinstance(pair.hidden, SimpleNamespace)
    return (pair.hidden.x, pair.pooled[0]) if nested else (pair.hidden, pair.pooled)


def handing_on(framework: str, make: Make, factor: float = 2.0) -> Any:
    """One child makes a container, the other reads it."""

    def decode(self: Any, pair: Any) -> Any:
        hidden, pooled = read(pair)
        return hidden * factor + pooled

    return model(
        framework,
        lambda self, x: self.decoder(self.encoder(x)),
        encoder=model(framework, lambda self, x: make(x * 0.5, x + 1.0)),
        decoder=model(framework, decode),
    )


@pytest.mark.parametrize("case", CONTAINERS)
def test_containers_are_handed_on(case: str) -> None:
    theirs, ours = CONTAINERS[case]
    report = align(handing_on("torch", theirs), handing_on("jittor", ours), X)
    report.raise_if_diverged()
    assert all(row.isolated is not None for row in rows_of(report, "decoder"))
    assert len(rows_of(report, "encoder")) == 4


@pytest.mark.parametrize("case", CONTAINERS)
def test_a_fault_behind_a_container_is_blamed_where_it_is(case: str, tmp_path: Path) -> None:
    theirs, ours = CONTAINERS[case]
    report = align(handing_on("torch", theirs), handing_on("jittor", ours, 2.001), X, folder=tmp_path)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "decoder"


def test_a_fault_in_a_container_is_blamed_on_who_made_it(tmp_path: Path) -> None:
    reference = handing_on("torch", Pair)
    report = align(reference, handing_on("jittor", lambda a, b: Pair(a, b * 1.001)), X, folder=tmp_path)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "encoder"


def offline(reference: Any, candidate: Any, folder: Path) -> Report:
    dump(reference, X, folder / "a")
    dump(candidate, X, folder / "b", reference=folder / "a")
    return compare(folder / "a", folder / "b")


@pytest.mark.parametrize("factor", [2.0, 2.001])
def test_two_dumps_give_the_same_rows(factor: float, tmp_path: Path) -> None:
    sides = handing_on("torch", Named), handing_on("jittor", Bag, factor)
    live, later = align(*sides, X, folder=tmp_path), offline(*sides, tmp_path)
    assert [(row.name, row.verdict, row.isolated) for row in later.rows] == [
        (row.name, row.verdict, row.isolated) for row in live.rows
    ]


def unrepeatable(framework: str, factor: float = 2.0) -> Any:
    """A child takes what can't be given again."""
    child = model(framework, lambda self, x, numbers: x * next(numbers))
    return model(framework, lambda self, x: self.child(x, iter([factor])), child=child)


def test_a_call_that_cannot_be_made_again_is_told_and_judged_in_place(tmp_path: Path) -> None:
    report = align(unrepeatable("torch"), unrepeatable("jittor"), X)
    report.raise_if_diverged()
    assert "child#0" in report.checks["isolated"]
    wrong = align(unrepeatable("torch"), unrepeatable("jittor", 3.0), X, folder=tmp_path)
    assert wrong.first_divergence is not None
    assert wrong.first_divergence.module == "child"


def pair(make: Callable[[str], Any]) -> tuple[Any, Any]:
    return make("torch"), make("jittor")


def test_calls_that_do_not_correspond_are_told_and_judged_in_place() -> None:
    child = {"torch": lambda self, pair: pair.hidden * 2.0, "jittor": lambda self, x: x * 2.0}
    make = {"torch": lambda x: Pair(x, x), "jittor": lambda x: x}
    sides = pair(lambda f: model(f, lambda self, x: self.child(make[f](x)), child=model(f, child[f])))
    report = align(*sides, X)
    report.raise_if_diverged()
    assert "child#0: not run alone: " in report.checks["judged in place only"]


def test_a_constant_of_either_framework_is_each_sides_own() -> None:
    kinds = {"torch": torch.int32, "jittor": "int32"}

    def made(f: str) -> Any:
        child = model(f, lambda self, x, part, kind, size: (x[:, part] * size[1], x.shape))
        return model(f, lambda self, x: self.child(x, slice(0, 2), kinds[f], x.shape), child=child)

    report = align(*pair(made), X)
    report.raise_if_diverged()
    assert [row.isolated is not None for row in rows_of(report, "child")] == [True] * 6


def test_one_tensor_given_twice_is_one_tensor_alone() -> None:
    def made(f: str) -> Any:
        child = model(f, lambda self, q, k: q + k if q is k else q - k)
        return model(f, lambda self, x: self.child(x, x), child=child)

    align(*pair(made), X).raise_if_diverged()


# Inputs


def doubled(self: Any, x: Any, *rest: Any, **named: Any) -> Any:
    return x * 2.0


INPUTS: dict[str, tuple[Function, Any]] = {
    "a dictionary": (lambda self, d: d["x"] * 2.0, {"x": X}),
    "a dictionary among others": (lambda self, x, d: x * d["x"], [X, {"x": X, "n": [X]}]),
    "keys that are numbers": (lambda self, d: d[0] * d[1], [{0: X, 1: X}]),
    "None, a number, a string, a bool": (lambda self, x, m, k, s, b: x * k * len(s), [X, None, 2, "ab", True]),
    "a tuple": (lambda self, x, y: x - y, (X, X)),
    "a list in a list": (lambda self, xs: xs[0] * xs[1][0], [[X, (X,)]]),
    "a named tuple": (lambda self, pair: pair.hidden * pair.pooled, Pair(X, X)),
    "an object": (lambda self, bag: bag.hidden - bag.pooled, Bag(X, X)),
    "a dataclass in a dictionary": (lambda self, d: d["data"].hidden * 2.0, {"data": Data(X)}),
    "arguments by name": (lambda self, x, *, k=None: x * k, {"x": X, "k": X}),
    "an argument by name": (lambda self, x: x * 2.0, {"x": X}),
    "a numpy number": (lambda self, x, k: x * k, [X, np.float32(0.5)]),
    "arrays that are not contiguous": (lambda self, x: x * 2.0, [np.asfortranarray(X)[::-1]]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs(case: str) -> None:
    function, inputs = INPUTS[case]
    align(*both(function), inputs).raise_if_diverged()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_arguments_by_name(framework: str) -> None:
    made = model(framework, lambda self, x, *, k, n=1: x * k["y"] * n)
    trace = capture(made, X, kwargs={"k": {"y": X}, "n": 2})
    assert trace["activation/#0/0"] == pytest.approx(X * X * 2)
    plain = run_plain(adapter_for(made), made, [X], "float32", train=False, kwargs={"k": {"y": X}})
    assert plain["0"] == pytest.approx(X * X)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_array_that_occurs_twice_is_one_tensor(framework: str) -> None:
    made = model(framework, doubled)
    args, kwargs = tensors_from(adapter_for(made), made, [X, [X]], "float32", {"k": X})
    assert args[0] is args[1][0] is kwargs["k"]


@pytest.mark.parametrize("value", [torch.ones(2), [jt.array([1])], {"x": iter([X])}, torch.nn.ReLU()])
def test_other_inputs_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="`inputs` must hold numpy arrays"):
        capture(model("torch", lambda self, *args: args[0]), [X, value])


# Integers


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "bool"])
def test_integers_reach_each_side_as_its_users_pass_them(dtype: str) -> None:
    """Jittor's own rule makes float64 of int64 and float32."""
    function = {
        "torch": lambda self, i: (i, i.float() * 0.5, i.to(torch.float32)),
        "jittor": lambda self, i: (i, i.float() * 0.5, i.float32()),
    }
    align(*both(*function.values()), IDS.astype(dtype)).raise_if_diverged()
    narrow = "int32" if dtype == "int64" else dtype
    found = run_plain(
        adapter_for(m := model("jittor", lambda self, i: i)), m, IDS.astype(dtype), "float32", train=False
    )
    assert found["0"].dtype == narrow


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_an_integer_input_times_a_weight_is_float32(dtype: str) -> None:
    align(*both(lambda self, i, w: i * w), [IDS.astype(dtype), X]).raise_if_diverged()


def test_labels_of_32_bits_are_those_of_64() -> None:
    align(*both(lambda s, x: x.argmax(-1), lambda s, x: jt.argmax(x, -1)[0]), X).raise_if_diverged()


def test_a_wrong_label_is_found(tmp_path: Path) -> None:
    report = align(*both(lambda s, x: x.argmax(-1), lambda s, x: jt.argmin(x, -1)[0]), X, folder=tmp_path)
    assert {row.reason for row in report.failures} == {"isolated: 2 of 2 elements differ, first at (0,)"}


def test_integer_state_is_compared_by_value() -> None:
    reference, candidate = both(doubled)
    reference.register_buffer("places", torch.arange(3))
    candidate.places = jt.array(np.arange(3)).stop_grad()
    align(reference, candidate, X).raise_if_diverged()
    reference.places[1] = 7
    assert any("convert first" in problem for problem in align(reference, candidate, X).problems)


# Outputs


def mean_of(x: Any) -> Any:
    return x.mean()


OUTPUTS: dict[str, Function] = {
    "a number without axes": lambda self, x: (x * 2.0, mean_of(x)),
    "a Python float": lambda self, x: (x * 2.0, float(mean_of(x).item())),
    "Python numbers": lambda self, x: {"x": x, "count": int(x.shape[0]), "large": bool(x.shape[1] > 2), "name": "a"},
    "None": lambda self, x: [x, None],
    "nothing chosen": lambda self, x: (x * 2.0, x[x[:, 0] > 1e9]),
    "bool": lambda self, x: {"x": x, "keep": x > 0.0, 3: x + 1.0},
    "a shape": lambda self, x: (x, x.shape),
    "numpy": lambda self, x: (x, np.arange(3)),
    "an object": lambda self, x: Bag(x * 2.0, None),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs(case: str) -> None:
    align(*both(OUTPUTS[case]), X).raise_if_diverged()


OTHERWISE: dict[str, tuple[Function, Function]] = {
    "a float for a tensor": (lambda s, x: (x, mean_of(x)), lambda s, x: (x, float(mean_of(x).item()))),
    "a tensor for a float": (lambda s, x: (x, float(mean_of(x))), lambda s, x: (x, mean_of(x))),
    "a list for a tuple": (lambda s, x: (x, x), lambda s, x: [x, x]),
    "a tuple for what PyTorch returns": (lambda s, x: torch.max(x, 1), lambda s, x: (jt.max(x, 1), jt.argmax(x, 1)[0])),
    "an object for a named tuple": (lambda s, x: Pair(x, x * 2.0), lambda s, x: Bag(x, x * 2.0)),
    "a tuple for a mapping": (lambda s, x: Named(x, x * 2.0), lambda s, x: (x, x * 2.0)),
    "a mapping for a tuple": (lambda s, x: (x, x * 2.0), lambda s, x: {"b": x, "a": x * 2.0}),
    "an object for a packed sequence": (
        lambda s, x: torch.nn.utils.rnn.pack_sequence([x[0], x[1]]),
        lambda s, x: SimpleNamespace(
            batch_sizes=jt.array([2, 2, 2]), data=x.transpose(1, 0).reshape(-1), sorted_indices=None
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERWISE)
def test_outputs_that_one_side_gives_otherwise(case: str) -> None:
    align(*both(*OTHERWISE[case]), X).raise_if_diverged()


WRONG: dict[str, tuple[Function, Function, str]] = {
    "a Python float": (lambda s, x: (x, float(x.sum())), lambda s, x: (x, float(x.sum().item()) + 1e-3), "1 of 1 elem"),
    "a Python integer": (lambda s, x: (x, 3), lambda s, x: (x, 4), "1 of 1 elements differ"),
    "a string": (lambda s, x: (x, "sum"), lambda s, x: (x, "max"), "elements differ"),
    "a longer string": (lambda s, x: (x, "sum"), lambda s, x: (x, "mean"), "shape differs"),
    "a string for None": (
        lambda s, x: (x, None),
        lambda s, x: (x, "a"),
        "unexpected in the candidate: activation/#0/1",
    ),
    "None for a number": (lambda s, x: (x, 3), lambda s, x: (x, None), "missing in the candidate: activation/#0/1"),
    "None for a tensor": (lambda s, x: (x, x), lambda s, x: (x, None), "missing in the candidate: activation/#0/1"),
    "a number of axes": (lambda s, x: mean_of(x), lambda s, x: mean_of(x).reshape(1, 1), "shape differs"),
    "something for nothing": (lambda s, x: (x, x[:0]), lambda s, x: (x, x[:1]), "shape differs"),
    "a field of an object": (lambda s, x: Bag(x, x), lambda s, x: Bag(x, x * 1.001), "elements beyond"),
    "the order of a mapping": (lambda s, x: {"a": x, "b": x + 1.0}, lambda s, x: (x + 1.0, x), "elements beyond"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_output_is_found(case: str, tmp_path: Path) -> None:
    theirs, ours, reason = WRONG[case]
    report = align(*both(theirs, ours), X, folder=tmp_path)
    found = [*report.problems, *(row.reason for row in report.failures)]
    assert any(reason in text for text in found), found


def test_a_report_of_nothing_but_empty_arrays_compares_nothing() -> None:
    assert align(*both(lambda self, x: x[:0]), X).problems == ["nothing was compared"]


def test_other_hooks_than_tensors_are_seen_without_hooks_too() -> None:
    reference, candidate = both(lambda self, x: float(x.sum()), lambda self, x: float(x.sum().item()))
    report = align(reference, candidate, X)
    assert report.checks["hooks (candidate)"] == "hooked and unhooked outputs are bitwise equal"


# Narrow types


def test_bfloat16_is_exact_and_marked_in_a_trace(tmp_path: Path) -> None:
    values = cast(
        np.array([[1.0, -0.0, np.inf, 3.0e38], [1e-40, 2.0**-133, -1.5, 1.0 + 2**-8]], np.float32), "bfloat16"
    )
    made = model("torch", lambda self, x: x.to(torch.bfloat16))
    capture(made, values.astype(np.float32), folder=tmp_path)
    found = Trace.open(tmp_path)["activation/#0/0"]
    assert (type_name(found), found.tobytes()) == ("bfloat16", values.tobytes())
    assert (tmp_path / ARRAYS).stat().st_size < HEADER_ROOM + 8 + values.nbytes * 2


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_narrow_tensor_goes_to_numpy_and_back(name: str, framework: str) -> None:
    adapter = adapter_for(model(framework, doubled))
    array = cast(X, name)
    tensor = adapter.from_numpy(array)
    assert str(tensor.dtype).removeprefix("torch.") == name
    back = adapter.to_numpy(tensor)
    assert (type_name(back), back.tobytes()) == (name, array.tobytes())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_the_type_of_one_block_is_told_in_one_row(kind: str) -> None:
    core = model("torch", lambda self, x: (x * 0.3).to(getattr(torch, kind)))
    reference = model("torch", lambda self, x: self.core(x).float() * 2.0, core=core)
    candidate = model("jittor", lambda self, x: self.core(x) * 2.0, core=model("jittor", lambda self, x: x * 0.3))
    report = align(reference, candidate, X, excused={"activation/core#0/0": "the port stays in float32"})
    report.raise_if_diverged()
    assert [row.reason for row in report.rows if row.verdict == "excused"] == [
        f"the port stays in float32 (isolated: dtype differs: candidate float32, reference {kind})"
    ]


@pytest.mark.parametrize("factor", [0.3, 0.31])
def test_a_model_in_half_precision_is_judged_as_such(factor: float, tmp_path: Path) -> None:
    reference, candidate = both(lambda self, x: x * self.weight + x * 0.3, lambda self, x: x * self.weight + x * factor)
    reference.weight = torch.nn.Parameter(torch.tensor([0.5, 1.5, -2.0]).half())
    candidate.weight = jt.array([0.5, 1.5, -2.0]).float16()
    report = align(reference, candidate, X, folder=tmp_path)
    dtypes = {row.accumulated.dtype for row in report.rows if row.accumulated is not None}
    assert (report.aligned, dtypes) == (factor == 0.3, {"float64", "float16"})


def test_weights_without_axes_are_those_with_one() -> None:
    reference, candidate = both(lambda self, x: x * self.scale)
    reference.scale, candidate.scale = torch.nn.Parameter(torch.tensor(0.7)), jt.array([0.7])
    align(reference, candidate, X).raise_if_diverged()
    candidate.scale = jt.array([0.70001])
    assert any("convert first" in problem for problem in align(reference, candidate, X).problems)


# Training steps

WEIGHT = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)


class TorchTrained(torch.nn.Module):
    def __init__(self, make: Make, factor: float = 1.0) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3, bias=False)
        self.linear.weight.data.copy_(torch.from_numpy(WEIGHT))
        self.scaled = model("torch", lambda self, pair: make(pair.hidden * factor, pair.pooled))
        self.make = make

    def forward(self, x: Any) -> Any:
        y = self.linear(x)
        return self.scaled(self.make(y, y.sum(1)))


class JittorTrained(jt.Module):
    def __init__(self, make: Make, factor: float = 1.0) -> None:
        self.linear = jt.nn.Linear(3, 3, bias=False)
        self.linear.weight.assign(WEIGHT)
        self.scaled = model("jittor", lambda self, pair: make(pair.hidden * factor, pair.pooled))
        self.make = make

    def execute(self, x: Any) -> Any:
        y = self.linear(x)
        return self.scaled(self.make(y, y.sum(1)))


def squares(weight: float = 1.0) -> Function:
    return lambda pair, target: ((pair.hidden - target) ** 2).mean() + weight * (pair.pooled**2).mean()


def trained(theirs: Make, ours: Make, factor: float = 1.0, weight: float = 1.0) -> Report:
    return align_training(
        TorchTrained(theirs),
        JittorTrained(ours, factor),
        [(X, X * 2)],
        losses=(squares(), squares(weight)),
        optimizers=(torch.optim.SGD, jt.optim.SGD),
        optimizer_options={"lr": 0.1},
    )


@pytest.mark.parametrize("case", [case for case in CONTAINERS if "nested" not in case])
def test_steps_with_containers(case: str) -> None:
    report = trained(*CONTAINERS[case])
    report.raise_if_diverged()
    assert all(row.isolated is not None for row in report.rows if row.phase == "loss")
    inputs = [row for row in report.rows if row.name.startswith("grad_activation/scaled#0/args.")]
    assert len(inputs) == 4


@pytest.mark.parametrize(
    ("factor", "weight", "name"), [(1.001, 1.0, "activation/scaled#0"), (1.0, 1.001, "loss/total")]
)
def test_a_fault_in_a_step_with_containers_is_blamed_where_it_is(factor: float, weight: float, name: str) -> None:
    report = trained(Named, Bag, factor, weight)
    assert report.first_divergence is not None
    assert report.first_divergence.name.startswith(name)
