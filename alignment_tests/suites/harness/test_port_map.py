"""Names of two models are paired without guessing, and a map is proposed of what they suggest."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignment_tests.harness import NameMatchError, PortMap, PortMapError, align, copy_weights, match_names, propose
from alignment_tests.harness.port_map import Parts


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
    candidate.a = linear(5)
    with pytest.raises(PortMapError, match=r"a\.weight of the candidate needs float32 \(5, 4\)"):
        copy_weights(reference, candidate, PortMap())


def test_names_is_auto_or_none() -> None:
    with pytest.raises(ValueError, match="`names` must be 'auto' or None"):
        align(model := net(a=linear()), model, np.ones((1, 4), np.float32), names="guess")


# Proposals


class Attention(nn.Module):
    """Query, key and value packed into one layer, or apart; of (out, in) or of (in, out) matrices."""

    def __init__(self, packed: bool, kind: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        names = ("qkv",) if packed else ("q", "k", "v")
        for name in names:
            self.add_module(name, kind(4, 12 // len(names)))
        self.out = kind(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        return self.out(torch.softmax(parts[0] @ parts[1].mT, -1) @ parts[2])


class Conv1D(nn.Module):
    """What some implementations of GPT-2 have in place of ``Linear``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Norm(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn(4)))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.parameters()
        return x * scale + shift


def tied() -> nn.Sequential:
    """Two names of one weight; the second layer is never called."""

    class Once(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    model = Once(OrderedDict(tokens=linear(), head=linear()))
    model.head.weight, model.head.bias = model.tokens.weight, model.tokens.bias
    return model


def with_buffer(model: nn.Module) -> nn.Module:
    model.register_buffer("mask", torch.ones(3, 3))
    return model


def pair_of_blocks(packed: bool) -> nn.Module:
    return net(blocks=nn.Sequential(Attention(packed), nn.Sequential(nn.Linear(6, 4)), Attention(packed)))


PROPOSALS = {
    "equal": (net(a=linear()), net(a=linear()), PortMap()),
    "renamed with an index": (
        net(layers=nn.Sequential(linear(), linear(), nn.ReLU())),
        net(h=nn.Sequential(linear(), linear(), nn.ReLU())),
        PortMap(modules={"h": "layers"}),
    ),
    "an index that is part of a name": (
        net(a=nn.Sequential(net(x=linear()), net(x=linear()))),
        net(a=nn.Sequential(net(y=linear()), net(y=linear()))),
        PortMap(modules={"a.*.y": "a.*.x"}),
    ),
    "packed": (
        pair_of_blocks(False),
        pair_of_blocks(True),
        PortMap(merged={"blocks.*.qkv": Parts(("blocks.*.q", "blocks.*.k", "blocks.*.v"))}),
    ),
    "unpacked": (Attention(True), Attention(False), PortMap(split={"qkv": Parts(("q", "k", "v"))})),
    "transposed, square ones too": (
        Attention(True, Conv1D),
        Attention(False),
        PortMap(
            split={"qkv": Parts(("q", "k", "v"), -1)},
            transposed=dict.fromkeys(["out.weight", "q.weight", "k.weight", "v.weight"], (1, 0)),
        ),
    ),
    "packed of transposed": (
        Attention(False, Conv1D),
        Attention(True),
        PortMap(
            merged={"qkv": Parts(("q", "k", "v"), -1)},
            transposed=dict.fromkeys(["out.weight", "qkv.weight"], (1, 0)),
        ),
    ),
    "prefix": (Wrapped(net(a=linear())), net(a=linear()), PortMap(prefixes={"reference": ("module.",)})),
    "two prefixes": (
        net(a=linear()),
        Wrapped(Wrapped(net(a=linear()))),
        PortMap(prefixes={"candidate": ("module.",)}),
    ),
    "a tie that the candidate needs no name for": (
        tied(),
        net(tokens=linear()),
        PortMap(tied={"reference": {"head.bias": "tokens.bias", "head.weight": "tokens.weight"}}),
    ),
    "a tie that the reference needs no name for": (
        net(tokens=linear()),
        tied(),
        PortMap(tied={"candidate": {"head.bias": "tokens.bias", "head.weight": "tokens.weight"}}),
    ),
    "other words": (
        net(a=Norm("weight", "bias")),
        net(a=Norm("gamma", "beta")),
        PortMap(arrays={"a.gamma": "a.weight", "a.beta": "a.bias"}),
    ),
}


@pytest.mark.parametrize(("reference", "candidate", "expected"), PROPOSALS.values(), ids=PROPOSALS)
def test_a_map_is_proposed_by_which_the_models_align(
    reference: nn.Module, candidate: nn.Module, expected: PortMap, tmp_path: Path
) -> None:
    proposal = propose(reference, candidate)
    assert proposal.unmatched == ()
    assert proposal.port_map == expected
    copy_weights(reference, candidate, proposal.port_map)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    align(reference, candidate, x, port_map=proposal.port_map, folder=tmp_path).raise_if_diverged()


def test_a_buffer_that_one_side_keeps_is_left_out_with_a_reason() -> None:
    reference, candidate = net(a=with_buffer(linear())), net(a=linear())
    found = copy_weights(reference, candidate)
    assert list(found.left_out["reference"]) == ["a.mask"]
    report = align(reference, candidate, np.ones((2, 4), np.float32), port_map=found)
    report.raise_if_diverged()
    assert "only this side keeps" in report.coverage.excused["buffer/a.mask"]


def test_what_shapes_suggest_is_not_written_unasked() -> None:
    reference, candidate = Attention(True, Conv1D), Attention(False)
    before = candidate.q.weight.clone()
    with pytest.raises(NameMatchError, match=r"transposed, split: out\.weight"):
        copy_weights(reference, candidate)
    assert torch.equal(candidate.q.weight, before)


def test_what_is_given_stays_and_the_rest_is_proposed() -> None:
    given = PortMap(modules={"y": "a"})
    found = propose(net(a=linear(), b=linear(), c=linear(3)), net(x=linear(), y=linear(), z=linear(3)), given)
    assert found.whole().modules == {"y": "a", "x": "b", "z": "c"}


def test_what_has_no_place_is_shown_with_the_nearest() -> None:
    found = propose(net(head=linear(3), tail=linear(4)), net(head=linear(5), tail=linear(4)))
    assert found.unmatched == (
        "candidate head (linear: bias (5,), weight (5, 4)): reference head (linear: bias (3,), weight (3, 4))",
        "reference head (linear: bias (3,), weight (3, 4)): candidate head (linear: bias (5,), weight (5, 4))",
    )
    with pytest.raises(NameMatchError, match="without partner"):
        align(net(a=linear(3)), net(a=linear(5)), np.ones((1, 4), np.float32), names="auto")
