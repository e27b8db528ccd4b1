"""Self-distillation, the second training of the recipe: the student learns from boxes and from a frozen teacher.

The teacher is the anchor-aided net of the first training. Two terms join the losses they belong to, a third is its own:
the divergence of the class scores, that of the box distributions, and optionally that of the neck's maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fixtures.config import GoldYoloConfig
from fixtures.training.schedule import distillation_decay
from jt_impl.assigners import Assignment
from jt_impl.attention import Transformer
from jt_impl.boxes import ltrb_to_xyxy
from jt_impl.fusion import Injection
from jt_impl.kernels import exponential
from jt_impl.kernels.functional import as_float, log_softmax, with_one_consumer
from jt_impl.kernels.statistics import total
from jt_impl.layers import BatchNorm2d, Var, constant, nn
from jt_impl.losses import DetectionLoss, as_image_size
from jt_impl.model import GoldYolo
from jt_impl.runtime import jittor as jt

TEMPERATURE = 20.0  # of scores and box distributions; maps are compared at temperature 1
FEATURE_WEIGHT = 10.0
BRANCH_LENGTHS = (3, 5)  # outputs of a teacher: of the plain head, of the anchor-aided head


@dataclass(frozen=True)
class DistillationLosses:
    """Weighted loss terms; ``total`` is their sum. ``dfl`` and ``cls`` hold what the teacher adds to them."""

    total: Var
    iou: Var
    dfl: Var
    cls: Var
    feature: Var


def divergence(student: Var, teacher: Var) -> Var:
    """KL(softmax(teacher) || softmax(student)) over the last dimension, elements not yet summed."""
    target, predicted = log_softmax(teacher.detach(), dim=-1), log_softmax(student, dim=-1)
    return exponential.exp(target) * (target - predicted)


def softened(student: Var, teacher: Var) -> Var:
    """``divergence`` at the temperature T, times T^2, so that gradients keep their size (arXiv 1503.02531)."""
    return divergence(student / TEMPERATURE, teacher / TEMPERATURE) * TEMPERATURE**2


def distribution_term(student: Var, teacher: Var, assignment: Assignment) -> Var:
    """Mean divergence of the box distributions (N, A, 4, bins) over all sides of positive anchors."""
    positive = as_float(assignment.foreground, student)
    count = total(positive) * student.shape[2]
    sides = softened(student, teacher).sum(-1).sum(-1)  # (N, A)
    return total(sides * positive) / jt.ternary(count > 0.0, count, jt.ones_like(count))


def feature_term(neck: Any, teacher_neck: Any, weight: float) -> Var:
    """Channel-wise divergence over space, per image and channel, summed over the maps (arXiv 2011.13256)."""
    terms = []
    for student, teacher in zip(neck, teacher_neck, strict=True):
        batch, channels, height, width = student.shape
        student, teacher = (x.reshape(batch * channels, height * width) for x in (student, teacher))
        terms.append(total(divergence(student, teacher) * constant(weight / (batch * channels), student)))
    return sum(terms[1:], terms[0])


def per_score(values: Var, assignment: Assignment) -> Var:
    """``values``, (N, A) or one number, weighted by each anchor's target score, over the sum of these."""
    norm = total(assignment.scores)
    norm = jt.ternary(norm > 0.0, norm, jt.ones_like(norm))
    return total(assignment.scores.sum(-1) * values) / norm


