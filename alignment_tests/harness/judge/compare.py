"""Compare one candidate array with the reference and the oracle: structure first, then every element."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, SPACING, Budget
from alignment_tests.harness.record.bfloat16 import to_bits, type_name

Array = npt.NDArray[Any]

SAFE_SQUARES = (1e-140, 1e140)  # magnitudes whose squares, and sums of them, neither vanish nor overflow
QUANTILES, FEWEST = (0.5, 0.9), 64  # of the errors, where the largest proves nothing; elements that these need
FLOATS = (*SPACING, "float64")  # narrow ones, and the one that is an oracle
PERCENTILE_SAMPLE = 200_000  # p99 is taken over an even stride of at most this many elements; every verdict sees all


@dataclass(frozen=True)
class Comparison:
    """Candidate against oracle for one pair of arrays.

    ``max_abs_error``, ``p99_abs_error``, ``rmse``, ``cosine`` and ``smallest_tolerance`` are candidate against oracle;
    ``difference`` and ``max_ulp`` are candidate against reference, in the precision of both. ``reference_error`` is
    the reference's own error against the oracle and ``ratio`` the candidate's in units of it (None in float64, where
    the reference is the oracle). ``scale`` is the oracle's largest magnitude. ``budget`` is the error that was allowed.
    """

    passed: bool
    reason: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    failing: int = 0
    scale: float = 0.0
    budget: float = 0.0
    max_abs_error: float | None = None
    p99_abs_error: float | None = None
    rmse: float | None = None
    cosine: float | None = None
    max_ulp: float | None = None
    difference: float | None = None
    reference_error: float | None = None
    ratio: float | None = None
    smallest_tolerance: float | None = None
    worst_index: tuple[int, ...] | None = None
    worst_actual: float | None = None
    worst_expected: float | None = None

    @property
    def proves_nothing(self) -> bool:
        """The reference itself errs so much that nothing about the candidate follows."""
        return not self.passed and self.failing == 0 and self.max_abs_error is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scales:
    """What else than the array itself may judge it; see ``compare_arrays``."""

    zero: float
    given: float | None
    yardstick: float


def compare_arrays(
    actual: Array,
    expected: Array,
    *,
    oracle: Array | None = None,
    budget: Budget = DEFAULT_BUDGET,
    zero_scale: float = 0.0,
    scale: float | None = None,
    yardstick: float = 0.0,
    brief: bool = False,
) -> Comparison:
    """Judge the candidate's array ``actual`` against the reference's ``expected``.

    Nothing is cast, transposed or broadcast, but for what no port can help: Jittor has no arrays without axes, so (1,)
    stands for (), and integers of 32 bits, so integers are compared by value whatever their width. A Python number is
    taken in the type of the array that it is compared with.

    Args:
        actual: the candidate's array: floating, integers or bool, which must be equal.
        expected: the reference's array, of the same shape and type.
        oracle: the reference in float64, for what a float32 run gave; what a float64 run gave is its own oracle. Arrays
            that stayed narrower than float64 there are judged by the spacing of their own numbers, and the reason says
            so.
        budget: the limits. Half precision and bfloat16 have those of ``Budget.for_type``.
        zero_scale: scale to judge by where the oracle is zero everywhere (that of the array before it).
        scale: judge by this one in place of the oracle's own.
        yardstick: relative error of the reference elsewhere in this phase, where its error in a single array is luck:
            the unit is at least this share of the scale.
        brief: leave out what only informs (p99, RMSE, cosine, ULP); the verdict is the same.

    Returns:
        A comparison whose ``passed`` and ``reason`` hold the verdict. It never raises for what the arrays hold.
    """
    actual, expected = _alike(actual, expected)
    problem = _structure(actual, expected, oracle)
    if problem is None and not actual.size:
        return Comparison(True, f"equal: both are empty, shape {actual.shape}", actual.shape, type_name(actual), 0)
    if problem is None and actual.dtype.kind in "biu":
        return _compare_exact(actual, expected)
    if problem is None:
        problem = _finiteness(actual, expected, oracle)
    if problem is not None:
        return Comparison(False, problem, actual.shape, type_name(actual), int(actual.size))
    scales = Scales(zero_scale, scale, yardstick)
    return _compare_values(actual, expected, oracle, budget, scales, brief)


def _alike(actual: Array, expected: Array) -> tuple[Array, Array]:
    """The same numbers, () and (1,) in the shape of the reference, a Python number in the type of the other side."""
    if {actual.shape, expected.shape} <= {(), (1,)}:
        if _is_python_float(expected):
            expected = _in_type_of(actual, expected)
        elif _is_python_float(actual):
            actual = _in_type_of(expected, actual)
        actual = actual.reshape(expected.shape)
    return actual, expected


def _is_python_float(array: Array) -> bool:
    return array.shape == () and array.dtype == np.float64


def _in_type_of(array: Array, number: Array) -> Array:
    return number.astype(array.dtype) if type_name(array) in FLOATS else number


def _structure(actual: Array, expected: Array, oracle: Array | None) -> str | None:
    if actual.shape != expected.shape:
        return f"shape differs: candidate {actual.shape}, reference {expected.shape}"
    own, theirs = type_name(actual), type_name(expected)
    if own != theirs and not _may_differ(actual, expected, oracle):
        return f"dtype differs: candidate {own}, reference {theirs}"
    if actual.dtype.kind in "biu":
        return None
    if own not in FLOATS:
        return f"dtype {own} cannot be judged: {', '.join(FLOATS)}, integers and bool can"
    if oracle is not None and oracle.shape != expected.shape:
        return f"shape differs: oracle {oracle.shape}, reference {expected.shape}"
    if oracle is not None and type_name(oracle) not in FLOATS:
        return f"dtype differs: oracle {oracle.dtype}, float64 expected"
    return None


def _may_differ(actual: Array, expected: Array, oracle: Array | None) -> bool:
    """Integers may have any width. In a float64 run what is named float32 is no choice of the port's: it is void there,
    and what stays narrow is a framework's own doing."""
    if actual.dtype.kind in "iu" and expected.dtype.kind in "iu":
        return True
    return oracle is None and type_name(actual) in FLOATS and type_name(expected) in FLOATS


