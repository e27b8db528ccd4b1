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
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.trace import Trace

EXCUSED = {"buffer/*num_batches_tracked": "Jittor keeps no count of batches; nothing computes with it"}
STATE = ("parameter", "buffer")
PRECISIONS = ("float64", "float32")  # the order of a name's rows
DETAILS_KEPT = 6
MAP_SIZE = 64  # rows and columns of an error map, at most


class Judge:
    """Compares each candidate array on arrival with the reference's; nothing is kept but the verdicts.

    Args:
        reference: traces of the reference by precision; "float64" is the oracle and must be there.
        excused: pattern (fnmatch, on whole names) -> reason, beside the built-in ones.
        renamed: candidate's module path -> reference's, for modules whose names differ.
    """

    def __init__(
        self,
        reference: Mapping[str, Trace],
        budget: Budget,
        excused: Mapping[str, str] | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.reference, self.budget = reference, budget
        self.oracle = reference["float64"]
        self.excuses = {**EXCUSED, **(excused or {})}
        self.renamed = dict(renamed or {})
        self.accumulated: dict[tuple[str, str], Comparison] = {}
        self.isolated: dict[tuple[str, str], Comparison] = {}
        self.unexpected: dict[str, None] = {}
        self._bare = {name.split("/", 1)[1]: name for name in self.oracle if name.split("/", 1)[0] in STATE}
        self._scale = dict.fromkeys(PRECISIONS, 0.0)
        self._details: list[tuple[float, str, Detail]] = []

    def sink(self, precision: str) -> CandidateSink:
        """Where a recorded run of the candidate in this precision goes."""
        return CandidateSink(self, precision)

    def reference_name(self, name: str) -> str:
        """The reference's name of a candidate's array."""
        phase, rest = name.split("/", 1)
        if "#" in rest:
            path, call = rest.split("#", 1)
            return f"{phase}/{self.renamed.get(path, path)}#{call}"
        path, dot, attribute = rest.rpartition(".")
        rest = f"{self.renamed.get(path, path)}{dot}{attribute}"
        # Only the reference tells a frozen parameter from a buffer.
        return self._bare.get(rest, f"{phase}/{rest}") if phase in STATE else f"{phase}/{rest}"

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
            raise ValueError(f"two arrays of the candidate are compared with {name} ({precision}); see `renamed`")

    def take_isolated(self, precision: str, name: str, array: Array, oracle: Array) -> None:
        """``oracle``: this module in float64, fed with the same recorded inputs."""
        expected = self.reference[precision][name]
        self.isolated[name, precision] = self._compare(precision, array, expected, oracle, brief=True)

    def fail_isolated(self, precision: str, name: str, reason: str) -> None:
        self.isolated[name, precision] = Comparison(False, reason, (), "", 0)

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
        return tuple(
            self._row(index, name, precision, kinds)
            for index, name, precision in order
            if (name, precision) in self.accumulated
        )

    def _row(self, index: int, name: str, precision: str, kinds: Mapping[str, str]) -> Row:
        accumulated, isolated = self.accumulated[name, precision], self.isolated.get((name, precision))
        phase, rest = name.split("/", 1)
        call = rest.rsplit("/", 1)[0]
        module = call.rsplit("#", 1)[0] if phase == "activation" else rest.rpartition(".")[0]
        failed = [c for c in (isolated, accumulated) if c is not None and not c.passed]
        label = "isolated: " if failed and failed[0] is isolated else ""
        reason = f"{label}{failed[0].reason}" if failed else accumulated.reason
        excuse = self.excuse(name) if failed else None
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
        for name in self.oracle:
            phase = name.split("/", 1)[0]
            if phase == "input":
                continue
            reason = self.excuse(name)
            if all((name, precision) in self.accumulated for precision in precisions):
                compared[phase] = compared.get(phase, 0) + 1
            elif reason is not None:
                excused[name] = reason
            else:
                missing.append(name)
        for name in self.unexpected:
            reason = self.excuse(name)
            if reason is None:
                unexpected.append(name)
            else:
                excused[name] = reason
        return Coverage(compared, excused, tuple(missing), tuple(unexpected))


class CandidateSink:
    """The judge, as a sink for one precision."""

    def __init__(self, judge: Judge, precision: str) -> None:
        self.judge, self.precision = judge, precision

    def put(self, name: str, array: Array) -> None:
        self.judge.take_accumulated(self.precision, self.judge.reference_name(name), array)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        """The same tensor again: where it is the same on the reference's side too, so is the comparison."""
        judge = self.judge
        new, old = judge.reference_name(name), judge.reference_name(existing)
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
