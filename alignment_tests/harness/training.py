"""Compare training: forward, assignment, loss, gradients, update, average of the weights, step by step.

Teacher-forced, every step of the candidate starts from the state that the reference had: a difference cannot grow, and
the verdict comes from these steps. Free-running, both train on their own; rounding grows there in any two programs, so
the candidate may drift from the oracle no further than a multiple of what the reference itself drifts: in float32 its
own float32 run, in float64 a run of its own from weights that were moved by a few roundings.

The core knows no trainer. A side is a ``Trainee``: a model with the phases of a step as methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.harness.adapters import Adapter, Array, Scope, adapter_for
from alignment_tests.harness.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.capture import Recorder, Sink
from alignment_tests.harness.experiment import Notify, same_values
from alignment_tests.harness.free_runs import FreeRuns
from alignment_tests.harness.judge import PRECISIONS
from alignment_tests.harness.report import Report
from alignment_tests.harness.scratch import Scratch
from alignment_tests.harness.step_judge import LOSS, StepJudge, first_cause
from alignment_tests.harness.trace import Call, Trace, TraceWriter
from alignment_tests.harness.trainee import Make, Trainee
from alignment_tests.harness.tree import is_plain, unflatten

STATE_PHASES = ("momentum", "parameter", "buffer", "ema")


@dataclass
class Recording:
    """What later parts of the comparison need of a recorded step."""

    trace: Trace
    outputs: Any
    assignment: dict[str, Array] = field(default_factory=dict)
    gradients: dict[str, Array] = field(default_factory=dict)


class GradientRecorder(Recorder):
    """Also keeps the activations that have gradients, each tensor once, and the names that stand for it."""

    def __init__(self, adapter: Adapter, sink: Sink, *, with_inputs: bool) -> None:
        super().__init__(adapter, sink, with_inputs=with_inputs)
        self.tensors: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}  # name -> name under which the same tensor is kept
        self._kept: dict[tuple[Any, ...], str] = {}

    def _record(self, name: str, tensor: Any) -> None:
        super()._record(name, tensor)
        if not name.startswith("activation/") or not self.adapter.trainable(tensor):
            return
        first = self._kept.setdefault(self.adapter.key(tensor), name)
        if first == name:
            self.tensors[name] = tensor
        else:
            self.aliases[name] = first


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
    run = Experiment(reference, candidate, precisions, StepJudge(budget, excused), isolated, fused_rounding)
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
    ) -> None:
        self.precisions, self.judge = precisions, judge
        self.isolated, self.fused_rounding = isolated, fused_rounding
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
                perform(candidate, batch, sink, deep=deep, taught=recording if precision == "float32" else None)
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


def perform(
    trainee: Trainee, batch: Any, sink: Sink, *, deep: bool, taught: Recording | None = None, with_inputs: bool = False
) -> tuple[list[Call], Recording]:
    """One step, phase by phase, every array to the sink. ``taught`` gives assignment and gradients of the reference."""
    adapter = adapter_for(trainee.model)
    recorder = GradientRecorder(adapter, sink, with_inputs=with_inputs)
    with watching(adapter, trainee.model, recorder if deep else None):
        outputs = trainee.forward(batch)
    own = trainee.assign(outputs, batch)
    kept = Recording(Trace(Path()), outputs)
    for name, tensor in own.items():
        kept.assignment[name] = np.array(adapter.to_numpy(tensor))
        sink.put(f"assignment/{name}", kept.assignment[name])
    terms = trainee.losses(outputs, batch, own if taught is None else taught.assignment)
    for name, tensor in total_last(terms).items():
        sink.put(f"loss/{name}", np.array(adapter.to_numpy(tensor)).reshape(1))
    gradients, extra = trainee.backward(terms["total"], list(recorder.tensors.values()))
    by_name = dict(zip(recorder.tensors, extra, strict=True))
    for name, tensor in by_name.items():
        sink.put(as_gradient(name), adapter.to_numpy(tensor))
    for name, first in recorder.aliases.items():
        sink.alias(as_gradient(name), as_gradient(first), partial(adapter.to_numpy, by_name[first]))
    for name, tensor in gradients.items():
        kept.gradients[name] = np.array(adapter.to_numpy(tensor))
        sink.put(f"grad_parameter/{name}", kept.gradients[name])
    trainee.update(None if taught is None else taught.gradients)
    for name, array in trainee.state().items():
        if name.split("/", 1)[0] in STATE_PHASES:
            sink.put(name, array)
    return recorder.calls, kept


def total_last(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Loss terms before their total: a wrong term is the cause, a wrong total its effect."""
    return {name: terms[name] for name in sorted(terms, key=lambda name: name == "total")}


def record_step(
    trainee: Trainee, batch: Any, folder: Path, *, deep: bool, taught: Recording | None = None
) -> Recording:
    """One step of the reference (or the oracle), on disk."""
    with TraceWriter(folder) as writer:
        calls, kept = perform(trainee, batch, writer, deep=deep, taught=taught, with_inputs=deep)
        writer.trace.calls.extend(calls)
    kept.trace = writer.trace
    return kept


@contextmanager
def watching(adapter: Adapter, model: Any, recorder: Recorder | None) -> Iterator[None]:
    if recorder is None:
        yield
        return
    with adapter.hooks(adapter.modules(model), recorder.before, recorder.after):
        yield