def _finiteness(actual: Array, expected: Array, oracle: Array | None) -> str | None:
    """NaN proves nothing and fails on any side; infinities must stand in the same places with the same sign."""
    sides = {"candidate": actual, "reference": expected} | ({} if oracle is None else {"oracle": oracle})
    if all(np.isfinite(array).all() for array in sides.values()):
        return None
    for name, array in sides.items():
        count = int(np.isnan(array).sum())
        if count:
            also = [other for other, a in sides.items() if other != name and np.isnan(a).any()]
            return f"NaN in the {' and the '.join([name, *also])}: {count} of {array.size} elements"
    for sign, infinity in (("+", np.inf), ("-", -np.inf)):
        places = {name: array == infinity for name, array in sides.items()}
        for name, place in places.items():
            if not np.array_equal(place, places["candidate"]):
                first, second = int(places["candidate"].sum()), int(place.sum())
                return f"{sign}Inf differs: {first} elements in the candidate, {second} in the {name}, or elsewhere"
    if not np.isfinite(actual).any():
        return "nothing compared: every element is infinite"
    return None


def _compare_exact(actual: Array, expected: Array) -> Comparison:
    wrong = actual != expected
    failing = int(wrong.sum())
    index = _worst(wrong.astype(np.uint8)) if failing else None
    reason = "equal" if not failing else f"{failing} of {actual.size} elements differ, first at {index}"
    return Comparison(
        passed=not failing,
        reason=reason,
        shape=actual.shape,
        dtype=type_name(actual),
        elements=int(actual.size),
        failing=failing,
        worst_index=index,
        worst_actual=None if index is None else float(actual[index]),
        worst_expected=None if index is None else float(expected[index]),
    )


