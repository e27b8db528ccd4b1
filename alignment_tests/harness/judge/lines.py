"""The line to blame: the first operator of either side, inside of the blamed call, whose result the other side lacks.

A value is matched if the other side has one of the same signature. Where the other side has it in the same shape, the
order of the elements must agree too; in another shape it may differ, since a port may keep its tensors in another
layout. From what the call returns, the difference is followed back through unmatched values: what stays behind matched
ones is an inner step of something that comes out the same (x * sigmoid(x) beside silu).
"""

from __future__ import annotations

import ast
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment_tests.harness.record.operators import Tracing, plain_name
from alignment_tests.harness.record.places import Place
from alignment_tests.harness.record.signatures import Signature

# Signatures that differ by less, relatively, are taken for one, at first by the coarsest: what a framework computes
# with a float32 constant is off by up to 6e-8 of itself in float64, and must not hide a wrong formula behind it. Where
# nothing differs so much, a fault that few elements show moves the means by less, so finer ones follow; the rounding of
# two right programs stays far below the last. In float32 it is some 1e-7 to 1e-6 after long sums.
TOLERANCES = {"float64": (1e-7, 1e-9, 1e-11), "float32": (1e-4, 1e-5)}

MODULES = ("torch", "F", "jt", "jittor", "nn", "np", "math")  # by their usual names


@dataclass(frozen=True)
class Pair:
    """The operators to blame, by number; None where that side holds nothing that the other lacks."""

    reference: int | None
    candidate: int | None

    @property
    def both(self) -> bool:
        return self.reference is not None and self.candidate is not None


def culprits(reference: Tracing, candidate: Tracing, precision: str, slot: str) -> Pair | None:
    """The first operators that differ, at the coarsest tolerance that tells any; None if none can be named.

    Args:
        reference: what the reference's call did.
        candidate: the same of the candidate.
        precision: of both.
        slot: the output that differs; where a side has no such one, all its outputs count.
    """
    for tolerance in TOLERANCES[precision]:
        sides = [
            _differing(own, _matched(own, other, tolerance), slot)
            for own, other in ((reference, candidate), (candidate, reference))
        ]
        if any(sides):
            return _paired(reference, candidate, sides[0], sides[1], tolerance)
    return None


def _matched(own: Tracing, other: Tracing, tolerance: float) -> list[bool]:
    """Of each value of one side, whether the other has it."""
    buckets: dict[tuple[Any, ...], list[Signature]] = defaultdict(list)
    for signature in (*other.signatures, *other.inner):
        if signature is not None:
            buckets[signature.count, signature.special].append(signature)
    found = []
    for signature in own.signatures:
        if signature is None:
            found.append(False)
            continue
        alike = [s for s in buckets[signature.count, signature.special] if same(signature, s, tolerance)]
        ordered = [same_order(signature, s, tolerance) for s in alike if s.shape == signature.shape]
        found.append(any(ordered) if ordered else bool(alike))
    return found


def same(one: Signature, other: Signature, tolerance: float) -> bool:
    """Up to shape and order; counts are equal."""
    return abs(one.largest - other.largest) <= tolerance * one.largest and all(
        abs(a[0] - b[0]) <= tolerance * a[1]  # a mean may be small by cancellation
        and abs(a[1] - b[1]) <= tolerance * a[1]
        and abs(a[2] - b[2]) <= tolerance * a[2]
        for a, b in zip(_means(one), _means(other), strict=True)
    )


def _means(signature: Signature) -> tuple[tuple[float, float, float], ...]:
    return (signature.mean, signature.size, signature.rms), signature.bounded


def same_order(one: Signature, other: Signature, tolerance: float) -> bool:
    """Weighted sums of independent errors grow as the root of their number."""
    root = math.sqrt(one.count)
    scales = one.rms * root, one.bounded[2] * root
    return all(abs(a - b) <= tolerance * scale for a, b, scale in zip(one.order, other.order, scales, strict=True))


def _differing(trace: Tracing, matched: Sequence[bool], slot: str) -> list[int]:
    """Operators, in order, where the difference comes in: unmatched up to the output, with nothing unmatched before."""
    made_by = {value: number for number, operator in enumerate(trace.operators) for value in operator.outputs}
    ends = [trace.outputs[slot]] if slot in trace.outputs else list(trace.outputs.values())
    waiting, seen, guilty = [value for value in ends if not matched[value]], set[int](), set[int]()
    while waiting:
        value = waiting.pop()
        if value in seen or value not in made_by:
            continue
        seen.add(value)
        guilty.add(made_by[value])
        waiting += [given for given in trace.operators[made_by[value]].inputs if not matched[given]]
    first = [n for n in sorted(guilty) if all(v not in seen for v in trace.operators[n].inputs)]
    return [n for n in first if all(trace.signatures[v] is not None for v in trace.operators[n].outputs)]


def _paired(reference: Tracing, candidate: Tracing, theirs: list[int], ours: list[int], tolerance: float) -> Pair:
    """Of several, the first two that do the same to the same; else the first of each side."""
    for left in theirs:
        for right in ours:
            one, other = reference.operators[left], candidate.operators[right]
            if plain_name(one.name) == plain_name(other.name) and any(
                _same_values(reference, a, candidate, b, tolerance) for a in one.inputs for b in other.inputs
            ):
                return Pair(left, right)
    return Pair(next(iter(theirs), None), next(iter(ours), None))


def _same_values(reference: Tracing, a: int, candidate: Tracing, b: int, tolerance: float) -> bool:
    one, other = reference.signatures[a], candidate.signatures[b]
    return one is not None and other is not None and one.count == other.count and same(one, other, tolerance)


def exchanged(reference: Tracing, candidate: Tracing, pair: Pair, precision: str) -> Pair | None:
    """Where both do the same to other parts of one value, under the same names: what gave the parts these names.

    ``shift, scale = y.chunk(2)`` for ``scale, shift = y.chunk(2)`` shows first where ``scale`` is used.
    """
    tolerance = TOLERANCES[precision][0]
    first, second = reference.operators[pair.reference or 0], candidate.operators[pair.candidate or 0]
    if operands(first.place) != operands(second.place):
        return None
    for a, b in zip(first.inputs, second.inputs, strict=False):
        if not _same_values(reference, a, candidate, b, tolerance):
            left, right = _taken_from(reference, a, tolerance), _taken_from(candidate, b, tolerance)
            return Pair(left, right) if left is not None and right is not None else None
    return None


def _taken_from(trace: Tracing, value: int, tolerance: float) -> int | None:
    """The operator that took the value out of a larger one, whatever its layout is now."""
    made_by = {made: number for number, operator in enumerate(trace.operators) for made in operator.outputs}
    while value in made_by:
        number = made_by[value]
        if len(trace.operators[number].inputs) != 1:
            return None
        (given,) = trace.operators[number].inputs
        own, larger = trace.signatures[value], trace.signatures[given]
        if own is None or larger is None:
            return None
        if own.count < larger.count:
            return number
        if own.count > larger.count or not same(own, larger, tolerance):
            return None
        value = given
    return None


def operands(place: Place | None) -> list[str]:
    """Names that the expression reads, but for those of modules and functions."""
    try:
        tree = ast.parse(place.source() if place is not None else "", mode="eval")
    except SyntaxError:
        return []
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called)
    return [node.id for node in names if node.id not in MODULES]
