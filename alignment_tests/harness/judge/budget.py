"""How much error a row may have, and why. Every tolerance of the harness is stated here, once.

float64: rounding is far below any difference of formula, so a fixed bar on the scale of the array finds every wrong
eps, momentum, padding, transposed weight. float32: the candidate is measured in units of the reference's own error,
since both are float32 programs for the same float64 function (the oracle).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

EPS32 = float(np.finfo(np.float32).eps)
SPACING = {"float32": EPS32, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # of the numbers between 1 and 2


@dataclass(frozen=True)
class Budget:
    """Limits of one report.

    Attributes:
        float64_bar: allowed ``max|J64 - T64|`` as a share of the oracle's largest magnitude.
        k: allowed ``max|J32 - T64|`` in units of ``max|T32 - T64|``.
        roundoff: of the lower precision: float32's spacing, or half precision's where that is judged.
        c: floor of that allowance, in units of ``roundoff * scale``, for rows where the reference is exact or lucky.
        structural_zero: share of its neighbours' scale below which a gradient is zero by structure, and is judged by
            their scale.
    """

    float64_bar: float = 1e-9
    # Two correct float32 programs sum in different orders. Jittor's oneDNN 2.2 adds the K products of a convolution
    # one by one (its error is that of a plain loop: 0.8 to 1.1 times), PyTorch's in blocks: over K = 27 to 4608 the RMS
    # error is 1.3 to 4.0 times PyTorch's. The largest error of an array scatters by another factor of about 2, and
    # the next power of two leaves room for other machines. A lost digit is far beyond: half precision is 8000 times.
    k: float = 16.0
    roundoff: float = EPS32
    # A single float32 operation errs by eps/2 of its result; a row whose reference happens to be exact (a copy, a max,
    # a sum of two numbers) must leave the candidate room for a few roundings.
    c: float = 4.0
    # The gradient of a bias in front of a batch norm is zero; rounding leaves some 1e-15 of the gradient of the weight
    # beside it in float64. Gradients that merely are small lie many orders above the bar.
    structural_zero: float = 1e-11

    @property
    def roundoff_name(self) -> str:
        return "eps32" if self.roundoff == EPS32 else f"eps {self.roundoff:.2g}"

    def allowed(self, precision: str, reference_error: float, scale: float) -> float:
        """Largest absolute error that passes, for an oracle of magnitude ``scale``."""
        if precision == "float64":
            return self.float64_bar * scale
        if precision in ("float32", "float16"):
            return max(self.k * reference_error, self.c * self.roundoff * scale)
        raise ValueError(f"`precision` must be 'float16', 'float32' or 'float64'. Received: {precision!r}")

    def for_type(self, name: str) -> Budget:
        """The limits for arrays of that type. Where it is coarser than ``roundoff`` both sides round the same numbers
        to it, and that rounding is the error, as in mixed precision."""
        spacing = SPACING.get(name, 0.0)
        return self if spacing <= self.roundoff else replace(self, k=min(self.k, HALF_BUDGET.k), roundoff=spacing)

    def share(self, precision: str, gaps: Any, errors: Any) -> Any:
        """Gaps between numbers that are decided on, in units of what is allowed: up to 1 rounding may close them.

        Args:
            precision: as for ``allowed``.
            gaps: relative ones, in the oracle; an array or tensor.
            errors: relative ones of the reference in those numbers, broadcast to ``gaps``; float64 needs none.
        """
        if precision == "float64":
            return gaps / self.float64_bar
        return gaps / (self.k * errors).clip(min=self.c * self.roundoff)


DEFAULT_BUDGET = Budget()
# TF32 keeps 10 bits behind the point of each factor and sums in float32. Both sides round the same factors, and that
# rounding is the error; the largest one of an array scatters by about 2, as in half precision.
EPS_TF32 = 2.0**-10
TF32_BUDGET = Budget(k=4.0, roundoff=EPS_TF32)
# Mixed precision: what is stored between operations is rounded to half on both sides, and that rounding, which the
# order of a float32 sum hardly moves, is the error. The largest one of an array scatters by about 2.
HALF_BUDGET = Budget(k=4.0, roundoff=float(np.finfo(np.float16).eps))
