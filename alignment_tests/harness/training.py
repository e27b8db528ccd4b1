"""Compare training: forward, assignment, loss, gradients, update, average of the weights, step by step.

Teacher-forced, every step of the candidate starts from the state that the reference had: a difference cannot grow, and
the verdict comes from these steps. Free-running, both train on their own; rounding grows there in any two programs, so
the candidate may drift from the oracle no further than a multiple of the reference's own float32 run.

The core knows no trainer. A side is a ``Trainee``: a model with the phases of a step as methods.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alignment_tests.harness.adapters import Adapter, Array, adapter_for
from alignment_tests.harness.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.capture import Recorder, Sink
from alignment_tests.harness.experiment import Notify, same_values
from alignment_tests.harness.judge import PRECISIONS
from alignment_tests.harness.report import Report
from alignment_tests.harness.step_judge import LOSS, StepJudge, first_cause
from alignment_tests.harness.trace import Call, Trace, TraceWriter
from alignment_tests.harness.tree import is_plain, unflatten

FREE_RUN_FACTOR = 16.0  # as k of the budget, for the same reason: the candidate sums in another order
STATE_PHASES = ("momentum", "parameter", "buffer", "ema")


class Trainee(Protocol):
    """One side of a training comparison, in one precision. Tensors and outputs are the framework's own."""

    model: Any

    def forward(self, batch: Any) -> Any:
        """Outputs of the model in train mode."""

    def assign(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """What is decided before the loss, as named tensors; decisions as integers or bool, first. May be empty."""

    def losses(self, outputs: Any, batch: Any, assignment: Mapping[str, Any]) -> dict[str, Any]:
        """Scalar terms, "total" among them, given an assignment: own tensors, or numpy arrays of the other side."""

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Gradients by every trainable parameter, by name, and by the extra tensors."""

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        """The rest of the step, with these gradients in place of the own ones where given."""

    def state(self) -> dict[str, Array]:
        """What the next step depends on, under ``momentum/``, ``parameter/``, ``buffer/``, ``ema/``, ``position/``."""

    def load(self, state: Mapping[str, Array]) -> None:
        """Continue from such a state; floating arrays are cast to this side's precision."""

    def margins(self, outputs: Any, batch: Any) -> dict[str, Array]:
        """Relative margin of each decision in the assignment, by its name; called on the oracle only."""

    def decision_values(self, outputs: Any, batch: Any) -> Array:
        """The numbers that were decided on; their relative float32 error bounds what margins may excuse."""


Make = Callable[[str], Trainee]


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
    run = Experiment(reference, candidate, precisions, StepJudge(budget, excused), isolated)
    for step, batch in enumerate(batches):
        notify(f"step {step + 1} of {len(batches)}")
        run.teacher_forced(step, batch, deep=step in deep_steps)
    if free_running:
        notify("free-running")
        run.free_running(batches)
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
        checks={**run.checks, **judge.facts()},
        curves=run.curves,
    )


