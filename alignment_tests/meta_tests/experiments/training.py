"""Experiments with training: a whole teacher-forced step, or only what follows the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignment_tests.cases.trainees import Batch, GoldYoloTrainee, Run
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.training.recording import perform
from alignment_tests.meta_tests.experiments.forward import CLASSES, Arrays, narrow_config
from alignment_tests.meta_tests.experiments.outcome import Array, Outcome, of_report, plain_outcomes
from alignment_tests.meta_tests.experiments.values import compared
from fixtures.images import drawn_boxes, drawn_images
from fixtures.seeded import uniform
from fixtures.training.schedule import Schedule

SIZE, BATCH = (128, 128), 2
STEPS_PER_EPOCH = 400
AFTER_WARMUP = 1201
IN_WARMUP = 650


@dataclass
class TrainingSubject:
    """What faults of training are planted into: the candidate's trainees, one per precision."""

    trainees: dict[str, GoldYoloTrainee]

    @property
    def trainers(self) -> list[Any]:
        return [trainee.trainer for trainee in self.trainees.values()]


def batch_of(seed: int, size: tuple[int, int] = SIZE, batch: int = BATCH) -> Batch:
    """Drawn scenes, one of whose boxes stands there twice, as another class the second time: a tie to be broken."""
    boxes = drawn_boxes(batch, seed)
    boxes = np.concatenate([boxes, boxes[:1]])
    boxes[-1, 1] = (boxes[0, 1] + 1) % CLASSES
    return Batch(drawn_images(batch, size, seed), boxes)


class Step:
    """One step of both sides from one state, in float64; the trainees are made once."""

    def __init__(self, run: Run, batch: Batch, *, deep: bool) -> None:
        self.batch, self.deep = batch, deep
        self.references = {kind: run.trainee("torch_ref", kind) for kind in ("float64", "float32")}
        self.subject = TrainingSubject({kind: run.trainee("jt_impl", kind) for kind in ("float64", "float32")})
        self.start = {kind: trainee.state() for kind, trainee in self.references.items()}
        self.expected = self.arrays(self.references["float32"])

    def run(self) -> Outcome:
        for kind, trainee in self.references.items():
            trainee.load(self.start[kind])
        report = align_training(
            self.references.__getitem__,
            self.subject.trainees.__getitem__,
            [self.batch],
            precisions=("float64",),
            deep_steps=(0,) if self.deep else (),
            free_running=False,
        )
        found = self.arrays(self.subject.trainees["float32"])
        return of_report(report, plain_outcomes(found, self.expected, is_result))

    def arrays(self, trainee: GoldYoloTrainee) -> dict[str, Array]:
        """Of a float32 step on its own."""
        trainee.load(self.start["float32"])
        found = Arrays()
        perform(trainee, self.batch, found, deep=self.deep)
        return {name: array for name, array in found.found.items() if not name.endswith("num_batches_tracked")}


def is_result(name: str) -> bool:
    """What people compare of a step."""
    return name.startswith("loss/")


@dataclass(frozen=True)
class StepCase:
    deep: bool = False
    assigner: str = "tal"
    head: str = "plain"
    iou: str = "siou"
    taught: bool = False

    def make(self, seed: int = 0, size: tuple[int, int] = SIZE) -> Step:
        config = narrow_config(head=self.head)
        config = replace(config, loss=replace(config.loss, iou=self.iou))
        schedule = Schedule(config.solver, 64, STEPS_PER_EPOCH, 300)
        run = Run(config, size, BATCH, schedule, first_step=AFTER_WARMUP, assigner=self.assigner, seed=seed)
        run = replace(run, teacher=narrow_config(head="fuse_ab") if self.taught else None)
        return Step(run, batch_of(seed, size), deep=self.deep)


