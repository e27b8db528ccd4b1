"""Faults of what follows the gradients: optimizer, schedule, accumulation, average of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignment_tests.meta_tests.experiments.training import STEPS_PER_EPOCH, TrainingSubject
from alignment_tests.meta_tests.faults.fault import Patch, fault
from fixtures.training.schedule import ema_decay
from jt_impl import optim, trainer
from jt_impl.runtime import jittor as jt

OPTIMIZER, SCHEDULE, ACCUMULATION, AVERAGE = ("optimizer", "schedule", "accumulation", "average of the weights")
Subject = TrainingSubject
UPDATES = "updates"

# Optimizer


def set_decay(patch: Patch, subject: Subject, group: str) -> None:
    for one in subject.trainers:
        groups = {entry["name"]: entry for entry in one.optimizer.param_groups}
        patch.item(groups[group], "weight_decay", groups["weight"]["weight_decay"])


@fault(UPDATES, "step 0/momentum/*.bias", OPTIMIZER)
def decay_on_biases(patch: Patch, subject: Subject) -> None:
    """Biases decay like weights."""
    set_decay(patch, subject, "bias")


@fault(UPDATES, "step 0/momentum/backbone.stem.rbr_dense.bn.weight", OPTIMIZER)
def decay_on_norms(patch: Patch, subject: Subject) -> None:
    """Weights of norms decay like those of convolutions."""
    set_decay(patch, subject, "norm")


def other_sgd(patch: Patch, step: Any) -> None:
    """Plain SGD with another rule: (parameter, slope, velocity, lr, momentum) to new parameter and velocity."""

    def rule(parameter: Any, gradient: Any, velocity: Any, hyper: Any) -> list[Any]:
        lr, momentum, decay = (hyper[i] for i in range(3))
        return list(step(parameter, gradient + decay * parameter, velocity, lr, momentum))

    patch.set(optim.SGD, "rule", staticmethod(rule))


@fault(UPDATES, "step 0/parameter/*", OPTIMIZER)
def nesterov_missing(patch: Patch, subject: Subject) -> None:
    """SGD moves along the velocity, without Nesterov's look ahead."""

    def step(parameter: Any, slope: Any, velocity: Any, lr: Any, momentum: Any) -> Any:
        velocity = momentum * velocity + slope
        return parameter - lr * velocity, velocity

    other_sgd(patch, step)


@fault(UPDATES, "step 0/momentum/*", OPTIMIZER)
def momentum_dampened(patch: Patch, subject: Subject) -> None:
    """The gradient enters the velocity with the weight 1 - momentum."""

    def step(parameter: Any, slope: Any, velocity: Any, lr: Any, momentum: Any) -> Any:
        velocity = momentum * velocity + (1 - momentum) * slope
        return parameter - lr * (slope + momentum * velocity), velocity

    other_sgd(patch, step)


@fault(UPDATES, "step 0/momentum/*", OPTIMIZER)
def rate_inside_the_velocity(patch: Patch, subject: Subject) -> None:
    """The rate multiplies the gradient before it enters the velocity, as in other frameworks."""

    def step(parameter: Any, slope: Any, velocity: Any, lr: Any, momentum: Any) -> Any:
        velocity = momentum * velocity + lr * slope
        return parameter - (lr * slope + momentum * velocity), velocity

    other_sgd(patch, step)


def other_adam(patch: Patch, step: Any) -> None:
    """Adam with another last line: (moments, hyperparameters) to the way that is gone."""

    def rule(parameter: Any, gradient: Any, first: Any, second: Any, hyper: Any) -> list[Any]:
        keep, rest, keep2, rest2, eps, root, size, decay, shrink = (hyper[i] for i in range(9))
        slope = gradient + decay * parameter
        first, second = first * keep + slope * rest, second * keep2 + slope * slope * rest2
        return [parameter * shrink - step(first, second, eps, root, size), first, second]

    patch.set(optim.Adam, "rule", staticmethod(rule))


@fault("updates by Adam", "step 0/parameter/*", OPTIMIZER)
def eps_outside_the_correction(patch: Patch, subject: Subject) -> None:
    """Adam adds its eps before the second moment is corrected, as Jittor's own does."""
    other_adam(patch, lambda first, second, eps, root, size: size * root * first / (jt.sqrt(second) + eps))


@fault("updates by Adam", "step 0/parameter/*", OPTIMIZER)
def eps_under_the_root(patch: Patch, subject: Subject) -> None:
    """Adam takes the root of the second moment plus eps."""
    other_adam(patch, lambda first, second, eps, root, size: size * first / (jt.sqrt(second / (root * root) + eps)))


@fault("updates by Adam", "step 0/momentum/step/*", OPTIMIZER)
def steps_counted_per_backward(patch: Patch, subject: Subject) -> None:
    """Adam counts a step at every backward pass: here two per update, as Jittor's own does."""

    def make(right: Any) -> Any:
        def hyper(self: Any, group: Any, name: str) -> Any:
            self.steps[name] += 1
            return right(self, group, name)

        return hyper

    patch.wrap(optim.Adam, "hyper", make)


