"""What may be excused of an assignment: no decision falls otherwise where the margin says that it cannot."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.cases.losses import BATCH, CLASSES, EDGE_CASES, LEVELS, SIDE, loss_config, recorded_outputs, rows
from alignment_tests.cases.margins import Decided, atss_margins, task_aligned_margins
from alignment_tests.cases.trainees import Batch, decided_on
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET
from alignment_tests.harness.training.trainee import alike_by_image
from fixtures.seeded import uniform
from torch_ref.assigners import TAL_TOPK, Assignment, assign_atss, assign_task_aligned, points_inside
from torch_ref.losses import build_loss

SINGLE = partial(DEFAULT_BUDGET.share, "float32")
DOUBLE = partial(DEFAULT_BUDGET.share, "float64")
# Thirty boxes an image, of few classes and much overlap: where decisions are close.
CROWDED = rows(
    *[
        (i % BATCH, i % 3, 20 + 280 * u[0], 20 + 280 * u[1], 16 + 60 * u[2], 16 + 60 * u[3])
        for i, u in enumerate(uniform(5, 4 * 30 * BATCH).reshape(-1, 4))
    ]
)


def decided(targets: Any, dtype: str, noise: float = 0.0, seed: int = 0) -> Decided:
    """The arguments of an assigner, every number of the outputs moved by up to ``noise`` of itself."""
    outputs = [torch.from_numpy(array.astype(dtype)) for array in recorded_outputs(False)]
    moved = [o * (1 + noise * (2 * torch.from_numpy(uniform(seed + i, o.numel())).reshape(o.shape).to(o) - 1))
             for i, o in enumerate(outputs)]  # fmt: skip
    features = [torch.zeros(1, 1, side, side) for side in LEVELS]
    images = np.zeros((BATCH, 3, SIDE, SIDE), np.float32)
    return decided_on(build_loss(loss_config("giou", False), SIDE), (features, *moved), Batch(images, targets))


def assigned(assigner: str, case: Decided) -> Assignment:
    if assigner == "tal":
        return assign_task_aligned(case.scores, case.boxes, case.points, case.truth)
    return assign_atss(case.boxes, case.points, case.anchors, case.level_sizes, case.truth, CLASSES)


def margins(assigner: str, exact: Decided, single: Decided, share: Any) -> Any:
    if assigner == "tal":
        return task_aligned_margins(exact, single, TAL_TOPK, share)
    return atss_margins(exact, single, share)


def otherwise(a: Assignment, b: Assignment) -> Any:
    """Where two assignments differ in a decision."""
    owner = [torch.where(made.foreground, made.matched, -1) for made in (a, b)]
    return owner[0] != owner[1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-2])
def test_what_noise_decides_otherwise_is_within_the_margin(noise: float, seed: int) -> None:
    """Reference and candidate have noise of one size, drawn apart; the oracle has none."""
    exact = decided(CROWDED, "float64")
    reference, candidate = (decided(CROWDED, "float64", noise, 10 * seed + side) for side in (1, 5))
    margin = margins("tal", exact, reference, SINGLE)
    differ = otherwise(assigned("tal", exact), assigned("tal", candidate))
    assert (margin[differ] <= 1).all()
    if noise == 1e-2:
        assert differ.any()
    else:  # and it does not excuse everything
        foreground = assigned("tal", exact).foreground
        assert (margin[foreground] > 1).double().mean() > (0.95 if noise == 1e-6 else 0.5)


@pytest.mark.parametrize("assigner", ["tal", "atss"])
@pytest.mark.parametrize("case", [*EDGE_CASES, "crowded"])
def test_float32_decides_otherwise_within_the_margin_only(case: str, assigner: str) -> None:
    targets = EDGE_CASES.get(case, CROWDED)
    exact, single = decided(targets, "float64"), decided(targets, "float32")
    differ = otherwise(assigned(assigner, exact), assigned(assigner, single))
    assert (margins(assigner, exact, single, SINGLE)[differ] <= 1).all()


@pytest.mark.parametrize("assigner", ["tal", "atss"])
def test_another_rule_is_beyond_the_margin(assigner: str) -> None:
    exact, single = decided(CROWDED, "float64"), decided(CROWDED, "float32")
    made = [assign_task_aligned(exact.scores, exact.boxes, exact.points, exact.truth, top) for top in (13, 10)]
    if assigner == "atss":
        where = exact.boxes, exact.points, exact.anchors, exact.level_sizes, exact.truth, CLASSES
        made = [assign_atss(*where, top) for top in (9, 10)]
    margin = margins(assigner, exact, single, SINGLE)[otherwise(*made)]
    assert (margin > 1).any()


def test_which_of_equal_boxes_is_taken_is_not_excused() -> None:
    """Their overlaps are the same numbers on every side, so that position decides."""
    exact = decided(rows((0, 1, 100, 100, 64, 64), (0, 7, 100, 100, 64, 64)), "float64")
    margin = margins("tal", exact, exact, DOUBLE)
    owned = assigned("tal", exact).foreground
    assert owned.any()
    assert (margin[owned] > 1e3).all()


def test_which_of_two_boxes_of_one_size_is_taken_may_be_decided_by_rounding() -> None:
    """Both lie inside every prediction, so that their overlaps are equal but for rounding."""
    exact = decided(rows((0, 1, 100, 100, 26.1, 31.5), (0, 1, 110, 90, 26.1, 31.5)), "float64")
    whole = torch.tensor([20.0, 20.0, 220.0, 220.0], dtype=torch.float64).expand_as(exact.boxes)
    exact = replace(exact, boxes=whole)
    contested = assigned("tal", exact).foreground & points_inside(exact.points, exact.truth.boxes)[:, :2].all(1)
    assert contested.any()
    assert (margins("tal", exact, exact, DOUBLE)[contested] <= 1).double().mean() > 0.5  # some only one box claims


def test_nothing_is_close_without_boxes() -> None:
    exact = decided(EDGE_CASES["no box at all"], "float64")
    for assigner in ("tal", "atss"):
        assert (margins(assigner, exact, exact, DOUBLE) > 1e6).all()


def test_values_are_compared_where_decisions_are_alike() -> None:
    """Boxes by anchor, scores by box: those of a box that lost an anchor hang on it."""
    from alignment_tests.cases.trainees import GoldYoloTrainee

    matched = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    foreground = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
    sides = [{"foreground": foreground, "labels": np.zeros_like(matched), "matched": matched} for _ in range(3)]
    other = foreground.copy()
    other[0, 1] = False
    sides[1] = sides[1] | {"foreground": other}
    alike = partial(GoldYoloTrainee.alike, None, sides=sides)  # type: ignore[arg-type]
    assert alike("boxes").tolist() == [[True, False, True, True, True], [True] * 5]
    assert alike("scores").tolist() == [[False, False, True, True, True], [True] * 5]
    assert alike("teacher.scores").tolist() == [True, True]
    assert alike_by_image(sides).tolist() == [False, True]
