"""Facts beside the rows: both models hold the same numbers, and hooks change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment_tests.harness.judge.compare import same_values
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.bfloat16 import type_name
from alignment_tests.harness.record.capture import run_plain
from alignment_tests.harness.record.layout import Layout
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
        plain = run_plain(side.adapter, side.model, side.inputs, "float32", train=side.train, kwargs=side.kwargs)
    if not plain:
        return "FAIL: the model returns no tensor, so nothing shows whether the hooks change it"
    if set(hooked) == set(plain) and all(same_values(hooked[slot], plain[slot]) for slot in plain):
        return "hooked and unhooked outputs are bitwise equal"
    shared = [s for s in plain if s in hooked and hooked[s].shape == plain[s].shape]
    worst = max((float(np.abs(hooked[s] - plain[s]).max()) for s in shared), default=float("nan"))
    if any(type_name(plain[s]) in ("float16", "bfloat16") for s in shared):
        return f"hooks change the result by up to {worst:.3g}, as fused half-precision operations are rounded once"
    return f"FAIL: the hooks change the result, by up to {worst:.3g}"


def check_weights(reference: Side, candidate: Side) -> str:
    """Both models must hold the same numbers, bit for bit, or nothing else can be compared."""
    theirs, ours = reference.values(), candidate.values()
    if not theirs and not ours:
        return "neither model has parameters or buffers"
    equal = {name: same_values(own, other) for name, own, other in candidate.layout.pairs(theirs, ours)}
    different = [name for name, same in equal.items() if not same]
    if not equal:
        return "FAIL: the models share no parameter name"
    if different:
        return f"FAIL: {len(different)} of {len(equal)} arrays differ, first {different[0]}; convert first"
    return f"{len(equal)} parameters and buffers are equal bit for bit"


def trained_fact(theirs: Mapping[str, bool], ours: Mapping[str, bool], layout: Layout) -> str:
    """Training must change the same arrays on both sides: what one side freezes, the other may not train.

    Args:
        theirs: the reference's arrays -> whether training changes them.
        ours: the candidate's.
        layout: of the candidate.
    """
    found: dict[bool, list[str]] = {True: [], False: []}
    compared = 0
    for name, trained in ours.items():
        for other in layout.partners(name):
            if other in theirs:
                compared += 1
                if theirs[other] != trained:
                    found[trained].append(other)
    more, less = (list(dict.fromkeys(names)) for names in (found[True], found[False]))
    texts = [
        *([f"the candidate trains {listed(more)}, which the reference does not"] if more else []),
        *([f"the candidate does not train {listed(less)}, which the reference does"] if less else []),
    ]
    if texts:
        return f"FAIL: {'; '.join(texts)}"
    return f"both sides train the same of {compared} arrays"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
