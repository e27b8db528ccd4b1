"""The comparison of training steps, tried on a small net in PyTorch against itself with a planted fault.

Two correct sides must align in both precisions; each fault must be found and named, by module or by quantity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignment_tests.harness import Report
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.judge.compare import compare_arrays
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.phases import PHASES, ancestors, causal_order, magnitudes
from alignment_tests.harness.training.trainee import Share, alike_by_image
from fixtures.seeded import uniform

Fault = Callable[["ToyTrainee"], None]


class Block(nn.Module):
    """The bias before the norm has no gradient: the norm takes it out again."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = Block(3, 8), Block(8, 8), nn.Conv2d(8, 4, 1)
        self.detached = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        # "a detached tensor": the sum is right, half of its gradient is lost
        return self.last(self.second(x) + (x.detach() if self.detached else x))


class ToyTrainee:
    """SGD with momentum and an average of the weights; each class's best positions are its decisions."""

    momentum, rate, decay, averaging = 0.9, 0.05, 0.01, 0.8

    def __init__(self, precision: str) -> None:
        torch.manual_seed(0)
        self.dtype = getattr(torch, precision)
        self.model = Toy().to(self.dtype).train()
        self.velocity = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.gradients: dict[str, Tensor] = {}
        self.dampening, self.decays_biases, self.late_rate, self.late_average = 0.0, False, False, False
        self.loss_factor, self.attached, self.step = 1.0, False, 0

    def scope(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, batch: Array) -> Tensor:
        return self.model(torch.from_numpy(batch).to(self.dtype))

    def assign(self, outputs: Tensor, batch: Array) -> dict[str, Any]:
        ranked = outputs.detach().flatten(2)
        return {"chosen": ranked > ranked.mean(-1, keepdim=True)}

    def losses(self, outputs: Tensor, batch: Array, assignment: Mapping[str, Any]) -> dict[str, Any]:
        chosen = assignment["chosen"]
        mask = (torch.from_numpy(chosen) if isinstance(chosen, np.ndarray) else chosen).to(outputs)
        values = outputs.flatten(2)
        weight = values if self.attached else values.detach()  # "a missing stop_grad"
        first = ((values - 1) ** 2 * mask).mean() * self.loss_factor
        second = (values * weight * (1 - mask)).mean()
        return {"total": first + second, "first": first, "second": second}

    def backward(self, total: Tensor, extra: Sequence[Tensor]) -> tuple[dict[str, Any], list[Any]]:
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        found = torch.autograd.grad(total, [*parameters, *extra])
        self.gradients = dict(zip(names, found, strict=False))
        return self.gradients, list(found[len(names) :])

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        if gradients is not None:
            self.gradients = {name: torch.from_numpy(g.astype(str(self.dtype)[6:])) for name, g in gradients.items()}
        rate = self.rate * (0.5 ** (self.step - self.late_rate))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                decayed = self.decays_biases or not name.endswith("bias")
                grad = self.gradients[name] + (self.decay * parameter if decayed else 0.0)
                self.velocity[name] = self.momentum * self.velocity[name] + (1 - self.dampening) * grad
                average, kept = self.ema[name], self.averaging
                if self.late_average:
                    self.ema[name] = kept * average + (1 - kept) * parameter
                parameter -= rate * self.velocity[name]
                if not self.late_average:
                    self.ema[name] = kept * average + (1 - kept) * parameter
        self.step += 1

    def state(self) -> dict[str, Array]:
        named = {f"momentum/{name}": value for name, value in self.velocity.items()}
        named |= {f"parameter/{name}": value.detach() for name, value in self.model.named_parameters()}
        named |= {f"buffer/{name}": value for name, value in self.model.named_buffers() if "running" in name}
        named |= {f"ema/{name}": value for name, value in self.ema.items()}
        return {name: value.numpy().copy() for name, value in named.items()} | {"position/step": np.array(self.step)}

    def load(self, state: Mapping[str, Array]) -> None:
        held = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, array in state.items():
                phase, key = name.split("/", 1)
                value = torch.from_numpy(np.array(array)).to(self.dtype)
                if phase in ("parameter", "buffer"):
                    held[key].copy_(value)
                elif phase in ("momentum", "ema"):
                    (self.velocity if phase == "momentum" else self.ema)[key] = value
        self.step = int(state["position/step"])

    def margins(self, exact: Tensor, outputs: Tensor, batch: Array, share: Share) -> dict[str, Array]:
        ranked, own = exact.detach().flatten(2), outputs.detach().flatten(2).double()
        size = ranked.abs().amax(-1, keepdim=True)
        errors = ((own - ranked) / size).abs().amax(-1, keepdim=True)
        return {"chosen": share(gaps(ranked), errors).numpy()}

    def alike(self, name: str, sides: Sequence[Mapping[str, Array]]) -> Array:
        return alike_by_image(sides)