def _compare_values(
    actual: Array, expected: Array, given: Array | None, budget: Budget, scales: Scales, brief: bool
) -> Comparison:
    types = [type_name(array) for array in (actual, expected, *([] if given is None else [given]))]
    narrow = max((name for name in types if name in SPACING), key=SPACING.__getitem__, default="float64")
    limits = budget.for_type(narrow)
    precision = "float64" if given is None and narrow == "float64" else "float32"
    oracle = expected if given is None else given
    finite = np.isfinite(oracle)
    whole = bool(finite.all())
    error = _abs_error(actual, oracle, None if whole else finite)
    max_error = float(error.max())
    scale = scales.given if scales.given is not None else _peak(oracle if whole else oracle[finite]) or scales.zero
    single = given is not None
    reference_error = float(_abs_error(expected, oracle, None if whole else finite).max()) if single else None
    unit = max(reference_error or 0.0, scales.yardstick * scale)
    allowed = limits.allowed(precision, unit, scale)
    failing = int(np.count_nonzero(error > allowed)) if max_error > allowed else 0
    worst = _worst(error)
    # A reference this far off would let zeros pass, or the other sign: such a row proves nothing about the candidate.
    blind = failing == 0 and reference_error is not None and reference_error > 0.0 and allowed >= scale
    reason = _reason(precision, failing, actual.size, max_error, allowed, unit, reference_error, scale, limits, worst)
    if blind:
        reason = f"the reference errs by {reference_error:.3g} where the oracle's scale is {scale:.3g}"
        most = _most(error, _abs_error(expected, oracle, None if whole else finite), np.abs(oracle), limits, scale)
        blind = most is None
        reason = f"proves nothing: {reason}" if most is None else f"{most[1]}; {reason}"
        failing = 0 if most is None or most[0] else int(actual.size)
    return Comparison(
        passed=failing == 0 and not blind,
        reason=f"{reason}{_stayed_narrow(types, given)}",
        shape=actual.shape,
        dtype=types[0],
        elements=int(actual.size),
        failing=failing,
        scale=scale,
        budget=allowed,
        max_abs_error=max_error,
        p99_abs_error=None if brief else _percentile(error, 99),
        rmse=None if brief else _rms(error, max_error),
        cosine=_cosine(actual, oracle, max_error == 0.0) if whole and not brief else None,
        max_ulp=None if brief or types[0] != types[1] else _max_ulp(actual, expected),
        difference=float(_abs_error(actual, expected, None if whole else finite).max()) if single else max_error,
        reference_error=reference_error,
        ratio=_ratio(max_error, reference_error),
        smallest_tolerance=max_error / scale if scale else None,
        worst_index=worst,
        worst_actual=float(actual[worst]),
        worst_expected=float(oracle[worst]),
    )


def _stayed_narrow(types: list[str], oracle: Array | None) -> str:
    """What to say of arrays that a float64 run gave in another type."""
    if oracle is not None:
        return "" if types[2] == "float64" else f"; the reference's float64 run gave {types[2]}"
    if types[0] == types[1]:
        return "" if types[0] == "float64" else f"; stayed {types[0]} in the float64 run, on both sides"
    return f"; in the float64 run the candidate gave {types[0]}, the reference {types[1]}"


def _most(
    error: Array, reference_error: Array, magnitude: Array, budget: Budget, scale: float
) -> tuple[bool, str] | None:
    """Judges most elements where the largest error of the reference is no unit: a few elements are all noise (a norm
    over values that are nearly equal magnifies rounding without bound), the others are not.

    Half and nine tenths of the candidate's errors are measured by those of the reference.

    Returns:
        Whether they are within their limits, and that in words. None if zeros would be too, or if there are too few
        elements: then the row proves nothing.
    """
    if error.size < FEWEST:
        return None
    own, unit, size = (np.quantile(array, QUANTILES) for array in (error, reference_error, magnitude))
    if not (budget.k * unit < size).any():
        return None
    floor = budget.c * budget.roundoff * scale
    allowed = np.maximum(budget.k * unit, floor)
    each = zip(QUANTILES, own, allowed, strict=True)
    text = ", ".join(f"{q:.0%} of the elements err by up to {a:.3g} ({most:.3g} allowed)" for q, a, most in each)
    return bool((own <= allowed).all()), text


def _reason(
    precision: str,
    failing: int,
    size: int,
    error: float,
    allowed: float,
    unit: float,
    reference_error: float | None,
    scale: float,
    budget: Budget,
    worst: tuple[int, ...],
) -> str:
    if precision == "float64":
        basis = f"{budget.float64_bar:g} of scale {scale:.3g}"
    elif budget.k * unit >= budget.c * budget.roundoff * scale:
        whose = (
            "the reference's own error" if unit == reference_error else "the reference's error elsewhere in the phase,"
        )
        basis = f"{budget.k:g} x {whose} {unit:.3g}"
    else:
        basis = f"{budget.c:g} x {budget.roundoff_name} x scale {scale:.3g}"
    if not failing:
        return f"within {basis}"
    return f"{failing} of {size} elements beyond {allowed:.3g} ({basis}), worst {error:.3g} at {worst}"


