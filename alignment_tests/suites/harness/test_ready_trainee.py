"""Two models, two losses and two optimizers are enough to compare training; faults in any of them are found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignment_tests.harness import PortMap, Report
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.port_map import Parts
from alignment_tests.harness.record.adapters import adapter_for
from jt_impl.runtime import jittor as jt

DRAWN = np.random.default_rng(0)
BATCHES = [(DRAWN.standard_normal((4, 6)).astype(np.float32), DRAWN.integers(0, 3, 4)) for _ in range(3)]
SGD = {"lr": 0.1, "momentum": 0.9}


class Net(nn.Module):
    """``spare`` is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.spare = nn.Linear(2, 2)
        self.detached = False

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        x = x if shift is None else x + shift
        return self.last(x.detach() if self.detached else x)


def steps(
    reference: Any = None,
    candidate: Any = None,
    loss: Any = F.cross_entropy,
    optimizer: Any = torch.optim.SGD,
    batches: Any = None,
    **options: Any,
) -> Report:
    """Of two nets in PyTorch that are equal, but for what is given; ``loss`` and ``optimizer`` are the candidate's."""
    given = options.pop("optimizer_options", SGD)
    return align_training(
        reference or Net(),
        candidate or Net(),
        batches or BATCHES[:2],
        losses=options.pop("losses", (F.cross_entropy, loss)),
        optimizers=options.pop("optimizers", (torch.optim.SGD, optimizer)),
        optimizer_options=given,
        **options,
    )


def first(report: Report) -> str:
    assert report.first_divergence is not None
    return report.first_divergence.name


OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "SGD, momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.01}),
}


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_equal_sides_are_aligned_with_any_optimizer(optimizer: Any, options: dict[str, Any]) -> None:
    report = steps(optimizers=(optimizer, optimizer), optimizer_options=options, batches=BATCHES, taught_updates=True)
    report.raise_if_diverged()
    assert report.checks["trained parameters"] == "both sides train the same of 11 arrays"
    assert report.coverage.compared["grad_parameter"] == 8


