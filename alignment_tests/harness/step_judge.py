"""Judge the arrays of training steps: one row per name and precision holds the worst step.

Beside what ``Judge`` does for a forward pass, gradients need two more rules, and rows that fail by the size of their
error wait for further runs of the reference (``nudged_runs``). A gradient that is zero by structure (a
bias in front of a batch norm) is rounding noise on every side, so the gradients beside it judge it. And a float32
gradient of the whole network passed kinks: where a ReLU's input lies within rounding of zero, two correct programs
differ by that element's whole gradient, and everything before it inherits the difference. Which arrays this hits is
chance (the reference in float32 is off by percents in some, by a millionth in others), so single arrays prove nothing
there. They are judged in float64, and in float32 module by module; of the whole pass the median and the 90th percentile
over all arrays are judged, in units of the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from alignment_tests.harness.adapters import Array
from alignment_tests.harness.budget import Budget
from alignment_tests.harness.compare import Comparison, compare_arrays
from alignment_tests.harness.judge import EXCUSED, PRECISIONS
from alignment_tests.harness.nudged_runs import Doubt, Witness, is_doubtful
from alignment_tests.harness.phases import GRADIENTS, causal_order, magnitudes, module_of, phase_of
from alignment_tests.harness.report import Coverage, Row
from alignment_tests.harness.trace import Call, Trace

QUANTILES = (0.5, 0.9)

Key = tuple[str, str]  # name, precision


class StepJudge:
    """Compares each array of the candidate's steps on arrival; keeps one comparison per name and precision.

    Args:
        budget: the limits.
        excused: pattern (fnmatch, on whole names) -> reason, beside the built-in ones.
    """

    def __init__(self, budget: Budget, excused: Mapping[str, str] | None = None) -> None:
        self.budget = budget
        self.excuses = {**EXCUSED, **(excused or {})}
        self.accumulated: dict[Key, tuple[Comparison, int]] = {}
        self.isolated: dict[Key, tuple[Comparison, int]] = {}
        self.steps: dict[str, int] = {}  # precision -> steps compared
        self.undecided: dict[Key, None] = {}  # values behind decisions that fell otherwise in every image of a step
        self.failing_steps: dict[Key, set[int]] = {}
        self.names: dict[str, None] = {}  # every name of the reference, in order of appearance
        self.missing: dict[str, None] = {}
        self.unexpected: dict[str, None] = {}
        self.calls: list[Call] = []
        self.yardsticks: dict[str, float] = {}  # phase -> largest relative float32 error of the reference so far
        # side -> phase -> quantiles of the relative errors of all its arrays, each the largest over the steps
        self.noise: dict[str, dict[str, tuple[float, ...]]] = {"reference": {}, "candidate": {}}
        self._errors: dict[str, list[float]] = {}
        self._doubtful: dict[str, Doubt] = {}  # of this step and precision
        self._reference: Trace | None = None
        self._oracle: Trace | None = None
        self._peaks: dict[str, float] = {}
        self._neighbours: dict[str, float] = {}
        self._seen: set[str] = set()

    def begin(self, step: int, precision: str, reference: Trace, oracle: Trace) -> None:
        """The arrays that come next belong to this step and precision.

        Args:
            step: number of the step.
            precision: "float64" or "float32".
            reference: what the reference did.
            oracle: the same in float64 from the same state; the reference itself in float64.
        """
        self._step, self._precision = step, precision
        self._reference, self._oracle, self._seen, self._zero = reference, oracle, set(), 0.0
        self.steps[precision] = self.steps.get(precision, 0) + 1
        self.names.update(dict.fromkeys(n for n in reference if not n.startswith("input/")))
        if len(reference.calls) > len(self.calls):
            self.calls = reference.calls
        self._peaks, self._neighbours = magnitudes(oracle, self.budget.structural_zero)
        self._errors, self._doubtful = {}, {}
        if precision == "float32":
            self._note_errors(reference, oracle)

    def _note_errors(self, reference: Trace, oracle: Trace) -> None:
        found: dict[str, list[float]] = {}
        for name in reference:
            phase = phase_of(name)
            if phase not in ("loss", *GRADIENTS) or reference.entries[name] != name or name not in oracle:
                continue  # values behind decisions: see put_alike
            expected, exact = reference[name], oracle[name]
            if expected.dtype.kind != "f" or not np.isfinite(expected).all():
                continue
            scale = float(np.abs(exact).max())
            if self.is_structural_zero(name) or scale == 0.0:
                continue
            found.setdefault(phase, []).append(float(np.abs(expected - exact).max()) / scale)
        self._note_yardstick("loss", found.get("loss", []))
        self._note_noise("reference", found)

    def _note_yardstick(self, phase: str, errors: Sequence[float]) -> None:
        """Of losses and values behind decisions: few numbers, so the reference's own error in one of them is luck, and
        the unit is at least the largest relative error that it showed in the phase so far."""
        self.yardsticks[phase] = max([self.yardsticks.get(phase, 0.0), *errors])

    def _note_noise(self, side: str, errors: Mapping[str, list[float]]) -> None:
        known = self.noise[side]
        for phase in GRADIENTS:
            if errors.get(phase):
                new = np.quantile(errors[phase], QUANTILES)
                known[phase] = tuple(float(q) for q in np.maximum(new, known.get(phase, (0.0,) * len(QUANTILES))))

    def put(self, name: str, array: Array) -> None:
        """An array of the candidate's step (so that the judge is a sink)."""
        assert self._reference is not None
        self._seen.add(name)
        if name not in self._reference:
            self.unexpected[name] = None
            return
        expected, oracle = self._reference[name], self._oracle_array(name)
        comparison = self._compare(name, array, expected, oracle, alone=False)
        self._take(name, comparison)
        if (
            self._precision == "float32"
            and comparison.smallest_tolerance is not None
            and not self.is_structural_zero(name)
        ):
            self._errors.setdefault(phase_of(name), []).append(comparison.smallest_tolerance)

    def _take(self, name: str, comparison: Comparison, counted: Array | None = None) -> None:
        """Single float32 gradients of a whole pass inform only, so they are not worth further runs."""
        informs = self._precision == "float32" and phase_of(name) in GRADIENTS
        if is_doubtful(comparison) and not informs:
            self._doubtful[name] = Doubt(comparison, counted)
        else:
            self._keep(self.accumulated, name, comparison)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        assert self._reference is not None
        same = name in self._reference and self._reference.same(name, existing)
        kept = self.accumulated.get((existing, self._precision))
        if same and kept is not None and (name, self._precision) not in self.accumulated and kept[1] == self._step:
            self._seen.add(name)
            self._keep(self.accumulated, name, kept[0])
        else:
            self.put(name, values())

    def is_structural_zero(self, name: str) -> bool:
        """Whether a gradient is zero but for rounding, next to the gradients beside it."""
        return self._peaks.get(name, 1.0) <= self.budget.structural_zero * self._neighbours.get(name, 0.0)

    def put_isolated(
        self, name: str, array: Array, expected: Array, oracle: Array, further: Callable[[], Mapping[str, float]]
    ) -> None:
        """What one module gave alone, fed as the reference was; see ``training.judge_backward``.

        ``further`` tells the largest error by name that the reference shows in further runs of the module.
        """
        self.names.setdefault(name, None)
        comparison = self._compare(name, array, expected, oracle, alone=True)
        if is_doubtful(comparison):
            comparison = Doubt(comparison, error=further()[name]).settled(self.budget)
        self._keep(self.isolated, name, comparison)

    def fail_isolated(self, name: str, reason: str) -> None:
        self.names.setdefault(name, None)
        self._keep(self.isolated, name, Comparison(False, reason, (), "", 0))

    def put_decisions(self, name: str, array: Array, margins: Callable[[], Array | None]) -> None:
        """Decisions (integers, bool): equal, or different only where the deciding margin is under the float error.

        Args:
            name: of the array.
            array: the candidate's decisions.
            margins: gives the margin of each decision, of the same shape, in units of what is allowed; None if nobody
                knows them. Called where a decision differs.
        """
        assert self._reference is not None
        self._seen.add(name)
        expected = self._reference[name]
        comparison = compare_arrays(array, expected, budget=self.budget)
        known = margins() if comparison.failing else None
        if known is not None:
            comparison = excuse_decisions(comparison, known[array != expected])
        self._keep(self.accumulated, name, comparison)

    def put_alike(self, name: str, array: Array, alike: Array) -> None:
        """Values that hang on decisions, where candidate, reference and oracle decided alike.

        Args:
            name: of the array.
            array: the candidate's values, (N, ...).
            alike: bool, of the leading axes of the values. Where nothing is, or nothing but zeros, nothing is compared:
                a name of which that holds in every step fails.
        """
        assert self._reference is not None
        expected, oracle = self._reference[name], self._oracle_array(name)
        if expected.shape != array.shape or oracle.shape != array.shape:
            self.put(name, array)
            return
        self._seen.add(name)
        if alike.all():
            self.put(name, array)
            return
        if not oracle[alike].any() and oracle.any():
            self.undecided[name, self._precision] = None
            return
        scale = float(np.abs(oracle[alike]).max())
        if self._precision == "float32" and scale and np.isfinite(expected[alike]).all():
            self._note_yardstick(phase_of(name), [float(np.abs(expected[alike] - oracle[alike]).max()) / scale])
        comparison = self._compare(name, array[alike], expected[alike], oracle[alike], alone=False)
        told = f"in {int(alike.sum())} of {alike.size} places, where all sides decide alike"
        self._take(name, replace(comparison, reason=f"{comparison.reason} ({told})"), alike)

    @property
    def is_blind(self) -> bool:
        """Whether an activation of this step proves nothing in this precision, but that the reference errs there."""
        return any(
            found.proves_nothing and step == self._step
            for (name, precision), (found, step) in self.accumulated.items()
            if precision == self._precision and phase_of(name) == "activation"
        )

    def end(self) -> bool:
        """All arrays of the step came; what the reference has beside them is missing.

        Returns:
            Whether further runs of the reference are needed; ``settle`` has to follow in any case.
        """
        assert self._reference is not None
        for name in self._reference:
            if not name.startswith("input/") and name not in self._seen:
                self.missing[name] = None
        self._note_noise("candidate", self._errors)
        noisy = self._precision == "float32" and not all(self.kinks_explain(p) for p in GRADIENTS if p in self._errors)
        return noisy or bool(self._doubtful)

    def witness(self) -> Witness:
        """A sink for a further run of the reference; ``testify`` takes it afterwards."""
        return Witness(self._doubtful, self._oracle_array, self.is_structural_zero)

    def testify(self, witness: Witness) -> None:
        if self._precision == "float32":
            self._note_noise("reference", witness.errors)

    def settle(self) -> None:
        """Verdicts on what was doubtful."""
        for name, doubt in self._doubtful.items():
            self._keep(self.accumulated, name, doubt.settled(self.budget))

    def kinks_explain(self, phase: str) -> bool:
        """Whether the candidate's float32 gradients are no noisier as a whole than the budget lets them be."""
        own, theirs = (self.noise[side].get(phase, ()) for side in ("candidate", "reference"))
        floor = self.budget.c * self.budget.roundoff
        return bool(own) and all(a <= max(self.budget.k * b, floor) for a, b in zip(own, theirs, strict=True))

    def facts(self) -> dict[str, str]:
        """In words, by phase, how noisy the float32 gradients of whole passes are."""
        found = {}
        for phase, theirs in self.noise["reference"].items():
            own = self.noise["candidate"].get(phase, (float("nan"),) * len(QUANTILES))
            told = (
                f"median error {own[0]:.3g} of scale, the reference's own {theirs[0]:.3g};"
                f" 90th percentile {own[1]:.3g}, its own {theirs[1]:.3g} (largest over the steps)"
            )
            found[f"{phase} (float32, whole pass)"] = told if self.kinks_explain(phase) else f"FAIL: {told}"
        return found

    def _oracle_array(self, name: str) -> Array:
        assert self._oracle is not None
        assert self._reference is not None
        return self._oracle[name] if name in self._oracle else self._reference[name]

    def _compare(self, name: str, array: Array, expected: Array, oracle: Array, *, alone: bool) -> Comparison:
        single, zero = self._precision == "float32", self.is_structural_zero(name)
        comparison = compare_arrays(
            array,
            expected,
            oracle=oracle if single and expected.dtype.kind == "f" else None,
            budget=self.budget,
            zero_scale=self._zero,
            scale=self._neighbours[name] if zero else None,
            yardstick=self.yardsticks.get(phase_of(name), 0.0) if single and not alone else 0.0,
            brief=alone,
        )
        if zero:
            reason = f"zero by structure, judged by the scale of its neighbours: {comparison.reason}"
            comparison = replace(comparison, reason=reason)
        self._zero = comparison.scale or self._zero
        return comparison

    def _keep(self, kept: dict[Key, tuple[Comparison, int]], name: str, comparison: Comparison) -> None:
        key = (name, self._precision)
        if not comparison.passed:
            self.failing_steps.setdefault(key, set()).add(self._step)
        known = kept.get(key)
        if known is None or badness(comparison) > badness(known[0]):
            kept[key] = (comparison, self._step)

    def rows(self) -> tuple[Row, ...]:
        """Rows by phase, causes first; within a phase as the reference made them, gradients backwards."""
        kinds = {call.name: call.kind for call in self.calls}
        found = []
        for index, name in enumerate(causal_order(self.names)):
            for precision in PRECISIONS:
                if any((name, precision) in kept for kept in (self.accumulated, self.isolated, self.undecided)):
                    found.append(self._row(index, name, precision, kinds))
        return tuple(found)

    def _row(self, index: int, name: str, precision: str, kinds: Mapping[str, str]) -> Row:
        key = (name, precision)
        accumulated, isolated = self.accumulated.get(key), self.isolated.get(key)
        if accumulated is None and key in self.undecided:
            reason = "in no step did all sides decide alike anywhere, so nothing was compared"
            accumulated = (Comparison(False, reason, (), "", 0), 0)
        pardoned = precision == "float32" and self._pardoned(name, accumulated)
        in_parts = accumulated is not None and accumulated[0].proves_nothing and self._proven_in_parts(key)
        if in_parts:
            pardoned, isolated = True, None if isolated is None or isolated[0].proves_nothing else isolated
        failed = [c for c in (isolated, None if pardoned else accumulated) if c is not None and not c[0].passed]
        shown = failed[0] if failed else accumulated or isolated
        assert shown is not None
        label = "isolated: " if shown is isolated else ""
        steps = self.failing_steps.get(key, set())
        where = f"step {shown[1]}"
        if failed and self.steps[precision] > 1:
            where += f", the worst of {len(steps)} failing of {self.steps[precision]}"
        reason = f"{label}{shown[0].reason} ({where})"
        if pardoned and not failed:
            why = "since float32 gradients pass kinks; judged in float64, and module by module"
            why = "since the whole pass is too noisy here; judged module by module" if in_parts else why
            reason = f"informs only, {why}: {reason}"
        excuse = self.excuse(name) if failed else None
        rest = name.split("/", 1)[1]
        return Row(
            name=name,
            index=index,
            phase=phase_of(name),
            module=module_of(name),
            kind=kinds.get(rest.rsplit("/", 1)[0], ""),
            precision=precision,
            verdict="pass" if not failed else ("fail" if excuse is None else "excused"),
            reason=reason if excuse is None else f"{excuse} ({reason})",
            accumulated=None if accumulated is None else accumulated[0],
            isolated=None if isolated is None else isolated[0],
            step=shown[1],
        )

    def _pardoned(self, name: str, accumulated: tuple[Comparison, int] | None) -> bool:
        """Whether a failing gradient of a whole float32 pass only informs; another shape or NaN fails all the same."""
        if accumulated is None or accumulated[0].passed or accumulated[0].max_abs_error is None:
            return False
        return phase_of(name) in GRADIENTS and self.kinks_explain(phase_of(name))

    def _proven_in_parts(self, key: Key) -> bool:
        """Whether an output of a whole pass that proves nothing is right alone; one that proves nothing alone either,
        as the root's, is as good as what its module calls."""
        found = self.isolated.get(key)
        if found is not None and not found[0].proves_nothing:
            return found[0].passed
        name, precision = key
        path = f"{module_of(name)}." if module_of(name) else ""
        inside = [
            other
            for other in self.isolated
            if other != key and other[1] == precision and phase_of(other[0]) == "activation"
            if module_of(other[0]).startswith(path)
        ]
        return bool(inside) and all(self._proven_in_parts(other) for other in inside)

    def excuse(self, name: str) -> str | None:
        return next((reason for pattern, reason in self.excuses.items() if fnmatchcase(name, pattern)), None)

    def coverage(self, precisions: tuple[str, ...]) -> Coverage:
        compared: dict[str, int] = {}
        excused: dict[str, str] = {}
        missing = dict(self.missing)
        for name in self.names:
            keys = [(name, precision) for precision in precisions]
            if name not in missing and all(key in self.accumulated for key in keys):
                compared[phase_of(name)] = compared.get(phase_of(name), 0) + 1
        for name in [*missing, *self.unexpected]:
            reason = self.excuse(name)
            if reason is not None:
                excused[name] = reason
        return Coverage(
            compared,
            excused,
            tuple(name for name in missing if name not in excused),
            tuple(name for name in self.unexpected if name not in excused),
        )


def badness(comparison: Comparison) -> float:
    """Orders comparisons of one name: failures above passes, then by the share of the budget that was used."""
    if comparison.max_abs_error is None or not comparison.budget:
        used = 0.0 if comparison.passed else float("inf")
    else:
        used = comparison.max_abs_error / comparison.budget
    return used if comparison.passed else 1e300 + used


def excuse_decisions(comparison: Comparison, margins: Array) -> Comparison:
    """A failed comparison of decisions passes if every wrong one was decided by no more than rounding can do.

    ``margins`` are those of the wrong ones, in units of what is allowed.
    """
    widest, closest = float(margins.max()), float(margins.min())
    told = f"{margins.size} of {comparison.elements} decisions differ, by {closest:.2g} to {widest:.2g}"
    return replace(comparison, passed=widest <= 1.0, reason=f"{told} of what rounding may do")
