"""Models that keep their weights in different ways are compared by a port map: alive, from dumps, in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignment_tests.harness import PortMap, PortMapError, align, compare, copy_weights, dump, load_weights
from alignment_tests.harness.port_map import LowRankParts, Parts
from alignment_tests.harness.record.adapters import adapter_for
from jt_impl.runtime import jittor as jt

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


class Original(nn.Module):
    """Query, key and value packed, a (in, out) matrix, a scale of no axes, a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.norm = nn.Linear(4, 12), nn.LayerNorm(4)
        self.project = nn.Parameter(torch.randn(4, 6))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("mask", torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.scale * (torch.softmax(q @ k.mT, -1) @ v) @ self.project


class Port(jt.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (jt.nn.Linear(4, 4) for _ in range(3))
        self.first_norm = jt.nn.LayerNorm(4)
        self.out = jt.nn.Linear(4, 6, bias=False)
        self.scale = jt.array([0.0])

    def execute(self, x: Any) -> Any:
        x = self.first_norm(x)
        weights = jt.nn.softmax(jt.matmul(self.q(x), self.k(x).transpose(0, 2, 1)), -1)
        return self.out(self.scale * jt.matmul(weights, self.v(x)))


MAP = PortMap(
    modules={"first_norm": "norm"},
    arrays={"out.weight": "project"},
    split={"qkv": Parts(("q", "k", "v"))},
    transposed={"out.weight": (1, 0)},
    left_out={"reference": {"mask": "nothing is masked here"}},
)


@pytest.fixture
def pair() -> tuple[Any, Any]:
    reference, candidate = Original(), Port()
    copy_weights(reference, candidate, MAP)
    return reference, candidate


def state(model: Any) -> dict[str, Any]:
    return {name: array for name, (_, array) in adapter_for(model).state(model).items()}


def test_weights_are_written_as_the_map_says(pair: tuple[Any, Any]) -> None:
    theirs, ours = (state(model) for model in pair)
    assert np.array_equal(ours["k.weight"], theirs["qkv.weight"][4:8])
    assert np.array_equal(ours["out.weight"], theirs["project"].T)
    assert ours["scale"].reshape(()) == theirs["scale"]


def test_a_port_with_another_layout_is_aligned(pair: tuple[Any, Any], tmp_path: Path) -> None:
    report = align(*pair, X, port_map=MAP, folder=tmp_path)
    report.raise_if_diverged()
    rows = {row.name for row in report.rows}
    assert {"parameter/qkv.weight", "parameter/project", "parameter/scale", "activation/norm#0/0"} <= rows


def test_the_map_may_be_a_file(pair: tuple[Any, Any], tmp_path: Path) -> None:
    MAP.write(tmp_path / "map.yaml")
    align(*pair, X, port_map=tmp_path / "map.yaml", folder=tmp_path).raise_if_diverged()


def test_what_is_left_out_is_in_the_ledger_with_its_reason(pair: tuple[Any, Any], tmp_path: Path) -> None:
    report = align(*pair, X, port_map=MAP, folder=tmp_path)
    assert report.coverage.excused["buffer/mask"] == "nothing is masked here"


@pytest.mark.parametrize("name", ["k.weight", "out.weight", "scale", "first_norm.bias"])
def test_an_altered_weight_is_named_whatever_its_layout(name: str, pair: tuple[Any, Any], tmp_path: Path) -> None:
    _, candidate = pair
    array = state(candidate)[name].copy()
    array.reshape(-1)[0] += 0.5
    adapter_for(candidate).write(candidate, {name: array})
    report = align(*pair, X, port_map=MAP, folder=tmp_path)
    assert report.checks["weights"].startswith("FAIL: 1 of")
    assert name in report.checks["weights"]


def test_dumps_take_the_map_along(pair: tuple[Any, Any], tmp_path: Path) -> None:
    reference, candidate = pair
    dump(reference, X, tmp_path / "r")
    dump(candidate, X, tmp_path / "c", reference=tmp_path / "r", port_map=MAP)
    later = compare(tmp_path / "r", tmp_path / "c")
    assert later.rows == align(*pair, X, port_map=MAP, folder=tmp_path).rows


def test_a_checkpoint_of_the_original_is_loaded_by_the_map(pair: tuple[Any, Any]) -> None:
    reference, candidate = pair
    fresh = Port()
    load_weights(fresh, state(reference), MAP)
    assert all(np.array_equal(array, state(candidate)[name]) for name, array in state(fresh).items())


def test_every_array_has_a_place_or_a_reason() -> None:
    whole = PortMap(MAP.modules, MAP.arrays, split=MAP.split, transposed=MAP.transposed)
    with pytest.raises(PortMapError, match="No place has mask of the reference"):
        copy_weights(Original(), Port(), whole)


# Ties, sums, modules that are left out


class Tied(nn.Module):
    """Knows the weight of its head under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.tokens(x)


class Untied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.tokens.weight.T + self.tokens(x)


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + 0.5 * (x @ self.lora_A.T @ self.lora_B.T)


class Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Helped(nn.Module):
    """With a part that is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.aid = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        self.aid(x)
        return self.fc(x)


class Unhelped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


SUM = {"weight": LowRankParts("weight", "lora_A", "lora_B", 0.5)}
AID = {"aid": "an aid of training"}
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], PortMap]] = {
    "tied in the reference": (Tied, Untied, PortMap(tied={"reference": {"head.weight": "tokens.weight"}})),
    "tied in the candidate": (Untied, Tied, PortMap(tied={"candidate": {"head.weight": "tokens.weight"}})),
    "a sum of the reference's": (LowRank, Merged, PortMap(low_rank=SUM)),
    "a sum of the candidate's": (Merged, LowRank, PortMap(low_rank=SUM)),
    "left out of the reference": (Helped, Unhelped, PortMap(left_out={"reference": AID})),
    "left out of the candidate": (Unhelped, Helped, PortMap(left_out={"candidate": AID})),
}


