"""Names of two models are paired without guessing."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from alignment_tests.harness import NameMatchError, align, copy_weights, match_names


def net(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def linear(wide: int = 4) -> nn.Linear:
    return nn.Linear(4, wide)


def renamed_only(reference: nn.Module, candidate: nn.Module) -> dict[str, str]:
    return {path: target for path, target in match_names(reference, candidate).renamed.items() if path != target}


PAIRS = {
    "equal names": (net(a=linear(), b=nn.ReLU()), net(a=linear(), b=nn.ReLU()), {}),
    "by shape": (net(a=linear(3), b=linear(5)), net(x=linear(5), y=linear(3)), {"x": "b", "y": "a"}),
    "by order": (net(a=linear(), b=linear()), net(x=linear(), y=linear()), {"x": "a", "y": "b"}),
    "by class": (
        net(a=nn.BatchNorm1d(4, track_running_stats=False), b=nn.LayerNorm(4)),
        net(x=nn.LayerNorm(4), y=nn.BatchNorm1d(4, track_running_stats=False)),
        {"x": "b", "y": "a"},
    ),
    "last names before order": (
        net(a=net(q=linear(), k=linear())),
        net(b=net(k=linear(), q=linear())),
        {"b": "a", "b.k": "a.k", "b.q": "a.q"},
    ),
    "containers by content": (
        net(stage=net(one=net(conv=linear()))),
        net(level=net(first=net(conv=linear()))),
        {"level": "stage", "level.first": "stage.one", "level.first.conv": "stage.one.conv"},
    ),
    "activations inside a pair": (
        net(a=net(conv=linear(), act=nn.ReLU())),
        net(x=net(conv=linear(), relu=nn.ReLU())),
        {"x": "a", "x.conv": "a.conv", "x.relu": "a.act"},
    ),
}


@pytest.mark.parametrize(("reference", "candidate", "expected"), PAIRS.values(), ids=PAIRS)
def test_names_are_found(reference: nn.Module, candidate: nn.Module, expected: dict[str, str]) -> None:
    assert renamed_only(reference, candidate) == expected


REFUSED = {
    "one for two": (net(a=linear()), net(x=linear(), y=linear()), ["ambiguous", "x (linear", "y (linear", "a (linear"]),
    "two for one": (net(a=linear(), b=linear()), net(x=linear()), ["ambiguous", "x (linear", "a (linear", "b (linear"]),
    "other shape": (net(a=linear(3)), net(a=linear(5)), ["without partner", "(5, 4)", "(3, 4)"]),
    "order against name": (
        OrderedDict([("0", linear()), ("1", linear()), ("2", linear())]),
        OrderedDict([("1", linear()), ("2", linear()), ("3", linear())]),
        ["ambiguous", "3 (linear", "0 (linear", "name of 1"],
    ),
}


@pytest.mark.parametrize(("reference", "candidate", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_told_is_refused_with_both_shown(
    reference: nn.Module | OrderedDict[str, nn.Module],
    candidate: nn.Module | OrderedDict[str, nn.Module],
    words: list[str],
) -> None:
    sides = [nn.Sequential(side) if isinstance(side, OrderedDict) else side for side in (reference, candidate)]
    with pytest.raises(NameMatchError) as error:
        match_names(*sides)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_given_name_decides() -> None:
    reference, candidate = net(a=linear(), b=linear()), net(x=linear(), y=linear())
    assert match_names(reference, candidate, given={"x": "b"}).renamed == {"x": "b", "y": "a", "": ""}


def test_a_given_name_must_exist() -> None:
    with pytest.raises(NameMatchError, match="has no module 'z'"):
        match_names(net(a=linear()), net(a=linear()), given={"z": "a"})


def test_modules_without_partner_and_tensors_are_listed() -> None:
    found = match_names(net(a=linear(), b=nn.ReLU()), net(a=linear(), c=nn.Sigmoid()))
    assert (found.only_reference, found.only_candidate) == (("b",), ("c",))


def test_weights_follow_the_map_and_the_models_align() -> None:
    reference, candidate = net(a=linear(), b=nn.ReLU(), c=linear()), net(x=linear(), y=nn.ReLU(), z=linear())
    copy_weights(reference, candidate)
    assert torch.equal(candidate.z.weight, reference.c.weight)
    report = align(reference, candidate, np.ones((2, 4), np.float32), names="auto")
    report.raise_if_diverged()
    assert report.coverage.compared == {"activation": 4, "parameter": 4}


def test_weights_of_another_shape_are_not_written() -> None:
    reference, candidate = net(a=linear(3)), net(a=linear(3))
    names = match_names(reference, candidate)
    candidate.a = linear(5)
    with pytest.raises(NameMatchError, match=r"a\.weight of the candidate needs float32 \(5, 4\)"):
        copy_weights(reference, candidate, names)


def test_names_is_auto_or_none() -> None:
    with pytest.raises(ValueError, match="`names` must be 'auto' or None"):
        align(model := net(a=linear()), model, np.ones((1, 4), np.float32), names="guess")
