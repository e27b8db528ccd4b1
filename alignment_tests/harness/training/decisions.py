"""Decisions of a training step (which anchor learns which box), and the values that hang on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

import numpy as np

from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.trace import Trace
from alignment_tests.harness.training.trainee import Trainee


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


def excuse_decisions(comparison: Comparison, margins: Array) -> Comparison:
    """A failed comparison of decisions passes if every wrong one was decided by no more than rounding can do.

    ``margins`` are those of the wrong ones, in units of what is allowed.
    """
    widest, closest = float(margins.max()), float(margins.min())
    text = f"{margins.size} of {comparison.elements} decisions differ, by {closest:.2g} to {widest:.2g}"
    return replace(comparison, passed=widest <= 1.0, reason=f"{text} of what rounding may do")
