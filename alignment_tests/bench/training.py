"""The bench's figures on both frameworks: training steps, inference, and what Jittor compiles for a first step."""

from __future__ import annotations

from typing import Any

from alignment_tests.bench.cases import EAGER, JITTOR, Case
from alignment_tests.bench.interleaved import interleave
from alignment_tests.bench.rounds import quartiles
from alignment_tests.bench.workers import Worker

TITLES = {EAGER.name: "PyTorch", JITTOR.name: "Jittor"}


def bench_steps() -> dict[str, Any]:
    """A training step of S, 320x320, batch of two: see ``in_turn``."""
    return in_turn("training step", Case("training", "gold_yolo_s", 320, 2))


def bench_inference() -> dict[str, Any]:
    """A forward pass of N and S, deploy form, 640x640, batches of 1 and 8: see ``in_turn``."""
    found: dict[str, Any] = {}
    for config in ("gold_yolo_n", "gold_yolo_s"):
        for batch_size in (1, 8):
            found |= in_turn("inference", Case("inference", config, 640, batch_size))
    return found


def in_turn(title: str, case: Case) -> dict[str, Any]:
    """Rounds of steps in turn, so that drift of the machine falls on both; void if anything was compiled meanwhile.

    Raises:
        RuntimeError: a process failed, or the times count for nothing.
    """
    measurement = interleave(case, (EAGER, JITTOR))
    name = f"{title}, {case.config} {case.side}x{case.side}, batch {case.batch}"
    found: dict[str, Any] = {}
    for contender, outcome in measurement.outcomes.items():
        reason = outcome.failed or outcome.void_reason()
        if reason:
            raise RuntimeError(f"{name}, {TITLES[contender]}: the times are void: {reason}")
        low, middle, high = quartiles(outcome.times)
        found[f"{name}, {TITLES[contender]}"] = {
            "seconds": middle,
            "quartiles": [low, high],
            "steps_per_second": 1.0 / middle,
            "rounds": outcome.times,
        }
    jittor = measurement.outcomes[JITTOR.name]
    ratios, kernels = measurement.ratios(jittor), jittor.kernels[1]
    found[f"{name}, Jittor over PyTorch"] = {"ratio": quartiles(ratios)[1], "ratios": ratios, "kernels": kernels}
    return found


def bench_cold_step(cache_name: str) -> dict[str, Any]:
    """From an empty Jittor cache of that name: the model ready, and the first two steps."""
    case = Case("training", "gold_yolo_s", 320, 2)
    with Worker(case, JITTOR, {"cache_name": cache_name}) as candidate:
        ready, first, second = candidate.ready(), candidate.take(1), candidate.take(1)
    name = f"training, {case.config} {case.side}x{case.side}, batch {case.batch}, Jittor cold"
    return {
        f"{name}: Jittor's core and the model": {"seconds": ready["seconds"], "kernels": ready["kernels"]},
        f"{name}: first step": {"seconds": first["seconds"], "kernels": first["kernels"]},
        f"{name}: second step": {"seconds": second["seconds"], "kernels": second["kernels"]},
    }
