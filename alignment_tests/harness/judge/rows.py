"""Collect comparisons while a candidate's arrays stream past, and build the report's rows from them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import numpy as np

from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.compare import Comparison, compare_arrays
from alignment_tests.harness.judge.report import Coverage, Detail, Row
from alignment_tests.harness.judge.unmatched import STATE, Unmatched, ties_fact
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.layout import SAME, Layout, Translated
from alignment_tests.harness.record.nested import paired_slots
from alignment_tests.harness.record.trace import Call, Trace

EXCUSED = {"buffer/*num_batches_tracked": "Jittor keeps no count of batches; nothing computes with it"}
PRECISIONS = ("float64", "float32")  # the order of a name's rows
DETAILS_KEPT = 6
MAP_SIZE = 64  # rows and columns of an error map, at most


class Judge:
    """Compares each candidate array on arrival with the reference's; nothing is kept but the verdicts.

    Args:
        reference: traces of the reference by precision; "float64" is the oracle and must be there.
        excused: pattern (fnmatch, on whole names) -> reason, beside the built-in ones.
        layout: how the candidate's names and shapes become the reference's.
    """

    def __init__(
        self,
        reference: Mapping[str, Trace],
        budget: Budget,
        excused: Mapping[str, str] | None = None,
        layout: Layout = SAME,
    ) -> None:
        self.reference, self.budget = reference, budget
        self.oracle = reference["float64"]
        self.excuses = {**EXCUSED, **layout.excused, **(excused or {})}
        self.layout = layout
        self.accumulated: dict[tuple[str, str], Comparison] = {}
        self.isolated: dict[tuple[str, str], Comparison] = {}
        self.unexpected: dict[str, None] = {}
        self.candidate: dict[str, str] = {}  # its names -> the first name of the same array
        self.in_place: dict[str, str] = {}  # call -> why it is judged where it stands only
        self.raised: dict[str, str] = {}  # precision -> where and how the candidate raised
        self.corrected: set[tuple[str, str]] = set()  # what passes with corrected operators, see judge.known
        self.differences: dict[tuple[str, str, str], float] = {}  # operator, place, precision -> size
        self.calls: dict[str, Call] = {}  # the candidate's of the present run, by the reference's names
        self._recorded: dict[str, Call] = {}  # the reference's
        self._bare = {name.split("/", 1)[1]: name for name in self.oracle if name.split("/", 1)[0] in STATE}
        self._scale = dict.fromkeys(PRECISIONS, 0.0)
        self._details: list[tuple[float, str, Detail]] = []

    def sink(self, precision: str) -> Translated:
        """Where a recorded run of the candidate in this precision goes."""
        return Translated(CandidateSink(self, precision), self.layout)

    def in_phase(self, name: str) -> str:
        """An array of the state in the phase that it has in the reference, which alone tells a frozen parameter from a
        buffer; an output under the slot that stands in the same place of the reference's containers."""
        phase, rest = name.split("/", 1)
        if phase in STATE:
            return self._bare.get(rest, name)
        if name in self.oracle or "#" not in rest:
            return name
        call, _, slot = rest.rpartition("/")
        if not self._recorded:
            self._recorded = {call.name: call for call in self.oracle.calls}
        if call not in self._recorded or call not in self.calls:
            return name
        slots = paired_slots(self.calls[call].output, self._recorded[call].output)
        return f"{phase}/{call}/{slots.get(slot, slot)}"

    def take_call(self, call: Call) -> None:
        """A call as the candidate makes it; it comes before its outputs."""
        self.calls[f"{self.layout.module(call.module)}#{call.number}"] = call

    def take_accumulated(self, precision: str, name: str, array: Array) -> None:
        reference = self.reference[precision]
        if name not in reference or name not in self.oracle:
            self.unexpected[name] = None
            return
        self._claim(precision, name)
        comparison = self._compare(precision, array, reference[name], self.oracle[name])
        self.accumulated[name, precision] = comparison
        if precision == "float32" and name.startswith("activation/"):
            self._keep_detail(name, comparison, array, reference[name])

    def take_alias(self, precision: str, name: str, existing: str) -> None:
        """``name`` is the same array as ``existing`` on both sides, so it has the same verdict."""
        self._claim(precision, name)
        known = self.accumulated[name, precision] = self.accumulated[existing, precision]
        self._scale[precision] = known.scale or self._scale[precision]

    def _claim(self, precision: str, name: str) -> None:
        if (name, precision) in self.accumulated:
            raise ValueError(f"two arrays of the candidate are compared with {name} ({precision}); see `port_map`")

    def take_isolated(self, precision: str, name: str, array: Array, oracle: Array) -> None:
        """``oracle``: this module in float64, fed with the same recorded inputs."""
        expected = self.reference[precision][name]
        self.isolated[name, precision] = self._compare(precision, array, expected, oracle, brief=True)

    def fail_isolated(self, precision: str, name: str, reason: str) -> None:
        self.isolated[name, precision] = Comparison(False, reason, (), "", 0)

    def judge_in_place(self, call: str, reason: str) -> None:
        """Forget what the call did alone: alone it is no function of its arguments."""
        self.in_place[call] = reason
        for name, precision in list(self.isolated):
            if name.startswith(f"activation/{call}/"):
                del self.isolated[name, precision]

    def take_raised(self, precision: str, path: str, number: int, reason: str) -> None:
        """The candidate raised in this call, and the run ended there."""
        self.raised[precision] = reason
        name = f"activation/{self.layout.module(path)}#{number}/0"
        if name in self.oracle and (name, precision) not in self.accumulated:
            self.accumulated[name, precision] = Comparison(False, reason, (), "", 0)

    def facts(self, *, train: bool, trained: Mapping[str, bool]) -> dict[str, str]:
        """What is to be told beside the rows. ``trained``: which parameters the reference trains; others: all."""
        names = {
            name: first for name, first in self.oracle.entries.items() if trained.get(name.partition("/")[2], True)
        }
        ties = ties_fact(names, self.candidate, train=train)
        return {} if ties is None else {"tied weights": ties}

    def unmatched(self, precisions: tuple[str, ...]) -> Unmatched:
        """What one side has alone; of a run that the candidate ended by raising, the rest counts as compared."""
        whole = [precision for precision in precisions if precision not in self.raised]
        compared = {name for name in self.oracle if all((name, precision) in self.accumulated for precision in whole)}
        return Unmatched(self.oracle.entries, self.candidate, compared)

    def _compare(
        self, precision: str, array: Array, expected: Array, oracle: Array, *, brief: bool = False
    ) -> Comparison:
        comparison = compare_arrays(
            array,
            expected,
            oracle=oracle if precision == "float32" and expected.dtype.kind == "f" else None,
            budget=self.budget,
            zero_scale=self._scale[precision],
            brief=brief,
        )
        self._scale[precision] = comparison.scale or self._scale[precision]
        return comparison

    def _keep_detail(self, name: str, comparison: Comparison, array: Array, expected: Array) -> None:
        if comparison.max_abs_error is None or not comparison.budget:
            return
        used = comparison.max_abs_error / comparison.budget
        if len(self._details) < DETAILS_KEPT or used > self._details[0][0]:
            entry = (used, name, detail(name, "float32", array, expected, self.oracle[name]))
            push = heapq.heappush if len(self._details) < DETAILS_KEPT else heapq.heappushpop
            push(self._details, entry)

    def details(self) -> tuple[Detail, ...]:
        """Of the rows that used most of their budget, worst first."""
        return tuple(entry[2] for entry in sorted(self._details, key=lambda entry: -entry[0]))

    def excuse(self, name: str) -> str | None:
        return next((reason for pattern, reason in self.excuses.items() if fnmatchcase(name, pattern)), None)

    def rows(self, precisions: tuple[str, ...]) -> tuple[Row, ...]:
        """Rows of all compared names in the reference's execution order."""
        kinds = {f"{call.module}#{call.number}": call.kind for call in self.oracle.calls}
        names = [name for name in self.oracle if not name.startswith("input/")]
        order = [(i, name, p) for i, name in enumerate(names) for p in PRECISIONS if p in precisions]
        unmatched = self.unmatched(precisions)
        return tuple(
            self._row(index, name, precision, kinds, unmatched)
            for index, name, precision in order
            if (name, precision) in self.accumulated or (name, precision) in self.isolated
        )

    def _row(self, index: int, name: str, precision: str, kinds: Mapping[str, str], unmatched: Unmatched) -> Row:
        accumulated, isolated = (kept.get((name, precision)) for kept in (self.accumulated, self.isolated))
        phase, rest = name.split("/", 1)
        call = rest.rsplit("/", 1)[0]
        module = call.rsplit("#", 1)[0] if phase == "activation" else rest.rpartition(".")[0]
        failed = [c for c in (isolated, accumulated) if c is not None and not c.passed]
        label = "isolated: " if failed and failed[0] is isolated else ""
        shown = failed[0] if failed else accumulated or isolated
        assert shown is not None
        reason = f"{label}{shown.reason}"
        excuse = self.excuse(name) if failed else None
        if failed == [accumulated] and excuse is None:
            excuse = unmatched.miscounted(name)
        return Row(
            name=name,
            index=index,
            phase=phase,
            module=module,
            kind=kinds.get(call, ""),
            precision=precision,
            verdict="pass" if not failed else ("fail" if excuse is None else "excused"),
            reason=reason if excuse is None else f"{excuse} ({reason})",
            accumulated=accumulated,
            isolated=isolated,
        )

    def coverage(self, precisions: tuple[str, ...]) -> Coverage:
        compared: dict[str, int] = {}
        excused: dict[str, str] = {}
        missing, unexpected = [], []
        unmatched = self.unmatched(precisions)
        whole = [precision for precision in precisions if precision not in self.raised]
        for name in self.oracle:
            phase = name.split("/", 1)[0]
            if phase == "input":
                continue
            reason = self.excuse(name) or unmatched.excuse(name)
            if all((name, precision) in self.accumulated for precision in precisions):
                compared[phase] = compared.get(phase, 0) + 1
            elif reason is not None:
                excused[name] = reason
            elif any((name, precision) not in self.accumulated for precision in whole):
                missing.append(name)  # else it lies behind the place where a run ended
        for name in self.unexpected:
            reason = self.excuse(name) or unmatched.excuse(name)
            if reason is None:
                unexpected.append(name)
            else:
                excused[name] = reason
        return Coverage(compared, excused, tuple(missing), tuple(unexpected))