def by_group(model: Any, decay: float) -> Any:
    """Weight decay for weights, and another one for the rest."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    for parameter in model.parameters():
        sides[parameter.ndim < 2].append(parameter)
    groups = [{"params": sides[0], "weight_decay": 0.01}, {"params": sides[1], "weight_decay": decay}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def detached() -> Net:
    model = Net()
    model.detached = True
    return model


def halved(outputs: Any, labels: Any) -> Any:
    return F.cross_entropy(outputs, labels) / 2


def without_last(model: Any) -> Any:
    return torch.optim.SGD([p for n, p in model.named_parameters() if not n.startswith("last")], **SGD)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "loss": ({"loss": halved}, "loss/total"),
    "gradient": ({"candidate": detached()}, "grad_activation/norm#0/0"),
    "rate": ({"optimizer_options": (SGD, {**SGD, "lr": 0.2})}, "parameter/"),
    "momentum": ({"optimizer_options": (SGD, {**SGD, "momentum": 0.8})}, "momentum/"),
    "decay of biases": (
        {"optimizers": (partial(by_group, decay=0.0), partial(by_group, decay=0.01)), "optimizer_options": None},
        "momentum/first.bias",
    ),
    "another optimizer": (
        {"optimizer": torch.optim.RMSprop, "optimizer_options": ({"lr": 0.1}, {"lr": 0.1})},
        "parameter/",
    ),
}


@pytest.mark.parametrize(("fault", "name"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(fault: dict[str, Any], name: str) -> None:
    report = steps(**fault)
    assert not report.aligned
    assert first(report).startswith(name)


def frozen(name: str) -> Net:
    model = Net()
    model.get_parameter(name).requires_grad_(False)
    return model


UNEQUALLY_TRAINED: dict[str, tuple[dict[str, Any], str]] = {
    "frozen in the reference": ({"reference": frozen("first.weight")}, "the candidate trains first.weight,"),
    "frozen in the candidate": ({"candidate": frozen("first.weight")}, "the candidate does not train first.weight,"),
    "not given to the optimizer": (
        {"optimizers": (partial(torch.optim.SGD, **SGD), without_last), "optimizer_options": None},
        "the candidate does not train last.weight, last.bias,",
    ),
}


@pytest.mark.parametrize(("fault", "words"), UNEQUALLY_TRAINED.values(), ids=UNEQUALLY_TRAINED)
def test_what_one_side_alone_trains_is_found(fault: dict[str, Any], words: str) -> None:
    report = steps(**fault)
    assert report.checks["trained parameters"].startswith(f"FAIL: {words}")
    assert not report.aligned


def test_frozen_on_both_sides_is_no_difference() -> None:
    steps(frozen("first.weight"), frozen("first.weight")).raise_if_diverged()


def test_models_and_their_modes_stay_as_they_are() -> None:
    reference, candidate = Net().eval(), Net()
    with torch.no_grad():
        candidate.first.weight.zero_()
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    steps(reference, candidate)  # both start from the reference's weights
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())
    assert not reference.training
    assert not candidate.first.weight.any()
    assert all(parameter.grad is None for parameter in reference.parameters())


def named_terms(outputs: Any, labels: Any) -> dict[str, Any]:
    classes, size = F.cross_entropy(outputs, labels), outputs.square().mean()
    return {"total": classes + 0.1 * size, "classes": classes, "size": size}


def test_terms_of_a_loss_are_compared_by_name() -> None:
    report = steps(losses=(named_terms, named_terms))
    report.raise_if_diverged()
    assert {"loss/classes", "loss/size", "loss/total"} <= {row.name for row in report.rows}


def test_a_loss_may_hold_tensors() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 0.2, 0.7]))
    steps(losses=(loss, loss)).raise_if_diverged()
    assert loss.weight.dtype == torch.float32


SHIFT = DRAWN.standard_normal((4, 8)).astype(np.float32)
FORMS = {
    "a list of arguments": ([BATCHES[0][0], SHIFT], [BATCHES[0][1]]),
    "by key": {"inputs": [BATCHES[0][0]], "targets": [BATCHES[0][1]]},
    "arguments by name": {"inputs": BATCHES[0][0], "targets": BATCHES[0][1], "kwargs": {"shift": SHIFT}},
}


@pytest.mark.parametrize("batch", FORMS.values(), ids=FORMS)
def test_batches_have_several_forms(batch: Any) -> None:
    steps(batches=[batch]).raise_if_diverged()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a batch of three": ({"batches": [(1, 2, 3)]}, "tuple of 3"),
    "a batch of other keys": ({"batches": [{"images": 1}]}, "mapping of images"),
    "one loss": ({"losses": (F.cross_entropy,)}, "`losses` must be a pair"),
    "no optimizers": ({"optimizers": None}, "`optimizers` must be a pair"),
    "an optimizer that is made": ({"optimizers": (1, 2)}, "`optimizers` must be classes"),
    "options for functions": ({"optimizers": (without_last, without_last)}, "`optimizer_options` are for classes"),
    "a loss for each image": ({"losses": (partial(F.cross_entropy, reduction="none"),) * 2}, r"scalars.*\(4,\)"),
    "terms without total": ({"losses": (lambda outputs, labels: {"classes": outputs.sum()},) * 2}, "'total'"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps(**options)


def test_functions_that_make_trainees_bring_their_own_losses() -> None:
    with pytest.raises(ValueError, match="are for two models"):
        align_training(lambda precision: None, lambda precision: None, BATCHES, losses=(F.cross_entropy,) * 2)


# The other framework, another layout


class Port(jt.nn.Module):
    """``Net`` with the first layer in two parts, names of its own, and a (in, out) matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower, self.norm = jt.nn.Linear(6, 5), jt.nn.Linear(6, 3), jt.nn.LayerNorm(8)
        self.matrix, self.shift = jt.randn((8, 3)), jt.randn((3,))
        self.wrong = 1.0

    def execute(self, x: Any) -> Any:
        x = jt.concat([self.upper(x), self.lower(x)], dim=-1)
        return jt.matmul(jt.tanh(self.norm(x) * self.wrong), self.matrix) + self.shift


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scale, self.last = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.scale(self.first(x))))


