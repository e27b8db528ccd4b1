"""The comparator under torture: every planted fault fails for the right reason, and every clean variant passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, EPS32, Budget
from alignment_tests.harness.judge.compare import PERCENTILE_SAMPLE, Array, Comparison, compare_arrays, same_values
from alignment_tests.harness.judge.report import Row
from alignment_tests.harness.judge.rows import Judge
from alignment_tests.harness.record.bfloat16 import from_bits
from alignment_tests.harness.record.layout import Layout
from alignment_tests.harness.record.trace import Trace, TraceWriter

F32, F64 = np.float32, np.float64
ORACLE = np.random.default_rng(0).standard_normal((3, 4, 4))
ORACLE[0, 0, 0] = 4.0  # the largest: the scale
REFERENCE = ORACLE.astype(F32)
HUGE32, HUGE64 = float(np.finfo(F32).max), float(np.finfo(F64).max)
TINY32 = float(np.finfo(F32).smallest_subnormal)
Fault = Callable[[Array], Array]


def approx(value: Any, **tolerance: Any) -> Any:  # any type, so that mypy lets it into tuples
    return pytest.approx(value, **tolerance)


def judge(candidate: Array, precision: str = "float32", **options: Any) -> Comparison:
    """The candidate against REFERENCE and ORACLE, or in float64 against ORACLE alone."""
    if precision == "float64":
        return compare_arrays(candidate, ORACLE, **options)
    return compare_arrays(candidate, REFERENCE, **{"oracle": ORACLE, **options})


def put(value: float, index: tuple[int, ...] = (1, 2, 3)) -> Fault:
    def fault(array: Array) -> Array:
        changed = array.copy()
        changed[index] = value
        return changed

    return fault


def shuffled(array: Array) -> Array:
    return np.random.default_rng(1).permutation(array.reshape(-1)).reshape(array.shape)


def one_element_off(array: Array) -> Array:
    return put(float(array[2, 3, 1]) + 1e-3, (2, 3, 1))(array)


# Values: each fault in both precisions.

VALUE_FAULTS: dict[str, tuple[Fault, str]] = {
    "sign": (lambda a: -a, "elements beyond .* worst 8 at \\(0, 0, 0\\)"),
    "shuffled": (shuffled, "elements beyond"),
    "transposed in place of equal size": (lambda a: a.swapaxes(1, 2), "elements beyond"),
    "flipped": (lambda a: a[..., ::-1], "elements beyond"),
    "rolled by one": (lambda a: np.roll(a, 1, -1), "elements beyond"),
    "one element": (one_element_off, "1 of 48 elements beyond .* worst 0.001 at \\(2, 3, 1\\)"),
    "one element zeroed": (put(0.0), "1 of 48 elements beyond .* at \\(1, 2, 3\\)"),
    "scale 1.001": (lambda a: a * a.dtype.type(1.001), "elements beyond"),
    "scale 1.00001": (lambda a: a * a.dtype.type(1.00001), "elements beyond"),
    "offset": (lambda a: a + a.dtype.type(4e-3), "48 of 48 elements beyond"),
    "zeros": (np.zeros_like, "48 of 48 elements beyond"),
    "constant": (lambda a: np.full_like(a, a.mean()), "48 of 48 elements beyond"),
    "half precision": (lambda a: a.astype(np.float16).astype(a.dtype), "elements beyond"),
    "largest number": (put(HUGE32), "1 of 48 elements beyond .* worst 3.4e\\+38"),
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", VALUE_FAULTS)
def test_wrong_values_fail(name: str, precision: str) -> None:
    fault, reason = VALUE_FAULTS[name]
    result = judge(fault(REFERENCE if precision == "float32" else ORACLE), precision)
    assert not result.passed
    assert re.search(reason, result.reason), result.reason


def test_float64_fails_what_float32_cannot_see() -> None:
    assert judge((ORACLE * (1 + 2e-9)).astype(F32)).passed
    assert not judge(ORACLE * (1 + 2e-9), "float64").passed


@pytest.mark.parametrize("index", [0, 1, 499_999, 999_999])
def test_one_element_of_a_million_is_found(index: int) -> None:
    oracle = np.random.default_rng(2).standard_normal((10, 100, 1000))
    reference = oracle.astype(F32)
    candidate = reference.copy()
    candidate.flat[index] += F32(1e-3)
    result = compare_arrays(candidate, reference, oracle=oracle)
    assert (result.passed, result.failing) == (False, 1)
    assert result.worst_index == tuple(int(i) for i in np.unravel_index(index, oracle.shape))


# NaN and Inf

NOT_A_NUMBER = {
    "candidate": ("NaN in the candidate: 1 of 48", (1, 0, 0)),
    "reference": ("NaN in the reference: 1 of 48", (0, 1, 0)),
    "oracle": ("NaN in the oracle: 1 of 48", (0, 0, 1)),
    "candidate and reference": ("NaN in the candidate and the reference: 1 of 48", (1, 1, 0)),
    "all three": ("NaN in the candidate and the reference and the oracle: 1 of 48", (1, 1, 1)),
}


@pytest.mark.parametrize("case", NOT_A_NUMBER)
def test_nan_fails_on_any_side(case: str) -> None:
    reason, where = NOT_A_NUMBER[case]
    sides: list[Array] = [REFERENCE, REFERENCE, ORACLE]
    arrays = [put(np.nan)(side) if bad else side for side, bad in zip(sides, where, strict=True)]
    result = compare_arrays(arrays[0], arrays[1], oracle=arrays[2])
    assert not result.passed
    assert result.reason.startswith(reason)


def test_nan_fails_in_float64() -> None:
    assert judge(put(np.nan)(ORACLE), "float64").reason.startswith("NaN in the candidate: 1 of 48")


def test_all_nan_fails() -> None:
    nan = np.full(5, np.nan, F32)
    assert compare_arrays(nan, nan, oracle=nan.astype(F64)).reason.startswith("NaN in the candidate and the reference")


INFINITE: dict[str, tuple[tuple[float, float, float], str]] = {  # candidate, reference, oracle at one element
    "+Inf in the candidate": ((np.inf, 1, 1), "+Inf differs: 1 elements in the candidate, 0 in the reference"),
    "-Inf in the candidate": ((-np.inf, 1, 1), "-Inf differs: 1 elements in the candidate, 0 in the reference"),
    "+Inf in the reference": ((1, np.inf, 1), "+Inf differs: 0 elements in the candidate, 1 in the reference"),
    "-Inf in the oracle": ((1, 1, -np.inf), "-Inf differs: 0 elements in the candidate, 1 in the oracle"),
    "oracle finite": ((np.inf, np.inf, 1), "+Inf differs: 1 elements in the candidate, 0 in the oracle"),
    "opposite signs": ((-np.inf, np.inf, np.inf), "+Inf differs: 0 elements in the candidate, 1 in the reference"),
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinity_that_differs_fails(name: str) -> None:
    (candidate, reference, oracle), reason = INFINITE[name]
    result = compare_arrays(put(candidate)(REFERENCE), put(reference)(REFERENCE), oracle=put(oracle)(ORACLE))
    assert not result.passed
    assert result.reason.startswith(reason)


def test_as_many_infinities_elsewhere_fail() -> None:
    sides = put(np.inf, (0, 0, 1))(REFERENCE), put(np.inf)(REFERENCE), put(np.inf)(ORACLE)
    assert "or elsewhere" in compare_arrays(sides[0], sides[1], oracle=sides[2]).reason


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_infinities_in_the_same_places_pass(infinity: float) -> None:
    bad = put(infinity)
    result = compare_arrays(bad(REFERENCE), bad(REFERENCE), oracle=bad(ORACLE))
    assert result.passed, result.reason
    assert (result.scale, result.cosine, result.max_ulp) == (4.0, None, 0.0)


def test_the_rest_beside_infinities_is_judged() -> None:
    bad = put(np.inf)
    result = compare_arrays(one_element_off(bad(REFERENCE)), bad(REFERENCE), oracle=bad(ORACLE))
    assert (result.passed, result.failing, result.worst_index) == (False, 1, (2, 3, 1))


def test_all_infinite_proves_nothing() -> None:
    array = np.array([np.inf, -np.inf], F32)
    result = compare_arrays(array, array, oracle=array.astype(F64))
    assert (result.passed, result.reason) == (False, "nothing compared: every element is infinite")


# Structure: nothing is cast, transposed or broadcast

SHAPES = [
    ((), (1, 1)),
    ((1, 1), ()),
    ((1,), (1, 1)),
    ((), (2,)),
    ((3, 1), (3, 4)),
    ((4,), (1, 4)),
    ((4, 1), (4,)),
    ((3, 4), (4, 3)),
    ((2, 6), (3, 4)),
    ((0,), (1,)),
]


@pytest.mark.parametrize(("candidate", "reference"), SHAPES, ids=str)
def test_another_shape_fails(candidate: tuple[int, ...], reference: tuple[int, ...]) -> None:
    result = compare_arrays(np.ones(candidate), np.ones(reference))
    assert result.reason == f"shape differs: candidate {candidate}, reference {reference}"
    assert not result.passed


DTYPES = [
    ("float32", "float64"),
    ("float64", "float32"),
    ("float16", "float32"),
    ("int8", "bool"),
    ("bool", "uint8"),
    ("int64", "bool"),
    ("int32", "float32"),
    ("float32", "int64"),
    ("bool", "float32"),
    (">f4", "float32"),
]


@pytest.mark.parametrize(("candidate", "reference"), DTYPES, ids=str)
def test_another_dtype_fails(candidate: str, reference: str) -> None:
    result = compare_arrays(np.ones(3, candidate), np.ones(3, reference), oracle=np.ones(3))
    assert result.reason == f"dtype differs: candidate {candidate}, reference {reference}"
    assert not result.passed


@pytest.mark.parametrize("dtype", ["complex64", "longdouble", "object", "U1"])
def test_a_dtype_that_cannot_be_judged_fails(dtype: str) -> None:
    array = np.ones(3).astype(dtype)
    assert "cannot be judged" in compare_arrays(array, array, oracle=np.ones(3)).reason


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)], ids=str)
def test_empty_arrays_are_equal(dtype: str, shape: tuple[int, ...]) -> None:
    result = compare_arrays(np.ones(shape, dtype), np.ones(shape, dtype), oracle=np.ones(shape))
    assert (result.passed, result.elements) == (True, 0)
    assert result.reason == f"equal: both are empty, shape {shape}"


@pytest.mark.parametrize(("candidate", "reference"), [("float32", "int64"), ("bool", "int32"), ("complex64",) * 2])
def test_empty_arrays_of_types_that_differ_or_cannot_be_judged_fail(candidate: str, reference: str) -> None:
    assert not compare_arrays(np.ones(0, candidate), np.ones(0, reference), oracle=np.ones(0)).passed


ORACLES: dict[str, tuple[Array, str]] = {
    "other shape": (ORACLE[0], "shape differs: oracle (4, 4), reference (3, 4, 4)"),
    "broadcastable": (ORACLE[:1], "shape differs: oracle (1, 4, 4), reference (3, 4, 4)"),
    "integer": (np.ones((3, 4, 4), np.int64), "dtype differs: oracle int64, float64 expected"),
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_float32_row_needs_its_oracle(name: str) -> None:
    oracle, reason = ORACLES[name]
    result = compare_arrays(REFERENCE, REFERENCE, oracle=oracle)
    assert not result.passed
    assert result.reason.startswith(reason)


# What no port can help: Jittor has no arrays without axes, and its integers have 32 bits


@pytest.mark.parametrize(("candidate", "reference"), [((1,), ()), ((), (1,))], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "bool"])
@pytest.mark.parametrize("value", [1, 0])
def test_one_number_with_and_without_an_axis(
    value: int, dtype: str, candidate: tuple[int, ...], reference: tuple[int, ...]
) -> None:
    oracle = np.ones(reference) if dtype in ("float32", "float16") else None
    result = compare_arrays(np.full(candidate, value, dtype), np.ones(reference, dtype), oracle=oracle)
    assert (result.passed, result.shape) == (value == 1, reference)


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint64"]


@pytest.mark.parametrize("reference", INTEGERS)
@pytest.mark.parametrize("candidate", INTEGERS)
def test_integers_of_any_width_are_compared_by_value(candidate: str, reference: str) -> None:
    expected = np.array([[0, 1], [2, 127]], reference)
    assert compare_arrays(expected.astype(candidate), expected).reason == "equal"
    wrong = compare_arrays(np.array([[0, 1], [3, 127]], candidate), expected)
    assert wrong.reason == "1 of 4 elements differ, first at (1, 0)"


@pytest.mark.parametrize("beyond", [2**40, 300, -1])
def test_an_integer_that_was_wrapped_differs(beyond: int) -> None:
    expected = np.array([beyond])
    with np.errstate(all="ignore"):
        assert not compare_arrays(expected.astype(np.uint8), expected).passed
    assert compare_arrays(expected.astype(np.int32), expected).passed == (beyond != 2**40)


@pytest.mark.parametrize("tensor", [np.array([0.1], F32), np.array(0.1, F32)], ids=["(1,)", "()"])
def test_a_python_number_is_taken_in_the_type_of_the_tensor(tensor: Array) -> None:
    oracle = np.full(tensor.shape, 0.1)
    assert compare_arrays(np.asarray(0.1), tensor, oracle=oracle).passed
    assert compare_arrays(tensor, np.asarray(0.1), oracle=np.asarray(0.1)).passed
    assert not compare_arrays(np.asarray(0.1001), tensor, oracle=oracle).passed
    assert not compare_arrays(tensor + F32(1e-4), np.asarray(0.1), oracle=np.asarray(0.1)).passed


# Types that are narrower than float32, and arrays that stay narrow in a float64 run


def narrowed(array: Array, name: str) -> Array:
    if name == "bfloat16":
        return from_bits((array.astype(F32).view(np.uint32) + 0x8000 >> 16).astype(np.uint16))
    return array.astype(name)


NARROW = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_type_is_judged_by_its_own_spacing(name: str) -> None:
    oracle = np.array([1.0, 0.0])
    reference, limit = narrowed(oracle, name), narrowed(np.array([1.0, 4 * NARROW[name]]), name)
    result = compare_arrays(limit, reference, oracle=oracle)
    assert (result.passed, result.dtype, result.budget) == (True, name, 4 * NARROW[name])
    above = narrowed(np.array([1.0, 4.1 * NARROW[name]]), name)
    assert not compare_arrays(above, reference, oracle=oracle).passed


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_candidate_has_four_times_the_error_of_the_reference(name: str) -> None:
    oracle = np.array([1.0, 0.0])
    reference = narrowed(np.array([1.0, 0.0625]), name)
    assert compare_arrays(narrowed(np.array([1.0, 0.25]), name), reference, oracle=oracle).passed
    assert not compare_arrays(narrowed(np.array([1.0, 0.265625]), name), reference, oracle=oracle).passed


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("fault", ["sign", "shuffled", "flipped", "rolled by one", "one element zeroed", "zeros"])
def test_faults_in_a_narrow_type_fail(fault: str, name: str) -> None:
    wrong = narrowed(VALUE_FAULTS[fault][0](REFERENCE), name)
    assert compare_arrays(wrong, narrowed(REFERENCE, name), oracle=ORACLE).failing


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16"), ("float64", "float32")],
)
def test_another_floating_type_is_told_by_name(candidate: str, reference: str) -> None:
    result = compare_arrays(narrowed(ORACLE, candidate), narrowed(ORACLE, reference), oracle=ORACLE)
    assert (result.passed, result.reason) == (False, f"dtype differs: candidate {candidate}, reference {reference}")


STAYED = [
    ("float32", "float64", "in the float64 run the candidate gave float32, the reference float64"),
    ("float64", "float32", "in the float64 run the candidate gave float64, the reference float32"),
    ("float16", "float64", "in the float64 run the candidate gave float16, the reference float64"),
    ("bfloat16", "float32", "in the float64 run the candidate gave bfloat16, the reference float32"),
    ("float32", "float32", "stayed float32 in the float64 run, on both sides"),
]


@pytest.mark.parametrize(("candidate", "reference", "told"), STAYED)
def test_what_stays_narrow_in_a_float64_run_is_told_and_judged_as_what_it_is(
    candidate: str, reference: str, told: str
) -> None:
    own, theirs = narrowed(ORACLE, candidate), narrowed(ORACLE, reference)
    result = compare_arrays(own, theirs)
    assert result.passed, result.reason
    assert result.reason.endswith(told)
    wrong = compare_arrays(narrowed(put(float(own[1, 2, 3]) + 0.25)(ORACLE), candidate), theirs)
    assert (wrong.failing, wrong.reason.endswith(told)) == (1, True)


def test_a_float32_array_of_a_float64_run_has_the_floor_of_float32() -> None:
    expected = np.array([1.0, 0.0])
    limit = np.array([1.0, DEFAULT_BUDGET.c * EPS32], F32)
    assert compare_arrays(limit, expected).passed
    assert not compare_arrays(np.nextafter(limit, F32(9)), expected).passed


def test_an_oracle_that_stayed_narrow_is_told() -> None:
    result = compare_arrays(REFERENCE, REFERENCE, oracle=REFERENCE)
    assert result.passed
    assert result.reason.endswith("the reference's float64 run gave float32")


def test_float64_numbers_of_a_float32_run_are_judged_as_float32() -> None:
    """A model may widen by itself; what it widens was rounded before."""
    oracle = np.array([1.0, 0.1])
    reference = oracle.astype(F32).astype(F64)
    assert compare_arrays(np.nextafter(reference, 9), reference, oracle=oracle).passed
    assert not compare_arrays(reference + np.array([0, 1e-5]), reference, oracle=oracle).passed


def test_ulps_of_bfloat16_are_its_own() -> None:
    one = narrowed(np.array([1.0, 2.0]), "bfloat16")
    assert (
        compare_arrays(narrowed(np.array([1.0078125, 2.0]), "bfloat16"), one, oracle=np.array([1.0, 2.0])).max_ulp == 1
    )


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        (np.array([1, 2], np.int32), np.array([1, 2]), True),
        (np.array([1, 3], np.int32), np.array([1, 2]), False),
        (np.array([1], np.uint8), np.array(1), True),
        (np.array([True]), np.array([1]), False),
        (np.array([0.5], F32), np.array(0.5, F32), True),
        (np.array([0.5], F32), np.array([[0.5]], F32), False),
        (np.array([0.5], F32), np.array([0.5]), False),
        (np.array([-0.0], F32), np.array([0.0], F32), False),
        (narrowed(np.ones(1), "bfloat16"), np.ones(1, F32), False),
    ],
)
def test_weights_that_are_the_same(actual: Array, expected: Array, same: bool) -> None:
    assert same_values(actual, expected) == same


# Clean variants


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1, 1, 1), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_arrays_pass(shape: tuple[int, ...], dtype: str) -> None:
    oracle = np.random.default_rng(3).standard_normal(shape)
    array = np.asarray(oracle, dtype)
    result = compare_arrays(array, array.copy(), oracle=np.asarray(oracle) if dtype == "float32" else None)
    assert result.passed, result.reason
    assert (result.max_ulp, result.difference, result.cosine) == (0.0, 0.0, approx(1.0))


def test_a_wrong_scalar_fails() -> None:
    result = compare_arrays(np.asarray(1.5), np.asarray(1.0))
    assert (result.passed, result.failing, result.worst_index, result.worst_actual) == (False, 1, (), 1.5)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_a_constant_array_passes(value: float) -> None:
    oracle = np.full((2, 3), value)
    assert compare_arrays(oracle.astype(F32), oracle.astype(F32), oracle=oracle).passed


def test_a_wrong_constant_fails() -> None:
    assert not compare_arrays(np.full(9, 1.01, F32), np.full(9, 1, F32), oracle=np.ones(9)).passed


LAYOUTS: dict[str, Fault] = {
    "Fortran order": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "reversed twice": lambda a: a[::-1].copy()[::-1],
    "a transposed copy": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
}


@pytest.mark.parametrize("side", ["candidate", "reference", "oracle"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_in_memory_changes_nothing(layout: str, side: str) -> None:
    arrays = {"candidate": one_element_off(REFERENCE), "reference": REFERENCE, "oracle": ORACLE}
    expected = compare_arrays(arrays["candidate"], REFERENCE, oracle=ORACLE)
    arrays[side] = LAYOUTS[layout](arrays[side])
    assert not arrays[side].flags.c_contiguous
    assert compare_arrays(arrays["candidate"], arrays["reference"], oracle=arrays["oracle"]) == expected


def test_read_only_arrays_are_left_alone() -> None:
    arrays = [put(np.inf)(a) for a in (REFERENCE, REFERENCE, ORACLE)]
    before = [a.tobytes() for a in arrays]
    for array in arrays:
        array.flags.writeable = False
    assert compare_arrays(arrays[0], arrays[1], oracle=arrays[2]).passed
    assert [a.tobytes() for a in arrays] == before


# Integers and bool: equal or not

EXACT = ["bool", "uint8", "int8", "int16", "int32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", EXACT)
def test_equal_integers_pass(dtype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    assert compare_arrays(array, array.copy()).reason == "equal"


@pytest.mark.parametrize("dtype", EXACT)
def test_one_other_integer_fails(dtype: str) -> None:
    expected = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    actual = expected.copy()
    actual[1, 1] = 1
    result = compare_arrays(actual, expected)
    assert (result.passed, result.reason) == (False, "1 of 6 elements differ, first at (1, 1)")
    assert (result.worst_actual, result.worst_expected) == (1.0, 0.0)


@pytest.mark.parametrize(("actual", "expected"), [(2**53 + 1, 2**53), (-(2**63), 2**63 - 1)])
def test_integers_beyond_float64_differ(actual: int, expected: int) -> None:
    assert not compare_arrays(np.array([actual]), np.array([expected])).passed


def test_a_wrong_integer_scalar_fails() -> None:
    assert compare_arrays(np.asarray(3), np.asarray(4)).reason == "1 of 1 elements differ, first at ()"


# The limits


def test_float64_at_the_bar_passes_and_one_ulp_above_fails() -> None:
    expected = np.array([1.0, 0.0])
    bar = DEFAULT_BUDGET.float64_bar
    assert compare_arrays(np.array([1.0, bar]), expected).passed
    assert not compare_arrays(np.array([1.0, np.nextafter(bar, 1.0)]), expected).passed


@pytest.mark.parametrize("k", [4.0, 16.0])
def test_float32_at_k_times_the_reference_error_passes_and_beyond_fails(k: float) -> None:
    oracle = np.array([1.0, 0.0])
    reference = np.array([1.0, 2.0**-10], F32)
    limit = np.array([1.0, k * 2.0**-10], F32)
    budget = Budget(k=k)
    at = compare_arrays(limit, reference, oracle=oracle, budget=budget)
    assert (at.passed, at.ratio, at.budget) == (True, k, k * 2.0**-10)
    assert not compare_arrays(np.nextafter(limit, F32(9)), reference, oracle=oracle, budget=budget).passed


def test_float32_with_an_exact_reference_is_judged_by_the_floor() -> None:
    oracle = np.array([1.0, 0.0])
    limit = np.array([1.0, DEFAULT_BUDGET.c * EPS32], F32)
    at = compare_arrays(limit, oracle.astype(F32), oracle=oracle)
    assert (at.passed, at.ratio, at.reference_error) == (True, None, 0.0)
    assert "x eps32 x scale 1" in at.reason
    assert not compare_arrays(np.nextafter(limit, F32(9)), oracle.astype(F32), oracle=oracle).passed


def test_an_exact_candidate_of_an_exact_reference_has_ratio_zero() -> None:
    array = np.array([1.0, 0.5])
    assert compare_arrays(array.astype(F32), array.astype(F32), oracle=array).ratio == 0.0


def test_float64_has_no_ratio() -> None:
    result = judge(ORACLE, "float64")
    assert (result.ratio, result.reference_error) == (None, None)


@pytest.mark.parametrize(
    "candidate", [np.zeros_like(REFERENCE), -REFERENCE, REFERENCE[::-1]], ids=["0", "sign", "[::-1]"]
)
def test_a_reference_far_from_its_oracle_proves_nothing(candidate: Array) -> None:
    result = compare_arrays(candidate, REFERENCE[::-1].copy(), oracle=ORACLE)
    assert not result.passed
    assert result.reason.startswith("proves nothing: the reference errs by")


MOST = np.linspace(1.0, 2.0, 200)
SPOILT = (MOST + 1e-7 * np.cos(np.arange(200))).astype(F32)  # a reference with one element that is all noise
SPOILT[7] = -1.0


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        (put(3.0, (7,))(SPOILT), "90% of the elements err by up to"),
        (put(1.5, (7,))(SPOILT + F32(3e-7)), "90% of the elements err by up to"),
        (SPOILT * F32(1 + 1e-4), "90% of the elements err by up to"),
        (np.zeros_like(SPOILT), "90% of the elements err by up to"),
        (-SPOILT, "90% of the elements err by up to"),
        (SPOILT[::-1], "90% of the elements err by up to"),
    ],
    ids=["noise elsewhere", "rounding", "scaled", "zeros", "sign", "order"],
)
def test_most_elements_are_judged_where_the_largest_error_proves_nothing(
    candidate: Array, text: str, request: pytest.FixtureRequest
) -> None:
    result = compare_arrays(candidate, SPOILT, oracle=MOST)
    assert text in result.reason
    assert result.passed == any(name in request.node.callspec.id for name in ("noise elsewhere", "rounding"))
    assert result.failing == (0 if result.passed else 200)


def test_a_reference_that_is_noise_in_most_elements_proves_nothing() -> None:
    noise = (MOST * np.where(np.arange(200) % 3, -1, 1)).astype(F32)
    assert compare_arrays(noise, noise, oracle=MOST).reason.startswith("proves nothing")


@pytest.mark.parametrize(("error", "passes"), [(2.0**-5, True), (2.0**-4, False)])
def test_an_allowance_as_large_as_the_scale_proves_nothing(error: float, passes: bool) -> None:
    oracle = np.array([1.0, 0.0])
    reference = np.array([1.0, error], F32)
    assert compare_arrays(reference, reference, oracle=oracle, budget=Budget(k=16.0)).passed == passes


# Where the true value is zero

ZERO = np.zeros(4)


def test_zero_everywhere_passes_only_zero() -> None:
    assert compare_arrays(ZERO, ZERO).passed
    assert not compare_arrays(np.full(4, 1e-300), ZERO).passed


def test_the_scale_of_the_neighbours_judges_zero() -> None:
    noise = np.full(4, 1e-10)
    assert compare_arrays(noise, ZERO, zero_scale=1.0).passed
    assert not compare_arrays(noise, ZERO, zero_scale=1e-2).passed


def test_the_scale_of_the_neighbours_judges_zero_in_float32() -> None:
    options: dict[str, Any] = {"oracle": ZERO, "zero_scale": 1.0}
    assert compare_arrays(np.full(4, 3 * EPS32, F32), ZERO.astype(F32), **options).passed
    assert not compare_arrays(np.full(4, 5 * EPS32, F32), ZERO.astype(F32), **options).passed


def test_the_scale_of_the_neighbours_is_for_zero_only() -> None:
    assert not judge(ORACLE * (1 + 1e-6), "float64", zero_scale=1e9).passed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_zeros_are_one_number(dtype: str) -> None:
    zero = np.array([1, 0.0], dtype)
    result = compare_arrays(-zero * [-1, 1], zero, oracle=zero.astype(F64)) if dtype == "float64" else None
    result = result or compare_arrays(np.array([1, -0.0], F32), zero, oracle=zero.astype(F64))
    assert (result.passed, result.max_ulp, result.max_abs_error) == (True, 0.0, 0.0)


# The ends of the number range. Warnings are errors here, so an overflow in a metric would raise.


def test_subnormals_are_compared() -> None:
    oracle = np.arange(1.0, 9.0) * 1e-40
    assert compare_arrays(oracle.astype(F32), oracle.astype(F32), oracle=oracle).passed


def test_subnormals_flushed_to_zero_fail() -> None:
    oracle = np.arange(1.0, 9.0) * 1e-40
    result = compare_arrays(np.zeros(8, F32), oracle.astype(F32), oracle=oracle)
    assert (result.passed, result.failing) == (False, 8)
    assert result.smallest_tolerance == 1.0


def test_subnormals_flushed_in_the_reference_fail() -> None:
    oracle = np.arange(1.0, 9.0) * 1e-40
    result = compare_arrays(oracle.astype(F32), np.zeros(8, F32), oracle=oracle)
    assert result.reason.startswith("proves nothing")


def test_a_flushed_subnormal_beside_large_numbers_passes() -> None:
    oracle = np.array([1.0, 1e-40])
    assert compare_arrays(np.array([1, 0], F32), oracle.astype(F32), oracle=oracle).passed


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200, HUGE64])
def test_float64_of_any_size_is_judged(size: float) -> None:
    expected = np.array([1.0, 0.5, -0.25]) * size
    assert compare_arrays(expected.copy(), expected).passed
    result = compare_arrays(expected * [1, 1, 0.5], expected)
    assert (result.passed, result.failing, result.worst_index) == (False, 1, (2,))
    assert result.smallest_tolerance == approx(0.125)
    assert result.rmse == approx(0.125 * size / np.sqrt(3))
    assert result.cosine == approx(1.28125 / np.sqrt(1.3125 * 1.265625))


def test_huge_float32_is_judged() -> None:
    oracle = np.array([1.0, -0.5]) * HUGE32
    assert compare_arrays(oracle.astype(F32), oracle.astype(F32), oracle=oracle).passed
    assert not compare_arrays(-oracle.astype(F32), oracle.astype(F32), oracle=oracle).passed


def test_a_difference_beyond_the_largest_number_fails() -> None:
    expected = np.array([HUGE64, 1.0])
    result = compare_arrays(-expected, expected)
    assert (result.passed, result.max_abs_error, result.rmse) == (False, HUGE64, approx(HUGE64 / np.sqrt(2)))


# Metrics on known cases

NEIGHBOURS = [1.0, -1.0, 0.0, 1e-40, 3.4e38, -1e-3]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", NEIGHBOURS)
def test_the_next_number_is_one_ulp_away(value: float, dtype: str) -> None:
    expected = np.array([value, 4.0], dtype)
    actual = np.nextafter(expected, np.array([-9, 4], dtype))
    assert compare_arrays(actual, expected, oracle=expected.astype(F64)).max_ulp == 1.0


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 0x3F800000), ("float64", 0x3FF0000000000000)])
def test_ulp_counts_across_zero(dtype: str, bits: int) -> None:
    one = np.array([1.0], dtype)
    assert compare_arrays(-one, one, oracle=one.astype(F64)).max_ulp == 2.0 * bits


COSINES = [
    ([3, 4], [3, 4], 1.0),
    ([3, 4], [-3, -4], -1.0),
    ([1, 0], [0, 1], 0.0),
    ([1, 1], [1, 0], 2**-0.5),
    ([1e200, 1e200], [1e200, 0], 2**-0.5),
    ([1e-200, 1e-200], [1e-200, 0], 2**-0.5),
    ([0, 0], [0, 0], 1.0),
    ([0, 0], [1, 0], 0.0),
]


@pytest.mark.parametrize(("actual", "expected", "cosine"), COSINES)
def test_cosine(actual: list[float], expected: list[float], cosine: float) -> None:
    assert compare_arrays(np.array(actual, F64), np.array(expected, F64)).cosine == approx(cosine, abs=1e-15)


def test_metrics_of_one_error_of_two() -> None:
    expected = np.array([[8.0, -2.0], [4.0, 0.0]])
    result = compare_arrays(expected + np.array([[0, 0.5], [-2, 0]]), expected)
    assert (result.max_abs_error, result.worst_index) == (2.0, (1, 0))
    assert (result.worst_actual, result.worst_expected) == (2.0, 4.0)
    assert (result.scale, result.smallest_tolerance) == (8.0, 0.25)
    assert (result.rmse, result.failing, result.elements) == (approx(np.sqrt(4.25 / 4)), 2, 4)


def test_smallest_tolerance_is_the_bar_that_would_pass() -> None:
    actual = shuffled(ORACLE)
    needed = judge(actual, "float64").smallest_tolerance
    assert needed is not None
    assert judge(actual, "float64", budget=Budget(float64_bar=needed)).passed
    assert not judge(actual, "float64", budget=Budget(float64_bar=needed * (1 - 1e-15))).passed


def test_error_is_against_the_oracle_and_difference_against_the_reference() -> None:
    oracle = np.array([1.0, 0.0])
    reference, candidate = np.array([1, 2e-8], F32), np.array([1, -3e-8], F32)
    result = compare_arrays(candidate, reference, oracle=oracle)
    errors = (result.max_abs_error, result.reference_error, result.difference, result.ratio)
    assert errors == approx((3e-8, 2e-8, 5e-8, 1.5), rel=1e-6)


def test_p99_of_a_few_elements() -> None:
    assert compare_arrays(np.arange(101.0), np.zeros(101)).p99_abs_error == 99.0


def test_p99_of_a_large_array_is_near_the_true_one() -> None:
    errors = np.linspace(0, 1, 5 * PERCENTILE_SAMPLE)
    assert compare_arrays(errors, np.zeros_like(errors)).p99_abs_error == approx(0.99, abs=2e-3)


def test_a_comparison_is_plain_data() -> None:
    assert replace(judge(REFERENCE)) == Comparison(**judge(REFERENCE).to_json())


# Names, through the judge

NAMES = ["activation/a#0/0", "activation/b#0/0", "activation/b#1/0", "parameter/a.weight", "buffer/a.mean"]


def written(folder: Path, names: list[str], dtype: str) -> Trace:
    with TraceWriter(folder) as writer:
        for name in names:
            writer.put(name, np.asarray(ORACLE, dtype))
    return writer.trace


@pytest.fixture
def names(tmp_path: Path) -> Judge:
    traces = {dtype: written(tmp_path / dtype, NAMES, dtype) for dtype in ("float64", "float32")}
    return Judge(traces, DEFAULT_BUDGET, {"*/spare.*": "a spare part"}, Layout({"c": "b"}))


def rows_of(names: Judge, given: list[str]) -> tuple[Row, ...]:
    sink = names.sink("float64")
    for name in given:
        sink.put(name, ORACLE)
    return names.rows(("float64",))


def test_names_in_another_order_are_the_same_rows(names: Judge) -> None:
    rows = rows_of(names, NAMES[::-1])
    assert [row.name for row in rows] == NAMES
    assert {row.verdict for row in rows} == {"pass"}


def test_every_name_is_in_the_ledger(names: Judge) -> None:
    rows_of(names, NAMES)
    coverage = names.coverage(("float64",))
    assert coverage.compared == {"activation": 3, "parameter": 1, "buffer": 1}
    assert (coverage.missing, coverage.unexpected) == ((), ())


def test_a_missing_name_is_reported(names: Judge) -> None:
    rows_of(names, NAMES[1:])
    assert names.coverage(("float64",)).missing == ("activation/a#0/0",)


def test_a_name_missing_in_one_precision_is_reported(names: Judge) -> None:
    rows_of(names, NAMES)
    assert names.coverage(("float64", "float32")).missing == tuple(NAMES)


@pytest.mark.parametrize("name", ["activation/a#1/0", "activation/A#0/0", "activation/a#0/1", "parameter/a.bias"])
def test_an_extra_name_is_reported(name: str, names: Judge) -> None:
    rows_of(names, [*NAMES, name])
    assert names.coverage(("float64",)).unexpected == (name,)


def test_an_excused_name_is_listed_with_its_reason(names: Judge) -> None:
    rows_of(names, [*NAMES, "parameter/spare.weight"])
    assert names.coverage(("float64",)).excused == {"parameter/spare.weight": "a spare part"}


def test_a_buffer_on_one_side_may_be_a_parameter_on_the_other(names: Judge) -> None:
    rows = rows_of(names, ["buffer/a.weight", "parameter/a.mean"])
    assert [row.name for row in rows] == ["parameter/a.weight", "buffer/a.mean"]


def test_a_renamed_module_takes_its_state_with_it(tmp_path: Path) -> None:
    oracle = written(tmp_path, NAMES, "float64")
    renamed = Judge({"float64": oracle}, DEFAULT_BUDGET, None, Layout({"stem": "a", "last": "b"}))
    given = ["activation/stem#0/0", "activation/last#0/0", "activation/last#1/0", "parameter/stem.weight"]
    assert [row.name for row in rows_of(renamed, [*given, "buffer/stem.mean"])] == NAMES


@pytest.mark.parametrize("second", ["activation/b#0/0", "activation/c#0/0"])
def test_a_name_compared_twice_is_refused(second: str, names: Judge) -> None:
    with pytest.raises(ValueError, match="two arrays of the candidate are compared with activation/b#0/0"):
        rows_of(names, ["activation/b#0/0", second])


def test_an_alias_of_a_name_compared_before_is_refused(names: Judge) -> None:
    sink = names.sink("float64")
    sink.put("activation/a#0/0", ORACLE)
    with pytest.raises(ValueError, match="compared with activation/a#0/0"):
        sink.alias("activation/a#0/0", "activation/a#0/0", lambda: ORACLE)


def test_an_alias_on_one_side_only_is_compared_itself(names: Judge) -> None:
    sink = names.sink("float64")
    sink.put("activation/a#0/0", ORACLE)
    sink.alias("activation/b#0/0", "activation/a#0/0", lambda: -ORACLE)
    assert [row.verdict for row in names.rows(("float64",))] == ["pass", "fail"]


def test_a_name_that_the_oracle_lacks_is_unexpected(tmp_path: Path) -> None:
    traces = {
        "float64": written(tmp_path / "a", NAMES[:1], "float64"),
        "float32": written(tmp_path / "b", NAMES, "float32"),
    }
    partial = Judge(traces, DEFAULT_BUDGET)
    partial.sink("float32").put(NAMES[1], REFERENCE)
    assert partial.coverage(("float32",)).unexpected == (NAMES[1],)


@pytest.mark.parametrize("value", [np.inf, HUGE32, 0.0])
def test_details_of_extreme_rows_are_drawn(value: float, tmp_path: Path) -> None:
    oracle = np.full((1, 2, 3, 3), float(value))
    oracle[0, 0, 0, 0] = 1.0
    traces = {}
    for dtype in ("float64", "float32"):
        with TraceWriter(tmp_path / dtype) as writer:
            writer.put("activation/a#0/0", oracle.astype(dtype))
        traces[dtype] = writer.trace
    extreme = Judge(traces, DEFAULT_BUDGET)
    extreme.sink("float32").put("activation/a#0/0", oracle.astype(F32))
    assert extreme.details()[0].candidate_errors[0] == 0.0