class CandidateSink:
    """The judge, as a sink for one precision, of arrays under the reference's names."""

    def __init__(self, judge: Judge, precision: str) -> None:
        self.judge, self.precision = judge, precision

    def put(self, name: str, array: Array) -> None:
        name = self.judge.in_phase(name)
        self.judge.candidate.setdefault(name, name)
        self.judge.take_accumulated(self.precision, name, array)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        """The same tensor again: where it is the same on the reference's side too, so is the comparison."""
        judge = self.judge
        new, old = judge.in_phase(name), judge.in_phase(existing)
        judge.candidate.setdefault(new, judge.candidate.get(old, old))
        traces = (judge.reference[self.precision], judge.oracle)
        known = judge.accumulated.get((old, self.precision))
        if known is not None and all(new in trace and trace.same(new, old) for trace in traces):
            judge.take_alias(self.precision, new, old)
        else:
            judge.take_accumulated(self.precision, new, values())


def detail(name: str, precision: str, actual: Array, expected: Array, oracle: Array) -> Detail:
    """Error by magnitude in bins of one power of two, and the map of the largest errors over the image.

    Infinities, which stand in the same places on all sides, count as zeros.
    """
    actual, expected, oracle = (np.where(np.isfinite(oracle), side, 0.0) for side in (actual, expected, oracle))
    error = np.abs(np.subtract(actual, oracle, dtype=np.float64))
    own = np.abs(np.subtract(expected, oracle, dtype=np.float64))
    magnitude = np.abs(oracle).reshape(-1)
    present = magnitude > 0
    exponents = np.full(magnitude.shape, -1075)
    exponents[present] = np.frexp(magnitude[present])[1]
    bins = np.unique(exponents[present])[-32:]  # 32 powers of two below the largest are 10 decimals
    in_bin = [exponents == b for b in bins]
    return Detail(
        name=name,
        precision=precision,
        magnitudes=tuple(math.ldexp(0.75, int(b)) for b in bins),
        candidate_errors=tuple(float(error.reshape(-1)[place].max()) for place in in_bin),
        reference_errors=tuple(float(own.reshape(-1)[place].max()) for place in in_bin),
        error_map=_error_map(error),
    )


def _error_map(error: Array) -> tuple[tuple[float, ...], ...]:
    if error.ndim != 4 or min(error.shape[-2:]) < 2:
        return ()
    flat = error.max(axis=(0, 1))
    for axis in (0, 1):
        step = -(-flat.shape[axis] // MAP_SIZE)
        flat = np.maximum.reduceat(flat, np.arange(0, flat.shape[axis], step), axis=axis)
    return tuple(tuple(float(value) for value in row) for row in flat)
