"""Porting bugs of a training step, planted one at a time into the Jittor side: each must be found and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from alignment_tests.cases.batches import training_batches
from alignment_tests.cases.trainees import GoldYoloTrainee, Run
from alignment_tests.harness import Report
from alignment_tests.harness.align_training import align_training
from alignment_tests.meta_tests.experiments.forward import narrow_config
from fixtures.training.schedule import Schedule, ema_decay

AFTER_WARMUP, BATCH, SIZE = 1201, 2, (128, 128)
Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], "Callable[[GoldYoloTrainee], None] | None"]


def compare(after: Callable[[GoldYoloTrainee], None] | None, *, deep: bool) -> Report:
    """One step of the narrow network in float64, with a batch size that needs no accumulation."""
    config = narrow_config()
    run = Run(config, SIZE, BATCH, Schedule(config.solver, 64, 400, 300), first_step=AFTER_WARMUP)
    batches, _ = training_batches(1, BATCH, SIZE)
    reference, candidate = run.makers()

    def planted(precision: str) -> GoldYoloTrainee:
        made = candidate(precision)
        if after is not None:
            after(made)
        return made

    return align_training(
        reference, planted, batches, precisions=("float64",), deep_steps=(0,) if deep else (), free_running=False
    )


def dampened_momentum(patch: Patch) -> None:
    from jt_impl import optim

    def step(parameter: Any, gradient: Any, velocity: Any, hyper: Any) -> list[Any]:
        lr, momentum, decay = (hyper[i] for i in range(3))
        slope = gradient + decay * parameter
        velocity = momentum * velocity + slope * 0.5  # a dampening of 0.5
        return [parameter - lr * (slope + momentum * velocity), velocity]

    patch.setattr(optim.SGD, "rule", staticmethod(step))


def decay_on_biases(patch: Patch) -> Callable[[GoldYoloTrainee], None]:
    def plant(trainee: GoldYoloTrainee) -> None:
        groups = {group["name"]: group for group in trainee.trainer.optimizer.param_groups}
        groups["bias"]["weight_decay"] = groups["weight"]["weight_decay"]

    return plant


def average_one_update_late(patch: Patch) -> None:
    from jt_impl import optim

    patch.setattr(optim, "ema_decay", lambda updates: ema_decay(updates - 1))


def mean_for_sum(patch: Patch) -> None:
    from jt_impl import losses

    right = losses.varifocal_loss
    patch.setattr(losses, "varifocal_loss", lambda scores, *rest: right(scores, *rest) / scores.shape[-1])


def detached_branch(patch: Patch) -> None:
    """The second residual of the transformer: right in the forward pass, cut in the backward pass."""
    from jt_impl.attention import TransformerBlock

    def execute(self: Any, x: Any) -> Any:
        x = x + self.drop_path(self.attn(x))
        return x.detach() + self.drop_path(self.mlp(x))

    patch.setattr(TransformerBlock, "execute", execute)


def gradient_through_the_assigner(patch: Patch) -> None:
    from jt_impl import assigners, losses

    unguarded: Any = vars(assigners.assign_task_aligned)["__wrapped__"]

    def assign(self: Any, outputs: Any, targets: Any, assigner: str = "tal") -> Any:
        grid, scores = self.grid(outputs), outputs[1]
        boxes, truth = self.predicted_boxes(outputs) * grid.strides, self.ground_truth(targets, scores)
        return unguarded(scores, boxes, grid.pixel_points, truth)

    patch.setattr(losses.DetectionLoss, "assign", assign)


def biased_running_variance(patch: Patch) -> None:
    from jt_impl.layers import BatchNorm2d

    right, execute = BatchNorm2d.move_running_statistics, BatchNorm2d.execute

    def counting(self: Any, x: Any) -> Any:
        self._count = x.shape[0] * x.shape[2] * x.shape[3]
        return execute(self, x)

    patch.setattr(BatchNorm2d, "execute", counting)
    patch.setattr(
        BatchNorm2d,
        "move_running_statistics",
        lambda self, mean, variance: right(self, mean, variance * ((self._count - 1) / self._count)),
    )


def rate_of_the_step_before(patch: Patch) -> None:
    """The last step of warm-up has another rate than the first one after it."""
    from jt_impl.trainer import Trainer

    patch.setattr(Trainer, "settings", property(lambda self: self.schedule.at(self.step_number - 2)))


# What is planted, whether every activation must be watched to find it, and the first row to blame.
FAULTS: dict[str, tuple[Plant, bool, str]] = {
    "momentum dampened": (dampened_momentum, False, "momentum/backbone.stem."),
    "decay on biases": (decay_on_biases, False, "momentum/backbone.stem.rbr_dense.bn.bias"),
    "average one update late": (average_one_update_late, False, "ema/backbone.stem."),
    "mean for sum": (mean_for_sum, False, "loss/cls"),
    "detached tensor": (detached_branch, True, "grad_activation/neck.high_IFM.transformer_blocks.0#0/args.0"),
    "missing stop_grad in the assigner": (gradient_through_the_assigner, True, "grad_activation/loss#0/"),
    "running variance biased": (biased_running_variance, False, "buffer/backbone.stem.rbr_dense.bn.running_var"),
    "rate of the step before": (rate_of_the_step_before, False, "parameter/backbone.stem."),
}
# What the rows that fail have in common, in the words of the reason.
TOLD = {
    "decay on biases": "rows of the phase momentum fail, all of them named bias",
    "running variance biased": "rows of the phase buffer fail, all of them named running_var",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_training_step_is_named(name: str, monkeypatch: Patch) -> None:
    plant, deep, where = FAULTS[name]
    report = compare(plant(monkeypatch), deep=deep)
    assert not report.aligned
    assert report.first_divergence is not None
    assert report.first_divergence.name.startswith(where), report.problems
    assert TOLD.get(name, "") in report.first_divergence.reason


def test_without_a_fault_the_same_step_is_aligned() -> None:
    report = compare(None, deep=True)
    assert report.aligned, report.problems