class DistillationLoss:
    """Loss of a student with the plain head (M, L); see ``build_distillation_loss``."""

    def __init__(self, config: GoldYoloConfig, image_size: tuple[int, int], epochs: int, features: bool) -> None:
        self.detection = DetectionLoss(config, image_size)
        self.class_weight, self.dfl_weight = config.loss.distill_class_weight, config.loss.distill_dfl_weight
        self.bins, self.epochs, self.features = config.head.reg_max + 1, epochs, features

    def __call__(
        self,
        outputs: Any,
        teacher_outputs: Any,
        targets: Any,
        epoch: int,
        neck: Any = None,
        teacher_neck: Any = None,
        assignment: Assignment | None = None,
    ) -> DistillationLosses:
        """The loss of one batch.

        Args:
            outputs: of the student in train mode.
            teacher_outputs: of the teacher in train mode, for the same images.
            targets: (M, 6) rows: image, class, cx, cy, w, h in 0..1.
            epoch: from 0; the teacher's share falls with it.
            neck: the student's neck maps, three (N, C, H, W). Needed, and used, with ``features`` only.
            teacher_neck: the teacher's.
            assignment: use this one in place of computing it.

        Raises:
            ValueError: the epoch is none of the run, maps are missing, student and teacher differ in shape, or
                ``targets`` is malformed.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"`epoch` must be in 0..{self.epochs - 1}. Received: {epoch}")
        scores, bins = outputs[1], outputs[2]
        teacher_scores, teacher_bins = teacher_branch(teacher_outputs)
        check_shapes("teacher_outputs", (teacher_scores, teacher_bins), (scores, bins))
        if assignment is None:
            assignment = self.assign(outputs, targets)
        share = distillation_decay(epoch, self.epochs)
        by_class_weight, by_box_weight = self.class_weight * share, self.dfl_weight * share
        cls, iou, dfl = self.student_terms(outputs, assignment)
        bins, teacher_bins = (x.reshape(*x.shape[:2], 4, self.bins) for x in (bins, teacher_bins))
        # Inside the sums: behind the Python factors of `weigh` Jittor's gradient of a lone number is float32.
        by_class = total(softened(scores, teacher_scores) * constant(by_class_weight, scores))
        by_box = distribution_term(bins, teacher_bins, assignment) * constant(by_box_weight, scores)
        losses = self.detection.weigh(cls + by_class, iou, dfl + per_score(by_box, assignment))
        feature = jt.zeros_like(losses.total)
        if self.features:
            feature = self.features_of(neck, teacher_neck, FEATURE_WEIGHT * share)
        whole = with_one_consumer(losses.total + feature)
        return DistillationLosses(whole, losses.iou, losses.dfl, losses.cls, feature)

    def assign(self, outputs: Any, targets: Any) -> Assignment:
        """Which anchor learns which box: task-aligned, by the boxes that the distributions give."""
        return self.detection.assign(outputs, targets)

    def student_terms(self, outputs: Any, assignment: Assignment) -> tuple[Var, Var, Var]:
        """Class, IoU and DFL loss of the student itself, unweighted."""
        scores, bins, detection = outputs[1], outputs[2], self.detection
        return detection.terms(scores, detection.predicted_boxes(outputs), bins, detection.grid(outputs), assignment)

    @staticmethod
    def features_of(neck: Any, teacher_neck: Any, weight: float) -> Var:
        if neck is None or teacher_neck is None:
            raise ValueError("`neck` and `teacher_neck` must be the neck's maps, since `features` is set")
        check_shapes("teacher_neck", teacher_neck, neck)
        return feature_term(neck, teacher_neck, weight)


class TwoBranchDistillationLoss(DistillationLoss):
    """Loss of a student with the head of N and S, whose plain distances learn the same boxes."""

    def student_terms(self, outputs: Any, assignment: Assignment) -> tuple[Var, Var, Var]:
        cls, iou, dfl = super().student_terms(outputs, assignment)
        grid = self.detection.grid(outputs)
        boxes = ltrb_to_xyxy(outputs[3], grid.points)
        plain = self.detection.box_loss(boxes, assignment.boxes / grid.strides, assignment.foreground)
        return cls, iou + per_score(plain, assignment), dfl


STUDENTS: dict[str, type[DistillationLoss]] = {"plain": DistillationLoss, "distill_ns": TwoBranchDistillationLoss}


def teacher_branch(outputs: Any) -> tuple[Var, Var]:
    """Class scores and raw distances of a teacher's anchor-free branch."""
    if len(outputs) not in BRANCH_LENGTHS:
        raise ValueError(f"`teacher_outputs` must hold 5 (anchor-aided) or 3 parts (plain). Received: {len(outputs)}")
    return outputs[-2], outputs[-1]


def check_shapes(name: str, teacher: Any, student: Any) -> None:
    """Nothing is broadcast between teacher and student."""
    received, expected = ([tuple(x.shape) for x in maps] for maps in (teacher, student))
    if received != expected:
        raise ValueError(f"`{name}` must have the student's shapes {expected}. Received: {received}")


def build_distillation_loss(
    config: GoldYoloConfig, image_size: int | tuple[int, int], epochs: int, features: bool = False
) -> DistillationLoss:
    """The self-distillation loss; call it with (outputs, teacher_outputs, targets, epoch).

    Args:
        config: of the student: "plain" head (M, L in the public recipe) or "distill_ns" (N, S), with DFL.
        image_size: of the network's input, pixels: a side, or (rows, columns).
        epochs: length of the run, over which the teacher's share falls to a hundredth.
        features: also compare the neck's maps.

    Raises:
        ValueError: the head is another or has no DFL, ``epochs`` is below 1, or ``image_size`` is none.
    """
    if config.head.kind not in STUDENTS:
        raise ValueError(f"`config.head.kind` must be one of {sorted(STUDENTS)}. Received: {config.head.kind!r}")
    if not config.head.use_dfl:
        raise ValueError(f"`config` must have DFL, whose distributions are distilled. Received: {config.name} without")
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1. Received: {epochs}")
    return STUDENTS[config.head.kind](config, as_image_size(image_size), epochs, features)


def prepare_teacher(teacher: GoldYolo) -> GoldYolo:
    """Bring a teacher, in place, to the state in which the public recipe runs it; returned for convenience.

    It runs in train mode: batch norms use the batch's statistics, DropPath drops. The running statistics of the norms
    in injections and transformer still move (the public code has SyncBN there, which it passes over); all others stay.

    Raises:
        ValueError: its head gives nothing to learn from, see ``teacher_branch``.
    """
    if teacher.config.head.kind == "distill_ns" or not teacher.config.head.use_dfl:
        raise ValueError(f"`teacher` must have DFL and a plain or fuse_ab head. Received: {teacher.config.head}")
    teacher.train()
    moving = {id(module) for part in teacher.neck.children() if moves(part) for module in part.modules()}
    for module in teacher.modules():
        if isinstance(module, BatchNorm2d) and id(module) not in moving:
            module.momentum = 0.0  # the running statistics move by nothing
    return teacher


def moves(part: nn.Module) -> bool:
    """Whether this part of the neck is built with ``NeckConfig.global_norm``."""
    return isinstance(part, Injection | Transformer)


def run_with_neck(model: GoldYolo, images: Var) -> tuple[Any, Any]:
    """The model's outputs for images (N, 3, H, W), and its neck's maps."""
    maps = model.neck(model.backbone(images))
    return model.detect(maps), maps


def teach(teacher: GoldYolo, images: Var) -> tuple[Any, Any]:
    """As ``run_with_neck``, for a prepared teacher, without gradients."""
    with jt.no_grad():
        return run_with_neck(teacher, images)
