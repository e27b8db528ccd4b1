"""Compare training: forward, assignment, loss, gradients, update, average of the weights, step by step.

Teacher-forced, every step of the candidate starts from the state that the reference had: a difference cannot grow, and
the verdict comes from these steps. Free-running, the candidate trains on its own, and the reference must make each of
its steps from its state: what is carried beside the state shows there.

The core knows no trainer. A side is a ``Trainee``: a model with the phases of a step as methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import numpy as np

from alignment_tests.harness.adapters import Array, adapter_for
from alignment_tests.harness.backward import leaf_calls, loss_alone, pulled_back, upstream_of
from alignment_tests.harness.blame import first_cause
from alignment_tests.harness.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.experiment import Notify, same_values
from alignment_tests.harness.free_runs import FreeRuns
from alignment_tests.harness.isolated import output_names, run_alone
from alignment_tests.harness.judge import PRECISIONS
from alignment_tests.harness.nudged_runs import RUNS, Nudge, largest_error, nudged, nudges, unmoved
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
        free_running: also let the candidate train on its own, and the reference make its steps; tell the drift.
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
        start = run.references["float64"].state()
        free = FreeRuns(reference, candidate, precisions, start, budget, taught_updates)
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


@dataclass(frozen=True)
class TakenStep:
    """A step that the reference has made, and the oracle from the same state; ``before`` is that state."""

    step: int
    precision: str
    batch: Any
    before: Mapping[str, Array]
    recording: Recording
    exact: Recording
    deep: bool


class Alone(Protocol):
    """Runs a part of one side ("reference", "oracle") alone, on its recorded numbers, or on these moved."""

    def __call__(self, name: str, nudge: Nudge = ...) -> dict[str, Array]: ...


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
                reference = self.references[precision]
                before = reference.state()
                if deep and precision in self.precisions:
                    self.check_hooks("reference", reference, before, batch, precision)
                recording = record_step(reference, batch, place / precision, deep=deep)
                losses[precision] = float(recording.trace["loss/total"].reshape(-1)[0])
                if precision not in self.precisions:
                    continue
                exact = recording
                if precision == "float32":
                    assert self.oracle is not None
                    self.oracle.load(before)
                    exact = record_step(self.oracle, batch, place / "oracle", deep=deep, taught=recording)
                taken = TakenStep(step, precision, batch, before, recording, exact, deep)
                self.judge_step(taken)
                if deep:
                    self.check_hooks("candidate", self.candidates[precision], before, batch, precision)
                if deep and self.isolated:
                    self.judge_backward(taken)
        return losses

    def judge_step(self, taken: TakenStep) -> None:
        """The candidate's step against the recorded one, with further runs of the reference where they are needed."""
        candidate, reference = self.candidates[taken.precision], self.references[taken.precision]
        oracle = reference if self.oracle is None or taken.precision == "float64" else self.oracle
        single = taken.precision == "float32"
        learned = taken.recording.assignment

        def step(side: Trainee, sink: DecisionSink) -> None:
            """In float64 each side learns what it assigned itself, unless rounding decided otherwise."""
            perform(
                side,
                taken.batch,
                sink,
                deep=taken.deep,
                assignment=lambda: learned if single or sink.otherwise else None,
                gradients=taken.recording.gradients if single or self.taught_updates else None,
            )

        share = partial(self.judge.budget.share, taken.precision)
        margins = partial(oracle.margins, taken.exact.outputs, taken.recording.outputs, taken.batch, share)
        traces = (taken.recording.trace, taken.exact.trace)
        self.judge.begin(taken.step, taken.precision, *traces)
        candidate.load(taken.before)
        step(candidate, DecisionSink(self.judge, candidate, margins, traces))
        if self.judge.end():
            after = reference.state()
            for nudge in nudges(self.judge.budget):
                witness = self.judge.witness()
                reference.load(nudged(taken.before, nudge))
                step(reference, DecisionSink(witness, reference, margins, traces))
                self.judge.testify(witness)
            reference.load(after)
        self.judge.settle()

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

    def judge_backward(self, taken: TakenStep) -> None:
        """The loss and each module backward alone, on what the reference recorded."""
        single, trace = taken.precision == "float32", taken.recording.trace
        sides = {"candidate": self.candidates[taken.precision], "reference": self.references[taken.precision]}
        if single:
            assert self.oracle is not None
            sides["oracle"] = self.oracle
        after = self.references[taken.precision].state()
        for side in sides.values():
            side.load(taken.before)
        self.judge_loss(sides, taken)
        modules = {name: dict(adapter_for(side.model).modules(side.model)) for name, side in sides.items()}
        leaves = leaf_calls(trace.calls)
        if self.judge.is_blind:  # where the whole pass proves nothing, its parts may
            candidate = sides["candidate"].model
            with adapter_for(candidate).settled(candidate):
                for call in trace.calls:
                    if call.module in modules["candidate"] and call.module and is_plain(call.arguments):
                        self.judge_forward(call, sides, modules, trace)
        for call in trace.calls:
            # A container's own code has kinks that its recorded inputs do not settle, so float32 looks at leaves only.
            if not call.module or not is_plain(call.arguments) or (single and call.name not in leaves):
                continue
            upstream = upstream_of(trace, call)
            if upstream and call.module in modules["candidate"]:
                self.judge_call(call, sides, modules, trace, upstream)
        self.references[taken.precision].load(after)

    def judge_call(
        self,
        call: Call,
        sides: Mapping[str, Trainee],
        modules: Mapping[str, Mapping[str, Any]],
        trace: Trace,
        upstream: Mapping[str, Array],
    ) -> None:
        """Gradients by the inputs and the parameters of one call."""

        def alone(name: str, nudge: Nudge = unmoved) -> dict[str, Array]:
            side, kind = sides[name], "float64" if name == "oracle" else None
            return pulled_back(side, modules[name][call.module], trace, call, upstream, kind, nudge)

        try:
            found = alone("candidate")
        except Exception as error:  # of the user's module: a finding of the report, not of the harness
            reason = f"the candidate's module raises {type(error).__name__}: {error}"[:500]
            self.judge.fail_isolated(f"grad_activation/{call.name}/{next(iter(upstream))}", reason)
            return
        self.judge_alone(found, alone, "oracle" in sides)

    def judge_forward(
        self, call: Call, sides: Mapping[str, Trainee], modules: Mapping[str, Mapping[str, Any]], trace: Trace
    ) -> None:
        """Outputs of one call alone."""
        names = output_names(trace, call)

        def alone(name: str, nudge: Nudge = unmoved) -> dict[str, Array]:
            side, kind = sides[name], "float64" if name == "oracle" else "float32"
            with side.scope():
                module = modules[name][call.module]
                found = run_alone(adapter_for(side.model), module, trace, call, kind, nudge=nudge)
            return {name: found[name.rsplit("/", 1)[1]] for name in names if name.rsplit("/", 1)[1] in found}

        self.judge_alone(alone("candidate"), alone, "oracle" in sides)

    def judge_loss(self, sides: Mapping[str, Trainee], taken: TakenStep) -> None:
        """The loss alone on the recorded outputs and assignment: its terms, and its gradients by the outputs."""

        def alone(name: str, nudge: Nudge = unmoved) -> dict[str, Array]:
            kind = "float64" if name == "oracle" else None
            return loss_alone(sides[name], taken.batch, taken.recording, kind, taught="oracle" in sides, nudge=nudge)

        self.judge_alone(alone("candidate"), alone, "oracle" in sides)

    def judge_alone(self, found: Mapping[str, Array], alone: Alone, oracle: bool) -> None:
        """What the candidate gave alone; ``alone`` runs the other sides."""
        expected = alone("reference")
        exact = alone("oracle") if oracle else expected

        @cache
        def further() -> dict[str, float]:
            """In float32 the oracle has the same numbers, moved alike; in float64 moving them is what is measured."""
            errors = dict.fromkeys(expected, 0.0)
            for number in range(RUNS):
                # Two of a kind, since a nudge draws anew each time.
                pair = [nudges(self.judge.budget)[number] for _ in range(2)]
                theirs, true = alone("reference", pair[0]), alone("oracle", pair[1]) if oracle else expected
                for key, array in theirs.items():
                    errors[key] = max(errors[key], largest_error(array, true[key]))
            return errors

        for key, array in expected.items():
            if key in found:
                self.judge.put_isolated(key, found[key], array, exact[key], further)
            else:
                self.judge.fail_isolated(key, "the candidate's module has no such gradient")


