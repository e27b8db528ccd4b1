"""Facts beside the rows: both models hold the same numbers, and hooks change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alignment_tests.harness.judge.compare import same_values
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.capture import run_plain
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.trace import Trace


class Outputs:
    """A sink that passes everything on and keeps what the root returned."""

    def __init__(self, sink: Any) -> None:
        self.sink = sink
        self.outputs: dict[str, Array] = {}

    def put(self, name: str, array: Array) -> None:
        if name.startswith("activation/#0/"):
            self.outputs[name.rsplit("/", 1)[1]] = np.array(array)
        self.sink.put(name, array)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        if name.startswith("activation/#0/"):
            self.outputs[name.rsplit("/", 1)[1]] = np.array(values())
        self.sink.alias(name, existing, values)


def root_outputs(trace: Trace) -> dict[str, Array]:
    """What the model itself returned, by slot."""
    return {name.rsplit("/", 1)[1]: trace[name] for name in trace if name.startswith("activation/#0/")}


def hooks_fact(side: Side, hooked: Mapping[str, Array]) -> str:
    """Run once more without hooks, in float32, and say whether the outputs are the same bit for bit."""
    with side.context("float32"):
        plain = run_plain(side.adapter, side.model, side.inputs, "float32", train=side.train)
    if not plain:
        return "FAIL: the model returns no tensor, so nothing shows whether the hooks change it"
    if set(hooked) == set(plain) and all(same_values(hooked[slot], plain[slot]) for slot in plain):
        return "hooked and unhooked outputs are bitwise equal"
    shared = [s for s in plain if s in hooked and hooked[s].shape == plain[s].shape]
    worst = max((float(np.abs(hooked[s] - plain[s]).max()) for s in shared), default=float("nan"))
    if any(plain[s].dtype == np.float16 for s in shared):
        return f"hooks change the result by up to {worst:.3g}, as fused half-precision operations are rounded once"
    return f"FAIL: the hooks change the result, by up to {worst:.3g}"


def check_weights(reference: Side, candidate: Side) -> str:
    """Both models must hold the same numbers, bit for bit, or nothing else can be compared."""
    theirs, ours = reference.values(), candidate.values()
    shared = [name for name in theirs if name in ours]
    different = [name for name in shared if not same_values(ours[name], theirs[name])]
    if not theirs and not ours:
        return "neither model has parameters or buffers"
    if not shared:
        return "FAIL: the models share no parameter name"
    if different:
        return f"FAIL: {len(different)} of {len(shared)} arrays differ, first {different[0]}; convert first"
    return f"{len(shared)} parameters and buffers are equal bit for bit"