@pytest.mark.parametrize(("original", "port", "port_map"), PAIRS.values(), ids=PAIRS)
def test_pairs_are_aligned_by_their_map(original: Any, port: Any, port_map: PortMap, tmp_path: Path) -> None:
    reference, candidate = original(), port()
    copy_weights(reference, candidate, port_map)
    align(reference, candidate, X, port_map=port_map, folder=tmp_path / "repro").raise_if_diverged()
    dump(reference, X, tmp_path / "r")
    dump(candidate, X, tmp_path / "c", reference=tmp_path / "r", port_map=port_map)
    compare(tmp_path / "r", tmp_path / "c").raise_if_diverged()


@pytest.mark.parametrize(("original", "port", "port_map"), PAIRS.values(), ids=PAIRS)
def test_their_altered_weights_are_found(original: Any, port: Any, port_map: PortMap, tmp_path: Path) -> None:
    reference, candidate = original(), port()
    copy_weights(reference, candidate, port_map)
    with torch.no_grad():
        next(candidate.parameters()).view(-1)[0] += 1e-3
    report = align(reference, candidate, X, port_map=port_map, folder=tmp_path)
    assert report.checks["weights"].startswith("FAIL")
    assert report.failures


def test_weights_that_the_map_ties_must_be_equal(tmp_path: Path) -> None:
    reference, candidate = Untied(), Tied()
    candidate.head.weight = nn.Parameter(candidate.tokens.weight.detach().clone())
    port_map = PortMap(tied={"candidate": {"head.weight": "tokens.weight"}})
    copy_weights(reference, candidate, port_map)
    assert torch.equal(candidate.head.weight, reference.tokens.weight)
    with torch.no_grad():
        candidate.head.weight[0, 0] += 1.0
    report = align(reference, candidate, X, port_map=port_map, folder=tmp_path)
    assert "head.weight" in report.checks["weights"]


# What is trained


def frozen(model: nn.Module, name: str) -> nn.Module:
    model.get_parameter(name).requires_grad_(False)
    return model


TRAINED = {
    "the candidate trains more": (frozen(Helped(), "fc.bias"), Helped(), "the candidate trains fc.bias,"),
    "the candidate trains less": (Helped(), frozen(Helped(), "fc.bias"), "the candidate does not train fc.bias,"),
}


@pytest.mark.parametrize(("reference", "candidate", "words"), TRAINED.values(), ids=TRAINED)
def test_a_weight_that_one_side_freezes_is_found_in_train_mode(
    reference: nn.Module, candidate: nn.Module, words: str, tmp_path: Path
) -> None:
    copy_weights(reference, candidate)
    report = align(reference, candidate, X, train=True, folder=tmp_path)
    assert report.checks["trained parameters"].startswith(f"FAIL: {words}")
    assert not report.aligned
    assert align(reference, candidate, X, folder=tmp_path).aligned


def test_frozen_on_both_sides_is_no_difference_and_eval_freezes_nothing(tmp_path: Path) -> None:
    reference, candidate = Helped().eval(), Frozen()
    copy_weights(frozen(reference, "fc.bias"), candidate)
    candidate.eval()
    report = align(reference, candidate, X, train=True, folder=tmp_path)
    assert report.checks["trained parameters"] == "both sides train the same of 4 arrays"


class Frozen(jt.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.aid = jt.nn.Linear(4, 4), jt.nn.Sequential(jt.nn.Linear(4, 2), jt.nn.ReLU())
        self.fc.bias.stop_grad()

    def execute(self, x: Any) -> Any:
        self.aid(x)
        return self.fc(x)