def gaps(ranked: Tensor) -> Tensor:
    """How far each position is from being chosen or not, relative."""
    return (ranked - ranked.mean(-1, keepdim=True)).abs() / ranked.abs().amax(-1, keepdim=True)


BATCHES = [uniform(seed, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12).astype(np.float32) for seed in range(4)]


def compare_with(fault: Fault | None = None, **options: Any) -> Report:
    def candidate(precision: str) -> ToyTrainee:
        made = ToyTrainee(precision)
        if fault is not None:
            fault(made)
        return made

    return align_training(ToyTrainee, candidate, BATCHES, **options)


def test_training_of_equal_sides_is_aligned() -> None:
    report = compare_with(deep_steps=(0, 3))
    assert report.aligned, report.problems
    assert set(report.coverage.compared) == set(PHASES)
    assert report.coverage.compared["grad_parameter"] == len(list(Toy().parameters()))
    assert {row.step for row in report.rows} <= set(range(4))
    assert all("bitwise equal" in fact for name, fact in report.checks.items() if name.startswith("hooks"))
    assert len(report.curves["drift, candidate float32"]) == len(BATCHES)


def test_gradients_that_are_zero_by_structure_are_judged_by_their_neighbours() -> None:
    report = compare_with()
    row = next(r for r in report.rows if r.name == "grad_parameter/second.conv.bias" and r.precision == "float64")
    weight = next(r for r in report.rows if r.name == "grad_parameter/second.conv.weight" and r.precision == "float64")
    assert row.accumulated is not None
    assert weight.accumulated is not None
    assert row.verdict == "pass"
    assert "zero by structure" in row.reason
    assert row.accumulated.scale == weight.accumulated.scale


class FromZero(ToyTrainee):
    """A bias without a true gradient, which begins at zero: its weights are nothing but rounding."""

    shift = 0.0

    def __init__(self, precision: str) -> None:
        super().__init__(precision)
        with torch.no_grad():
            for values in (self.model.second.conv.bias, self.ema["second.conv.bias"]):
                values.zero_()

    def update(self, gradients: Any) -> None:
        super().update(gradients)
        with torch.no_grad():
            self.model.second.conv.bias += self.shift


class Shifted(FromZero):
    shift = 1e-6


@pytest.mark.parametrize(("candidate", "verdict"), [(FromZero, "pass"), (Shifted, "fail")])
def test_weights_that_are_zero_by_structure_are_judged_by_their_neighbours(
    candidate: type[ToyTrainee], verdict: str
) -> None:
    """So rounding passes; a millionth does not."""
    report = align_training(FromZero, candidate, BATCHES, precisions=("float64",), free_running=False)
    row = next(r for r in report.rows if r.name == "parameter/second.conv.bias")
    assert row.verdict == verdict
    assert "zero by structure" in row.reason


@pytest.mark.parametrize("slot", ["", "first/"])
@pytest.mark.parametrize(("momentum", "beside"), [(1e-20, 0.1), (1e-12, 1e-11)])
def test_weights_that_only_rounding_moved_stand_beside_the_largest_around_them(
    momentum: float, beside: float, slot: str
) -> None:
    """A norm that begins at zero has a weight of 1e-11 after a step: no scale for the rounding in its bias."""
    values = {
        f"momentum/{slot}block.norm.weight": 1e-4,
        f"momentum/{slot}block.norm.bias": momentum,
        "parameter/block.norm.weight": 1e-11,
        "parameter/block.norm.bias": momentum / 10,
        "parameter/block.conv.weight": 0.1,
    }
    oracle: Any = {name: np.array([value]) for name, value in values.items()}
    assert magnitudes(oracle, 1e-11)[1]["parameter/block.norm.bias"] == beside


def wrong_eps(trainee: ToyTrainee) -> None:
    trainee.model.second.bn.eps = 2e-5


def biased_variance(trainee: ToyTrainee) -> None:
    norm = trainee.model.first.bn

    def forward(x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        mean, variance = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), unbiased=False)
        norm.running_mean = norm.running_mean * 0.9 + mean * 0.1
        norm.running_var = norm.running_var * 0.9 + variance * 0.1
        return y

    norm.forward = forward


