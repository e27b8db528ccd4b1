"""What one run of an operator shows: equal, or where and by how much not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment_tests.harness.judge.compare import compare_arrays
from alignment_tests.harness.record.adapter import Array

CONFORMS, ROUNDED, DIFFERS, UNPROVEN = "conforms", "rounded", "differs", "unproven"
# A float64 result this near is one that passed through float32: a Python float, or a kernel with float32 inside.
SINGLE = 1e-6


@dataclass(frozen=True)
class Finding:
    """Verdict on one array, why, and the worst element in both frameworks."""

    verdict: str
    reason: str = ""
    index: tuple[int, ...] | None = None
    candidate: float | None = None
    reference: float | None = None


def judge(actual: Array, expected: Array, oracle: Array, *, zero_scale: float = 0.0) -> Finding:
    """Candidate against reference; ``oracle`` is the reference in float64 on the same numbers.

    ``zero_scale`` is the scale where the oracle is zero everywhere, as a gradient of a saturated function is.

    Jittor has no arrays without axes, so shape (1,) stands for (). Integers may have other widths, never other values.
    Other than in a report on models, NaN in the same places is equal: the operator is asked what it makes of it.
    """
    if expected.shape == () and actual.shape == (1,):
        actual = actual.reshape(())
    if actual.shape != expected.shape:
        return Finding(DIFFERS, f"shape {actual.shape}, PyTorch {expected.shape}")
    if expected.dtype.kind in "biu":
        return judge_exact(actual, expected)
    if actual.dtype != expected.dtype:
        return Finding(DIFFERS, f"dtype {actual.dtype}, PyTorch {expected.dtype}")
    if not expected.size:
        return Finding(CONFORMS, "empty on both sides")
    for name, places in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
        if not np.array_equal(places(actual), places(expected)):
            return at(DIFFERS, f"{name} in other places", actual, expected, places(actual) != places(expected))
    finite = np.isfinite(expected)
    if not finite.any():
        return Finding(CONFORMS, "no finite element, the same on both sides")
    actual, expected, oracle = (
        np.where(finite & np.isfinite(oracle), a, a.dtype.type(0)) for a in (actual, expected, oracle)
    )
    return judge_values(actual, expected, oracle, zero_scale)


def judge_exact(actual: Array, expected: Array) -> Finding:
    wrong = actual.astype(np.float64) != expected.astype(np.float64)
    if not wrong.any():
        return Finding(CONFORMS, "equal")
    return at(DIFFERS, f"{int(wrong.sum())} of {wrong.size} values differ", actual, expected, wrong)


def judge_values(actual: Array, expected: Array, oracle: Array, zero_scale: float) -> Finding:
    single = expected.dtype == np.float32
    oracle = np.asarray(oracle, np.float64)
    found = compare_arrays(actual, expected, oracle=oracle if single else None, zero_scale=zero_scale, brief=True)
    if found.passed:
        return Finding(CONFORMS, found.reason)
    if "proves nothing" in found.reason:
        return Finding(UNPROVEN, found.reason)
    error = np.abs(actual.astype(np.float64) - oracle)
    near = not single and found.scale and float(error.max()) <= SINGLE * found.scale
    return at(ROUNDED if near else DIFFERS, found.reason, actual, expected, error == error.max())


def at(verdict: str, reason: str, actual: Array, expected: Array, places: Array) -> Finding:
    index = tuple(int(i) for i in np.argwhere(places)[0])
    return Finding(verdict, reason, index, float(actual[index]), float(expected[index]))
