"""Calls that one side has alone: a right port may lack a module without weights, and no other.

Where no framework matters, both sides are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import converters
from alignment_tests.harness import Report, align
from alignment_tests.harness.judge.unmatched import NO_WEIGHTS, Unmatched
from jt_impl.runtime import jittor as jt

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
Forward = Callable[[Any, Any], Any]


class Net(nn.Module):
    """A convolution and whatever a case puts beside it."""

    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        for name, part in parts.items():
            setattr(self, name, part)
        self.way = forward

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def both(first: nn.Module, second: nn.Module, train: bool = False) -> Report:
    second.load_state_dict(first.state_dict(), strict=False)
    return align(first, second, X, train=train)


# Modules without weights

PAIRS: dict[str, tuple[nn.Module, nn.Module]] = {
    "relu": (Net(lambda m, x: m.relu(m.conv(x)), relu=nn.ReLU()), Net(lambda m, x: F.relu(m.conv(x)))),
    "identity": (Net(lambda m, x: m.conv(m.skip(x)), skip=nn.Identity()), Net(lambda m, x: m.conv(x))),
    "dropout": (Net(lambda m, x: m.drop(m.conv(x)), drop=nn.Dropout(0.5)), Net(lambda m, x: m.conv(x))),
    "flatten": (Net(lambda m, x: m.flat(m.conv(x)), flat=nn.Flatten()), Net(lambda m, x: m.conv(x).flatten(1))),
    "pool": (Net(lambda m, x: m.pool(m.conv(x)), pool=nn.MaxPool2d(2)), Net(lambda m, x: F.max_pool2d(m.conv(x), 2))),
    "two in one": (
        Net(lambda m, x: m.tail(m.conv(x)), tail=nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))),
        Net(lambda m, x: F.max_pool2d(m.conv(x).relu(), 2)),
    ),
    "a container": (
        Net(lambda m, x: m.body(x), body=nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())),
        Net(lambda m, x: m.body[1](m.body[0](x)), body=nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())),
    ),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_module_without_weights_needs_no_partner(kind: str, turned: bool) -> None:
    pair = PAIRS[kind]
    report = both(*(pair[::-1] if turned else pair))
    assert report.problems == []
    assert set(report.coverage.excused.values()) - {NO_WEIGHTS} <= {
        "Jittor keeps no count of batches; nothing computes with it"
    }
    assert NO_WEIGHTS in report.coverage.excused.values()


def test_a_forgotten_activation_is_found_in_what_follows() -> None:
    report = both(PAIRS["relu"][0], Net(lambda m, x: m.conv(x)))
    assert not report.aligned
    assert report.first_divergence is not None
    assert report.first_divergence.name == "activation/#0/0"


def test_a_forgotten_activation_is_found_inside_a_part() -> None:
    parts = [nn.Sequential(nn.Conv2d(3, 4, 1), act) for act in (nn.ReLU(), nn.Identity())]
    parts[1][1].register_buffer("count", torch.zeros(1))  # so it is no module that may lack a partner
    first, second = (Net(lambda m, x: m.norm(m.part(x)), part=part) for part in parts)
    report = both(first, second)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "part.1"


WEIGHTS: dict[str, tuple[nn.Module, nn.Module]] = {
    "weights beside": (Net(lambda m, x: m.conv(x)), Net(lambda m, x: m.conv(x), extra=nn.Linear(2, 2))),
    "a call with weights": (
        Net(lambda m, x: m.conv(m.first(x)), first=nn.Conv2d(3, 3, 1)),
        Net(lambda m, x: m.conv(x)),
    ),
    "a call that adds zero": (
        Net(lambda m, x: m.conv(x) + m.gate(m.norm(m.conv(x))), gate=nn.Conv2d(4, 4, 1)),
        Net(lambda m, x: m.conv(x), gate=nn.Conv2d(4, 4, 1)),
    ),
}
nn.init.zeros_(WEIGHTS["a call that adds zero"][0].gate.weight)
nn.init.zeros_(WEIGHTS["a call that adds zero"][0].gate.bias)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_module_with_weights_needs_a_partner(kind: str, turned: bool) -> None:
    pair = WEIGHTS[kind]
    report = both(*(pair[::-1] if turned else pair))
    assert report.coverage.missing or report.coverage.unexpected


def test_one_activation_module_for_two_places_and_a_function_for_one() -> None:
    act = nn.ReLU()
    first = Net(lambda m, x: m.act(m.norm(m.act(m.conv(x)) - 0.5)), act=act)
    second = Net(lambda m, x: m.act(m.norm(F.relu(m.conv(x)) - 0.5)), act=nn.ReLU())
    report = both(first, second)
    assert report.problems == []
    rows = [row for row in report.rows if row.name == "activation/act#0/0"]
    text = "2 calls by the reference and 1 by the candidate, so that they cannot be told apart"
    assert [(row.verdict, row.reason.split(";")[0]) for row in rows] == [("excused", text)] * 2


def test_another_activation_is_found_where_calls_cannot_be_told_apart() -> None:
    first = Net(lambda m, x: m.act(m.norm(m.act(m.conv(x)) - 0.5)), act=nn.ReLU())
    second = Net(lambda m, x: m.act(m.norm(F.relu(m.conv(x)) - 0.5)), act=nn.LeakyReLU(0.1))
    report = both(first, second)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "act"


class Attention(nn.Module):
    """PyTorch's with the projection at its end called as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = nn.Parameter(torch.ones(12, 4)), nn.Parameter(torch.ones(12))
        self.out_proj = nn.Linear(4, 4)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        return self.out_proj(weights @ v), weights


