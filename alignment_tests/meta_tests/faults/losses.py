"""Faults of a training step up to its gradients: assignment, losses, what they detach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from alignment_tests.meta_tests.experiments.training import TrainingSubject
from alignment_tests.meta_tests.faults.fault import Patch, fault
from alignment_tests.meta_tests.faults.helpers import with_other
from fixtures.anchors import anchor_points
from jt_impl import assigners, boxes, losses, trainer
from jt_impl.attention import TransformerBlock
from jt_impl.kernels.functional import binary_cross_entropy
from jt_impl.kernels.statistics import total
from jt_impl.runtime import jittor as jt

ASSIGNER, LOSS, GRADIENTS = ("assigner", "loss", "gradients")
Subject = TrainingSubject
STEP, DEEP = "training step", "training step in depth"

# Assignment


@fault(STEP, "assignment/*", ASSIGNER)
def ten_candidates_per_box(patch: Patch, subject: Subject) -> None:
    """The task-aligned assigner takes the 10 best anchors of a box in place of 13."""
    patch.set(losses, "TAL_TOPK", 10)


@fault(STEP, "assignment/*", ASSIGNER)
def candidates_outside_their_box(patch: Patch, subject: Subject) -> None:
    """Anchors outside a box may learn it."""
    right = assigners.points_inside
    patch.set(assigners, "points_inside", lambda points, boxes: jt.ones_like(right(points, boxes)))


@fault(STEP, "assignment/*", ASSIGNER)
def overlap_to_the_fourth(patch: Patch, subject: Subject) -> None:
    """The alignment metric takes the fourth power of the overlap in place of the sixth."""

    def make(right: Any) -> Any:
        def aligned(*arguments: Any) -> Any:
            metric, overlaps, inside = right(*arguments)
            square = overlaps * overlaps
            return jt.ternary(overlaps > 0.0, metric / jt.maximum(square, 1e-30), metric), overlaps, inside

        return aligned

    patch.wrap(assigners, "task_alignment", make)


@fault(STEP, "assignment/labels", ASSIGNER)
def last_of_equal_boxes_wins(patch: Patch, subject: Subject) -> None:
    """Of boxes with equal overlap the last one gets the anchor, as an unstable sort may decide."""

    def resolve(claims: Any, overlaps: Any) -> Any:
        contested = claims.int32().sum(1, keepdims=True) > 1
        count = claims.shape[1]
        order = jt.arange(count).reshape(1, -1, 1)
        level = (overlaps == overlaps.max(1, keepdims=True)).int32() * (order + 1)
        best = order == level.max(1, keepdims=True) - 1
        return (contested & best) | (jt.logical_not(contested) & claims)

    patch.set(assigners, "resolve_conflicts", resolve)


@fault(STEP, "assignment/scores", ASSIGNER)
def eps_of_the_metric(patch: Patch, subject: Subject) -> None:
    """Target scores are normalised with an eps of 1e-7 in place of 1e-9."""
    patch.set(assigners, "METRIC_EPS", 1e-7)


# Not in the step: the network's first boxes cover hundreds of pixels, beside which neither eps is seen in 1e-9.
@fault("assigner", "assignment/scores", ASSIGNER)
def eps_of_the_overlap(patch: Patch, subject: Any) -> None:
    """Overlaps of boxes in pixels are taken with an eps of 1e-7 in place of 1e-9 in the union."""
    patch.set(boxes, "UNION_EPS", 1e-7)


@fault("training step, ATSS", "assignment/*", ASSIGNER)
def ten_candidates_per_level(patch: Patch, subject: Subject) -> None:
    """ATSS takes 10 anchors per level in place of 9."""
    patch.wrap(losses, "assign_atss", lambda right: lambda *arguments: right(*arguments, top=10))


@fault("training step, ATSS", "assignment/*", ASSIGNER)
def square_anchors_of_four_strides(patch: Patch, subject: Subject) -> None:
    """The anchor boxes of ATSS have sides of 4 strides in place of 5."""
    patch.set(losses, "CELL_SIZE", 4.0)


@fault(STEP, "assignment/*", "box format")
def targets_not_converted(patch: Patch, subject: Subject) -> None:
    """Boxes to learn stay centre and size where corners are expected."""
    change_targets(patch, boxes.xyxy_to_cxcywh)


@fault(STEP, "assignment/*", "precision")
def targets_as_integers(patch: Patch, subject: Subject) -> None:
    """Boxes to learn are cut to whole pixels on their way through int32."""
    change_targets(patch, lambda found: found.int32().cast(str(found.dtype)))


def change_targets(patch: Patch, change: Any) -> None:
    right = losses.DetectionLoss.ground_truth

    def truth(self: Any, targets: Any, like: Any) -> Any:
        made = right(self, targets, like)
        return replace(made, boxes=change(made.boxes))

    patch.set(losses.DetectionLoss, "ground_truth", truth)


@fault(STEP, "assignment/*", "anchors")
def anchors_of_the_loss_at_corners(patch: Patch, subject: Subject) -> None:
    """The loss measures distances from the corners of the cells."""

    def corners(sizes: Any, strides: Any) -> Any:
        points, scales = anchor_points(sizes, strides)
        return points - 0.5, scales

    patch.set(losses, "anchor_points", corners)


@fault(STEP, "assignment/*", "DFL")
def bins_of_the_loss_numbered_from_one(patch: Patch, subject: Subject) -> None:
    """The loss decodes predicted boxes with bins that are numbered from 1."""

    later = lambda right: lambda array, like: right(array + 1 if np.ndim(array) == 1 else array, like)  # noqa: E731
    patch.wrap(losses.DetectionLoss, "predicted_boxes", lambda right: with_other(right, losses, "to_var", later))


@fault("training step, anchor-aided", "assignment/anchored.*", "anchors")
def anchors_in_pixels(patch: Patch, subject: Subject) -> None:
    """The anchor-aided head takes its anchors in pixels in place of strides."""
    for one in subject.trainers:
        detect = one.model.detect
        patch.set(detect, "anchors", detect.anchors * np.array(detect.strides).reshape(-1, 1, 1))


# Losses


@fault(STEP, "loss/iou", LOSS)
def losses_over_the_number_of_positives(patch: Patch, subject: Subject) -> None:
    """All terms are divided by the number of positive anchors in place of the sum of their scores."""

    def make(right: Any) -> Any:
        def terms(self: Any, scores: Any, found: Any, distances: Any, grid: Any, assignment: Any) -> Any:
            made = right(self, scores, found, distances, grid, assignment)
            count = assignment.foreground.cast(str(scores.dtype)).sum()
            factor = assignment.scores.sum() / jt.maximum(count, 1.0)
            return tuple(term * factor for term in made)

        return terms

    patch.wrap(losses.DetectionLoss, "terms", make)


@fault(STEP, "loss/iou", LOSS)
def weight_of_the_box_loss_forgotten(patch: Patch, subject: Subject) -> None:
    """The box loss has weight 1 in place of 2.5."""
    for one in subject.trainers:
        patch.set(one.loss, "settings", replace(one.loss.settings, iou_weight=1.0))


@fault(STEP, "loss/dfl", LOSS)
def sum_over_sides(patch: Patch, subject: Subject) -> None:
    """The focal loss of the distributions sums over the four sides in place of averaging."""
    patch.wrap(losses, "distribution_focal_loss", lambda right: lambda *arguments: right(*arguments) * 4)


@fault(STEP, "loss/cls", LOSS)
def negatives_weighed_by_the_plain_score(patch: Patch, subject: Subject) -> None:
    """The varifocal loss weighs negatives by the score in place of its square."""

    def loss(scores: Any, targets: Any, foreground: Any) -> Any:
        weight = losses.ALPHA * scores * (1 - foreground) + targets * foreground
        return total(weight * binary_cross_entropy(scores, targets))

    patch.set(losses, "varifocal_loss", loss)


@fault(STEP, "loss/cls", LOSS)
def mean_over_classes(patch: Patch, subject: Subject) -> None:
    """The class loss is the mean over the classes in place of their sum."""
    patch.wrap(losses, "varifocal_loss", lambda right: lambda scores, *rest: right(scores, *rest) / scores.shape[-1])


@fault(
    STEP,
    "loss/iou",
    LOSS,
    miss="The loss moves by less than 1e-9 of itself, so it passes; what is named is a gradient that it changes.",
)
def eps_of_the_iou_loss(patch: Patch, subject: Subject) -> None:
    """The IoU loss has an eps of 1e-7 in place of 1e-10."""
    patch.set(boxes, "EPS", 1e-7)


@fault(STEP, "loss/iou", LOSS)
def offsets_of_centres_not_halved(patch: Patch, subject: Subject) -> None:
    """The distance of two centres is taken between sums of corners, so it is twice as long."""
    right = boxes.centre_offsets
    patch.set(boxes, "centre_offsets", lambda a, b: tuple(2 * offset for offset in right(a, b)))


@fault(STEP, "loss/total", LOSS)
def total_times_the_batch(patch: Patch, subject: Subject) -> None:
    """The total is multiplied by the number of images, as YOLOv5 does."""
    right = losses.DetectionLoss.weigh

    def weigh(self: Any, *terms: Any) -> Any:
        made = right(self, *terms)
        return replace(made, total=made.total * 2)

    patch.set(losses.DetectionLoss, "weigh", weigh)


# Gradients


@fault(DEEP, "grad_activation/loss#0/*", GRADIENTS)
def scores_not_detached(patch: Patch, subject: Subject) -> None:
    """Gradients pass through the assigner into the scores and boxes that it decided on."""
    unguarded: Any = vars(assigners.assign_task_aligned)["__wrapped__"]

    def assign(self: Any, outputs: Any, targets: Any, assigner: str = "tal") -> Any:
        grid, scores = self.grid(outputs), outputs[1]
        found, truth = self.predicted_boxes(outputs) * grid.strides, self.ground_truth(targets, scores)
        return unguarded(scores, found, grid.pixel_points, truth)

    patch.set(losses.DetectionLoss, "assign", assign)


@fault(DEEP, "grad_activation/neck.high_IFM.transformer_blocks.0#0/args.0", GRADIENTS)
def residual_detached(patch: Patch, subject: Subject) -> None:
    """The second residual of a transformer block passes no gradient."""

    def execute(self: Any, x: Any) -> Any:
        x = x + self.drop_path(self.attn(x))
        return x.detach() + self.drop_path(self.mlp(x))

    patch.set(TransformerBlock, "execute", execute)


@fault(DEEP, "grad_activation/loss#0/*", GRADIENTS)
def weight_of_negatives_detached(patch: Patch, subject: Subject) -> None:
    """The varifocal loss stops the gradient through the weight of negatives: the loss is the same."""

    def loss(scores: Any, targets: Any, foreground: Any) -> Any:
        held = scores.detach()
        weight = losses.ALPHA * held * held * (1 - foreground) + targets * foreground
        return total(weight * binary_cross_entropy(scores, targets))

    patch.set(losses, "varifocal_loss", loss)


@fault("training step, CIoU", "grad_activation/loss#0/*", GRADIENTS)
def aspect_weight_not_detached(patch: Patch, subject: Subject) -> None:
    """The weight of CIoU's aspect term passes a gradient: the loss is the same."""
    right = boxes.PENALTIES["ciou"]

    def penalty(*arguments: Any) -> Any:
        held = jt.Var.detach
        jt.Var.detach = lambda var: var
        try:
            return right(*arguments)
        finally:
            jt.Var.detach = held

    patch.item(boxes.PENALTIES, "ciou", penalty)


@fault(STEP, "*/backbone.ERBlock_2.0.rbr_dense.bn.weight", GRADIENTS)
def parameter_never_trained(patch: Patch, subject: Subject) -> None:
    """A norm's weight is not among the trained parameters."""
    for one in subject.trainers:
        name = "backbone.ERBlock_2.0.rbr_dense.bn.weight"
        patch.set(one, "parameters", {key: value for key, value in one.parameters.items() if key != name})


@fault(DEEP, "activation/backbone.stem.rbr_dense.conv#0/0", "scale")
def images_divided_twice(patch: Patch, subject: Subject) -> None:
    """Images in 0..1 are divided by 255 once more before the network."""
    right = trainer.Trainer.forward
    patch.set(trainer.Trainer, "forward", lambda self, images: right(self, images / np.float32(255)))
