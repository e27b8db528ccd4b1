"""On which device, and in which arithmetic, both frameworks compute what is compared, and the budget that goes with it.

PyTorch and Jittor allow TF32 by different switches with different defaults, so both are always set, and recorded.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, HALF_BUDGET, TF32_BUDGET, Budget
from alignment_tests.harness.record.adapter import Scope

PRECISIONS = ("both", "float32", "float64", "tf32", "half")
DEVICES = ("cpu", "cuda")


class NoDeviceError(ValueError):
    """A framework has no GPU to compute on."""


@dataclass(frozen=True)
class Arithmetic:
    """What ``--precision`` means.

    Attributes:
        runs: of the harness, "float64" and "float32"; the latter stands for TF32 and half too.
        budget: of the float32 runs' arithmetic.
        tf32: factors of products in float32 may be rounded to TF32.
        half: mixed precision by float16.
    """

    runs: tuple[str, ...]
    budget: Budget = DEFAULT_BUDGET
    tf32: bool = False
    half: bool = False


ARITHMETICS = {
    "both": Arithmetic(("float64", "float32")),
    "float32": Arithmetic(("float32",)),
    "float64": Arithmetic(("float64",)),
    "tf32": Arithmetic(("float32",), TF32_BUDGET, tf32=True),
    "half": Arithmetic(("float32",), HALF_BUDGET, half=True),
}


def choose(precision: str, device: str) -> Arithmetic:
    """The arithmetic for a device.

    Raises:
        ValueError: TF32 is asked for on a CPU, which has none.
    """
    if precision == "tf32" and device != "cuda":
        raise ValueError("`--precision tf32` needs `--device cuda`: no CPU rounds to TF32. Received: --device cpu")
    return ARITHMETICS[precision]


def switch(arithmetic: Arithmetic, device: str) -> dict[str, Any]:
    """Set device and arithmetic in both frameworks; what a report says about it.

    Raises:
        NoDeviceError: a framework has no GPU to compute on.
    """
    from jt_impl import devices as candidate
    from torch_ref import devices as reference

    for side in (reference, candidate):
        try:
            side.choose_device(device)
        except ValueError as error:
            raise NoDeviceError(str(error)) from None
        side.use_tf32(arithmetic.tf32)
    text = "mixed, float16" if arithmetic.half else "TF32" if arithmetic.tf32 else "float32, no TF32"
    return {"device": device, "arithmetic": text if device == "cuda" or arithmetic.half else "IEEE"}


def scopes(arithmetic: Arithmetic, device: str) -> tuple[Scope, Scope]:
    """Makers of the contexts in which the reference and the candidate compute in float32."""
    if not arithmetic.half:
        return nullcontext, nullcontext
    import torch

    from jt_impl import mixed

    return (lambda: torch.autocast(device, torch.float16)), mixed.autocast