MAP = PortMap(
    modules={"norm": "scale"},
    arrays={"matrix": "last.weight", "shift": "last.bias"},
    split={"first": Parts(("upper", "lower"))},
    transposed={"matrix": (1, 0)},
)


def ported(change: Callable[[Any], Any] = lambda port: None, **options: Any) -> Report:
    candidate = Port()
    change(candidate)
    return align_training(
        Original(),
        candidate,
        BATCHES[:2],
        losses=(F.cross_entropy, jt.nn.cross_entropy_loss),
        optimizers=options.pop("optimizers", (torch.optim.SGD, jt.optim.SGD)),
        optimizer_options=options.pop("optimizer_options", SGD),
        port_map=MAP,
        **options,
    )


def test_a_port_in_another_layout_trains_alike() -> None:
    report = ported()
    report.raise_if_diverged()
    rows = {row.name for row in report.rows}
    assert {"grad_parameter/first.weight", "momentum/last.weight", "parameter/first.bias"} <= rows
    isolated = {row.name for row in report.rows if row.isolated is not None and row.phase == "grad_parameter"}
    assert {"grad_parameter/scale.weight", "grad_parameter/scale.bias"} <= isolated


def test_an_evaluated_port_trains_all_the_same() -> None:
    ported(lambda port: port.eval(), free_running=False, precisions=("float64",)).raise_if_diverged()


def wrong(port: Any) -> None:
    port.wrong = 1.5


def freeze(port: Any) -> None:
    port.matrix.stop_grad()


PORT_FAULTS: dict[str, tuple[Callable[[Any], Any], dict[str, Any], str]] = {
    "its own code": (wrong, {}, "first divergence at activation/#0/0"),
    "frozen": (freeze, {}, "trained parameters: FAIL: the candidate does not train last.weight,"),
    "its optimizer": (
        lambda port: None,
        {"optimizer_options": (SGD, {**SGD, "lr": 0.2})},
        "first divergence at parameter/",
    ),
}


@pytest.mark.parametrize(("change", "options", "words"), PORT_FAULTS.values(), ids=PORT_FAULTS)
def test_a_fault_of_the_port_is_named(change: Callable[[Any], Any], options: dict[str, Any], words: str) -> None:
    report = ported(change, free_running=False, precisions=("float64",), **options)
    assert any(problem.startswith(words) for problem in report.problems)


def test_slots_of_adam_are_compared_in_both_frameworks() -> None:
    """The weights differ by where Jittor adds eps; the means of gradients and squares do not."""
    options: dict[str, Any] = {"optimizers": (torch.optim.Adam, jt.optim.Adam), "optimizer_options": {"lr": 0.01}}
    report = ported(**options, free_running=False, precisions=("float64",))
    momenta = {row.name.split("/")[1]: row.verdict for row in report.rows if row.phase == "momentum"}
    assert momenta == {"first": "pass", "second": "pass"}


def test_the_port_stays_as_it_is() -> None:
    candidate = Port()
    candidate.matrix.stop_grad()
    before = {name: array.copy() for name, (_, array) in adapter_for(candidate).state(candidate).items()}
    align_training(
        Original(),
        candidate,
        BATCHES[:1],
        losses=(F.cross_entropy, jt.nn.cross_entropy_loss),
        optimizers=(torch.optim.SGD, jt.optim.SGD),
        optimizer_options=SGD,
        port_map=MAP,
        free_running=False,
    )
    after = {name: array for name, (_, array) in adapter_for(candidate).state(candidate).items()}
    assert all(np.array_equal(before[name], array) for name, array in after.items())
    assert [candidate.matrix.is_stop_grad(), candidate.shift.is_stop_grad()] == [True, False]