class Experiment:
    """The trainees of a comparison and what was found so far."""

    def __init__(
        self, reference: Make, candidate: Make, precisions: tuple[str, ...], judge: StepJudge, isolated: bool
    ) -> None:
        self.make_reference, self.make_candidate = reference, candidate
        self.precisions, self.judge, self.isolated = precisions, judge, isolated
        self.references = {precision: reference(precision) for precision in PRECISIONS}
        self.candidates = {precision: candidate(precision) for precision in precisions}
        # Follows the float32 reference: one float64 step from each of its states.
        self.oracle = reference("float64") if "float32" in precisions else None
        self.checks: dict[str, str] = {}
        self.curves: dict[str, tuple[float, ...]] = {}
        self.start = self.references["float64"].state()
        self.trajectory: dict[str, list[Array]] = {precision: [] for precision in PRECISIONS}
        self.losses: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}

    def environment(self) -> dict[str, dict[str, Any]]:
        sides = {"reference": self.references["float64"], "candidate": next(iter(self.candidates.values()))}
        return {name: adapter_for(side.model).describe() for name, side in sides.items()}

    def teacher_forced(self, step: int, batch: Any, *, deep: bool) -> None:
        """One step of every side from the reference's state; the references move on."""
        with tempfile.TemporaryDirectory(prefix="steps-") as place:
            for precision in PRECISIONS:
                before = self.references[precision].state()
                if deep and precision in self.precisions:
                    self.check_hooks("reference", self.references[precision], before, batch, precision)
                recording = record_step(self.references[precision], batch, Path(place) / precision, deep=deep)
                self.note(precision, self.references[precision], recording)
                if precision not in self.precisions:
                    continue
                exact, noise, margins = recording, 0.0, {}
                if precision == "float32":
                    assert self.oracle is not None
                    self.oracle.load(before)
                    exact = record_step(self.oracle, batch, Path(place) / "oracle", deep=deep, taught=recording)
                    margins = self.oracle.margins(exact.outputs, batch)
                    noise = decision_noise(self.references[precision], self.oracle, recording, exact, batch)
                self.judge.begin(step, precision, recording.trace, exact.trace)
                candidate = self.candidates[precision]
                candidate.load(before)
                sink = (
                    DecisionSink(self.judge, margins, noise, recording.trace) if precision == "float32" else self.judge
                )
                perform(candidate, batch, sink, deep=deep, taught=recording if precision == "float32" else None)
                self.judge.end()
                if deep:
                    self.check_hooks("candidate", candidate, before, batch, precision)
                if deep and self.isolated:
                    self.judge_backward(precision, before, batch, recording)

    def note(self, precision: str, trainee: Trainee, recording: Recording) -> None:
        """Where the reference's own run has come to."""
        self.trajectory[precision].append(flat_parameters(trainee.state()))
        self.losses[precision].append(float(recording.trace["loss/total"].reshape(-1)[0]))

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
            self.checks[key] = (
                f"FAIL: hooks change {len(wrong)} of {len(plain)} arrays, first {wrong[0]}, by up to {worst:.3g}"
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
            kind = "float64" if name == "oracle" else str(next(iter(upstream.values())).dtype)
            try:
                found[name] = pulled_back(
                    adapter_for(side.model), modules[name][call.module], trace, call, upstream, kind
                )
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

    def free_running(self, batches: Sequence[Any]) -> None:
        """The candidate on its own, in each precision, against the trajectory of the float64 reference."""
        oracle, start = self.trajectory["float64"], flat_parameters(self.start)
        travelled = [float(np.linalg.norm(there - start)) or 1.0 for there in oracle]
        yardstick = drift(self.trajectory["float32"], oracle, travelled)
        self.curves["loss, reference float64"] = tuple(self.losses["float64"])
        self.curves["loss, reference float32"] = tuple(self.losses["float32"])
        self.curves["drift, reference float32"] = tuple(yardstick)
        for precision in self.precisions:
            trainee, positions, losses = self.make_candidate(precision), [], []
            trainee.load(self.start)
            for batch in batches:
                losses.append(train_step(trainee, batch))
                positions.append(flat_parameters(trainee.state()))
            own = drift(positions, oracle, travelled)
            self.curves[f"loss, candidate {precision}"] = tuple(losses)
            self.curves[f"drift, candidate {precision}"] = tuple(own)
            self.checks[f"free-running ({precision})"] = drift_fact(own, yardstick)


class DecisionSink:
    """Sends decisions to the judge with their margins, everything else as it is.

    One decision that fell otherwise moves the target scores of its whole image, so the values that hang on decisions
    are compared in the images where both sides decided alike. Decisions come first.
    """

    def __init__(self, judge: StepJudge, margins: Mapping[str, Array], noise: float, reference: Trace) -> None:
        self.judge, self.margins, self.noise, self.reference = judge, margins, noise, reference
        self._differing: set[int] = set()  # images

    def put(self, name: str, array: Array) -> None:
        decided = self.margins.get(name.removeprefix("assignment/")) if name.startswith("assignment/") else None
        if decided is None:
            self.judge.put(name, array)
        elif array.dtype.kind in "biu":
            self.judge.put_decisions(name, array, decided, self.noise)
            expected = self.reference[name]
            if expected.shape == array.shape:
                self._differing.update(
                    int(i) for i in np.nonzero((array != expected).reshape(len(array), -1).any(1))[0]
                )
        else:
            expected, compared = self.reference[name], np.array(array)
            for image in self._differing if expected.shape == array.shape else ():
                compared[image] = expected[image]
            self.judge.put(name, compared)

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
    for name, tensor in terms.items():
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


def train_step(trainee: Trainee, batch: Any) -> float:
    """A whole step on its own; the total loss."""
    outputs = trainee.forward(batch)
    terms = trainee.losses(outputs, batch, trainee.assign(outputs, batch))
    trainee.backward(terms["total"], [])
    trainee.update(None)
    return float(np.asarray(adapter_for(trainee.model).to_numpy(terms["total"])).reshape(-1)[0])


def as_gradient(name: str) -> str:
    return f"grad_{name}"


def upstream_of(trace: Trace, call: Call) -> dict[str, Array]:
    """Recorded gradients by the outputs of a call, by slot; empty where none came."""
    prefix = f"grad_activation/{call.name}/"
    return {name.removeprefix(prefix): trace[name] for name in trace if name.startswith(prefix)}


def pulled_back(
    adapter: Adapter, module: Any, trace: Trace, call: Call, upstream: Mapping[str, Array], precision: str
) -> dict[str, Array]:
    """Gradients of one call alone, under the names of their rows."""

    def leaf(slot: str) -> Any:
        array = trace[f"input/{call.name}/{slot}"]
        return adapter.from_numpy(array.astype(precision) if array.dtype.kind == "f" else array)

    arguments = unflatten(call.arguments, leaf)
    given = {slot: array.astype(precision) for slot, array in upstream.items()}
    by_input, by_parameter = adapter.vjp(module, arguments, given)
    rows = {f"grad_activation/{call.name}/{slot}": array for slot, array in by_input.items()}
    # Parameters of modules inside are judged where those modules run alone.
    own = {name: array for name, array in by_parameter.items() if "." not in name}
    return rows | {f"grad_parameter/{call.module}.{name}": array for name, array in own.items()}


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
        leaves[slot] = adapter.variable(array.astype(precision) if precision and array.dtype.kind == "f" else array)
        return leaves[slot]

    outputs = unflatten(root.output, leaf)
    terms = trainee.losses(outputs, batch, recording.assignment if taught else trainee.assign(outputs, batch))
    gradients = adapter.gradients(terms["total"], list(leaves.values()))
    rows = {f"loss/{name}": np.array(adapter.to_numpy(tensor)).reshape(1) for name, tensor in terms.items()}
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


def flat_parameters(state: Mapping[str, Array]) -> Array:
    """All parameters as one float64 vector."""
    return np.concatenate([a.astype(np.float64).reshape(-1) for n, a in state.items() if n.startswith("parameter/")])


def drift(positions: Sequence[Array], oracle: Sequence[Array], travelled: Sequence[float]) -> list[float]:
    """Distance from the oracle after each step, in units of the way that the oracle has come."""
    return [float(np.linalg.norm(p - o)) / way for p, o, way in zip(positions, oracle, travelled, strict=True)]


def drift_fact(own: Sequence[float], yardstick: Sequence[float]) -> str:
    """Whether the candidate stays within the reference's float32 drift; the yardstick never shrinks."""
    limits = [FREE_RUN_FACTOR * limit for limit in np.maximum.accumulate(yardstick)]
    beyond = [step for step, (value, limit) in enumerate(zip(own, limits, strict=True)) if not value <= limit]
    told = f"drift {own[-1]:.3g} of the way after {len(own)} steps; the reference's own float32 run {yardstick[-1]:.3g}"
    return f"FAIL: beyond {FREE_RUN_FACTOR:g} times the yardstick from step {beyond[0]}: {told}" if beyond else told
