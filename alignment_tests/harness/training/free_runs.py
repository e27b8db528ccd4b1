"""Training of the candidate on its own: nothing may be carried from step to step that its state does not tell.

The steps that are compared begin from a state that is loaded, so what a trainer keeps beside it would not show there.
Here the candidate's float64 side is never loaded again. The reference follows: it is set to the candidate's state,
makes the same step, and must come out where the candidate does, to the bar of a single step. No difference can grow.

How far the runs drift from the reference's own is told too, and judges nothing: rounding grows in any two programs, and
by leaps where a kink or an assignment falls otherwise, so that no multiple of another run's drift bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.compare import compare_arrays
from alignment_tests.harness.judge.nudged_runs import Doubt, is_doubtful, largest_error, nudged, nudges
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.phases import magnitudes
from alignment_tests.harness.training.trainee import Make, Trainee, TrainStep, train_step


class FreeRuns:
    """The candidate on its own, beside the steps that are compared.

    Of the past only the first weights and the last state are kept: memory does not grow with the number of steps.

    Attributes:
        curves: by name, one number per step: "loss, SIDE PRECISION" and "drift, SIDE PRECISION", the distance from the
            float64 reference's own run in units of the way that it has come.
    """

    def __init__(
        self,
        reference: Make,
        candidate: Make,
        precisions: tuple[str, ...],
        start: dict[str, Array],
        budget: Budget,
        taught_updates: bool,
    ) -> None:
        self.start, self.precisions, self.budget = parameters_of(start), precisions, budget
        self.taught_updates = taught_updates  # see ``align_training``; here the follower is taught by the candidate
        self.trainees = {precision: candidate(precision) for precision in precisions}
        for trainee in self.trainees.values():
            trainee.load(start)
        self.follower = reference("float64") if "float64" in precisions else None
        self.last = self.trainees["float64"].state() if "float64" in precisions else {}
        self.steps, self.problem = 0, ""
        self.curves: dict[str, tuple[float, ...]] = {}

    def step(self, batch: Any, references: Mapping[str, Trainee], losses: Mapping[str, float]) -> None:
        """One more step; the references have made theirs, with these losses."""
        for precision, loss in losses.items():
            self._add(f"loss, reference {precision}", loss)
        oracle = parameters_of(references["float64"].state())
        way = distance(oracle, self.start) or 1.0
        self._add("drift, reference float32", distance(parameters_of(references["float32"].state()), oracle) / way)
        for precision, trainee in self.trainees.items():
            taken = train_step(trainee, batch)
            self._add(f"loss, candidate {precision}", taken.loss)
            found = trainee.state()
            if self.follower is not None and precision == "float64" and not self.problem:
                wrong = followed(self.follower, self.last, found, batch, taken, self.budget, self.taught_updates)
                self.problem = f"step {self.steps}: {wrong}" if wrong else ""
                self.last = found
            self._add(f"drift, candidate {precision}", distance(parameters_of(found), oracle) / way)
        self.steps += 1

    def _add(self, name: str, value: float) -> None:
        self.curves[name] = (*self.curves.get(name, ()), value)

    def facts(self) -> dict[str, str]:
        """The verdict, and how far each run has drifted, in words."""
        found = {}
        if self.follower is not None:
            text = f"the reference, set to the candidate's state before each of {self.steps} steps, makes the same step"
            wrong = f"FAIL: the candidate's own step is not the reference's from the same state: {self.problem}"
            found["free-running (float64)"] = wrong if self.problem else text
        for precision in self.precisions:
            drift, own = self.curves[f"drift, candidate {precision}"], self.curves["drift, reference float32"]
            text = f"{drift[-1]:.3g} of the way after {len(drift)} steps; the reference's own in float32 {own[-1]:.3g}"
            found[f"drift of the free run ({precision}; informs only)"] = text
        return found


def followed(
    follower: Trainee,
    before: Mapping[str, Array],
    found: Mapping[str, Array],
    batch: Any,
    taken: TrainStep,
    budget: Budget,
    taught_updates: bool = False,
) -> str:
    """What is wrong with a state after a float64 step, by the follower's step from the same state; empty if nothing.

    The follower learns what was assigned in that step: assignments are a matter of the compared steps.
    """

    def stepped(state: Mapping[str, Array]) -> dict[str, Array]:
        follower.load(state)
        train_step(follower, batch, taken.assignment, taken.gradients if taught_updates else None)
        return follower.state()

    expected = stepped(before)
    doubts = differences(found, expected, budget)
    if any(is_doubtful(doubt.comparison) for doubt in doubts.values()):
        for nudge in nudges(budget):
            moved = stepped(nudged(before, nudge))
            for name, doubt in doubts.items():
                doubt.error = max(doubt.error, largest_error(moved[name], expected[name]))
    for name, doubt in doubts.items():
        settled = doubt.settled(budget) if is_doubtful(doubt.comparison) else doubt.comparison
        if not settled.passed:
            return f"{name}: {settled.reason}"
    return ""


def differences(found: Mapping[str, Array], expected: Mapping[str, Array], budget: Budget) -> dict[str, Doubt]:
    """Every array of a float64 state that is not within the bar, by name; what is zero by structure is judged by its
    neighbours. Names that the candidate lacks are a matter of the compared steps."""
    peaks, beside = magnitudes(expected, budget.structural_zero)
    wrong = {}
    for name, array in expected.items():
        if name not in found:
            continue
        structural = peaks.get(name, 1.0) <= budget.structural_zero * beside.get(name, 0.0)
        scale = beside[name] if structural else None
        comparison = compare_arrays(found[name], array, budget=budget, scale=scale, brief=True)
        if not comparison.passed and array.size:
            wrong[name] = Doubt(comparison)
    return wrong


def parameters_of(state: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in state.items() if name.startswith("parameter/")}


def distance(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Euclidean distance of all parameters together that both have; the compared steps tell what one side lacks."""
    shared = [(actual[name].astype(np.float64), array) for name, array in expected.items() if name in actual]
    squares = (float(np.square(own - array).sum()) for own, array in shared if own.shape == array.shape)
    return math.sqrt(sum(squares))
