"""Losses: the reference against recordings of the public implementation, the candidate against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import torch_ref.boxes
import torch_ref.losses
from alignment_tests.cases.losses import EDGE_CASES, KINDS, TERMS, loss_config, recorded_outputs, run_jittor, run_torch
from alignment_tests.harness import compare_arrays
from alignment_tests.harness.judge.budget import EPS32
from fixtures.golden import Summary, distance, recorded_arrays, recorded_json, summarise
from fixtures.seeded import uniform

BAR = 1e-9  # of scale, between float64 programs
RECORDED = [
    (targets, iou, form, assigner)
    for targets in ("std", "empty", "many")
    for iou, form in (("giou", "dfl"), ("siou", "nodfl"), ("siou", "dfl"), ("ciou", "dfl"), ("diou", "dfl"))
    for assigner in ("tal", "atss")
]


def recorded_targets() -> dict[str, Any]:
    """By the name that they have in the recordings of losses and assignments."""
    recorded = recorded_arrays("losses/targets")
    return {"std": recorded["nc10"], "empty": recorded["nc10_empty"], "many": recorded["nc10_many"]}


@pytest.mark.parametrize("kind", KINDS)
def test_iou_losses_are_the_recorded_ones(kind: str) -> None:
    recorded = recorded_arrays("losses/iou")
    boxes, target = (recorded[name].astype(np.float64) for name in ("pred", "target"))
    expected, gradient = recorded[f"{kind}_loss_f64"].reshape(-1), recorded[f"{kind}_grad_f64"]
    predicted = torch.from_numpy(boxes).requires_grad_()
    loss = torch_ref.boxes.iou_loss(predicted, torch.from_numpy(target), kind)
    loss.sum().backward()
    assert np.abs(loss.detach().numpy() - expected).max() <= BAR
    assert predicted.grad is not None
    assert np.abs(predicted.grad.numpy() - gradient).max() <= BAR * np.abs(gradient).max()


@pytest.mark.parametrize("kind", KINDS)
def test_jittor_iou_losses_and_their_gradients(kind: str) -> None:
    """Pairs apart, nested, touching, equal, and with equal edges: there the gradients of max and min are split."""
    import jt_impl.boxes
    from jt_impl.runtime import jittor as jt

    corner, size = 10 * uniform(1, 120).reshape(2, 30, 2), 0.1 + 8 * uniform(2, 120).reshape(2, 30, 2)
    boxes, target = (np.concatenate([a, a + b], axis=1) for a, b in zip(corner, size, strict=True))
    target[:3] = boxes[:3]  # equal
    target[3:6, 0], target[6:9, 3] = boxes[3:6, 2], boxes[6:9, 3]  # touching; one edge in common
    target[3:6, 2] = target[3:6, 0] + 1.5
    predicted = torch.from_numpy(boxes).requires_grad_()
    expected = torch_ref.boxes.iou_loss(predicted, torch.from_numpy(target), kind)
    expected.sum().backward()
    var = jt.array64(boxes).start_grad()
    actual = jt_impl.boxes.iou_loss(var, jt.array64(target), kind)
    assert predicted.grad is not None
    for ours, theirs in ((actual, expected.detach()), (jt.grad(actual.sum(), var), predicted.grad)):
        assert np.abs(ours.numpy() - theirs.numpy()).max() <= 1e-12 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize(("targets", "iou", "form", "assigner"), RECORDED)
def test_losses_are_the_recorded_ones(targets: str, iou: str, form: str, assigner: str) -> None:
    name = f"{targets}_{iou}_{form}_{assigner}"
    expected, recorded = recorded_json("losses/losses")[name], recorded_arrays("losses/gradients")
    config, outputs = loss_config(iou, form == "dfl"), recorded_outputs(form == "dfl")
    run = run_torch(config, outputs, recorded_targets()[targets], assigner, "float64")
    for term in TERMS:
        assert abs(run.terms[term] - expected[term]) <= BAR * max(1.0, abs(expected[term])), term
    assert int(run.assignment["foreground"].sum()) == expected["n_fg"]
    for short, gradient in zip(("gs", "gr"), run.gradients, strict=True):
        _, _, peak, norm, _ = recorded[f"{name}_{short}_stats"]
        found = summarise(f"lossgrad:{short}", gradient, 2048)
        assert np.abs(found.samples - recorded[f"{name}_{short}_samples"]).max() <= BAR * (peak or 1.0)
        assert abs(found.stats[3] - norm) <= BAR * (norm or 1.0)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("iou", "form"), [("giou", "dfl"), ("siou", "nodfl"), ("ciou", "nodfl")])
@pytest.mark.parametrize("assigner", ["tal", "atss"])
@pytest.mark.parametrize("case", ["one box, three images empty", "forty boxes in one image", "leaves the image"])
def test_jittor_losses_and_their_gradients(case: str, assigner: str, iou: str, form: str, precision: str) -> None:
    config, outputs = loss_config(iou, form == "dfl"), recorded_outputs(form == "dfl")
    actual, expected, oracle = (
        run(config, outputs, EDGE_CASES[case], assigner, dtype)
        for run, dtype in ((run_jittor, precision), (run_torch, precision), (run_torch, "float64"))
    )
    for term in TERMS:
        error, own = (abs(run.terms[term] - oracle.terms[term]) for run in (actual, expected))
        # A scalar's own error may be zero by luck, so the unit is at least a few roundings of the total.
        allowed = BAR if precision == "float64" else 16 * max(own / oracle.terms["total"], EPS32)
        assert error <= allowed * max(1.0, oracle.terms["total"]), term
    for ours, theirs, exact in zip(actual.gradients, expected.gradients, oracle.gradients, strict=True):
        row = compare_arrays(ours, theirs, oracle=None if precision == "float64" else exact)
        assert row.passed, row.reason


def test_losses_of_a_batch_without_boxes_have_gradients() -> None:
    """The class loss teaches every anchor that it is background; it is not normalised then, and nothing is NaN."""
    config, outputs = loss_config("siou", True), recorded_outputs(True)
    for run in (run_torch, run_jittor):
        made = run(config, outputs, EDGE_CASES["no box at all"], "tal", "float64")
        assert made.terms["iou"] == made.terms["dfl"] == 0.0
        assert made.terms["total"] == made.terms["cls"] > 0.0
        assert not made.gradients[1].any()
        assert (made.gradients[0] > 0).all()


def test_jittor_cross_entropy_has_the_limits_of_pytorch() -> None:
    """At scores of exactly 0 and 1, and next to them, in value and gradient."""
    import jt_impl.kernels.functional
    from jt_impl.runtime import jittor as jt

    scores = np.array([0.0, 1.0, 1e-45, 1e-30, 1e-8, 1e-3, 0.5, 1 - 2**-24, 1.0, 0.0, 0.25], np.float32)
    targets = np.array([0.0, 1.0, 0.5, 1.0, 0.0, 0.0, 0.3, 1.0, 0.0, 1.0, 0.25], np.float32)
    leaf = torch.from_numpy(scores).requires_grad_()
    expected = torch.nn.functional.binary_cross_entropy(leaf, torch.from_numpy(targets), reduction="none")
    expected.sum().backward()
    var = jt.array(scores).start_grad()
    actual = jt_impl.kernels.functional.binary_cross_entropy(var, jt.array(targets))
    assert leaf.grad is not None
    np.testing.assert_allclose(actual.numpy(), expected.detach().numpy(), rtol=4 * EPS32, atol=0)
    np.testing.assert_allclose(jt.grad(actual.sum(), var).numpy(), leaf.grad.numpy(), rtol=4 * EPS32, atol=0)


def test_jittor_functions_split_ties_as_pytorch_does() -> None:
    import jt_impl.kernels.functional as ours
    from jt_impl.runtime import jittor as jt

    a, b = np.array([-1.0, 0.0, 1.0, 2.0, 3.0]), np.array([-1.0, 1.0, 1.0, 1.0, 3.0])
    pairs: list[tuple[Any, Any]] = [
        (lambda x, y: ours.maximum(x, y), torch.maximum),
        (lambda x, y: ours.minimum(x, y), torch.minimum),
        (lambda x, y: ours.clamp_min(x, 0.0) * y, lambda x, y: x.clamp(min=0.0) * y),
        (lambda x, y: ours.clamp(x, 0.0, 2.0) * y, lambda x, y: x.clamp(0.0, 2.0) * y),
        (lambda x, y: ours.absolute(x) * y, lambda x, y: x.abs() * y),
    ]
    for candidate, reference in pairs:
        leaves = [torch.from_numpy(v).requires_grad_() for v in (a, b)]
        expected = reference(*leaves)
        by = torch.autograd.grad(expected.sum(), leaves)
        vars_ = [jt.array64(v).start_grad() for v in (a, b)]
        actual = candidate(*vars_)
        np.testing.assert_array_equal(actual.numpy(), expected.detach().numpy())
        for found, wanted in zip(jt.grad(actual.sum(), vars_), by, strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted.numpy())


@pytest.mark.parametrize("package", ["torch_ref", "jt_impl"])
def test_wrong_arguments_of_losses_are_named(package: str) -> None:
    import importlib

    losses, boxes = (importlib.import_module(f"{package}.{name}") for name in ("losses", "boxes"))
    config, outputs = loss_config("giou", False), recorded_outputs(False)
    run = run_torch if package == "torch_ref" else run_jittor
    with pytest.raises(ValueError, match="`image_size` must be a multiple of 32"):
        losses.build_loss(config, 100)
    with pytest.raises(ValueError, match="`assigner` must be one of"):
        run(config, outputs, EDGE_CASES["the whole image"], "simota", "float64")
    with pytest.raises(ValueError, match="`kind` must be one of"):
        boxes.iou_loss(None, None, "eiou")
    wrong = {
        r"must be \(M, 6\)": np.zeros((3, 5)),
        r"must be finite.*row 1": np.array([[0, 1, 0.5, 0.5, 0.1, 0.1], [0, 1, np.nan, 0.5, 0.1, 0.1]]),
        r"class in 0\.\.9.*10 in row 0": np.array([[0, 10, 0.5, 0.5, 0.1, 0.1]]),
        r"class in 0\.\.9.*1\.5": np.array([[0, 1.5, 0.5, 0.5, 0.1, 0.1]]),
        r"image in 0\.\.3.*4": np.array([[4, 1, 0.5, 0.5, 0.1, 0.1]]),
        r"w and h of at least 0": np.array([[0, 1, 0.5, 0.5, -0.1, 0.1]]),
    }
    for message, targets in wrong.items():
        with pytest.raises(ValueError, match=message):
            run(config, outputs, targets, "tal", "float64")


def test_summaries_of_gradients_see_a_single_element() -> None:
    """The recordings hold a norm beside samples: one wrong element in a million is beyond the bar."""
    values = uniform(3, 1_000_000)
    changed = values.copy()
    changed[123_456] *= 1.01
    summary: Summary = summarise("lossgrad:gs", values, 2048)
    assert distance(summarise("lossgrad:gs", changed, 2048), summary) > BAR