class Updates:
    """Several updates by given gradients, without any network pass: optimizer, schedule, accumulation, average."""

    def __init__(self, run: Run, steps: int) -> None:
        self.steps = steps
        self.references = {kind: run.trainee("torch_ref", kind) for kind in ("float64", "float32")}
        self.subject = TrainingSubject({kind: run.trainee("jt_impl", kind) for kind in ("float64", "float32")})
        self.start = moving(self.references["float32"].state())
        self.expected = {kind: self.after(trainee, kind) for kind, trainee in self.references.items()}

    def run(self) -> Outcome:
        found = {kind: self.after(trainee, kind) for kind, trainee in self.subject.trainees.items()}
        return compared(found, self.expected, lambda name: "/parameter/" in name)

    def after(self, trainee: GoldYoloTrainee, kind: str) -> dict[str, Array]:
        """Momentum, weights and average after each step, as ``step 0/momentum/...``."""
        trainee.load(self.start)
        trainee.partial = {}
        found: dict[str, Array] = {}
        names = list(trainee.trainer.parameters)
        for step in range(self.steps):
            gradients = {name: gradient_of(name, step, self.start[f"parameter/{name}"]) for name in names}
            trainee.partial = dict(trainee.trainer.gradients)
            trainee.update(gradients)
            for name, array in in_causal_order(trainee.state()).items():
                found[f"step {step}/{name}"] = array
        return found


def in_causal_order(state: Mapping[str, Array]) -> dict[str, Array]:
    """Sum of gradients, momentum, weights, average."""
    phases = ("gradient", "momentum", "parameter", "ema")
    return {name: array for phase in phases for name, array in state.items() if name.startswith(f"{phase}/")}


def moving(state: Mapping[str, Array]) -> dict[str, Array]:
    """A state in the middle of a training: momentum, average and partial sums are not what they begin with."""
    made = dict(state)
    for number, (name, array) in enumerate(state.items()):
        if name.startswith(("momentum/", "ema/")) and array.dtype.kind == "f" and array.size:
            noise = (uniform(number, array.size) - 0.5).reshape(array.shape)
            made[name] = (array * (name.startswith("ema/")) + 0.01 * noise).astype(array.dtype)
            if name.startswith("momentum/second/"):
                made[name] = np.abs(made[name])
        elif name.startswith("momentum/step/"):
            made[name] = np.array(5, array.dtype)
    return made


def gradient_of(name: str, step: int, like: Array) -> Array:
    seed = (sum(name.encode()) * 7919 + step * 104729 + like.size) % 2**31
    return (0.02 * (uniform(seed, like.size) - 0.5)).astype(np.float32).reshape(like.shape)


@dataclass(frozen=True)
class UpdateCase:
    """``batch_size`` 64 makes an update of every step, 32 of every second one after warm-up."""

    optimizer: str = "sgd"
    batch_size: int = 64
    first_step: int = AFTER_WARMUP
    steps: int = 3

    def make(self, seed: int = 0) -> Updates:
        config = narrow_config()
        config = replace(config, solver=replace(config.solver, optimizer=self.optimizer))
        schedule = Schedule(config.solver, self.batch_size, STEPS_PER_EPOCH, 300)
        run = Run(config, SIZE, BATCH, schedule, first_step=self.first_step, seed=seed)
        return Updates(run, self.steps)


TRAINING: dict[str, StepCase | UpdateCase] = {
    "training step": StepCase(),
    "training step in depth": StepCase(deep=True),
    "training step, ATSS": StepCase(assigner="atss"),
    "training step, CIoU": StepCase(iou="ciou", deep=True),
    "training step, anchor-aided": StepCase(head="fuse_ab"),
    "training step with a teacher": StepCase(head="distill_ns", taught=True),
    "updates": UpdateCase(),
    "updates, accumulated": UpdateCase(batch_size=32, steps=4),
    "updates in warm-up": UpdateCase(first_step=IN_WARMUP),
    "updates by Adam": UpdateCase(optimizer="adam"),
    "updates by AdamW": UpdateCase(optimizer="adamw"),
}
