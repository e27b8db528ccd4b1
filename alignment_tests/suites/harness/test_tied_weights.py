"""Weights under several names: equal values are enough in eval mode; in training, gradients of tied weights add up.

Both sides are PyTorch's in most cases; that both frameworks give the same names is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import converters
from alignment_tests.harness import PortMap, PortMapError, Report, align, compare, copy_weights, dump, match_names
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.judge.unmatched import NO_WEIGHTS, ties_fact, with_ties
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.training.trainee import Share, alike_by_image
from jt_impl.runtime import jittor as jt


class Text(nn.Module):
    """The embedding and the projection at the end may be one array."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.mix = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.how = how
        if how != "function":
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = (
                self.tokens.weight if how == "tied" else nn.Parameter(self.tokens.weight.detach().clone())
            )

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.mix(self.tokens(ids)))
        return F.linear(x, self.tokens.weight) if self.how == "function" else self.head(x)


IDS = np.arange(6).reshape(2, 3)
ALONE = {"tied untied": "tied in the reference only", "untied tied": "tied in the candidate only"}
WAYS = [f"{one} {other}" for one in ("tied", "untied", "function") for other in ("tied", "untied", "function")]
RIGHT = [ways for ways in WAYS if set(ways.split()) != {"untied", "function"}]


@pytest.mark.parametrize("ways", RIGHT)
def test_equal_values_are_enough_in_eval_mode(ways: str) -> None:
    reference, candidate = (Text(how) for how in ways.split())
    report = align(reference, candidate, IDS)
    assert report.problems == []
    assert report.checks.get("tied weights") == (
        f"{ALONE[ways]}: head.weight to tokens.weight; in eval mode no difference" if ways in ALONE else None
    )


@pytest.mark.parametrize("ways", RIGHT)
def test_a_tie_on_one_side_is_a_fault_in_train_mode(ways: str) -> None:
    reference, candidate = (Text(how) for how in ways.split())
    problems = align(reference, candidate, IDS, train=True).problems
    assert [text for text in problems if "tied" in text] == (
        [f"tied weights: FAIL: {ALONE[ways]}: head.weight to tokens.weight; tied weights add up their gradients"]
        if ways in ALONE
        else []
    )


@pytest.mark.parametrize("names", ["auto", None])
@pytest.mark.parametrize("ways", RIGHT)
def test_weights_are_copied_and_paired_whatever_their_names(ways: str, names: str | None) -> None:
    reference, candidate = (Text(how) for how in ways.split())
    with torch.no_grad():
        candidate.tokens.weight += 1
    copy_weights(reference, candidate, None if names == "auto" else PortMap())
    assert align(reference, candidate, IDS, names=names).problems == []


def test_two_arrays_are_not_copied_into_one() -> None:
    reference = Text("untied")
    with torch.no_grad():
        reference.head.weight += 1
    with pytest.raises(PortMapError, match=r"ties head\.weight to tokens\.weight, but the reference's arrays differ"):
        copy_weights(reference, Text("tied"))


@pytest.mark.parametrize("ways", RIGHT)
def test_modules_are_paired_whatever_the_names_of_weights(ways: str) -> None:
    reference, candidate = (Text(how) for how in ways.split())
    assert {"tokens", "mix"} <= match_names(reference, candidate).renamed.keys()


@pytest.mark.parametrize(("how", "is_fault"), [("tied", False), ("untied", True)])
def test_names_that_a_map_ties_are_one_array_of_the_candidate(how: str, is_fault: bool) -> None:
    port_map = {"tied": {"reference": {"head.weight": "tokens.weight"}}}
    report = align(Text(how), Text("function"), IDS, train=True, port_map=port_map)
    assert ("tied weights" in report.checks) == is_fault


def test_a_tie_of_what_is_not_trained_is_no_fault() -> None:
    reference, candidate = Text("tied"), Text("untied")
    for model in (reference, candidate):
        model.requires_grad_(False)
    assert align(reference, candidate, IDS, train=True).problems == []


@pytest.mark.parametrize("ways", ["untied function", "function untied"])
def test_a_weight_of_its_own_is_no_other_name(ways: str) -> None:
    reference, candidate = (Text(how) for how in ways.split())
    coverage = align(reference, candidate, IDS).coverage
    assert "parameter/head.weight" in (*coverage.missing, *coverage.unexpected)


@pytest.mark.parametrize("ways", ["tied tied", "tied untied", "function tied"])
def test_dumps_tell_the_same_of_ties(ways: str, tmp_path: Path) -> None:
    reference, candidate = (Text(how) for how in ways.split())
    dump(reference, IDS, tmp_path / "r")
    dump(candidate, IDS, tmp_path / "c", reference=tmp_path / "r")
    report, live = compare(tmp_path / "r", tmp_path / "c"), align(reference, candidate, IDS)
    assert report.problems == []
    assert report.checks.get("tied weights") == live.checks.get("tied weights")
    assert report.coverage == live.coverage