def _abs_error(actual: Array, oracle: Array, finite: Array | None) -> npt.NDArray[np.float64]:
    """Absolute error of each element; where both are infinite (``finite`` is False) they are equal, so 0."""
    if finite is not None:
        actual, oracle = np.where(finite, actual, 0), np.where(finite, oracle, 0)
    with np.errstate(over="ignore"):
        error = np.asarray(np.subtract(actual, oracle, dtype=np.float64))
    np.abs(error, out=error)
    # Two float64 of opposite sign may lie further apart than the largest number.
    return np.minimum(error, np.finfo(np.float64).max, out=error)


def _worst(error: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))


def _rms(error: npt.NDArray[np.float64], peak: float) -> float:
    if peak == 0.0:
        return 0.0
    flat = error.reshape(-1)
    unit = flat if SAFE_SQUARES[0] < peak < SAFE_SQUARES[1] else flat / peak
    return math.sqrt(_dot(unit, unit) / unit.size) * (1.0 if unit is flat else peak)


def _percentile(values: Array, percent: float) -> float:
    flat = values.reshape(-1)
    if not flat.any():
        return 0.0
    return float(np.percentile(flat[:: 1 + flat.size // PERCENTILE_SAMPLE], percent))


def _ratio(error: float, reference_error: float | None) -> float | None:
    if reference_error is None:
        return None
    if reference_error == 0.0:
        return 0.0 if error == 0.0 else None  # no yardstick: the floor of the budget judged this row
    return error / reference_error


def _cosine(actual: Array, oracle: Array, identical: bool) -> float | None:
    x, y = (np.asarray(array, np.float64).reshape(-1) for array in (actual, oracle))
    peak_x, peak_y = _peak(x), _peak(y)
    if identical or peak_x == 0.0 or peak_y == 0.0:
        return 1.0 if peak_x == peak_y else 0.0
    if not all(SAFE_SQUARES[0] < peak < SAFE_SQUARES[1] for peak in (peak_x, peak_y)):
        x, y = x / peak_x, y / peak_y
    return min(1.0, _dot(x, y) / math.sqrt(_dot(x, x) * _dot(y, y)))


def _peak(values: Array) -> float:
    return float(max(values.max(), -values.min()))


def _dot(x: Array, y: Array) -> float:
    """Without BLAS: its threads would fight those of the frameworks for the cores."""
    return float(np.einsum("i,i->", x, y))


def _max_ulp(actual: Array, expected: Array) -> float:
    """Largest distance in units in the last place: representable numbers from one to the other."""
    if np.array_equal(actual, expected):
        return 0.0
    if type_name(actual) == "bfloat16":
        actual, expected = (to_bits(array).view(np.float16) for array in (actual, expected))  # ordered alike
    first, second = _ordered(actual), _ordered(expected)
    return float(np.subtract(np.maximum(first, second), np.minimum(first, second)).max())


def _ordered(array: Array) -> Array:
    """Unsigned integers that count the representable numbers in order; both zeros are one number."""
    bits: Array = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    half = bits.dtype.type(1 << (8 * array.dtype.itemsize - 1))
    magnitude = np.bitwise_and(bits, half - bits.dtype.type(1))
    return np.where(np.greater_equal(bits, half), np.subtract(half, magnitude), np.add(half, magnitude))


def same_values(actual: Array, expected: Array) -> bool:
    """Whether shape, type and every bit are equal; integers of any width by value, and (1,) is ().

    That is what no port can help, as in ``compare_arrays``.
    """
    if actual.shape != expected.shape and {actual.shape, expected.shape} != {(), (1,)}:
        return False
    if actual.dtype.kind in "iu" and expected.dtype.kind in "iu":
        return bool((actual == expected).all())
    return type_name(actual) == type_name(expected) and actual.tobytes() == expected.tobytes()
