"""Judge the arrays of training steps: one row per name and precision holds the worst step.

Beside what ``Judge`` does for a forward pass, rows that fail by the size of their error wait for further runs of the
reference (``nudged_runs``), and gradients need two more rules. One that is zero by structure (a bias in front of a
batch norm) is rounding noise on every side, so the gradients beside it judge it. And those of whole float32 passes are
judged together (``noise``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.compare import Comparison, compare_arrays
from alignment_tests.harness.judge.nudged_runs import Doubt, Witness, is_doubtful
from alignment_tests.harness.judge.rows import EXCUSED
from alignment_tests.harness.judge.unmatched import Names, Unmatched, ties_fact, with_ties
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.nested import paired_slots
from alignment_tests.harness.record.phases import GRADIENTS, magnitudes, phase_of
from alignment_tests.harness.record.trace import Call, Trace
from alignment_tests.harness.training.decisions import excuse_decisions
from alignment_tests.harness.training.noise import Noise

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
        self.candidate: dict[str, None] = {}  # every name of the candidate
        self.ties: tuple[Names, Names] = ({}, {})  # of each side: name of a weight -> its first name
        self.calls: list[Call] = []
        self.noise = Noise(budget)
        self._errors: dict[str, list[float]] = {}
        self._doubtful: dict[str, Doubt] = {}  # of this step and precision
        self._reference: Trace | None = None
        self._oracle: Trace | None = None
        self._peaks: dict[str, float] = {}
        self._neighbours: dict[str, float] = {}
        self._seen: set[str] = set()
        self.own_calls: dict[str, Call] = {}  # of the candidate in this step and precision, if it is a deep one

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
        self._errors, self._doubtful, self.own_calls = {}, {}, {}
        if precision == "float32":
            self.noise.note_reference(reference, oracle, self.is_structural_zero)

    def put(self, name: str, array: Array) -> None:
        """An array of the candidate's step (so that the judge is a sink)."""
        assert self._reference is not None
        name = self._reference_name(name)
        self._seen.add(name)
        self.candidate[name] = None
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
        name, existing = self._reference_name(name), self._reference_name(existing)
        known = all(one in self._reference for one in (name, existing))
        same = known and self._reference.same(name, existing)
        kept = self.accumulated.get((existing, self._precision))
        if same and kept is not None and (name, self._precision) not in self.accumulated and kept[1] == self._step:
            self._seen.add(name)
            self.candidate[name] = None
            self._keep(self.accumulated, name, kept[0])
        else:
            self.put(name, values())

    def _reference_name(self, name: str) -> str:
        """An output under the slot that stands in the same place of the reference's containers."""
        assert self._reference is not None
        if name in self._reference or "#" not in name:
            return name
        phase, rest = name.split("/", 1)
        call, _, slot = rest.rpartition("/")
        recorded = next((one for one in self._reference.calls if one.name == call), None)
        if recorded is None or call not in self.own_calls:
            return name
        return f"{phase}/{call}/{paired_slots(self.own_calls[call].output, recorded.output).get(slot, slot)}"

    def take_call(self, call: Call) -> None:
        """A call as the candidate makes it; it comes before its outputs."""
        self.own_calls[call.name] = call

    def unmatched(self) -> Unmatched:
        """What one side has alone."""
        compared = {
            name
            for name in self.names
            if name not in self.missing and all((name, precision) in self.accumulated for precision in self.steps)
        }
        return Unmatched(with_ties(self.names, self.ties[0]), with_ties(self.candidate, self.ties[1]), compared)

    def facts(self) -> dict[str, str]:
        """What is to be told beside the rows and the noise."""
        trained = {name for name, first in self.ties[0].items() if f"grad_parameter/{first}" in self.names}
        names = [{f"parameter/{n}": f"parameter/{first}" for n, first in ties.items()} for ties in self.ties]
        shared = {name: first for name, first in names[0].items() if name.partition("/")[2] in trained}
        ties = ties_fact(shared, names[1], train=True)
        return {} if ties is None else {"tied weights": ties}

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
            self.noise.note_yardstick(phase_of(name), [float(np.abs(expected[alike] - oracle[alike]).max()) / scale])
        comparison = self._compare(name, array[alike], expected[alike], oracle[alike], alone=False)
        text = f"in {int(alike.sum())} of {alike.size} places, where all sides decide alike"
        self._take(name, replace(comparison, reason=f"{comparison.reason} ({text})"), alike)

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
        self.noise.note_gradients("candidate", self._errors)
        phases = [phase for phase in GRADIENTS if phase in self._errors] if self._precision == "float32" else []
        return bool(self._doubtful) or not all(self.noise.is_explained(phase) for phase in phases)

    def witness(self) -> Witness:
        """A sink for a further run of the reference; ``testify`` takes it afterwards."""
        return Witness(self._doubtful, self._oracle_array, self.is_structural_zero)

    def testify(self, witness: Witness) -> None:
        if self._precision == "float32":
            self.noise.note_gradients("reference", witness.errors)

    def settle(self) -> None:
        """Verdicts on what was doubtful."""
        for name, doubt in self._doubtful.items():
            self._keep(self.accumulated, name, doubt.settled(self.budget))

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
            yardstick=self.noise.yardsticks.get(phase_of(name), 0.0) if single and not alone else 0.0,
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


def badness(comparison: Comparison) -> float:
    """Orders comparisons of one name: failures above passes, then by the share of the budget that was used."""
    if comparison.max_abs_error is None or not comparison.budget:
        used = 0.0 if comparison.passed else float("inf")
    else:
        used = comparison.max_abs_error / comparison.budget
    return used if comparison.passed else 1e300 + used
