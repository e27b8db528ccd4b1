"""Assigners: which anchor learns which box, decided alike by the public implementation, PyTorch and Jittor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.cases.losses import (
    ANCHORS,
    BATCH,
    EDGE_CASES,
    LEVELS,
    loss_config,
    recorded_outputs,
    run_jittor,
    run_torch,
)
from alignment_tests.suites.training.test_losses import BAR, recorded_targets
from fixtures.anchors import CELL_SIZE, anchor_points, repeated_points
from fixtures.golden import recorded_arrays
from fixtures.targets import bucket, pad_targets
from torch_ref.assigners import top_k

STRIDES = (8, 16, 32)


@pytest.mark.parametrize("targets", ["std", "empty"])
@pytest.mark.parametrize("form", ["dfl", "nodfl"])
@pytest.mark.parametrize("assigner", ["tal", "atss"])
def test_assigners_decide_as_recorded(targets: str, form: str, assigner: str) -> None:
    """Foreground, labels and boxes exactly, scores to 1e-9; what background anchors carry means nothing."""
    config, outputs = loss_config("giou", form == "dfl"), recorded_outputs(form == "dfl")
    made = run_torch(config, outputs, recorded_targets()[targets], assigner, "float64").assignment
    recorded, case = recorded_arrays("losses/assignments"), f"{targets}_{form}_{assigner}"
    foreground = recorded[f"{case}_fg_mask"].astype(bool)
    np.testing.assert_array_equal(made["foreground"], foreground)
    np.testing.assert_array_equal(made["labels"][foreground], recorded[f"{case}_target_labels"][foreground])
    np.testing.assert_array_equal(made["boxes"][foreground], recorded[f"{case}_target_bboxes"][foreground])
    assert np.abs(made["scores"] - recorded[f"{case}_target_scores"]).max() <= BAR


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("form", ["dfl", "nodfl"])
@pytest.mark.parametrize("assigner", ["tal", "atss"])
@pytest.mark.parametrize("case", EDGE_CASES)
def test_jittor_assigners_decide_as_pytorch(case: str, assigner: str, form: str, precision: str) -> None:
    """Equal decisions in both precisions, ties included: equal boxes, and boxes placed symmetrically to anchors."""
    config, outputs = loss_config("giou", form == "dfl"), recorded_outputs(form == "dfl")
    expected, actual = (
        run(config, outputs, EDGE_CASES[case], assigner, precision).assignment for run in (run_torch, run_jittor)
    )
    foreground = expected["foreground"]
    np.testing.assert_array_equal(actual["foreground"], foreground)
    np.testing.assert_array_equal(actual["labels"][foreground], expected["labels"][foreground])
    np.testing.assert_array_equal(actual["boxes"][foreground], expected["boxes"][foreground])
    # float32: a handful of operations on IoUs, sixth power included
    allowed = 1e-12 if precision == "float64" else 64 * float(np.finfo(np.float32).eps)
    assert np.abs(actual["scores"] - expected["scores"]).max() <= allowed


@pytest.mark.parametrize("assigner", ["tal", "atss"])
@pytest.mark.parametrize("run", [run_torch, run_jittor])
def test_assigners_give_every_positive_anchor_one_box_around_it(run: Any, assigner: str) -> None:
    config, outputs = loss_config("giou", True), recorded_outputs(True)
    made = run(config, outputs, EDGE_CASES["one inside another"], assigner, "float64").assignment
    points, strides = anchor_points(tuple((side, side) for side in LEVELS), STRIDES)
    place = points * strides
    boxes = made["boxes"][1][made["foreground"][1]]
    inside = place[made["foreground"][1]]
    assert made["foreground"][1].sum() >= 3
    assert not made["foreground"][[0, 2, 3]].any()
    if assigner == "atss":  # a contested anchor may go to a box around which it does not lie, in the other one
        assert (inside > boxes[:, :2]).all()
        assert (inside < boxes[:, 2:]).all()
    assert (made["scores"][1].sum(-1)[made["foreground"][1]] >= 0).all()
    assert not made["scores"][1][~made["foreground"][1]].any()


@pytest.mark.parametrize("run", [run_torch, run_jittor])
def test_assigners_let_padding_change_nothing(run: Any) -> None:
    """Boxes of another image enlarge the bucket; the first image's assignment stays, bit for bit."""
    config, outputs = loss_config("giou", True), recorded_outputs(True)
    few = np.array([[0, 3, 0.4, 0.5, 0.3, 0.2], [0, 5, 0.7, 0.3, 0.2, 0.4]])
    many = np.concatenate([few, np.array([[1, i % 10, 0.5, 0.5, 0.02 * i + 0.05, 0.3] for i in range(40)])])
    assert bucket(2) < bucket(40)
    for assigner in ("tal", "atss"):
        one, other = (run(config, outputs, rows, assigner, "float32").assignment for rows in (few, many))
        for name in ("foreground", "scores"):
            np.testing.assert_array_equal(one[name][0], other[name][0])


