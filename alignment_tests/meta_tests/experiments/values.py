"""Experiments whose result is a list of named arrays: the harness's comparator judges each, the first one is blamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alignment_tests.harness.judge.compare import compare_arrays
from alignment_tests.meta_tests.experiments.outcome import Array, Blame, Outcome, plain_outcomes

Named = Mapping[str, Array]


def compared(
    found: Mapping[str, Named],
    expected: Mapping[str, Named],
    is_final: Callable[[str], bool],
    kinds: tuple[str, ...] = ("float64", "float32"),
) -> Outcome:
    """Candidate against reference in float64, then in float32 against the reference's float64 (the oracle).

    Args:
        found: the candidate's arrays by name, by precision; integers, bool and bytes must be equal.
        expected: the reference's.
        is_final: which names a comparison of final outputs looks at.
        kinds: precisions to judge.
    """
    plain = plain_outcomes(found["float32"], expected["float32"], is_final)
    for kind in kinds:
        outcome = first_failure(found[kind], expected[kind], expected["float64"], kind)
        if outcome is not None:
            return Outcome(False, *outcome, plain)
    return Outcome(True, None, "", plain)


def first_failure(found: Named, expected: Named, oracle: Named, kind: str) -> tuple[Blame, str] | None:
    scale = 0.0
    for name, wanted in expected.items():
        if name not in found:
            return Blame(name), "the candidate has no such array"
        if wanted.size == 0 and np.asarray(found[name]).shape == wanted.shape:
            continue
        judged_by = oracle[name] if kind == "float32" and wanted.dtype.kind == "f" else None
        verdict = compare_arrays(found[name], wanted, oracle=judged_by, zero_scale=scale, brief=True)
        if not verdict.passed:
            return Blame(name), f"{name} ({kind}): {verdict.reason}"
        scale = verdict.scale or scale
    extra = [name for name in found if name not in expected]
    return (Blame(extra[0]), "unexpected in the candidate") if extra else None


def exactly(found: Named, expected: Named, is_final: Callable[[str], bool]) -> Outcome:
    """Bit for bit: data, detections, converted weights."""
    plain = plain_outcomes(found, expected, is_final)
    for name, wanted in expected.items():
        ours = found.get(name)
        if (
            ours is None
            or ours.dtype != wanted.dtype
            or ours.shape != wanted.shape
            or ours.tobytes() != wanted.tobytes()
        ):
            return Outcome(False, Blame(name), f"{name} differs", plain)
    extra = [name for name in found if name not in expected]
    return Outcome(False, Blame(extra[0]), "unexpected", plain) if extra else Outcome(True, None, "", plain)
