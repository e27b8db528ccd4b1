"""Steps that every side makes from the state that the reference had: differences cannot grow, and these are judged."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.harness.judge.checks import trained_fact
from alignment_tests.harness.judge.compare import same_values
from alignment_tests.harness.judge.nudged_runs import nudged, nudges
from alignment_tests.harness.judge.rows import PRECISIONS
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import Told, ignored
from alignment_tests.harness.record.naming import first_names
from alignment_tests.harness.record.temporary import Scratch
from alignment_tests.harness.training.decisions import DecisionSink
from alignment_tests.harness.training.parts import PartsAlone, TakenStep
from alignment_tests.harness.training.recording import Recording, gradients_of, perform, record_step
from alignment_tests.harness.training.steps import StepJudge
from alignment_tests.harness.training.trainee import Make, Trainee, layout_of, trained_of, variables_of


class ForcedSteps:
    """The trainees of a comparison, and what their steps from equal states showed so far.

    Args:
        reference: makes the reference in a precision, as ``align_training`` takes it.
        candidate: the same for the candidate.
        precisions: those that are judged.
        judge: gets every array.
        isolated: in deep steps, also judge loss and modules alone.
        fused_rounding: hooks may change results by the rounding of fused operations.
        taught_updates: the candidate updates with the reference's gradients in float64 too.
    """

    def __init__(
        self,
        reference: Make,
        candidate: Make,
        precisions: tuple[str, ...],
        judge: StepJudge,
        *,
        isolated: bool,
        fused_rounding: bool,
        taught_updates: bool,
    ) -> None:
        self.precisions, self.judge = precisions, judge
        self.isolated, self.fused_rounding, self.taught_updates = isolated, fused_rounding, taught_updates
        self.references = {precision: reference(precision) for precision in PRECISIONS}
        self.candidates = {precision: candidate(precision) for precision in precisions}
        # Follows the float32 reference: one float64 step from each of its states.
        self.oracle = reference("float64") if "float32" in precisions else None
        sides = (self.references["float64"], next(iter(self.candidates.values())))
        theirs, ours = (first_names(variables_of(side)) for side in sides)
        judge.ties = (theirs, ours)
        self.checks: dict[str, str] = {}

    def environment(self) -> dict[str, dict[str, Any]]:
        sides = {"reference": self.references["float64"], "candidate": next(iter(self.candidates.values()))}
        return {name: adapter_for(side.model).describe() for name, side in sides.items()}

    def trained(self) -> dict[str, str]:
        """Whether both sides train the same weights, where they can tell."""
        sides = (self.references["float64"], next(iter(self.candidates.values())))
        theirs, ours = (trained_of(side) for side in sides)
        if theirs is None or ours is None:
            return {}
        return {"trained parameters": trained_fact(theirs, ours, layout_of(sides[1]))}

    def take(self, number: int, batch: Any, *, deep: bool) -> dict[str, float]:
        """One step of every side from the reference's state; the references move on. Their losses by precision."""
        losses = {}
        with Scratch("steps") as place:
            for precision in PRECISIONS:
                losses[precision] = self._take(number, precision, batch, place, deep=deep)
        return losses

    def _take(self, number: int, precision: str, batch: Any, place: Path, *, deep: bool) -> float:
        reference, judged = self.references[precision], precision in self.precisions
        before = reference.state()
        if deep and judged:
            self.check_hooks("reference", reference, before, batch, precision)
        recording = record_step(reference, batch, place / precision, deep=deep)
        if judged:
            exact = self.exact(precision, before, batch, place, recording, deep=deep)
            taken = TakenStep(number, precision, batch, before, recording, exact, deep)
            self.judge_step(taken)
            if deep:
                self.check_hooks("candidate", self.candidates[precision], before, batch, precision)
            if deep and self.isolated:
                self.judge_parts(taken)
        return float(recording.trace["loss/total"].reshape(-1)[0])

    def exact(
        self,
        precision: str,
        before: Mapping[str, Array],
        batch: Any,
        place: Path,
        recording: Recording,
        *,
        deep: bool,
    ) -> Recording:
        """What the step is judged by: the oracle's from the same state, or in float64 the reference's itself."""
        if precision == "float64":
            return recording
        assert self.oracle is not None
        self.oracle.load(before)
        return record_step(self.oracle, batch, place / "oracle", deep=deep, taught=recording)

    def judge_step(self, taken: TakenStep) -> None:
        """The candidate's step against the recorded one, with further runs of the reference where they are needed."""
        candidate, reference = self.candidates[taken.precision], self.references[taken.precision]
        oracle = reference if self.oracle is None or taken.precision == "float64" else self.oracle
        single = taken.precision == "float32"
        learned = taken.recording.assignment

        def step(side: Trainee, sink: DecisionSink, told: Told = ignored) -> None:
            """In float64 each side learns what it assigned itself, unless rounding decided otherwise."""
            perform(
                side,
                taken.batch,
                sink,
                deep=taken.deep,
                assignment=lambda: learned if single or sink.otherwise else None,
                gradients=taken.recording.gradients if single or self.taught_updates else None,
                told=told,
            )

        share = partial(self.judge.budget.share, taken.precision)
        margins = partial(oracle.margins, taken.exact.outputs, taken.recording.outputs, taken.batch, share)
        traces = (taken.recording.trace, taken.exact.trace)
        self.judge.begin(taken.number, taken.precision, *traces)
        candidate.load(taken.before)
        step(candidate, DecisionSink(self.judge, candidate, margins, traces), self.judge.take_call)
        if self.judge.end():
            after = reference.state()
            for nudge in nudges(self.judge.budget):
                witness = self.judge.witness()
                reference.load(nudged(taken.before, nudge))
                step(reference, DecisionSink(witness, reference, margins, traces))
                self.judge.testify(witness)
            reference.load(after)
        self.judge.settle()

    def judge_parts(self, taken: TakenStep) -> None:
        """The loss and each module alone. The reference's state is put back."""
        reference = self.references[taken.precision]
        sides = {"candidate": self.candidates[taken.precision], "reference": reference}
        if taken.precision == "float32":
            assert self.oracle is not None
            sides["oracle"] = self.oracle
        after = reference.state()
        PartsAlone(self.judge, taken, sides).run()
        reference.load(after)

    def check_hooks(self, name: str, trainee: Trainee, before: Mapping[str, Array], batch: Any, precision: str) -> None:
        """The step with and without hooks gives the same gradients, bit for bit. The state is put back."""
        found = []
        for observed in (False, True):
            trainee.load(before)
            found.append(gradients_of(trainee, batch, observed=observed))
        trainee.load(before)
        plain, hooked = found
        wrong = [key for key in plain if not same_values(plain[key], hooked[key])]
        key = f"hooks ({name}, {precision})"
        if not wrong:
            self.checks[key] = f"loss and {len(plain) - 1} gradients with and without hooks are bitwise equal"
            return
        worst = max(float(np.abs(plain[k] - hooked[k]).max()) for k in wrong)
        text = f"hooks change {len(wrong)} of {len(plain)} arrays, first {wrong[0]}, by up to {worst:.3g}"
        self.checks[key] = f"{text}, as fused operations are rounded once" if self.fused_rounding else f"FAIL: {text}"