def test_assigners_take_the_first_of_equal_metrics() -> None:
    values = np.array([[0.0, 2.0, 1.0, 1.0, 3.0, 1.0, 1.0], [0.0] * 7, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25]])
    expected = np.array([[0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]], bool)
    from jt_impl.kernels.functional import top_k as jittor_top_k
    from jt_impl.runtime import jittor as jt

    np.testing.assert_array_equal(top_k(torch.from_numpy(values), 3).numpy(), expected)
    np.testing.assert_array_equal(jittor_top_k(jt.array64(values), 3).numpy(), expected)
    np.testing.assert_array_equal(jittor_top_k(jt.array64(values), 9).numpy(), np.ones_like(expected))
    np.testing.assert_array_equal(top_k(torch.from_numpy(values), 9).numpy(), np.ones_like(expected))


def test_jittor_assigners_compile_nothing_for_other_numbers_of_boxes() -> None:
    """Padded to a bucket or to a larger one, the same kernels run."""
    from jt_impl.runtime import jittor as jt

    config, outputs = loss_config("giou", True), recorded_outputs(True)
    # A single image in a batch of one, or a single slot, would be another kernel; neither occurs: slots start at 8.
    for count in (3, 9):
        run_jittor(config, outputs, some_boxes(count), "tal", "float32")
    before = kernels(jt)
    for count in (1, 2, 7, 8, 12, 16, 31, 64, 100):
        run_jittor(config, outputs, some_boxes(count), "tal", "float32")
    assert kernels(jt) == before


def some_boxes(count: int) -> Any:
    return np.array([[i % BATCH, i % 10, 0.3 + 0.004 * i, 0.6 - 0.003 * i, 0.2, 0.3] for i in range(count)])


def kernels(jt: Any) -> int:
    """Compiled kernels in the cache; compiling writes a file."""
    folder = Path(jt.compiler.cache_path) / "jit"
    return sum(name.endswith(".so") for name in os.listdir(folder))


def test_padded_targets_keep_order_and_count() -> None:
    rows = np.array([[1, 4, 0.5, 0.5, 0.2, 0.4], [0, 2, 0.1, 0.2, 0.1, 0.1], [1, 6, 0.25, 0.75, 0.5, 0.5]])
    padded = pad_targets(rows, 3, (100, 200), 10)
    assert padded.boxes.shape == (3, 8, 4)
    assert padded.valid.sum(1).tolist() == [1, 2, 0]
    assert padded.labels[1, :2].tolist() == [4, 6]
    np.testing.assert_allclose(padded.boxes[1, 0], [80, 30, 120, 70])
    assert [bucket(n) for n in (0, 1, 8, 9, 16, 17, 100)] == [8, 8, 8, 16, 16, 32, 128]


def test_anchor_boxes_and_points_are_the_recorded_ones() -> None:
    sizes = ((4, 6), (2, 3), (1, 2))
    points, strides = anchor_points(sizes, STRIDES)
    place, half = points * strides, 0.5 * CELL_SIZE * strides
    repeated, repeated_strides = repeated_points(sizes, STRIDES, 3)
    recorded = recorded_arrays("losses/anchors_4x6")
    np.testing.assert_array_equal(np.concatenate([place - half, place + half], axis=1), recorded["anchors"])
    np.testing.assert_array_equal(place, recorded["points"])
    np.testing.assert_array_equal(points, recorded["eval_points"])
    np.testing.assert_array_equal(repeated * repeated_strides, recorded["ab_points"])
    assert ANCHORS == 2100
