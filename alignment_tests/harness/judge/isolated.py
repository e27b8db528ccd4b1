"""Each module alone: called as it was on record, with the inputs that the reference recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from alignment_tests.harness.judge.compare import compare_arrays, same_values
from alignment_tests.harness.judge.nudged_runs import Nudge, unmoved
from alignment_tests.harness.judge.rows import Judge
from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.capture import output_arrays
from alignment_tests.harness.record.forms import arguments_again
from alignment_tests.harness.record.nested import OpaqueArgumentError, paired_slots, slots_of
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.trace import Call, Trace


def judge_isolated(
    judge: Judge,
    precision: str,
    reference: ReferenceAlone,
    candidate: Side,
    trace: Trace,
    only: Collection[str] | None = None,
) -> None:
    """Each call of the candidate alone on the reference's recorded inputs, against the reference alone in float64.

    Args:
        judge: gets the verdicts.
        precision: of the candidate.
        reference: its modules alone.
        candidate: its model in that precision.
        trace: of the reference in that precision.
        only: names of the calls that are wanted; None means all.
    """
    modules = candidate.modules(candidate.model)
    with (
        candidate.adapter.running(candidate.model, train=candidate.train),
        candidate.adapter.settled(candidate.model),
    ):
        for call in trace.calls:
            if only is not None and call.module and call.name not in only:
                continue
            names = output_names(trace, call)
            if call.module == "":  # alone, the root does what it did: reuse
                for name in names:
                    if (name, precision) in judge.accumulated:
                        judge.isolated[name, precision] = judge.accumulated[name, precision]
            elif call.module in modules and call.repeatable:
                judge_call(judge, precision, candidate.adapter, modules[call.module], trace, call, reference)


def judge_call(
    judge: Judge,
    precision: str,
    adapter: Adapter,
    module: Any,
    trace: Trace,
    call: Call,
    reference: ReferenceAlone,
) -> None:
    names = output_names(trace, call)
    oracle = reference.outputs(precision, call)
    if oracle is None:
        judge.judge_in_place(call.name, reference.unrepeated[call.name])
        return
    try:
        found = run_alone(adapter, module, trace, call, precision, strict=True, own=judge.calls.get(call.name))
    except OpaqueArgumentError as error:  # no fault: it is called in another way, which the whole run judges
        judge.judge_in_place(call.name, f"not run alone: {error}")
        return
    except Exception as error:  # any failure of the user's module is a finding of the report, not of the harness
        for name in names:
            judge.fail_isolated(precision, name, f"the candidate's module raises {type(error).__name__}: {error}"[:500])
    else:
        for name in names:
            slot = name.rsplit("/", 1)[1]
            if slot in found and slot in oracle:
                judge.take_isolated(precision, name, found[slot], oracle[slot])
            elif slot in oracle:
                judge.fail_isolated(precision, name, f"the candidate's module returns no output {slot}")
    if any(not judge.isolated[n, precision].passed for n in names if (n, precision) in judge.isolated):
        why = reference.repeats(call)
        if why is not None:
            judge.judge_in_place(call.name, why)


class ReferenceAlone:
    """The reference's modules alone in float64, loaded when first asked for.

    A module is a function of its arguments only if the reference alone does again what it did in the run; where a
    parent sets a child's attributes, or a module counts its calls, it does not, and nothing is learnt from it alone.

    Args:
        reference: the side.
        traces: its runs by precision.

    Attributes:
        unrepeated: call -> why its record cannot be had again.
    """

    def __init__(self, reference: Side, traces: Mapping[str, Trace]) -> None:
        self.reference, self.traces = reference, traces
        self.unrepeated: dict[str, str] = {}
        self._repeated: set[str] = set()
        self._stack = ExitStack()
        self._modules: dict[str, Any] | None = None

    def __enter__(self) -> ReferenceAlone:
        return self

    def __exit__(self, *error: Any) -> None:
        self._modules = None
        self._stack.close()

    def outputs(self, precision: str, call: Call) -> dict[str, Array] | None:
        """What the call gives in float64 on its inputs recorded in ``precision``, by slot; in float64 it is on record.

        None where the module raises alone, with the reason in ``unrepeated``.
        """
        if precision == "float64":
            trace = self.traces["float64"]
            return {name.rsplit("/", 1)[1]: trace[name] for name in output_names(trace, call)}
        return None if call.name in self.unrepeated else self._run(self.traces[precision], call)

    def repeats(self, call: Call) -> str | None:
        """None if the call alone gives what is on record of it in float64, else the reason why it is no evidence."""
        if call.name in self._repeated:
            return None
        if call.name not in self.unrepeated:
            trace = self.traces["float64"]
            found = self._run(trace, call)
            if found is not None:
                recorded = {name.rsplit("/", 1)[1]: name for name in output_names(trace, call)}
                different = found.keys() != recorded.keys() or not all(
                    _repeats(found[slot], trace[name]) for slot, name in recorded.items()
                )
                if not different:
                    self._repeated.add(call.name)
                    return None
                self.unrepeated[call.name] = "the reference alone gives something else than it did in the run"
        return self.unrepeated[call.name]

    def _run(self, trace: Trace, call: Call) -> dict[str, Array] | None:
        adapter = self.reference.adapter
        if self._modules is None:
            model = self._stack.enter_context(adapter.in_precision(self.reference.model, "float64"))
            self._stack.enter_context(adapter.running(model, train=self.reference.train))
            self._modules = dict(adapter.modules(model))
        try:
            return run_alone(adapter, self._modules[call.module], trace, call, "float64", own=call)
        except Exception as error:  # it needs more than its arguments
            self.unrepeated[call.name] = f"the reference alone raises {type(error).__name__}: {error}"[:500]
            return None


def _repeats(array: Array, recorded: Array) -> bool:
    """Up to what other threads and blocks may do to the last bits."""
    return compare_arrays(array, recorded).passed or same_values(array, recorded)


class WrittenInputError(RuntimeError):
    """A module changes an argument in place, which spoils it for whoever reads it next."""


def run_alone(
    adapter: Adapter,
    module: Any,
    trace: Trace,
    call: Call,
    precision: str,
    *,
    strict: bool = False,
    nudge: Nudge = unmoved,
    own: Call | None = None,
) -> dict[str, Array]:
    """Outputs by slot of one module, called as it was in the trace.

    Args:
        adapter: of the module's framework.
        module: the one to call.
        trace: of the reference; holds the inputs.
        call: of the reference.
        precision: of the module.
        strict: mind what the module does to its arguments.
        nudge: moves the recorded arrays before.
        own: the call as this side made it, whose containers it takes; None where it made none.

    Raises:
        OpaqueArgumentError: the arguments cannot be made in the way that this side takes them.
        WrittenInputError: ``strict``, and the module changes an argument in place that the recorded call did not.
    """
    given: dict[str, tuple[Array, Any]] = {}
    arguments = arguments_of(adapter, trace, call, precision, given, nudge, own)
    found, structure = output_arrays(adapter, module(*arguments["args"], **arguments["kwargs"]))
    for slot, (array, tensor) in given.items() if strict else ():
        if slot not in call.written and not np.array_equal(adapter.to_numpy(tensor), array, equal_nan=True):
            raise WrittenInputError(f"it changes its argument {slot} in place, which the reference does not")
    slots = paired_slots(structure, call.output)
    return {slots.get(slot, slot): array for slot, array in found.items()}


def arguments_of(
    adapter: Adapter,
    trace: Trace,
    call: Call,
    precision: str,
    given: dict[str, tuple[Array, Any]] | None = None,
    nudge: Nudge = unmoved,
    own: Call | None = None,
) -> Any:
    """What the call was given: in float64 floating inputs are cast, in float32 they are what they were in the run.

    A tensor that was given twice is one tensor again.

    Args:
        adapter, trace, call, precision, nudge, own: as for ``run_alone``.
        given: takes up each array and the tensor made of it, by slot.

    Raises:
        OpaqueArgumentError: the arguments cannot be made in the way that this side takes them.
    """
    made: dict[str, tuple[Array, Any]] = {}

    def leaf(slot: str) -> Any:
        name = f"input/{call.name}/{slot}"
        stored = trace.entries[name]
        if stored not in made:
            array = nudge(trace[name])
            array = array.astype(precision) if array.dtype.kind == "f" and precision == "float64" else array
            made[stored] = array, adapter.from_numpy(array)
        if given is not None:
            given[slot] = made[stored]
        return made[stored][1]

    return arguments_again(call.arguments, None if own is None else (own.arguments, own.form), leaf)


def output_names(trace: Trace, call: Call) -> list[str]:
    """Names of what the call returned."""
    names = [f"activation/{call.name}/{slot}" for slot in slots_of(call.output)]
    return [name for name in names if name in trace]
