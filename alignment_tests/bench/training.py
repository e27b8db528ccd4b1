"""Training steps per second of both frameworks, each in a process of its own, and what Jittor compiles for them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from alignment_tests.bench.steps import MARK

SCRIPT = Path(__file__).with_name("steps.py")
WARMUP, STEPS, ROUNDS = 3, 3, 7
PACKAGES = {"PyTorch": "torch_ref", "Jittor": "jt_impl"}


class Worker:
    """A process that takes training steps, or forward passes, when told to."""

    def __init__(
        self,
        package: str,
        config: str,
        image_size: int,
        batch_size: int,
        environment: dict[str, str] | None = None,
        what: str = "training",
    ) -> None:
        options = {"package": package, "what": what, "config": config}
        options |= {"image-size": str(image_size), "batch-size": str(batch_size)}
        given = [text for name, value in options.items() for text in (f"--{name}", value)]
        # Alone in its process a framework gets the thread settings that its users have.
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        self.command = [sys.executable, str(SCRIPT), *given]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, "ALIGN_PROGRESS": "0", **(environment or {})},
        )
        self.ready = self.answer()

    def take(self, steps: int) -> dict[str, float]:
        """Take so many steps: seconds, and kernels loaded so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.wait()}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def bench_steps(config: str = "gold_yolo_s", image_size: int = 320, batch_size: int = 2) -> dict[str, Any]:
    """A training step: see ``in_turn``."""
    return in_turn("training step", "training", config, image_size, batch_size)


def bench_inference() -> dict[str, Any]:
    """A forward pass of N and S, deploy form, 640x640, batches of 1 and 8: see ``in_turn``."""
    found: dict[str, Any] = {}
    for config in ("gold_yolo_n", "gold_yolo_s"):
        for batch_size in (1, 8):
            found |= in_turn("inference", "inference", config, 640, batch_size)
    return found


def in_turn(title: str, what: str, config: str, image_size: int, batch_size: int) -> dict[str, Any]:
    """Rounds of steps in turn, so that drift of the machine falls on both; void if anything was compiled meanwhile.

    Raises:
        RuntimeError: a process ended, or Jittor loaded a kernel in a timed round.
    """
    with (
        Worker(PACKAGES["PyTorch"], config, image_size, batch_size, what=what) as reference,
        Worker(PACKAGES["Jittor"], config, image_size, batch_size, what=what) as candidate,
    ):
        for worker in (reference, candidate):
            before = worker.take(WARMUP)["kernels"]
        pairs = [(reference.take(STEPS), candidate.take(STEPS)) for _ in range(ROUNDS)]
    kernels = int(pairs[-1][1]["kernels"])
    if kernels != before:
        raise RuntimeError(f"Jittor loaded {kernels - before:.0f} kernels in the timed rounds: the times are void")
    name = f"{title}, {config} {image_size}x{image_size}, batch {batch_size}"
    found: dict[str, Any] = {}
    for side, framework in enumerate(PACKAGES):
        times = [pair[side]["seconds"] / STEPS for pair in pairs]
        low, middle, high = statistics.quantiles(times, n=4)
        found[f"{name}, {framework}"] = {
            "seconds": middle,
            "quartiles": [low, high],
            "steps_per_second": 1.0 / middle,
            "rounds": times,
        }
    ratios = [ours["seconds"] / theirs["seconds"] for theirs, ours in pairs]
    found[f"{name}, Jittor over PyTorch"] = {"ratio": statistics.median(ratios), "ratios": ratios, "kernels": kernels}
    return found


def bench_cold_step(cache_name: str, config: str = "gold_yolo_s", image_size: int = 320, batch_size: int = 2) -> Any:
    """From an empty Jittor cache of that name: the model ready, and the first two steps."""
    environment = {"cache_name": cache_name}
    with Worker(PACKAGES["Jittor"], config, image_size, batch_size, environment) as candidate:
        ready, first, second = candidate.ready, candidate.take(1), candidate.take(1)
    name = f"training, {config} {image_size}x{image_size}, batch {batch_size}, Jittor cold"
    return {
        f"{name}: Jittor's core and the model": {"seconds": ready["seconds"], "kernels": ready["kernels"]},
        f"{name}: first step": {"seconds": first["seconds"], "kernels": first["kernels"]},
        f"{name}: second step": {"seconds": second["seconds"], "kernels": second["kernels"]},
    }