def scaled_gradient(trainee: ToyTrainee) -> None:
    """A backward of its own that is wrong, behind a right forward."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.relu(x)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> Tensor:
            return upstream[0] * (ctx.saved_tensors[0] > 0) * 1.001

    trainee.model.second.act.forward = Wrong.apply


def setting(name: str, value: Any) -> Fault:
    return lambda trainee: setattr(trainee, name, value)


FAULTS: dict[str, tuple[Fault, str]] = {
    "eps of a norm": (wrong_eps, "activation/second.bn#0/0"),
    "running variance biased": (biased_variance, "buffer/first.bn.running_var"),
    "loss by another factor": (setting("loss_factor", 1.01), "loss/first"),
    "missing stop_grad": (setting("attached", True), "grad_activation/loss#0/0"),
    "wrong backward of a module": (scaled_gradient, "grad_activation/second.act#0/args.0"),
    "detached tensor": (lambda t: setattr(t.model, "detached", True), "grad_activation/first#0/0"),
    "momentum dampened": (setting("dampening", 0.1), "momentum/"),
    "decay on biases": (setting("decays_biases", True), "momentum/first.conv.bias"),
    "rate of the step before": (setting("late_rate", True), "parameter/"),
    "average before the update": (setting("late_average", True), "ema/"),
}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_training_is_named(name: str, precision: str) -> None:
    fault, where = FAULTS[name]
    report = compare_with(fault, precisions=(precision,))
    assert not report.aligned
    assert report.first_divergence is not None
    assert report.first_divergence.name.startswith(where), report.problems


def test_what_all_failing_rows_have_in_common_is_reported() -> None:
    report = compare_with(FAULTS["decay on biases"][0], precisions=("float64",))
    assert report.first_divergence is not None
    assert "5 of 10 rows of the phase momentum fail, all of them named bias" in report.first_divergence.reason


def test_a_module_that_fails_backward_alone_is_a_finding() -> None:
    def fails_when_observed(trainee: ToyTrainee) -> None:
        act, calls = trainee.model.second.act, []

        def forward(x: Tensor) -> Tensor:
            calls.append(x)
            if len(calls) == 4:  # after the step and both runs of the hook check it runs alone
                raise RuntimeError("planted")
            return torch.relu(x)

        act.forward = forward

    report = compare_with(fails_when_observed, precisions=("float64",), free_running=False)
    assert report.first_divergence is not None
    assert "planted" in report.first_divergence.reason


def test_decisions_may_differ_within_the_float_error_only() -> None:
    def decides_otherwise(margin: float) -> Fault:
        def plant(trainee: ToyTrainee) -> None:
            assign = trainee.assign

            def other(outputs: Tensor, batch: Array) -> dict[str, Any]:
                made = assign(outputs, batch)
                close = gaps(outputs.detach().flatten(2))
                place = int((close - margin).abs().argmin())
                chosen = made["chosen"].clone()
                chosen.view(-1)[place] = ~chosen.view(-1)[place]
                return {"chosen": chosen}

            trainee.assign = other  # type: ignore[method-assign]

        return plant

    report = compare_with(decides_otherwise(0.5), precisions=("float32",), free_running=False)
    assert report.first_divergence is not None
    assert report.first_divergence.name == "assignment/chosen"
    assert "of what rounding may do" in report.first_divergence.reason


class Weighing(ToyTrainee):
    """Also tells what its decisions are worth. In float32 the closest decision of some images falls otherwise."""

    otherwise: tuple[int, ...] = (0,)
    factor = 1.0

    def assign(self, outputs: Tensor, batch: Array) -> dict[str, Any]:
        chosen, values = super().assign(outputs, batch)["chosen"].clone(), outputs.detach().flatten(2)
        if self.dtype == torch.float32:
            close = gaps(outputs.detach().flatten(2))
            for image in self.otherwise:
                place = int(close[image].argmin())
                chosen[image].view(-1)[place] ^= True
        worth = (values.abs() * chosen).sum(-1)
        worth[1] *= self.factor
        return {"chosen": chosen, "worth": worth}


@pytest.mark.parametrize(
    ("otherwise", "factor", "text"),
    [
        ((), 1.0, "within"),
        ((0,), 1.0, "in 1 of 2 places, where all sides decide alike"),
        ((0,), 1.001, "in 1 of 2 places, where all sides decide alike"),
        ((0, 1), 1.0, "in no step did all sides decide alike"),
    ],
)
def test_values_behind_decisions_are_compared_where_all_sides_decide_alike(
    otherwise: tuple[int, ...], factor: float, text: str
) -> None:
    def make(precision: str, factor: float) -> Weighing:
        made = Weighing(precision)
        made.otherwise, made.factor = otherwise, factor
        return made

    sides = (partial(make, factor=1.0), partial(make, factor=factor))
    report = align_training(*sides, BATCHES, precisions=("float32",), free_running=False)
    row = next(row for row in report.rows if row.name == "assignment/worth")
    assert text in row.reason
    passes = factor == 1.0 and len(otherwise) < 2
    assert (row.verdict == "pass") == passes == report.aligned


class Close(ToyTrainee):
    """All its decisions are ties, which rounding may break."""

    def margins(self, exact: Tensor, outputs: Tensor, batch: Array, share: Share) -> dict[str, Array]:
        return {"chosen": np.zeros(tuple(exact.flatten(2).shape))}


class Otherwise(Close):
    """Breaks one tie otherwise, in every step."""

    def assign(self, outputs: Tensor, batch: Array) -> dict[str, Any]:
        chosen = super().assign(outputs, batch)["chosen"].clone()
        chosen[0, 0, 0] ^= True
        return {"chosen": chosen}


def test_what_follows_from_a_tie_that_rounding_broke_is_no_difference() -> None:
    """In float64 too: then all sides learn what the reference assigned, on their own what the candidate did."""
    report = align_training(Close, Otherwise, BATCHES, deep_steps=(0, 1))
    assert report.aligned, report.problems
    row = next(row for row in report.rows if row.name == "assignment/chosen" and row.precision == "float64")
    assert "1 of 1152 decisions differ, by 0 to 0 of what rounding may do" in row.reason
    assert not align_training(ToyTrainee, Otherwise, BATCHES, precisions=("float64",)).aligned


class Misshapen(Weighing):
    """One of its decisions has another shape than the reference's."""

    otherwise = ()

    def assign(self, outputs: Tensor, batch: Array) -> dict[str, Any]:
        made = super().assign(outputs, batch)
        return made | {"chosen": made["chosen"].flatten(1)}

    def losses(self, outputs: Tensor, batch: Array, assignment: Mapping[str, Any]) -> dict[str, Any]:
        chosen = assignment["chosen"].reshape(outputs.flatten(2).shape)
        return super().losses(outputs, batch, {"chosen": chosen})


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_decision_of_another_shape_is_a_finding(precision: str) -> None:
    report = align_training(Weighing, Misshapen, BATCHES[:1], precisions=(precision,), free_running=False)
    assert report.first_divergence is not None
    assert report.first_divergence.name == "assignment/chosen"
    assert "shape differs" in report.first_divergence.reason


