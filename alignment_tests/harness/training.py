"""Compare training: forward, assignment, loss, gradients, update, average of the weights, step by step.

Teacher-forced, every step of the candidate starts from the state that the reference had: a difference cannot grow, and
the verdict comes from these steps. Free-running, both train on their own; rounding grows there in any two programs, so
the candidate may drift from the oracle no further than a multiple of what the reference itself drifts: in float32 its
own float32 run, in float64 a run of its own from weights that were moved by a few roundings.

The core knows no trainer. A side is a ``Trainee``: a model with the phases of a step as methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment_tests.harness.adapters import Array, adapter_for
from alignment_tests.harness.backward import leaf_calls, loss_alone, pulled_back, upstream_of
from alignment_tests.harness.blame import first_cause
from alignment_tests.harness.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.experiment import Notify, same_values
from alignment_tests.harness.free_runs import FreeRuns
from alignment_tests.harness.judge import PRECISIONS
from alignment_tests.harness.report import Report
from alignment_tests.harness.scratch import Scratch
from alignment_tests.harness.step_judge import StepJudge
from alignment_tests.harness.step_recording import Recording, gradients_of, perform, record_step
from alignment_tests.harness.trace import Call, Trace
from alignment_tests.harness.trainee import Make, Trainee
from alignment_tests.harness.tree import is_plain


def align_training(
    reference: Make,
    candidate: Make,
    batches: Sequence[Any],
    *,
    precisions: tuple[str, ...] = PRECISIONS,
    deep_steps: tuple[int, ...] = (0,),
    isolated: bool = True,
    free_running: bool = True,
    fused_rounding: bool = False,
    taught_updates: bool = False,
    budget: Budget = DEFAULT_BUDGET,
    excused: Mapping[str, str] | None = None,
    title: str = "training",
    settings: Mapping[str, Any] | None = None,
    notify: Notify = lambda text: None,
) -> Report:
    """Compare as many training steps as there are batches.

    Args:
        reference: makes the reference in a precision ("float32", "float64"), each call a new one in the same state.
        candidate: the same for the candidate.
        batches: one per step, in the form that the trainees take.
        precisions: "float64" (formulas) and "float32" (numerics), or one of them.
        deep_steps: steps in which every activation and its gradient is compared too.
        isolated: in deep steps, also run loss and modules backward alone, on the reference's recorded inputs and
            gradients; that names the module whose gradient is wrong.
        free_running: also train both sides on their own and compare the drift.
        fused_rounding: a framework rounds what it fuses into one kernel once (half precision on Jittor's CPU): hooks,
            which keep operations apart, then change results, and the report only tells by how much.
        taught_updates: the candidate updates with the reference's gradients in float64 too, as it does in float32. For
            optimizers that divide every gradient by its own size (Adam): there, an element that is nearly zero moves as
            far as any other, by whatever its rounding says.
        budget: the limits.
        excused: pattern on names -> reason.
        title: heading of the report.
        settings: anything to show with it.
        notify: called with a line of text at each step.

    Raises:
        ValueError: there is no batch, or a precision is unknown.
    """
    if not batches:
        raise ValueError("`batches` must hold at least one. Received: none")
    if not precisions or set(precisions) - set(PRECISIONS):
        raise ValueError(f"`precisions` must be one or both of {PRECISIONS}. Received: {precisions}")
    run = Experiment(
        reference, candidate, precisions, StepJudge(budget, excused), isolated, fused_rounding, taught_updates
    )
    free = None
    if free_running:
        free = FreeRuns(reference, candidate, precisions, run.references["float64"].state())
    for step, batch in enumerate(batches):
        notify(f"step {step + 1} of {len(batches)}")
        losses = run.teacher_forced(step, batch, deep=step in deep_steps)
        if free is not None:
            free.step(batch, run.references, losses)
    judge = run.judge
    rows, coverage = judge.rows(), judge.coverage(precisions)
    return Report(
        title=title,
        rows=rows,
        coverage=coverage,
        first_divergence=first_cause(rows, judge.calls, coverage.missing),
        budget=budget,
        settings={"steps": len(batches), "deep steps": len(deep_steps), **(settings or {})},
        environment=run.environment(),
        checks={**run.checks, **(free.facts() if free else {}), **judge.facts()},
        curves=free.curves if free else {},
    )


class Experiment:
    """The trainees of a comparison and what was found so far."""

    def __init__(
        self,
        reference: Make,
        candidate: Make,
        precisions: tuple[str, ...],
        judge: StepJudge,
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
        self.checks: dict[str, str] = {}

    def environment(self) -> dict[str, dict[str, Any]]:
        sides = {"reference": self.references["float64"], "candidate": next(iter(self.candidates.values()))}
        return {name: adapter_for(side.model).describe() for name, side in sides.items()}

    def teacher_forced(self, step: int, batch: Any, *, deep: bool) -> dict[str, float]:
        """One step of every side from the reference's state; the references move on. Their losses by precision."""
        losses = {}
        with Scratch("steps") as place:
            for precision in PRECISIONS:
                before = self.references[precision].state()
                if deep and precision in self.precisions:
                    self.check_hooks("reference", self.references[precision], before, batch, precision)
                recording = record_step(self.references[precision], batch, place / precision, deep=deep)
                losses[precision] = float(recording.trace["loss/total"].reshape(-1)[0])
                if precision not in self.precisions:
                    continue
                exact, noise, margins = recording, 0.0, {}
                if precision == "float32":
                    assert self.oracle is not None
                    self.oracle.load(before)
                    exact = record_step(self.oracle, batch, place / "oracle", deep=deep, taught=recording)
                    margins = self.oracle.margins(exact.outputs, batch)
                    noise = decision_noise(self.references[precision], self.oracle, recording, exact, batch)
                self.judge.begin(step, precision, recording.trace, exact.trace)
                candidate = self.candidates[precision]
                candidate.load(before)
                sink = (
                    DecisionSink(self.judge, margins, noise, recording.trace, exact.trace)
                    if precision == "float32"
                    else self.judge
                )
                single = precision == "float32"
                perform(
                    candidate,
                    batch,
                    sink,
                    deep=deep,
                    assignment=recording.assignment if single else None,
                    gradients=recording.gradients if single or self.taught_updates else None,
                )
                self.judge.end()
                if deep:
                    self.check_hooks("candidate", candidate, before, batch, precision)
                if deep and self.isolated:
                    self.judge_backward(precision, before, batch, recording)
        return losses

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
        else:
            worst = max(float(np.abs(plain[k] - hooked[k]).max()) for k in wrong)
            told = f"hooks change {len(wrong)} of {len(plain)} arrays, first {wrong[0]}, by up to {worst:.3g}"
            self.checks[key] = (
                f"{told}, as fused operations are rounded once" if self.fused_rounding else f"FAIL: {told}"
            )

    def judge_backward(self, precision: str, before: Mapping[str, Array], batch: Any, recording: Recording) -> None:
        """The loss and each module backward alone, on what the reference recorded."""
        single = precision == "float32"
        sides = {"candidate": self.candidates[precision], "reference": self.references[precision]}
        if single:
            assert self.oracle is not None
            sides["oracle"] = self.oracle
        after = self.references[precision].state()
        for side in sides.values():
            side.load(before)
        trace = recording.trace
        self.judge_loss(sides, batch, recording)
        modules = {name: dict(adapter_for(side.model).modules(side.model)) for name, side in sides.items()}
        leaves = leaf_calls(trace.calls)
        for call in trace.calls:
            # A container's own code has kinks that its recorded inputs do not settle, so float32 looks at leaves only.
            if not call.module or not is_plain(call.arguments) or (single and call.name not in leaves):
                continue
            upstream = upstream_of(trace, call)
            if upstream and call.module in modules["candidate"]:
                self.judge_call(call, sides, modules, trace, upstream)
        self.references[precision].load(after)

    def judge_call(
        self,
        call: Call,
        sides: Mapping[str, Trainee],
        modules: Mapping[str, Mapping[str, Any]],
        trace: Trace,
        upstream: Mapping[str, Array],
    ) -> None:
        """Gradients by the inputs and the parameters of one call."""
        found: dict[str, dict[str, Array]] = {}
        for name, side in sides.items():
            module, kind = modules[name][call.module], "float64" if name == "oracle" else None
            try:
                found[name] = pulled_back(adapter_for(side.model), module, trace, call, upstream, kind, side.scope)
            except Exception as error:  # of the user's module: a finding of the report, not of the harness
                if name != "candidate":
                    raise
                reason = f"the candidate's module raises {type(error).__name__}: {error}"[:500]
                self.judge.fail_isolated(f"grad_activation/{call.name}/{next(iter(upstream))}", reason)
                return
        exact = found.get("oracle", found["reference"])
        for key, expected in found["reference"].items():
            if key not in found["candidate"]:
                self.judge.fail_isolated(key, "the candidate's module has no such gradient")
                continue
            self.judge.put_isolated(key, found["candidate"][key], expected, exact[key])

    def judge_loss(self, sides: Mapping[str, Trainee], batch: Any, recording: Recording) -> None:
        """The loss alone on the recorded outputs and assignment: its terms, and its gradients by the outputs."""
        found: dict[str, dict[str, Array]] = {}
        for name, side in sides.items():
            kind = "float64" if name == "oracle" else None
            found[name] = loss_alone(side, batch, recording, kind, taught="oracle" in sides)
        exact = found.get("oracle", found["reference"])
        for key, expected in found["reference"].items():
            self.judge.put_isolated(key, found["candidate"][key], expected, exact[key])


class DecisionSink:
    """Sends decisions to the judge with their margins, everything else as it is.

    One decision that fell otherwise moves the target boxes and scores of its whole image, so the values that hang on
    decisions are compared in the images where all sides decided alike: the candidate, the reference, and the oracle,
    from which the reference's own rounding keeps it in many an image of a large batch. Decisions come first.
    """

    def __init__(
        self, judge: StepJudge, margins: Mapping[str, Array], noise: float, reference: Trace, oracle: Trace
    ) -> None:
        self.judge, self.margins, self.noise, self.reference, self.oracle = judge, margins, noise, reference, oracle
        self._alike: Array | None = None  # (images,) bool

    def put(self, name: str, array: Array) -> None:
        decided = self.margins.get(name.removeprefix("assignment/")) if name.startswith("assignment/") else None
        if decided is None:
            self.judge.put(name, array)
        elif array.dtype.kind in "biu":
            self.judge.put_decisions(name, array, decided, self.noise)
            for other in (self.reference[name], self.oracle[name]):
                if other.shape == array.shape:
                    same = (array == other).reshape(len(array), -1).all(axis=1)
                    self._alike = same if self._alike is None else self._alike & same
        elif self._alike is None:
            self.judge.put(name, array)
        else:
            self.judge.put_alike(name, array, self._alike)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        self.judge.alias(name, existing, values)


def decision_noise(single: Trainee, oracle: Trainee, recording: Recording, exact: Recording, batch: Any) -> float:
    """Largest relative error, in float32, of the numbers that are decided on; vanishing ones decide nothing."""
    values, true = single.decision_values(recording.outputs, batch), oracle.decision_values(exact.outputs, batch)
    relevant = true > 1e-6 * true.max(initial=0.0)
    if not relevant.any():
        return 0.0
    return float((np.abs(values - true)[relevant] / true[relevant]).max())
