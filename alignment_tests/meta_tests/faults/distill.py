"""Faults of a training step with a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignment_tests.meta_tests.experiments.training import BATCH, TrainingSubject
from alignment_tests.meta_tests.faults.fault import Patch, fault
from alignment_tests.meta_tests.faults.helpers import norms
from jt_impl import distill
from jt_impl.attention import DropPath
from jt_impl.kernels import exponential
from jt_impl.kernels.functional import log_softmax
from jt_impl.runtime import jittor as jt

Subject = TrainingSubject
STEP, DISTILLATION = "training step with a teacher", "self-distillation"


@fault(STEP, "assignment/teacher.*", DISTILLATION)
def norms_of_the_teacher_in_evaluation_mode(patch: Patch, subject: Subject) -> None:
    """The frozen teacher's norms use their running statistics; the recipe leaves them those of the batch."""
    for one in subject.trainers:
        for norm in norms(one.teacher):
            patch.set(norm, "is_train", False)


@fault(STEP, "assignment/teacher.*", DISTILLATION)
def teacher_drops_by_the_draws_of_the_student(patch: Patch, subject: Subject) -> None:
    """Teacher and student take their DropPath numbers from one stream."""
    for one in subject.trainers:
        for module in one.teacher.modules():
            if isinstance(module, DropPath):
                patch.set(module, "draw", one.draw)


@fault(STEP, "loss/dfl", DISTILLATION)
def temperature_not_squared(patch: Patch, subject: Subject) -> None:
    """The divergence at a temperature T is not multiplied by T squared, so its gradients nearly vanish."""

    def softened(student: Any, teacher: Any) -> Any:
        return distill.divergence(student / distill.TEMPERATURE, teacher / distill.TEMPERATURE)

    patch.set(distill, "softened", softened)


@fault(STEP, "loss/dfl", DISTILLATION)
def divergence_the_other_way_round(patch: Patch, subject: Subject) -> None:
    """The divergence of the teacher from the student, in place of that of the student from the teacher."""

    def divergence(student: Any, teacher: Any) -> Any:
        target, predicted = log_softmax(teacher.detach(), dim=-1), log_softmax(student, dim=-1)
        return exponential.exp(predicted) * (predicted - target)

    patch.set(distill, "divergence", divergence)


@fault(STEP, "loss/dfl", DISTILLATION)
def softmax_beside_the_distributions(patch: Patch, subject: Subject) -> None:
    """The softmax of the divergence goes over the dimension before the last."""

    def make(right: Any) -> Any:
        def divergence(student: Any, teacher: Any) -> Any:
            return right(student.transpose(-1, -2), teacher.transpose(-1, -2)).transpose(-1, -2)

        return divergence

    patch.wrap(distill, "divergence", make)


@fault(STEP, "loss/dfl", DISTILLATION)
def distributions_of_all_anchors(patch: Patch, subject: Subject) -> None:
    """Box distributions are distilled at all anchors, not at those only that learn a box."""

    def make(right: Any) -> Any:
        def term(student: Any, teacher: Any, assignment: Any) -> Any:
            everywhere = jt.ones_like(assignment.foreground)
            return right(student, teacher, replace(assignment, foreground=everywhere))

        return term

    patch.wrap(distill, "distribution_term", make)


@fault(STEP, "loss/dfl", DISTILLATION)
def share_of_the_teacher_does_not_fall(patch: Patch, subject: Subject) -> None:
    """The teacher's terms keep their first weight in all epochs; planted in the fourth of 300."""
    patch.set(distill, "distillation_decay", lambda epoch, epochs: 1.0)


@fault(STEP, "loss/cls", DISTILLATION)
def classes_averaged_over_images(patch: Patch, subject: Subject) -> None:
    """The divergence of the class scores is a mean over the images of the batch; the recipe takes the sum."""
    for one in subject.trainers:
        patch.set(one.loss, "class_weight", one.loss.class_weight / BATCH)


@fault(STEP, "loss/iou", DISTILLATION)
def plain_distances_not_learned(patch: Patch, subject: Subject) -> None:
    """The student's second branch, whose plain distances are what it predicts with, learns no boxes."""
    terms = distill.DistillationLoss.student_terms
    patch.set(distill.TwoBranchDistillationLoss, "student_terms", terms)