class Nowhere:
    """A sink that drops everything."""

    def put(self, name: str, array: Array) -> None: ...

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None: ...


def gradients_of(trainee: Trainee, batch: Any, *, observed: bool) -> dict[str, Array]:
    """Total loss and gradients of one step that is not finished, with every module watched or none."""
    adapter = adapter_for(trainee.model)
    recorder = GradientRecorder(adapter, Nowhere(), with_inputs=False)
    with watching(adapter, trainee.model, recorder if observed else None):
        outputs = trainee.forward(batch)
    terms = trainee.losses(outputs, batch, trainee.assign(outputs, batch))
    gradients, _ = trainee.backward(terms["total"], list(recorder.tensors.values()))
    arrays = {name: np.array(adapter.to_numpy(tensor)) for name, tensor in gradients.items()}
    return {"loss": np.array(adapter.to_numpy(terms["total"])), **arrays}


def as_gradient(name: str) -> str:
    return f"grad_{name}"


def upstream_of(trace: Trace, call: Call) -> dict[str, Array]:
    """Recorded gradients by the outputs of a call, by slot; empty where none came."""
    prefix = f"grad_activation/{call.name}/"
    return {name.removeprefix(prefix): trace[name] for name in trace if name.startswith(prefix)}


def pulled_back(
    adapter: Adapter,
    module: Any,
    trace: Trace,
    call: Call,
    upstream: Mapping[str, Array],
    precision: str | None,
    scope: Scope,
) -> dict[str, Array]:
    """Gradients of one call alone, under the names of their rows; None leaves the recorded arrays in their precision.

    Gradients by half-precision arrays are scaled by a power of two on their way, as the scaled loss does for a step.
    """
    prefix = f"input/{call.name}/"
    inputs = {name.removeprefix(prefix): trace[name] for name in trace if name.startswith(prefix)}
    half = any(array.dtype == np.float16 for array in inputs.values())
    factor = power_of_two_below(max(float(np.abs(a).max()) for a in upstream.values())) if half else 1.0

    def leaf(slot: str) -> Any:
        array = inputs[slot]
        return adapter.from_numpy(array.astype(precision) if precision and array.dtype.kind == "f" else array)

    def unscaled(array: Array) -> Array:
        return array.astype(np.float32) * np.float32(factor) if array.dtype == np.float16 else array * factor

    arguments = unflatten(call.arguments, leaf)
    given = {slot: (array / factor).astype(precision or array.dtype) for slot, array in upstream.items()}
    by_input, by_parameter = adapter.vjp(module, arguments, given, scope)
    rows = {f"grad_activation/{call.name}/{slot}": array for slot, array in by_input.items()}
    # Parameters of modules inside are judged where those modules run alone.
    own = {name: array for name, array in by_parameter.items() if "." not in name}
    rows |= {f"grad_parameter/{call.module}.{name}": array for name, array in own.items()}
    return {name: unscaled(array) for name, array in rows.items()} if half else rows


def power_of_two_below(value: float) -> float:
    """The largest power of two that is not above; 1 for what has none."""
    return 2.0 ** math.floor(math.log2(value)) if 0.0 < value < math.inf else 1.0


def loss_alone(
    trainee: Trainee, batch: Any, recording: Recording, precision: str | None, *, taught: bool
) -> dict[str, Array]:
    """Terms of the loss, and gradients by the recorded outputs of the model.

    In float32 the recorded assignment is used. In float64 all sides decide alike, so each assigns for itself: a
    gradient that leaks through the assigner would show.
    """
    adapter = adapter_for(trainee.model)
    trace = recording.trace
    root = next(call for call in trace.calls if call.module == "")
    leaves = {}

    def leaf(slot: str) -> Any:
        array = trace[f"activation/{root.name}/{slot}"]
        kind = precision or ("float32" if array.dtype == np.float16 else array.dtype)  # losses are never in half
        leaves[slot] = adapter.variable(array.astype(kind) if array.dtype.kind == "f" else array)
        return leaves[slot]

    outputs = unflatten(root.output, leaf)
    terms = trainee.losses(outputs, batch, recording.assignment if taught else trainee.assign(outputs, batch))
    gradients = adapter.gradients(terms["total"], list(leaves.values()))
    rows = {f"loss/{name}": np.array(adapter.to_numpy(term)).reshape(1) for name, term in total_last(terms).items()}
    return rows | {f"grad_activation/{LOSS}/{slot}": grad for slot, grad in zip(leaves, gradients, strict=True)}


def leaf_calls(calls: Sequence[Call]) -> set[str]:
    """Calls of modules below which no other module was called."""
    paths = {call.module for call in calls}
    inner = {path.rsplit(".", count)[0] for path in paths for count in range(1, path.count(".") + 1)}
    return {call.name for call in calls if call.module and call.module not in inner}


def decision_noise(single: Trainee, oracle: Trainee, recording: Recording, exact: Recording, batch: Any) -> float:
    """Largest relative error, in float32, of the numbers that are decided on; vanishing ones decide nothing."""
    values, true = single.decision_values(recording.outputs, batch), oracle.decision_values(exact.outputs, batch)
    relevant = true > 1e-6 * true.max(initial=0.0)
    if not relevant.any():
        return 0.0
    return float((np.abs(values - true)[relevant] / true[relevant]).max())
