"""How noisy float32 is in whole passes, by phase, where single arrays prove nothing.

A float32 gradient of the whole network passed kinks: where a ReLU's input lies within rounding of zero, two correct
programs differ by that element's whole gradient, and everything before it inherits the difference. Which arrays this
hits is chance (the reference in float32 is off by percents in some, by a millionth in others), so single arrays prove
nothing there. They are judged in float64, and in float32 module by module; of the whole pass the median and the 90th
percentile over all arrays are judged, in units of the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.record.phases import GRADIENTS, phase_of
from alignment_tests.harness.record.trace import Trace

QUANTILES = (0.5, 0.9)


class Noise:
    """The relative float32 errors of both sides, over the steps so far.

    Attributes:
        yardsticks: phase -> largest relative error of the reference.
        quantiles: side -> phase of gradients -> QUANTILES of the relative errors of all its arrays, each the largest
            over the steps.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.yardsticks: dict[str, float] = {}
        self.quantiles: dict[str, dict[str, tuple[float, ...]]] = {"reference": {}, "candidate": {}}

    def note_reference(self, reference: Trace, oracle: Trace, is_zero: Callable[[str], bool]) -> None:
        """The reference's own errors in a step; ``is_zero`` tells names of arrays that are zero but for rounding."""
        found: dict[str, list[float]] = {}
        for name in reference:
            phase = phase_of(name)
            if phase not in ("loss", *GRADIENTS) or reference.entries[name] != name or name not in oracle:
                continue  # values behind decisions: see StepJudge.put_alike
            expected, exact = reference[name], oracle[name]
            if expected.dtype.kind != "f" or not np.isfinite(expected).all():
                continue
            scale = float(np.abs(exact).max(initial=0.0))
            if is_zero(name) or scale == 0.0:
                continue
            found.setdefault(phase, []).append(float(np.abs(expected - exact).max()) / scale)
        self.note_yardstick("loss", found.get("loss", []))
        self.note_gradients("reference", found)

    def note_yardstick(self, phase: str, errors: Sequence[float]) -> None:
        """Of losses and values behind decisions: few numbers, so the reference's own error in one of them is luck, and
        the unit is at least the largest relative error that it showed in the phase so far."""
        self.yardsticks[phase] = max([self.yardsticks.get(phase, 0.0), *errors])

    def note_gradients(self, side: str, errors: Mapping[str, list[float]]) -> None:
        """Relative errors of one pass of a side, by phase."""
        known = self.quantiles[side]
        for phase in GRADIENTS:
            if errors.get(phase):
                new = np.quantile(errors[phase], QUANTILES)
                known[phase] = tuple(float(q) for q in np.maximum(new, known.get(phase, (0.0,) * len(QUANTILES))))

    def is_explained(self, phase: str) -> bool:
        """Whether the candidate's gradients are no noisier as a whole than the budget lets them be."""
        own, theirs = (self.quantiles[side].get(phase, ()) for side in ("candidate", "reference"))
        floor = self.budget.c * self.budget.roundoff
        return bool(own) and all(a <= max(self.budget.k * b, floor) for a, b in zip(own, theirs, strict=True))

    def facts(self) -> dict[str, str]:
        """In words, by phase of gradients, both sides' noise."""
        found = {}
        for phase, theirs in self.quantiles["reference"].items():
            own = self.quantiles["candidate"].get(phase, (float("nan"),) * len(QUANTILES))
            text = (
                f"median error {own[0]:.3g} of scale, the reference's own {theirs[0]:.3g};"
                f" 90th percentile {own[1]:.3g}, its own {theirs[1]:.3g} (largest over the steps)"
            )
            found[f"{phase} (float32, whole pass)"] = text if self.is_explained(phase) else f"FAIL: {text}"
        return found