def attending(part: nn.Module) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        flat = m.conv(x).flatten(2).transpose(1, 2)
        return m.part(flat, flat, flat)

    return Net(forward, part=part)


@pytest.mark.parametrize("turned", [False, True])
def test_what_a_layer_of_the_framework_computes_as_a_whole_needs_no_calls_inside(turned: bool) -> None:
    pair = attending(nn.MultiheadAttention(4, 1, batch_first=True)), attending(Attention())
    report = both(*(pair[::-1] if turned else pair))
    assert report.problems == []
    side = "candidate" if turned else "reference"
    assert report.coverage.excused["activation/part.out_proj#0/0"] == (
        f"the {side} computes part as a whole; its weights and its outputs are compared"
    )


# Jittor


class Plain(jt.nn.Module):
    def __init__(self) -> None:
        self.conv, self.relu, self.pool = jt.nn.Conv2d(3, 4, 3), jt.nn.ReLU(), jt.nn.MaxPool2d(2)

    def execute(self, x: Any) -> Any:
        return self.pool(self.relu(self.conv(x)))


def original() -> nn.Module:
    net = Net(lambda m, x: F.relu(m.conv(x)), pool=nn.MaxPool2d(2))
    net.way = lambda m, x: m.pool(F.relu(m.conv(x)))
    del net.norm
    return net


@pytest.mark.parametrize("names", [None, "auto"])
def test_modules_of_jittor_for_functions_of_pytorch(names: str | None) -> None:
    reference, candidate = original(), Plain()
    converters.load_into(candidate, converters.read_state(reference))
    report = align(reference, candidate, X, names=names)
    assert report.problems == []
    assert report.coverage.excused == {"activation/relu#0/0": NO_WEIGHTS}


# The rule itself


def test_the_outputs_around_have_to_be_compared() -> None:
    names = {"activation/part#0/0": "", "activation/part.act#0/0": "", "activation/#0/0": ""}
    lacking = {name: "" for name in names if "act#" not in name}
    assert Unmatched(names, lacking, {"activation/#0/0", "activation/part#0/0"}).excuse("activation/part.act#0/0")
    assert Unmatched(names, lacking, {"activation/part#0/0"}).excuse("activation/part.act#0/0")
    assert Unmatched(names, lacking, {"activation/#0/0"}).excuse("activation/part.act#0/0")
    assert Unmatched(names, lacking, set()).excuse("activation/part.act#0/0") is None