class Restless(ToyTrainee):
    """Aligned whenever it starts from a loaded state; on its own it makes one thing otherwise, of size ``by``."""

    by = 1e-3

    def __init__(self, precision: str) -> None:
        super().__init__(precision)
        self.loads = 0

    def load(self, state: Mapping[str, Array]) -> None:
        super().load(state)
        self.loads += 1

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        super().update(gradients)
        if self.loads == 1 and self.step > 1:  # loaded once, at the start of the free run
            with torch.no_grad():
                next(iter(self.model.parameters())).mul_(1.0 + self.by)


@pytest.mark.parametrize(("by", "aligned"), [(1e-3, False), (1e-8, False), (1e-12, True)])
def test_what_is_carried_beside_the_state_is_found(by: float, aligned: bool) -> None:
    """A step of the candidate on its own is the reference's from the same state, however far both runs have drifted."""

    def restless(precision: str) -> Restless:
        made = Restless(precision)
        made.by = by
        return made

    report = align_training(ToyTrainee, restless, BATCHES, precisions=("float64",))
    assert report.aligned == aligned
    fact = report.checks["free-running (float64)"]
    assert fact.startswith("FAIL") != aligned
    assert ("step 1: parameter/first.conv.weight: " in fact) != aligned


class Lucky(ToyTrainee):
    """Its loss in float32 is off by ``by``, but for the one of the first state, which is exact by luck."""

    by = 0.0

    def losses(self, outputs: Tensor, batch: Array, assignment: Mapping[str, Any]) -> dict[str, Any]:
        terms = super().losses(outputs, batch, assignment)
        if self.dtype == torch.float64:
            return terms
        exact = super().losses(outputs.double(), batch, assignment)
        untouched = float(next(iter(self.model.parameters())).detach().double().sum()) == self.first_sum
        return {name: (exact[name] * (1.0 if untouched else 1.0 + self.by)).float() for name in terms}

    def __init__(self, precision: str) -> None:
        super().__init__(precision)
        self.first_sum = float(next(iter(self.model.parameters())).detach().double().sum())