class Target(Protocol):
    """Where a ``DecisionSink`` sends what it gets: the judge, or a witness."""

    def put(self, name: str, array: Array) -> None: ...

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None: ...

    def put_decisions(self, name: str, array: Array, margins: Callable[[], Array | None]) -> None: ...

    def put_alike(self, name: str, array: Array, alike: Array) -> None: ...


class DecisionSink:
    """Sends decisions on with their margins, values that hang on them with where they count, all else as it is.

    One decision that fell otherwise moves what is to be learned there, so these values are compared where all sides
    decided alike: the candidate, the reference, and the oracle, from which the reference's own rounding keeps it
    somewhere in many a batch. Decisions come first.

    Args:
        target: gets everything.
        trainee: knows what hangs on what.
        margins: gives those of all decisions by name; called once, where one differs.
        others: traces of the reference and of the oracle.
    """

    def __init__(
        self, target: Target, trainee: Trainee, margins: Callable[[], Mapping[str, Array]], others: Sequence[Trace]
    ) -> None:
        self.target, self.trainee, self.margins, self.others = target, trainee, cache(margins), others
        self.decided: dict[str, Array] = {}
        self.comparable = True  # until a decision is lacking or has another shape, which fails by itself
        self.otherwise = False  # whether a decision is not the reference's

    def put(self, name: str, array: Array) -> None:
        phase, _, key = name.partition("/")
        known = all(name in trace and trace[name].shape == array.shape for trace in self.others)
        decision = phase == "assignment" and array.dtype.kind in "biu"
        if decision and known:
            self.decided[key] = array
            self.otherwise = self.otherwise or not np.array_equal(array, self.others[0][name])
            self.target.put_decisions(name, array, lambda: self.margins().get(key))
            return
        self.comparable = self.comparable and not decision
        if phase != "assignment" or not (known and self.comparable and self.decided):
            self.target.put(name, array)
            return
        theirs = [{key: trace[f"assignment/{key}"] for key in self.decided} for trace in self.others]
        alike = self.trainee.alike(key, [self.decided, *theirs])
        if alike.shape == array.shape[: alike.ndim]:
            self.target.put_alike(name, array, alike)
        else:
            self.target.put(name, array)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        self.target.alias(name, existing, values)
