"""``python -m alignment_tests.gpu.convolution``: one 3x3 convolution, checked and timed against PyTorch.

The smallest thing that can go wrong on a new card or toolkit, and the first figure that a run gives. Both frameworks
run in this process, synchronised at both ends of each round, in turn.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.cases import arithmetic
from alignment_tests.harness.judge.budget import Budget
from fixtures.cli import Parser, fail
from jt_impl.runtime import RuntimeSetupError

SHAPE = (8, 64, 80, 80)  # batch, channels, rows, columns
OUTPUTS, KERNEL = 128, 3
ROUNDS, CALLS, WARM_UP = 15, 10, 5
Array = Any


@dataclass(frozen=True)
class Finding:
    """Errors are the largest ones against float64, times the medians of one call in ms."""

    precision: str
    passed: bool
    candidate_error: float
    reference_error: float
    allowed: float
    jittor_ms: float
    torch_ms: float
    ratio: float


def judged(candidate: Array, reference: Array, oracle: Array, budget: Budget) -> tuple[float, float, float]:
    """The candidate's largest error, the reference's, and what is allowed."""
    errors = [float(np.abs(side.astype(np.float64) - oracle).max()) for side in (candidate, reference)]
    return errors[0], errors[1], budget.allowed("float32", errors[1], float(np.abs(oracle).max()))


def measure(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float, float]:
    """Medians in ms of both, and the median of the ratios, second over first, of rounds in turn."""
    for _ in range(WARM_UP):
        seconds_of(first)
        seconds_of(second)
    pairs = [(seconds_of(first), seconds_of(second)) for _ in range(ROUNDS)]
    times = [statistics.median(side) * 1e3 for side in zip(*pairs, strict=True)]
    return times[0], times[1], statistics.median(b / a for a, b in pairs)


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) / CALLS


def sides(device: str) -> tuple[Callable[[], Array], Callable[[], Array], Array]:
    """PyTorch's and Jittor's CALLS calls, each giving the last result, and the result in float64."""
    import torch

    from jt_impl.runtime import jittor as jt

    draw = np.random.default_rng(0)
    x = draw.standard_normal(SHAPE, np.float32)
    weight = draw.standard_normal((OUTPUTS, SHAPE[1], KERNEL, KERNEL), np.float32) / 24
    exact = torch.nn.functional.conv2d(torch.from_numpy(x).double(), torch.from_numpy(weight).double(), padding=1)
    theirs = [torch.from_numpy(array).to(device) for array in (x, weight)]
    ours = [jt.array(array).stop_grad() for array in (x, weight)]

    def by_torch() -> Array:
        with torch.no_grad():
            for _ in range(CALLS):
                y = torch.nn.functional.conv2d(theirs[0], theirs[1], padding=1)
        if device == "cuda":
            torch.cuda.synchronize()
        return y

    def by_jittor() -> Array:
        with jt.no_grad():
            for _ in range(CALLS):
                y = jt.nn.conv2d(ours[0], ours[1], None, 1, 1)
                y.sync()
        jt.sync_all(True)
        return y

    return by_torch, by_jittor, exact.numpy()


def find(precision: str, device: str) -> Finding:
    chosen = arithmetic.choose(precision, device)
    arithmetic.switch(chosen, device)
    by_torch, by_jittor, exact = sides(device)
    error, own, allowed = judged(by_jittor().numpy(), by_torch().cpu().numpy(), exact, chosen.budget)
    torch_ms, jittor_ms, ratio = measure(by_torch, by_jittor)
    return Finding(precision, error <= allowed, error, own, allowed, jittor_ms, torch_ms, ratio)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m alignment_tests.gpu.convolution", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=arithmetic.DEVICES, default="cpu")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        finding = find(options.precision, options.device)
    except (ValueError, RuntimeSetupError) as error:
        return fail(str(error))
    text = json.dumps(asdict(finding), indent=1)
    print(text)
    if options.output is not None:
        from alignment_tests.harness.record.temporary import write_text_atomically

        write_text_atomically(options.output, text + "\n")
    return int(not finding.passed)


if __name__ == "__main__":
    sys.exit(main())
