"""Each module alone: called as it was on record, with the inputs that the reference recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from alignment_tests.harness.judge.nudged_runs import Nudge, unmoved
from alignment_tests.harness.judge.rows import Judge
from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.nested import OpaqueArgumentError, flatten, is_plain, unflatten
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.trace import Call, Trace


def judge_isolated(judge: Judge, precision: str, reference: Side, candidate: Side, traces: Mapping[str, Trace]) -> None:
    """Each call of the candidate alone on the reference's recorded inputs, against the reference alone in float64."""
    trace = traces[precision]
    modules = candidate.modules(candidate.model)
    with (
        candidate.adapter.running(candidate.model, train=candidate.train),
        candidate.adapter.settled(candidate.model),
        isolated_oracle(reference, precision, traces) as oracle_of,
    ):
        for call in trace.calls:
            names = output_names(trace, call)
            if call.module == "":  # alone, the root does what it did: reuse
                for name in names:
                    if (name, precision) in judge.accumulated:
                        judge.isolated[name, precision] = judge.accumulated[name, precision]
            elif call.module in modules and is_plain(call.arguments):
                judge_call(judge, precision, candidate.adapter, modules[call.module], trace, call, oracle_of(call))


def judge_call(
    judge: Judge,
    precision: str,
    adapter: Adapter,
    module: Any,
    trace: Trace,
    call: Call,
    oracle: Mapping[str, Array],
) -> None:
    names = output_names(trace, call)
    try:
        found = run_alone(adapter, module, trace, call, precision, strict=True)
    except Exception as error:  # any failure of the user's module is a finding of the report, not of the harness
        for name in names:
            judge.fail_isolated(precision, name, f"the candidate's module raises {type(error).__name__}: {error}"[:500])
        return
    for name in names:
        slot = name.rsplit("/", 1)[1]
        if slot in found:
            judge.take_isolated(precision, name, found[slot], oracle[slot])
        else:
            judge.fail_isolated(precision, name, f"the candidate's module returns no output {slot}")


@contextmanager
def isolated_oracle(
    reference: Side, precision: str, traces: Mapping[str, Trace]
) -> Iterator[Callable[[Call], dict[str, Array]]]:
    """What a call gives in float64 on the inputs recorded in ``precision``; in float64 that is on record already."""
    trace = traces[precision]
    if precision == "float64":
        yield lambda call: {name.rsplit("/", 1)[1]: trace[name] for name in output_names(trace, call)}
        return
    adapter = reference.adapter
    with adapter.in_precision(reference.model, "float64") as model, adapter.running(model, train=reference.train):
        modules = dict(adapter.modules(model))
        yield lambda call: run_alone(adapter, modules[call.module], trace, call, "float64")


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
) -> dict[str, Array]:
    """Outputs by slot of one module, called as it was in the trace; ``nudge`` moves the recorded arrays before.

    Raises:
        OpaqueArgumentError: an argument was neither a tensor nor a plain value.
        WrittenInputError: ``strict``, and the module changes an argument in place that the recorded call did not.
    """
    given: dict[str, tuple[Array, Any]] = {}
    arguments = arguments_of(adapter, trace, call, precision, given, nudge)
    tensors, _ = flatten(module(*arguments["args"], **arguments["kwargs"]), adapter.is_tensor)
    found = {slot: adapter.to_numpy(tensor) for slot, tensor in tensors.items()}
    for slot, (array, tensor) in given.items() if strict else ():
        if slot not in call.written and not np.array_equal(adapter.to_numpy(tensor), array, equal_nan=True):
            raise WrittenInputError(f"it changes its argument {slot} in place, which the reference does not")
    return found


def arguments_of(
    adapter: Adapter,
    trace: Trace,
    call: Call,
    precision: str,
    given: dict[str, tuple[Array, Any]] | None = None,
    nudge: Nudge = unmoved,
) -> Any:
    """What the call was given, floating inputs cast to ``precision``; half ones of a mixed run stay half in float32.

    Args:
        given: takes up each array and the tensor made of it, by slot.
    """

    def leaf(slot: str) -> Any:
        array = nudge(trace[f"input/{call.name}/{slot}"])
        stays = array.dtype.kind != "f" or (array.dtype == np.float16 and precision == "float32")
        array = array if stays else array.astype(precision)
        tensor = adapter.from_numpy(array)
        if given is not None:
            given[slot] = array, tensor
        return tensor

    return unflatten(call.arguments, leaf)


def output_names(trace: Trace, call: Call) -> list[str]:
    slots: list[str] = []

    def note(slot: str) -> None:
        slots.append(slot)

    try:
        unflatten(call.output, note)
    except OpaqueArgumentError:
        slots = [n.rsplit("/", 1)[1] for n in trace if n.startswith(f"activation/{call.name}/")]
    return [f"activation/{call.name}/{slot}" for slot in slots]