@pytest.mark.parametrize(
    ("own", "candidates", "aligned"), [(1e-6, 8e-6, True), (1e-6, 1e-4, False), (0.0, 8e-6, False)]
)
def test_a_lucky_number_of_the_reference_is_no_unit(own: float, candidates: float, aligned: bool) -> None:
    """Further runs, with weights moved by a rounding, show what the reference's error is when it has no luck."""

    class Off(ToyTrainee):
        def losses(self, outputs: Tensor, batch: Array, assignment: Mapping[str, Any]) -> dict[str, Any]:
            terms = super().losses(outputs, batch, assignment)
            return {name: term * (1.0 + candidates * (self.dtype == torch.float32)) for name, term in terms.items()}

    class Own(Lucky):
        by = own

    report = align_training(Own, Off, BATCHES[:1], precisions=("float32",), free_running=False, isolated=False)
    row = next(row for row in report.rows if row.name == "loss/first")
    assert (row.verdict == "pass") == aligned
    assert "in 4 further runs, its weights or inputs moved by a rounding" in row.reason


class Steep(ToyTrainee):
    """A loss that magnifies rounding a million times. The candidate sums in another order."""

    other, wrong = False, 0.0

    def losses(self, outputs: Tensor, batch: Array, assignment: Mapping[str, Any]) -> dict[str, Any]:
        flat = outputs.flatten()
        total = flat.flip(0).cumsum(0)[-1] if self.other else flat.cumsum(0)[-1]
        steep = 2.0 + torch.cos(1e6 * total)
        return {"total": steep * (1.0 + self.wrong), "steep": steep * (1.0 + self.wrong)}

    def assign(self, outputs: Tensor, batch: Array) -> dict[str, Any]:
        return {}


class OtherOrder(Steep):
    other = True


class Wrong(OtherOrder):
    wrong = 1e-4


@pytest.mark.parametrize(("candidate", "aligned"), [(OtherOrder, True), (Wrong, False)])
def test_rounding_that_a_step_magnifies_beyond_the_bar_is_measured(candidate: type[Steep], aligned: bool) -> None:
    report = align_training(Steep, candidate, BATCHES[:1], precisions=("float64",), free_running=False, isolated=False)
    row = next(row for row in report.rows if row.name == "loss/steep")
    assert row.accumulated is not None
    assert row.accumulated.smallest_tolerance is not None
    assert row.accumulated.smallest_tolerance > 1e-9
    assert (row.verdict == "pass") == aligned
    assert ("further runs, its weights or inputs moved by 16 roundings" in row.reason) == aligned


def test_a_parameter_without_gradient_in_the_candidate_is_missing() -> None:
    def forgets(trainee: ToyTrainee) -> None:
        backward = trainee.backward

        def without(total: Tensor, extra: Sequence[Tensor]) -> tuple[dict[str, Any], list[Any]]:
            gradients, more = backward(total, extra)
            return {n: g for n, g in gradients.items() if n != "last.bias"}, more

        trainee.backward = without  # type: ignore[method-assign]

    report = compare_with(forgets, precisions=("float64",), free_running=False)
    assert report.coverage.missing == ("grad_parameter/last.bias",)
    assert not report.aligned


def test_no_batch_and_unknown_precision_are_refused() -> None:
    with pytest.raises(ValueError, match="`batches` must hold at least one"):
        align_training(ToyTrainee, ToyTrainee, [])
    with pytest.raises(ValueError, match="`precisions` must be"):
        compare_with(precisions=("float16",))


def test_neighbours_and_order_of_rows() -> None:
    assert ancestors("grad_parameter/a.b.weight") == ["a.b", "a"]
    assert ancestors("grad_activation/a.b#0/0") == ["a.b", "a"]
    names = ["grad_parameter/a.w", "ema/a.w", "loss/total", "grad_parameter/b.w", "activation/a#0/0"]
    assert causal_order(dict.fromkeys(names)) == [
        "activation/a#0/0", "loss/total", "grad_parameter/b.w", "grad_parameter/a.w", "ema/a.w",
    ]  # fmt: skip


def test_a_yardstick_widens_only_the_unit_of_luck() -> None:
    oracle = np.array([1.0, -2.0, 3.0])
    reference = oracle.astype(np.float32)
    candidate = (oracle * (1 + 1e-5)).astype(np.float32)
    assert not compare_arrays(candidate, reference, oracle=oracle).passed
    assert compare_arrays(candidate, reference, oracle=oracle, yardstick=1e-5).passed
    assert not compare_arrays(candidate * np.float32(1.01), reference, oracle=oracle, yardstick=1e-5).passed
