"""Training of both sides on their own, and how far the candidate may drift from the reference.

Rounding grows from step to step in any two programs. The reference itself is the measure: its float32 run for float32,
and for float64 a run of its own from weights that were moved by a few roundings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment_tests.harness.adapters import Array
from alignment_tests.harness.trainee import Make, Trainee, train_step

FREE_RUN_FACTOR = 16.0  # as k of the budget, for the same reason: the candidate sums in another order
NUDGED = "reference float64 nudged"
NUDGE = 16.0  # roundings: float64 activations of the two frameworks differ by up to 33 of them (7e-15 of scale)


class FreeRuns:
    """Both sides on their own, beside the steps that are compared: losses, and distances from the float64 reference.

    No state is kept but the first: memory does not grow with the number of steps.

    Attributes:
        curves: by name, one number per step: "loss, SIDE PRECISION" and "drift, SIDE PRECISION", the distance from the
            float64 reference in units of the way that it has come.
    """

    def __init__(self, reference: Make, candidate: Make, precisions: tuple[str, ...], start: dict[str, Array]) -> None:
        self.start, self.precisions = parameters_of(start), precisions
        self.trainees = {f"candidate {precision}": candidate(precision) for precision in precisions}
        for trainee in self.trainees.values():
            trainee.load(start)
        if "float64" in precisions:
            self.trainees[NUDGED] = reference("float64")
            self.trainees[NUDGED].load(nudged(start))
        self._curves: dict[str, list[float]] = {}

    def step(self, batch: Any, references: Mapping[str, Trainee], losses: Mapping[str, float]) -> None:
        """One more step; the references have made theirs, with these losses."""
        for name, trainee in self.trainees.items():
            self._add(f"loss, {name}", train_step(trainee, batch))
        for precision, loss in losses.items():
            self._add(f"loss, reference {precision}", loss)
        oracle = parameters_of(references["float64"].state())
        way = distance(oracle, self.start) or 1.0
        runs = {**self.trainees, "reference float32": references["float32"]}
        for name, trainee in runs.items():
            self._add(f"drift, {name}", distance(parameters_of(trainee.state()), oracle) / way)

    def _add(self, name: str, value: float) -> None:
        self._curves.setdefault(name, []).append(value)

    @property
    def curves(self) -> dict[str, tuple[float, ...]]:
        shown = {name: tuple(v) for name, v in self._curves.items() if name != f"loss, {NUDGED}"}
        return dict(sorted(shown.items(), key=lambda item: "candidate" in item[0]))

    def facts(self) -> dict[str, str]:
        """The verdict on each precision, in words."""
        return {
            f"free-running ({p})": drift_fact(self._curves[f"drift, candidate {p}"], limits(self.curves, p))
            for p in self.precisions
        }


def parameters_of(state: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in state.items() if name.startswith("parameter/")}


def distance(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Euclidean distance of all parameters together."""
    squares = (float(np.square(actual[name].astype(np.float64) - array).sum()) for name, array in expected.items())
    return math.sqrt(sum(squares))


def nudged(state: Mapping[str, Array]) -> dict[str, Array]:
    """The state with every weight moved by NUDGE roundings of float64, up or down."""
    random, size, moved = np.random.Generator(np.random.Philox(0)), NUDGE * np.finfo(np.float64).eps, dict(state)
    for name, array in parameters_of(state).items():
        if array.dtype.kind == "f":
            moved[name] = array * (1.0 + size * (random.integers(0, 2, array.shape) * 2 - 1))
    return moved


def limits(curves: Mapping[str, Sequence[float]], precision: str) -> list[float]:
    """Largest drift allowed after each step of a free run, which never shrinks; empty where there was none."""
    yardstick = curves.get(f"drift, {NUDGED}", ()) if precision == "float64" else ()
    yardstick = yardstick or curves.get("drift, reference float32", ())
    return [FREE_RUN_FACTOR * float(value) for value in np.maximum.accumulate(np.array(yardstick, np.float64))]


def drift_fact(own: Sequence[float], allowed: Sequence[float]) -> str:
    """Whether the candidate stays within what it is allowed, in words."""
    beyond = [step for step, (value, limit) in enumerate(zip(own, allowed, strict=True)) if not value <= limit]
    void = [step for step, limit in enumerate(allowed) if not limit < 1.0]
    told = f"drift {own[-1]:.3g} of the way after {len(own)} steps; allowed {allowed[-1]:.3g}"
    if beyond:
        return f"FAIL: beyond {FREE_RUN_FACTOR:g} times the reference's own drift from step {beyond[0]}: {told}"
    return f"{told}; void from step {void[0]}, where the whole way is allowed" if void else told
