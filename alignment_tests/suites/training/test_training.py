"""Training of Gold-YOLO in both frameworks: many steps, taught and free, and runs that change sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alignment_tests.cases.batches import training_batches
from alignment_tests.cases.trainees import GoldYoloTrainee, Run
from alignment_tests.harness import Report
from alignment_tests.harness.align_training import align_training
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET
from alignment_tests.harness.record.phases import PHASES
from alignment_tests.harness.training.free_runs import followed
from alignment_tests.harness.training.trainee import train_step
from alignment_tests.meta_tests.experiments.forward import narrow_config
from fixtures.config import GoldYoloConfig, load_config
from fixtures.training.schedule import Schedule

STEPS, BATCH, SIZE = 20, 2, (128, 128)
# Steps, batch size that rates are scaled for, and first step: that of warm-up, where rates are 0 and that of biases
# 0.1, and one after it. Twenty steps of S are among the clean runs of docs/proof.md.
STARTS = {"n": (20, 16, 0), "s": (3, 16, 1201)}


def training_run(size: str, batch_size: int = 16, first_step: int = 0, **options: Any) -> Run:
    config = load_config(f"gold_yolo_{size}", **options)
    return Run(config, SIZE, BATCH, Schedule(config.solver, batch_size, 400, 300), first_step=first_step)


@pytest.mark.parametrize("size", STARTS)
def test_training_is_aligned_over_many_steps(size: str, check_alignment: Callable[[Report], None]) -> None:
    """Losses, assignments, gradients, momentum, weights, buffers and averages of every step; the first one in depth.

    Float64 to 1e-9 of scale (the bar of the harness), float32 within the noise budget, and every step of a free run.
    """
    steps, *start = STARTS[size]
    batches, what = training_batches(steps, BATCH, SIZE)
    run = training_run(size, *start)
    report = align_training(*run.makers(), batches, title=f"training {size}", settings={"images": what})
    covered = report.coverage.compared
    trainable = len(run.trainee("torch_ref", "float32").trainer.parameters)
    assert covered["grad_parameter"] == covered["momentum"] == trainable
    assert set(covered) == set(PHASES)
    check_alignment(report)


TEACHER = load_config("gold_yolo_n", use_dfl=True, head="fuse_ab")


def narrow(size: str) -> GoldYoloConfig:
    """M or L with every layer that it has, at a quarter of L's width."""
    config = load_config(f"gold_yolo_{size}")
    factor = 0.25 / config.width
    channels = tuple(int(count * factor) for count in config.neck.trans_channels)
    transformer = replace(config.neck.transformer, dim=int(config.neck.transformer.dim * factor))
    width = int(config.neck.low_fusion_in * factor)
    neck = replace(config.neck, low_fusion_in=width, trans_channels=channels, transformer=transformer)
    return replace(config, width=0.25, neck=neck)


def variant(name: str) -> Run:
    """N with another assigner, head or optimizer, or with a teacher; M and L at less than their width."""
    run = training_run("n")
    if name in ("m", "l"):
        return replace(run, config=narrow(name), fresh=True)
    if name == "atss":
        return replace(run, assigner="atss")
    if name == "fuse_ab":
        return replace(run, config=TEACHER)
    if name == "distill":
        return replace(run, config=load_config("gold_yolo_n", use_dfl=True, head="distill_ns"), teacher=TEACHER)
    adamw = replace(run.config.solver, optimizer="adamw", lr0=1e-3)
    # In the middle of warm-up, where no rate is zero and every step still updates.
    return replace(
        run, config=replace(run.config, solver=adamw), schedule=Schedule(adamw, 16, 400, 300), first_step=300
    )


@pytest.mark.parametrize("name", ["atss", "fuse_ab", "distill", "adamw", "m", "l"])
def test_training_variants_are_aligned(name: str, check_alignment: Callable[[Report], None]) -> None:
    """Two steps, in float64 and float32."""
    batches, _ = training_batches(2, BATCH, SIZE)
    settings: dict[str, Any] = {"deep_steps": (), "free_running": False, "taught_updates": name == "adamw"}
    check_alignment(align_training(*variant(name).makers(), batches, title=f"training {name}", **settings))


def converted(trainee: GoldYoloTrainee, run: Run, package: str) -> GoldYoloTrainee:
    """The same run in the other framework, and proof that the hand-over changed no bit."""
    other = run.trainee(package, trainee.precision)
    state = trainee.trainer.state()
    other.trainer.load_state(state)
    handed = other.trainer.state()
    assert handed.position == state.position
    ours, theirs = handed.arrays(), state.arrays()
    # Jittor keeps no count of batches; slots that one side has not made yet are filled with what it would begin with.
    shared = [name for name in theirs if not name.endswith("num_batches_tracked")]
    assert set(shared) <= set(ours)
    assert [name for name in shared if ours[name].tobytes() != theirs[name].tobytes()] == []
    return other


@pytest.mark.parametrize("order", [("torch_ref", "jt_impl"), ("jt_impl", "torch_ref")], ids="-then-".join)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_training_goes_on_in_the_other_framework(order: tuple[str, str], precision: str) -> None:
    """Ten steps of the narrow network in one, handed over bit for bit, ten in the other.

    In float64 each of the twenty is the step that the reference makes from the same state.
    """
    config = narrow_config()
    run = Run(config, SIZE, BATCH, Schedule(config.solver, 16, 400, 300), first_step=1201)
    batches, _ = training_batches(STEPS, BATCH, SIZE)
    mixed, follower = run.trainee(order[0], precision), run.trainee("torch_ref", "float64")
    for number, batch in enumerate(batches):
        if number == STEPS // 2:
            mixed = converted(mixed, run, order[1])
        before = mixed.state()
        taken = train_step(mixed, batch)
        assert np.isfinite(taken.loss)
        if precision == "float64":
            assert followed(follower, before, mixed.state(), batch, taken, DEFAULT_BUDGET) == "", number
    assert mixed.trainer.step_number == 1201 + STEPS
    assert mixed.trainer.ema.updates == STEPS // 4
