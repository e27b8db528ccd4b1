"""Further runs of the reference, its numbers moved by a rounding each: what rounding does to a result, measured.

One run shows one sample of the reference's own error. Of few numbers (a loss, a scale of one element) that sample may
be small by luck, and where a step is ill-conditioned (a norm over few values, a chain of them backward) rounding grows
by a factor that no fixed bar knows. So where a row fails by the size of its error, the reference runs again from
numbers that are as right as the ones given, and the largest error that it shows in any run is the unit. Rounding has
that size there; a fault does not hide in it, since it moves the candidate and not the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.phases import GRADIENTS, phase_of

RUNS = 4
# Float64 activations of two right programs differ by up to 33 roundings (7e-15 of scale), far less than the bar.
ROUNDINGS_OF_DOUBLE = 16.0
HOPELESS = 1000.0  # times its limit: no luck of a single run is that large

Nudge = Callable[[Array], Array]


def unmoved(array: Array) -> Array:
    """The nudge that is none."""
    return array


def nudges(budget: Budget) -> list[Nudge]:
    """One for each further run: moves every number of a floating array by a rounding, up or down."""

    def made(seed: int) -> Nudge:
        random = np.random.Generator(np.random.Philox(seed))

        def nudge(array: Array) -> Array:
            if array.dtype.kind != "f":
                return array
            eps = float(np.finfo(array.dtype).eps)
            size = ROUNDINGS_OF_DOUBLE * eps if array.dtype == np.float64 else max(eps, budget.roundoff)
            signs = random.integers(0, 2, array.shape, np.int8) * np.int8(2) - np.int8(1)
            moved: Array = array * (1 + array.dtype.type(size) * signs.astype(array.dtype))
            return moved

        return nudge

    return [made(seed) for seed in range(RUNS)]


def nudged(state: Mapping[str, Array], nudge: Nudge) -> dict[str, Array]:
    """A training state with its weights moved."""
    return {name: nudge(array) if name.startswith("parameter/") else array for name, array in state.items()}


@dataclass
class Doubt:
    """A comparison that fails by the size of its error, until further runs of the reference were seen.

    Attributes:
        comparison: as it was found.
        counted: bool mask of the elements that were compared; None means all.
        error: the largest that the reference showed in a further run.
    """

    comparison: Comparison
    counted: Array | None = None
    error: float = 0.0

    def settled(self, budget: Budget) -> Comparison:
        """With the evidence that there is by now."""
        found = self.comparison
        own = found.max_abs_error
        assert own is not None
        allowed = budget.k * self.error
        moved = f"{ROUNDINGS_OF_DOUBLE:g} roundings" if found.dtype == "float64" else "a rounding"
        text = f"{self.error:.3g} in {RUNS} further runs, its weights or inputs moved by {moved}"
        if not own <= allowed < found.scale:
            return replace(found, reason=f"{found.reason}; the reference's own error is up to {text}")
        reason = f"within {budget.k:g} x the reference's own error, {text}"
        return replace(found, passed=True, failing=0, budget=allowed, reason=reason)


def is_doubtful(comparison: Comparison) -> bool:
    """Whether it fails by the size of its error, and not by much."""
    error = comparison.max_abs_error
    return comparison.failing > 0 and error is not None and error <= HOPELESS * comparison.budget


def largest_error(array: Array, exact: Array) -> float:
    """Infinite where one side is not finite and the other is."""
    error = np.abs(np.subtract(array, exact, dtype=np.float64))
    return float(np.nan_to_num(error, nan=np.inf).max(initial=0.0))


class Witness:
    """A sink for a further run of the reference: notes its errors in what is doubtful, and in gradients.

    Attributes:
        errors: by phase of gradients, the error of each array in units of the oracle's largest magnitude.
    """

    def __init__(
        self, doubts: Mapping[str, Doubt], oracle: Callable[[str], Array], ignored: Callable[[str], bool]
    ) -> None:
        self._doubts, self._oracle, self._ignored = doubts, oracle, ignored
        self.errors: dict[str, list[float]] = {}

    def put(self, name: str, array: Array) -> None:
        if phase_of(name) in GRADIENTS and not self._ignored(name):
            exact = self._oracle(name)
            scale = float(np.abs(exact).max(initial=0.0))
            if scale:
                self.errors.setdefault(phase_of(name), []).append(largest_error(array, exact) / scale)
        self._note(name, array, self._doubts[name].counted if name in self._doubts else None)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        if name in self._doubts:
            self._note(name, values(), None)

    def put_decisions(self, name: str, array: Array, margins: object) -> None:
        """Decisions are no matter of size."""

    def put_alike(self, name: str, array: Array, alike: Array) -> None:
        counted = self._doubts[name].counted if name in self._doubts else None
        self._note(name, array, alike if counted is None else alike & counted)

    def _note(self, name: str, array: Array, counted: Array | None) -> None:
        doubt = self._doubts.get(name)
        if doubt is None:
            return
        exact = self._oracle(name)
        if exact.shape == array.shape:
            pair = (array, exact) if counted is None else (array[counted], exact[counted])
            doubt.error = max(doubt.error, largest_error(*pair))