class TextTrainee:
    """Gradient descent, in either form; ``every`` lists a tied weight under each of its names."""

    def __init__(self, how: str, precision: str, *, every: bool = False) -> None:
        self.model = Text(how).to(getattr(torch, precision)).train()
        self.names = dict(self.model.named_parameters(remove_duplicate=not every))

    def scope(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, batch: Array) -> Tensor:
        found: Tensor = self.model(torch.from_numpy(batch))
        return found

    def assign(self, outputs: Tensor, batch: Array) -> dict[str, Any]:
        return {}

    def losses(self, outputs: Tensor, batch: Array, assignment: Mapping[str, Any]) -> dict[str, Any]:
        return {"total": (outputs * outputs).mean()}

    def backward(self, total: Tensor, extra: Sequence[Tensor]) -> tuple[dict[str, Any], list[Any]]:
        found = torch.autograd.grad(total, [*self.names.values(), *extra], allow_unused=True)
        self.gradients: dict[str, Any] = dict(zip(self.names, found, strict=False))
        return self.gradients, list(found[len(self.names) :])

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        with torch.no_grad():
            for weight, gradient in {id(w): (w, self.gradients[n]) for n, w in self.names.items()}.values():
                weight -= 0.1 * gradient

    def state(self) -> dict[str, Array]:
        return {f"parameter/{name}": weight.detach().numpy().copy() for name, weight in self.names.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        with torch.no_grad():
            for name, weight in self.names.items():
                value = state.get(f"parameter/{name}", state["parameter/tokens.weight"])
                weight.copy_(torch.from_numpy(value).to(weight.dtype))

    def margins(self, exact: Any, outputs: Any, batch: Any, share: Share) -> dict[str, Array]:
        return {}

    def alike(self, name: str, sides: Sequence[Mapping[str, Array]]) -> Array:
        return alike_by_image(sides)


def trained(first: str, second: str, **options: bool) -> Report:
    return align_training(
        lambda precision: TextTrainee(first, precision),
        lambda precision: TextTrainee(second, precision, **options),
        [IDS],
        precisions=("float64",),
        free_running=False,
    )


@pytest.mark.parametrize("ways", ["tied tied", "tied function", "function tied"])
def test_training_with_one_weight_is_the_same_however_it_is_named(ways: str) -> None:
    first, second = ways.split()
    assert trained(first, second).problems == []
    assert trained(first, second, every=True).problems == []


@pytest.mark.parametrize("ways", ALONE)
def test_training_tells_which_weights_one_side_alone_ties(ways: str) -> None:
    report = trained(*ways.split())
    assert f"{ALONE[ways]}: head.weight to tokens.weight" in report.checks["tied weights"]
    assert (report.coverage.missing, report.coverage.unexpected) == ((), ())
    assert report.first_divergence is not None
    assert report.first_divergence.name == "grad_parameter/tokens.weight"


def squares(outputs: Any, targets: Any) -> Any:
    return ((outputs - targets) ** 2).mean()


def with_momentum(reference: nn.Module, candidate: Any, optimizer: Any) -> Report:
    """Two steps, the second of which depends on what the first one kept."""
    targets = np.random.default_rng(0).standard_normal((*IDS.shape, 9)).astype(np.float32)
    return align_training(
        reference,
        candidate,
        [(IDS, targets)] * 2,
        losses=(squares, squares),
        optimizers=(torch.optim.SGD, optimizer),
        optimizer_options={"lr": 0.1, "momentum": 0.5},
    )


@pytest.mark.parametrize("ways", ["tied tied", "tied function", "function tied"])
def test_optimizers_keep_one_momentum_of_one_weight(ways: str) -> None:
    reference, candidate = (Text(how) for how in ways.split())
    assert with_momentum(reference, candidate, torch.optim.SGD).problems == []


class JittorText(jt.nn.Module):
    def __init__(self) -> None:
        self.tokens, self.mix, self.head = jt.nn.Embedding(9, 4), jt.nn.Linear(4, 4), jt.nn.Linear(4, 9, bias=False)
        self.head.weight = self.tokens.weight

    def execute(self, ids: Any) -> Any:
        return self.head(jt.tanh(self.mix(self.tokens(ids))))


def test_a_weight_of_jittor_under_two_names_has_one_gradient() -> None:
    reference, candidate = Text("tied"), JittorText()
    converters.load_into(candidate, converters.read_state(reference))
    assert with_momentum(reference, candidate, jt.optim.SGD).problems == []


def test_a_step_with_an_output_that_only_the_candidate_has_twice_is_judged() -> None:
    """The root returns what a module returned that the reference lacks."""

    class Modular(Text):
        def __init__(self, how: str) -> None:
            super().__init__(how)
            self.last = nn.Identity()

        def forward(self, ids: Tensor) -> Tensor:
            found: Tensor = self.last(super().forward(ids))
            return found

    def candidate(precision: str) -> TextTrainee:
        trainee = TextTrainee("tied", precision)
        trainee.model = Modular("tied").to(getattr(torch, precision)).train()
        trainee.names = dict(trainee.model.named_parameters())
        return trainee

    report = align_training(lambda precision: TextTrainee("tied", precision), candidate, [IDS], free_running=False)
    assert report.problems == []
    assert report.coverage.excused["activation/last#0/0"] == NO_WEIGHTS
    assert report.coverage.excused["grad_activation/last#0/0"] == NO_WEIGHTS


# The rules themselves


def test_a_tie_between_three_names_is_told_by_the_order_of_the_reference() -> None:
    reference = {"parameter/a": "parameter/a", "parameter/b": "parameter/a", "parameter/c": "parameter/a"}
    candidate = {"parameter/b": "parameter/b", "parameter/c": "parameter/b", "parameter/a": "parameter/b"}
    assert ties_fact(reference, candidate, train=True) is None


def test_arrays_of_a_weight_follow_its_ties() -> None:
    found = with_ties(["parameter/a", "momentum/first/a", "activation/a#0/0"], {"a": "a", "b": "a"})
    assert found["parameter/b"] == "parameter/a"
    assert found["momentum/first/b"] == "momentum/first/a"
    assert "activation/b" not in found
