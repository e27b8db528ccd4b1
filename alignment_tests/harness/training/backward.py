"""Parts of a recorded step backward alone: a module on its recorded inputs, the loss on the recorded outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment_tests.harness.judge.nudged_runs import Nudge, unmoved
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.bfloat16 import type_name
from alignment_tests.harness.record.forms import arguments_again
from alignment_tests.harness.record.nested import flatten, paired_slots
from alignment_tests.harness.record.phases import LOSS
from alignment_tests.harness.record.trace import Call, Trace
from alignment_tests.harness.training.recording import Recording, total_last
from alignment_tests.harness.training.trainee import Trainee, layout_of


def upstream_of(trace: Trace, call: Call) -> dict[str, Array]:
    """Recorded gradients by the outputs of a call, by slot; empty where none came."""
    prefix = f"grad_activation/{call.name}/"
    return {name.removeprefix(prefix): trace[name] for name in trace if name.startswith(prefix)}


def pulled_back(
    side: Trainee,
    module: Any,
    trace: Trace,
    call: Call,
    upstream: Mapping[str, Array],
    precision: str | None,
    nudge: Nudge = unmoved,
    made: Call | None = None,
) -> dict[str, Array]:
    """Gradients of one call alone, under the names of their rows; None leaves the recorded arrays in their precision.

    ``nudge`` moves the recorded arrays before they are cast. Gradients by half-precision arrays are scaled by a power
    of two on their way, as the scaled loss does for a step. ``made`` is the call as this side made it, whose containers
    it takes.

    Raises:
        OpaqueArgumentError: the arguments cannot be made in that way.
    """
    adapter, prefix = adapter_for(side.model), f"input/{call.name}/"
    inputs = {name.removeprefix(prefix): trace[name] for name in trace if name.startswith(prefix)}
    half = any(array.dtype == np.float16 for array in inputs.values())
    factor = power_of_two_below(max(float(np.abs(a).max()) for a in upstream.values())) if half else 1.0

    def leaf(slot: str) -> Any:
        array = nudge(inputs[slot])
        return adapter.from_numpy(array.astype(precision) if precision and array.dtype.kind == "f" else array)

    def unscaled(array: Array) -> Array:
        return array.astype(np.float32) * np.float32(factor) if array.dtype == np.float16 else array * factor

    arguments = arguments_again(call.arguments, None if made is None else (made.arguments, made.form), leaf)
    inward = paired_slots(flatten(arguments, adapter.is_tensor)[1], call.arguments)
    outward = {} if made is None else {to: slot for slot, to in paired_slots(made.output, call.output).items()}
    cast = {slot: (nudge(array) / factor).astype(precision or array.dtype) for slot, array in upstream.items()}
    given = {outward.get(slot, slot): array for slot, array in cast.items()}
    by_input, by_parameter = adapter.vjp(module, arguments, given, side.scope)
    rows = {f"grad_activation/{call.name}/{inward.get(slot, slot)}": array for slot, array in by_input.items()}
    # Parameters of modules inside are judged where those modules run alone.
    layout = layout_of(side)
    path = layout.own_module(call.module)
    own = {f"{path}.{name}": array for name, array in by_parameter.items() if "." not in name}
    rows |= {f"grad_parameter/{name}": array for name, array in layout.back(own).items()}
    return {name: unscaled(array) for name, array in rows.items()} if half else rows


def power_of_two_below(value: float) -> float:
    """The largest power of two that is not above; 1 for what has none."""
    return 2.0 ** math.floor(math.log2(value)) if 0.0 < value < math.inf else 1.0


def loss_alone(
    trainee: Trainee,
    batch: Any,
    recording: Recording,
    precision: str | None,
    *,
    taught: bool,
    nudge: Nudge = unmoved,
    made: Call | None = None,
) -> dict[str, Array]:
    """Terms of the loss, and gradients by the recorded outputs of the model.

    In float32 the recorded assignment is used. In float64 each side assigns for itself, unless rounding decides
    otherwise: a gradient that leaks through the assigner would show. ``nudge`` moves the recorded outputs before they
    are cast. ``made`` is the call of this side's model, in whose containers its loss takes the outputs.

    Raises:
        OpaqueArgumentError: they cannot be made in that way.
    """
    adapter = adapter_for(trainee.model)
    trace = recording.trace
    root = next(call for call in trace.calls if call.module == "")
    leaves = {}

    def leaf(slot: str) -> Any:
        array = nudge(trace[f"activation/{root.name}/{slot}"])
        narrow = type_name(array) in ("float16", "bfloat16")
        kind = precision or ("float32" if narrow else array.dtype)  # losses are never in half
        leaves[slot] = adapter.variable(array.astype(kind) if array.dtype.kind == "f" else array)
        return leaves[slot]

    outputs = arguments_again(root.output, None if made is None else (made.output, made.output_form), leaf)
    decided = {} if taught else trainee.assign(outputs, batch)
    taught = taught or any(
        recorded.dtype.kind in "biu" and not np.array_equal(np.asarray(adapter.to_numpy(decided[name])), recorded)
        for name, recorded in recording.assignment.items()
        if name in decided
    )
    terms = trainee.losses(outputs, batch, recording.assignment if taught else decided)
    gradients = adapter.gradients(terms["total"], list(leaves.values()))
    rows = {f"loss/{name}": np.array(adapter.to_numpy(term)).reshape(1) for name, term in total_last(terms).items()}
    return rows | {f"grad_activation/{LOSS}/{slot}": grad for slot, grad in zip(leaves, gradients, strict=True)}


def leaf_calls(calls: Sequence[Call]) -> set[str]:
    """Calls of modules below which no other module was called."""
    paths = {call.module for call in calls}
    inner = {path.rsplit(".", count)[0] for path in paths for count in range(1, path.count(".") + 1)}
    return {call.name for call in calls if call.module and call.module not in inner}
