"""The blame to the line: planted faults in small pairs, what is not to be blamed, and how a report shows it."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alignment_tests.cases import helpers_of_a_port as port
from alignment_tests.harness import Report, align, copy_weights
from alignment_tests.harness.judge.lines import Pair, culprits
from alignment_tests.harness.judge.report import Divergence
from alignment_tests.harness.record.adapters import adapter_for, shown_operators
from alignment_tests.harness.record.operators import Operator, Recorder, Tracing, plain_name
from alignment_tests.harness.record.signatures import signature
from jt_impl.runtime import jittor as jt

nn = jt.nn
T = torch.nn
gelu = nn.gelu  # as `from jittor.nn import gelu` leaves it in a port's file
X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
Function = Callable[[Any, Any], Any]


class Reference(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.q, self.k, self.wide = T.Linear(8, 8), T.Linear(8, 8), T.Linear(16, 8)
        self.function, self.act = function, F.relu

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


class Candidate(jt.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.q, self.k, self.wide = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)
        self.function, self.act, self.squash = function, nn.leaky_relu, jt.sigmoid

    def execute(self, x: Any) -> Any:
        return self.function(self, x)


def reported(theirs: Function, ours: Function, folder: Path, **options: Any) -> Report:
    torch.manual_seed(0)
    models = Reference(theirs), Candidate(ours)
    copy_weights(*models)
    return align(*models, X, folder=folder, precisions=("float64",), **options)


def blamed(theirs: Function, ours: Function, folder: Path, **options: Any) -> Divergence:
    found = reported(theirs, ours, folder, **options).first_divergence
    assert found is not None
    return found


def shows(line: str | None, text: str) -> bool:
    """Whether it names a place and the expression that stands there, ``text``; in Python 3.10 its whole line."""
    match = re.fullmatch(r"(.+):(\d+)  (.+)", line or "")
    if match is None or text.split("(")[0] not in linecache.getline(match[1], int(match[2])):
        return False
    return match[3] == text if sys.version_info >= (3, 11) else text in match[3]


def scaled_attention(m: Any, x: Any) -> Any:
    scores = m.q(x) @ m.k(x).transpose(1, 2)
    return (scores * 8**-0.5).softmax(-1) @ x


def attention_without_scale(m: Any, x: Any) -> Any:
    scores = m.q(x) @ m.k(x).transpose(0, 2, 1)
    return nn.softmax(scores, -1) @ x


def norm_by_hand(m: Any, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return m.k(centred / jt.sqrt(variance + 1e-3))


def gate_by_hand(m: Any, x: Any) -> Any:
    h = m.q(x)
    h = h * jt.sigmoid(h)
    return m.k(h) + 1.5


def first_row_cleared(m: Any, x: Any) -> Any:
    h = m.q(x)
    h[:, 0] = 0.0
    return m.k(h)


def second_row_cleared(m: Any, x: Any) -> Any:
    h = m.q(x)
    h[:, 1] = 0.0
    return m.k(h)


def doubled_through_a_view(m: Any, x: Any) -> Any:
    h = m.q(x)
    first = h[:, 0]
    first.mul_(2.0)
    return m.k(h)


def tripled(m: Any, x: Any) -> Any:
    h = m.q(x)
    h[:, 0] = h[:, 0] * 3.0
    return m.k(h)


def masked(m: Any, x: Any) -> Any:
    scores = m.q(x) * 0.5
    return scores.masked_fill(torch.ones(5, 8).triu(1) > 0, -torch.inf).softmax(-1)


def masked_by_a_large_number(m: Any, x: Any) -> Any:
    scores = m.q(x) * 0.7
    return nn.softmax(jt.masked_fill(scores, jt.triu(jt.ones((5, 8)), 1) > 0, -1e9), -1)


def scaled_and_shifted(m: Any, x: Any) -> Any:
    scale, shift = m.q(x).chunk(2, -1)
    return x[..., :4] * (1 + scale) + shift


def shifted_and_scaled(m: Any, x: Any) -> Any:
    shift, scale = m.q(x).chunk(2, -1)
    return x[..., :4] * (1 + scale) + shift


# reference, candidate, what is shown of each
FAULTS: dict[str, tuple[Function, Function, str, str]] = {
    "another formula": (
        lambda m, x: m.k(F.gelu(m.q(x), approximate="tanh")),
        lambda m, x: m.k(nn.gelu(m.q(x))),
        'F.gelu(m.q(x), approximate="tanh")',
        "nn.gelu(m.q(x))",
    ),
    "a function that the port's file holds": (
        lambda m, x: m.k(F.gelu(m.q(x), approximate="tanh")),
        lambda m, x: m.k(gelu(m.q(x))),
        'F.gelu(m.q(x), approximate="tanh")',
        "gelu(m.q(x))",
    ),
    "a function that the module holds": (
        lambda m, x: m.k(m.act(m.q(x))),
        lambda m, x: m.k(m.act(m.q(x))),
        "m.act(m.q(x))",
        "m.act(m.q(x))",
    ),
    "a function of C++ that the module holds": (
        lambda m, x: m.k(torch.tanh(m.q(x))),
        lambda m, x: m.k(m.squash(m.q(x))),
        "torch.tanh(m.q(x))",
        "m.squash(m.q(x))",
    ),
    "corners": (
        lambda m, x: 2 * F.interpolate(x[:, None], scale_factor=2, mode="bilinear", align_corners=True),
        lambda m, x: 2 * nn.interpolate(x.unsqueeze(1), scale_factor=2, mode="bilinear", align_corners=False),
        'F.interpolate(x[:, None], scale_factor=2, mode="bilinear", align_corners=True)',
        'nn.interpolate(x.unsqueeze(1), scale_factor=2, mode="bilinear", align_corners=False)',
    ),
    "a missing scale": (scaled_attention, attention_without_scale, "scores * 8**-0.5", "nn.softmax(scores, -1)"),
    "a missing scale beside a composite": (
        lambda m, x: F.scaled_dot_product_attention(m.q(x), m.k(x), x),
        attention_without_scale,
        "F.scaled_dot_product_attention(m.q(x), m.k(x), x)",
        "nn.softmax(scores, -1)",
    ),
    "an added clamp": (
        lambda m, x: m.k(torch.relu(m.q(x))),
        lambda m, x: m.k(nn.relu(m.q(x).clamp(-0.3, 0.3))),
        "torch.relu(m.q(x))",
        "m.q(x).clamp(-0.3, 0.3)",
    ),
    "an added clamp at the end": (
        lambda m, x: m.k(x),
        lambda m, x: jt.clamp(m.k(x), -0.3, 0.3),
        "m.k(x)",
        "jt.clamp(m.k(x), -0.3, 0.3)",
    ),
    "another axis": (
        lambda m, x: m.k(x - x.mean(1, keepdim=True)),
        lambda m, x: m.k(x - x.mean(2, keepdims=True)),
        "x.mean(1, keepdim=True)",
        "x.mean(2, keepdims=True)",
    ),
    "a softmax over another axis": (
        lambda m, x: m.k(F.softmax(m.q(x), dim=-1)),
        lambda m, x: m.k(nn.softmax(m.q(x), dim=1)),
        "F.softmax(m.q(x), dim=-1)",
        "nn.softmax(m.q(x), dim=1)",
    ),
    "the order of a concatenation": (
        lambda m, x: m.wide(torch.cat([x, 2 * x], -1)),
        lambda m, x: m.wide(jt.concat([2 * x, x], -1)),
        "torch.cat([x, 2 * x], -1)",
        "jt.concat([2 * x, x], -1)",
    ),
    "a product the other way round": (
        lambda m, x: m.q(x).transpose(1, 2) @ m.k(x),
        lambda m, x: jt.matmul(m.k(x).transpose(0, 2, 1), m.q(x)),
        "m.q(x).transpose(1, 2) @ m.k(x)",
        "jt.matmul(m.k(x).transpose(0, 2, 1), m.q(x))",
    ),
    "reshaped and not transposed": (
        lambda m, x: x.permute(0, 2, 1).reshape(2, 40) * torch.arange(40),
        lambda m, x: x.reshape(2, 40) * jt.arange(40),
        "x.permute(0, 2, 1).reshape(2, 40)",
        "x.reshape(2, 40)",
    ),
    "a norm by hand": (
        lambda m, x: m.k(F.layer_norm(x, (8,), eps=1e-5)),
        norm_by_hand,
        "F.layer_norm(x, (8,), eps=1e-5)",
        "variance + 1e-3",
    ),
    "a fault behind a composite": (
        lambda m, x: m.k(F.silu(m.q(x))) + 1.0,
        gate_by_hand,
        "m.k(F.silu(m.q(x))) + 1.0",
        "m.k(h) + 1.5",
    ),
    "a helper in another file": (
        lambda m, x: m.k(x * 0.5),
        lambda m, x: m.k(port.scaled(x, 0.4)),
        "x * 0.5",
        "x * factor",
    ),
    "a row that is written to": (first_row_cleared, second_row_cleared, "h[:, 0] = 0.0", "h[:, 1] = 0.0"),
    "a view that is written to": (doubled_through_a_view, tripled, "first.mul_(2.0)", "h[:, 0] * 3.0"),
    "before a mask": (masked, masked_by_a_large_number, "m.q(x) * 0.5", "m.q(x) * 0.7"),
    "parts that changed their names": (
        scaled_and_shifted,
        shifted_and_scaled,
        "m.q(x).chunk(2, -1)",
        "m.q(x).chunk(2, -1)",
    ),
    "parts that changed their use": (
        lambda m, x: (lambda a, b: a * torch.sigmoid(b))(*m.q(x).chunk(2, -1)),
        lambda m, x: (lambda a, b: b * jt.sigmoid(a))(*m.q(x).chunk(2, -1)),
        "torch.sigmoid(b)",
        "jt.sigmoid(a)",
    ),
    "layers in another order": (
        lambda m, x: m.k(torch.tanh(m.q(x))),
        lambda m, x: m.q(jt.tanh(m.k(x))),
        "m.q(x)",
        "m.k(x)",
    ),
    "behind an operator of Jittor's that differs": (
        lambda m, x: m.q((x > 0).cumsum(1).float() * x) + 1.0,
        lambda m, x: m.q(jt.cumsum(x > 0, 1).float32() * x) + 1.5,
        "m.q((x > 0).cumsum(1).float() * x) + 1.0",
        "m.q(jt.cumsum(x > 0, 1).float32() * x) + 1.5",
    ),
    "one of several outputs": (
        lambda m, x: {"first": m.q(x), "second": torch.tanh(m.k(x))},
        lambda m, x: {"first": m.q(x), "second": jt.sigmoid(m.k(x))},
        "torch.tanh(m.k(x))",
        "jt.sigmoid(m.k(x))",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_lines_that_differ_are_shown(name: str, tmp_path: Path) -> None:
    theirs, ours, reference, candidate = FAULTS[name]
    found = blamed(theirs, ours, tmp_path)
    assert shows(found.reference_line, reference), found
    assert shows(found.candidate_line, candidate), found


# What is said of the operators, of cases above.
WORDS = {
    "a missing scale": "mul stands in the reference only, before softmax",
    "an added clamp": "clamp stands in the candidate only, before relu",
    "an added clamp at the end": "clamp stands in the candidate only",
    "a softmax over another axis": "dim: 2 | 1",
    "corners": "align_corners: True | False",
    "a function that the module holds": "operator: relu | leaky_relu",
    "a function of C++ that the module holds": "operator: tanh | sigmoid",
    "the order of a concatenation": "its results differ by 0.5 of their scale",
    "parts that changed their names": "its results are used in each other's place",
    "layers in another order": "operator: q | k",
}


@pytest.mark.parametrize("name", WORDS)
def test_it_is_told_what_differs(name: str, tmp_path: Path) -> None:
    theirs, ours, _, _ = FAULTS[name]
    assert WORDS[name] in blamed(theirs, ours, tmp_path).differences


def test_a_fault_of_float32_is_found_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = Reference(lambda m, x: m.k(torch.tanh(m.q(x)))), Candidate(lambda m, x: m.k(jt.tanh(m.q(x).float16())))
    copy_weights(*models)
    found = align(*models, X, folder=tmp_path).first_divergence
    assert found is not None
    assert (found.precision, shows(found.candidate_line, "m.q(x).float16()")) == ("float32", True)


class Told(torch.nn.Module):
    """A child whose parent sets what it computes with: alone it does something else."""

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.factor * x)


class Telling(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Told()

    def forward(self, x: Any) -> Any:
        self.child.factor = 2.0
        h = self.child(x)
        self.child.factor = 3.0
        return self.child(h)


class ToldHere(jt.nn.Module):
    def execute(self, x: Any) -> Any:
        return jt.sigmoid(self.factor * x)


class TellingHere(jt.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = ToldHere()

    def execute(self, x: Any) -> Any:
        self.child.factor = 2.0
        h = self.child(x)
        self.child.factor = 3.0
        return self.child(h)


def test_a_call_that_cannot_be_had_alone_is_traced_where_it_stands(tmp_path: Path) -> None:
    found = align(Telling(), TellingHere(), X, folder=tmp_path).first_divergence
    assert found is not None
    assert shows(found.reference_line, "torch.tanh(self.factor * x)")
    assert shows(found.candidate_line, "jt.sigmoid(self.factor * x)")


# Stock layers and attributes


class Layered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = T.Linear(8, 8)
        self.rest = T.Sequential(T.LayerNorm(8), T.LeakyReLU(0.2))

    def forward(self, x: Any) -> Any:
        return self.rest(self.first(x))


class LayeredHere(jt.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.rest = nn.Sequential(nn.LayerNorm(8, eps=1e-3), nn.LeakyReLU(0.2))

    def execute(self, x: Any) -> Any:
        return self.rest(self.first(x))


def test_arguments_of_stock_layers_are_shown_with_the_lines_that_give_them(tmp_path: Path) -> None:
    models = Layered(), LayeredHere()
    copy_weights(*models)
    found = align(*models, X, folder=tmp_path, precisions=("float64",)).first_divergence
    assert found is not None
    assert shows(found.reference_line, "T.LayerNorm(8)")
    assert shows(found.candidate_line, "nn.LayerNorm(8, eps=1e-3)")
    assert found.arguments == (
        "torch.nn.LayerNorm(normalized_shape=(8,))",
        "jt.nn.LayerNorm(normalized_shape=(8,), eps=0.001)",
    )
    assert found.differences == ("eps: 1e-05 | 0.001",)


# Matching


def traced(values: dict[str, Any], *operators: tuple[str, str, str], output: str) -> Tracing:
    """``operators`` are name, inputs and output, of values that have one letter each."""
    names = list(values)
    made = [
        Operator(name, None, {}, tuple(names.index(v) for v in given), [names.index(result)])
        for name, given, result in operators
    ]
    return Tracing(made, [signature(np.asarray(v)) for v in values.values()], {"0": names.index(output)})


A, B, C = (np.random.default_rng(seed).normal(size=(4, 6)) for seed in range(3))


def test_an_inner_step_of_what_comes_out_the_same_is_not_blamed() -> None:
    by_hand = traced({"a": A, "s": B, "c": C}, ("sigmoid", "a", "s"), ("mul", "as", "c"), output="c")
    assert culprits(traced({"a": A, "c": C}, ("silu", "a", "c"), output="c"), by_hand, "float64", "0") is None


def test_what_does_not_lead_to_the_output_is_not_blamed() -> None:
    one = traced({"a": A, "b": B, "c": C}, ("exp", "a", "b"), ("neg", "a", "c"), output="c")
    other = traced({"a": A, "b": B + 1, "c": C + 1}, ("log", "a", "b"), ("neg", "a", "c"), output="c")
    assert culprits(one, other, "float64", "0") == Pair(1, 1)


def test_a_large_difference_comes_before_a_small_one() -> None:
    one = traced({"a": A, "b": B, "c": C}, ("mul", "a", "b"), ("gelu", "b", "c"), output="c")
    other = traced(
        {"a": A, "b": B * (1 + 2e-8), "c": C * (1 + 1e-4)}, ("mul", "a", "b"), ("gelu", "b", "c"), output="c"
    )
    assert culprits(one, other, "float64", "0") == Pair(1, 1)


def test_a_small_difference_is_named_where_it_is_all_there_is() -> None:
    one = traced({"a": A, "b": B}, ("mul", "a", "b"), output="b")
    assert culprits(one, traced({"a": A, "b": B * (1 + 2e-8)}, ("mul", "a", "b"), output="b"), "float64", "0") == Pair(
        0, 0
    )


def test_another_layout_is_no_difference() -> None:
    one = traced({"a": A, "t": A.T, "c": C.T}, ("permute", "a", "t"), ("exp", "t", "c"), output="c")
    other = traced({"a": A, "c": C}, ("exp", "a", "c"), output="c")
    assert culprits(one, other, "float64", "0") is None


def test_another_order_in_the_same_shape_is_one() -> None:
    one = traced({"a": A, "b": A[::-1]}, ("flip", "a", "b"), output="b")
    assert culprits(
        one, traced({"a": A, "b": np.roll(A, 1, 0)}, ("roll", "a", "b"), output="b"), "float64", "0"
    ) == Pair(0, 0)


def test_values_beside_a_masks_are_seen() -> None:
    mask = np.where(A > 0, -1e9, 0.0)
    one, other = traced({"a": A, "b": B + mask}, ("add", "a", "b"), output="b"), B * 1.001 + mask
    assert culprits(one, traced({"a": A, "b": other}, ("add", "a", "b"), output="b"), "float64", "0") == Pair(0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [("__rsub__", "sub"), ("__iadd__", "add_"), ("__rdiv__", "__truediv__"), ("batch_norm", "BatchNorm2d"),
     ("cat", "concat"), ("__rmatmul__", "bmm"), ("round", "Round"), ("__invert__", "invert")],
)  # fmt: skip
def test_spellings_of_one_operator_are_one(one: str, other: str) -> None:
    assert plain_name(one) == plain_name(other)


# Tracing leaves nothing behind


@pytest.mark.parametrize("make", [Reference, Candidate])
def test_everything_stands_as_it_stood_after_an_exception(make: Callable[[Function], Any]) -> None:
    model = make(lambda m, x: x)
    owners = [vars(owner) for owner in (jt, nn, jt.Var, F, T.Module, nn.Module)] + [globals(), vars(model)]
    before = [dict(owner) for owner in owners]
    adapter = adapter_for(model)
    show, _ = shown_operators(adapter)
    with pytest.raises(RuntimeError), show(Recorder(adapter), [model], {}):
        raise RuntimeError
    assert [dict(owner) for owner in owners] == before


@pytest.mark.parametrize("make", [Reference, Candidate])
def test_traced_results_are_bitwise_the_same(make: Callable[[Function], Any]) -> None:
    model = make(lambda m, x: m.k(m.act(m.q(x)) * 0.3) - x)
    adapter = adapter_for(model)
    show, _ = shown_operators(adapter)
    recorder = Recorder(adapter)
    with adapter.running(model, train=False):
        plain = adapter.to_numpy(model(adapter.from_numpy(X)))
        with show(recorder, [model], {}):
            seen = adapter.to_numpy(model(adapter.from_numpy(X)))
    assert np.array_equal(plain, seen)
    assert len(recorder.trace.operators) >= 5


# What a run does not prove: reference, candidate, what is told
UNREACHED: dict[str, tuple[Function, Function, str | None]] = {
    "a clamp": (lambda m, x: m.q(x), lambda m, x: m.q(x).clamp(-50, 50), "m.q(x).clamp(-50, 50) in the candidate"),
    "a mask of the reference": (
        lambda m, x: m.q(x).masked_fill(x > 99, 0.0),
        lambda m, x: m.q(x),
        "m.q(x).masked_fill(x > 99, 0.0) in the reference",
    ),
    "a choice": (
        lambda m, x: m.q(x),
        lambda m, x: jt.where(x > 99, x * 0, m.q(x)),
        "jt.where(x > 99, x * 0, m.q(x)) in the candidate",
    ),
    "one of each": (lambda m, x: F.hardtanh(m.q(x), -50, 50), lambda m, x: jt.clamp(m.q(x), -50, 50), None),
    "a clamp that bites": (lambda m, x: torch.relu(m.q(x)), lambda m, x: jt.maximum(m.q(x), 0.0), None),
}


@pytest.mark.parametrize("name", UNREACHED)
def test_a_branch_that_nothing_reached_is_told_and_no_fault(name: str, tmp_path: Path) -> None:
    theirs, ours, expected = UNREACHED[name]
    models = Reference(theirs), Candidate(ours)
    copy_weights(*models)
    report = align(*models, X, folder=tmp_path, precisions=("float64", "float32"))
    told = report.checks.get("not proven")
    assert report.aligned, report.problems
    assert (told is None) if expected is None else (told is not None and f"{expected} changed nothing" in told)