@fault("updates by Adam", "step 0/momentum/second/*", OPTIMIZER)
def second_beta_of_another_recipe(patch: Patch, subject: Subject) -> None:
    """Adam's second beta is 0.99 in place of 0.999."""
    for one in subject.trainers:
        for group in one.optimizer.param_groups:
            patch.item(group, "betas", (group["betas"][0], 0.99))


@fault("updates by AdamW", "step 0/momentum/first/*", OPTIMIZER)
def decay_in_the_gradient(patch: Patch, subject: Subject) -> None:
    """AdamW adds the decay to the gradient, as Adam does."""
    patch.set(optim.AdamW, "decoupled", False)


# Schedule and accumulation


@fault("updates in warm-up", "step 0/momentum/*", SCHEDULE)
def warm_up_by_epoch(patch: Patch, subject: Subject) -> None:
    """Warm-up moves once per epoch in place of once per step."""
    at = lambda self: self.schedule.at(self.step_number // STEPS_PER_EPOCH * STEPS_PER_EPOCH)  # noqa: E731
    patch.set(trainer.Trainer, "settings", property(at))


@fault("updates in warm-up", "step 0/momentum/*", SCHEDULE)
def schedule_one_step_late(patch: Patch, subject: Subject) -> None:
    """A step has the settings of the step before it."""
    patch.set(trainer.Trainer, "settings", property(lambda self: self.schedule.at(self.step_number - 1)))


@fault("updates in warm-up", "step 0/parameter/*.bias", SCHEDULE)
def rate_of_biases_not_warmed_up(patch: Patch, subject: Subject) -> None:
    """Biases have the rate of the weights in warm-up."""
    patch.wrap(
        trainer,
        "apply_settings",
        lambda right: lambda optimizer, settings: right(optimizer, replace(settings, bias_lr=settings.lr)),
    )


@fault(UPDATES, "step 0/parameter/*", SCHEDULE)
def rate_not_scaled_by_the_batch(patch: Patch, subject: Subject) -> None:
    """The rate is that for 32 images, whatever the batch."""
    for one in subject.trainers:
        solver = replace(one.schedule.settings, lr0=one.schedule.settings.lr0 * 32 / one.schedule.batch_size)
        patch.set(one, "schedule", replace(one.schedule, settings=solver))


@fault("updates, accumulated", "step 1/momentum/*", ACCUMULATION)
def accumulated_gradients_averaged(patch: Patch, subject: Subject) -> None:
    """The sum of the gradients of two batches is halved before the update."""
    patch.wrap(
        trainer,
        "apply_gradients",
        lambda right: lambda optimizer, gradients: right(optimizer, {n: g * 0.5 for n, g in gradients.items()}),
    )


@fault("updates, accumulated", "step 0/gradient/*", ACCUMULATION)
def accumulation_ignored(patch: Patch, subject: Subject) -> None:
    """Every batch ends in an update."""
    for one in subject.trainers:
        patch.set(one, "accumulate", 1)


@fault("updates, accumulated", "step 1/momentum/*", ACCUMULATION)
def only_the_last_gradient(patch: Patch, subject: Subject) -> None:
    """Gradients are cleared before each batch, so an update sees the last one only."""
    for trainee in subject.trainees.values():
        right = trainee.update

        def update(gradients: Any, trainee: Any = trainee, right: Any = right) -> None:
            trainee.partial = {}
            right(gradients)

        patch.set(trainee, "update", update)


@fault(UPDATES, "step 1/momentum/*", ACCUMULATION)
def gradients_not_cleared(patch: Patch, subject: Subject) -> None:
    """Gradients stay after an update and are added to the next ones."""
    right = trainer.Trainer._update_weights

    def update(self: Any) -> bool:
        held = dict(self.gradients)
        moved = right(self)
        self.gradients = held
        return moved

    patch.set(trainer.Trainer, "_update_weights", update)


# Average of the weights


@fault(UPDATES, "step 0/ema/*", AVERAGE)
def average_one_update_late(patch: Patch, subject: Subject) -> None:
    """The decay of the average is that of the update before."""
    patch.set(optim, "ema_decay", lambda updates: ema_decay(updates - 1))


@fault(UPDATES, "step 0/ema/*", AVERAGE)
def average_without_ramp(patch: Patch, subject: Subject) -> None:
    """The decay of the average is 0.9999 from the first update on."""
    patch.set(optim, "ema_decay", lambda updates: 0.9999)


@fault(UPDATES, "step 0/ema/*", AVERAGE)
def average_of_the_weights_before(patch: Patch, subject: Subject) -> None:
    """The average takes the weights in before they are updated."""
    owners = {id(one.optimizer): one for one in subject.trainers}
    for one in subject.trainers:
        patch.set(one.ema, "update", lambda model: None)

    def make(right: Any) -> Any:
        def apply(optimizer: Any, gradients: Any) -> None:
            one = owners[id(optimizer)]
            type(one.ema).update(one.ema, one.model)
            right(optimizer, gradients)

        return apply

    patch.wrap(trainer, "apply_gradients", make)


@fault(UPDATES, "step 0/ema/*running_*", AVERAGE)
def average_without_running_statistics(patch: Patch, subject: Subject) -> None:
    """The average leaves the running statistics of the norms as they were."""
    right = optim.floating_state
    wrong = lambda model: {n: v for n, v in right(model).items() if ".running_" not in n}  # noqa: E731
    patch.set(optim, "floating_state", wrong)
