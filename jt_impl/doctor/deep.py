"""Child process of ``python -m jt_impl.doctor --deep``: loads Jittor and proves that it computes right.

It is a process of its own because a Jittor that does not suit its machine can abort. It prints the checks as JSON.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from jt_impl import runtime
from jt_impl.doctor.checks import Check

Array = npt.NDArray[Any]
MESSAGE_LENGTH = 300  # Jittor's errors repeat whole command lines
CONVOLUTION_TOLERANCE = 1e-5  # of the largest output: 36 products and sums in float32 stay below 36 * eps32 = 4e-6


def convolution_oracle(image: Array, weight: Array) -> Array:
    """3x3 convolution with padding 1 in float64. ``image`` (N, C, H, W), ``weight`` (O, C, 3, 3) -> (N, O, H, W)."""
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    view: Any = np.lib.stride_tricks.sliding_window_view
    windows = view(padded, (3, 3), axis=(2, 3))  # (N, C, H, W, 3, 3)
    return np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64))


def check_convolution(jt: Any) -> Check:
    """A 3x3 convolution against the oracle, and that it was oneDNN that ran it."""
    generator = np.random.default_rng(0)
    image = generator.standard_normal((2, 4, 9, 11)).astype(np.float32)
    weight = generator.standard_normal((8, 4, 3, 3)).astype(np.float32)
    with jt.profile_scope() as profile:
        result = jt.nn.conv2d(jt.array(image), jt.array(weight), padding=1).numpy()
    expected = convolution_oracle(image, weight)
    error = float(np.abs(result - expected).max() / np.abs(expected).max())
    if not error <= CONVOLUTION_TOLERANCE:
        return Check(
            "convolution", "fail", f"3x3 is off by {error:.1e} of its scale", "export cache_name=fresh   (build anew)"
        )
    if not any(row and "mkl_conv" in row[0] for row in profile):
        detail = f"3x3 is right to {error:.1e} of its scale, but oneDNN did not run it"
        return Check("convolution", "warn", detail, f"pip install {runtime.ONEDNN_PACKAGES}")
    return Check("convolution", "ok", f"3x3 through oneDNN, right to {error:.1e} of its scale")


def check_nan(jt: Any) -> Check:
    """NaN differs from itself inside a kernel, unless it was built with -Ofast."""
    values = jt.array(np.full(64, np.nan, np.float32))
    if bool((values != values).numpy().all()):
        return Check("NaN in kernels", "ok", "NaN != NaN holds")
    return Check("NaN in kernels", "fail", "kernels cannot see NaN: built with -Ofast", "unset cc_flags kernel_flags")


def check_subnormals() -> Check:
    """Loading kernels built with -Ofast puts the thread into flush-to-zero; numpy and PyTorch then lose digits."""
    if runtime.subnormals_survive():
        return Check("subnormal numbers", "ok", "survive in numpy after kernels ran")
    return Check("subnormal numbers", "fail", "flushed to zero in numpy", "unset cc_flags kernel_flags")


def random_draws() -> tuple[float, float]:
    return random.random(), float(np.random.random())


def deep_checks() -> list[Check]:
    """Load Jittor and probe it."""
    random.seed(1)
    np.random.seed(1)
    expected = random_draws()
    random.seed(1)
    np.random.seed(1)
    try:
        jt = runtime.load()
    except (Exception, SystemExit) as error:  # whatever Jittor raises is the finding
        detail = f"{type(error).__name__}: {error}"[:MESSAGE_LENGTH]
        return [Check("loading Jittor", "fail", detail, "see the other findings, and the messages above")]
    kept = random_draws() == expected
    generators = Check("random generators", "ok", "of Python and numpy untouched by the import")
    if not kept:
        generators = Check("random generators", "fail", "reseeded by the import", "load Jittor through jt_impl.runtime")
    loaded = Check("loading Jittor", "ok", f"{jt.__version__}, {runtime.describe()['compiler']}")
    return [loaded, check_convolution(jt), check_nan(jt), check_subnormals(), generators]


if __name__ == "__main__":
    print(json.dumps([asdict(check) for check in deep_checks()]))
