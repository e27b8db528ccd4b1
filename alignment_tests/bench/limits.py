"""How fast a forward pass could be on this machine: the work of its convolutions over what the machine was seen to do.

Each convolution takes at least its FLOPs over the rate of a large matrix product, and at least its bytes (maps in and
out and weights, once each) over the bandwidth of a large copy. The limit is the sum over the convolutions of the larger
of the two. What stands between convolutions counts nothing, so no implementation that computes them one by one in
float32 is below it, unless its convolutions beat that matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

SIDE = 2048  # of the matrices: 16 MiB each, more than a core's own cache
COPIED = 2**26  # floats that are copied: 256 MiB, more than any cache
ROUNDS = 9
BYTES = 4


@dataclass(frozen=True)
class Work:
    """What one convolution has to do: 2 FLOPs for each product that is added, and bytes of float32."""

    flops: float
    bytes: float


def limit_seconds(works: Iterable[Work], flops_per_second: float, bytes_per_second: float) -> float:
    return sum(max(work.flops / flops_per_second, work.bytes / bytes_per_second) for work in works)


def work_of(module: Any, given: Any, result: Any) -> Work:
    """Of a call of ``torch.nn.Conv2d``."""
    weights = module.weight.numel()
    places = result.numel() // result.shape[1]
    return Work(2.0 * places * weights, float(BYTES * (given.numel() + weights + result.numel())))


def convolution_works(model: Any, images: Any) -> list[Work]:
    """Of all convolutions in one forward pass of a PyTorch model."""
    import torch

    works: list[Work] = []
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    handles = [module.register_forward_hook(lambda m, x, y: works.append(work_of(m, x[0], y))) for module in modules]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return works


def best_seconds(run: Callable[[], Any]) -> float:
    """The fastest of some rounds: a limit is what the machine can do when nothing disturbs it."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def machine_rates() -> tuple[float, float]:
    """FLOPs per second of a float32 matrix product, and bytes per second of a copy (read and written), by PyTorch."""
    import torch

    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    source, target = torch.ones(COPIED), torch.zeros(COPIED)
    product, copy = best_seconds(lambda: a @ b), best_seconds(lambda: target.copy_(source))
    return 2.0 * SIDE**3 / product, 2.0 * BYTES * COPIED / copy


def bench_limits() -> dict[str, Any]:
    """The limits of the passes that ``bench_inference`` times."""
    import torch

    import torch_ref
    from alignment_tests.bench.inputs import seeded_model
    from fixtures.images import drawn_images

    rate, bandwidth = machine_rates()
    found: dict[str, Any] = {
        "matrix product, float32": {"gflops_per_second": rate / 1e9},
        "copy": {"gigabytes_per_second": bandwidth / 1e9},
    }
    for config in ("gold_yolo_n", "gold_yolo_s"):
        model = torch_ref.fuse(seeded_model("torch_ref", config)).eval()
        for batch_size in (1, 8):
            works = convolution_works(model, torch.from_numpy(drawn_images(batch_size, (640, 640))))
            found[f"limit of inference, {config} 640x640, batch {batch_size}"] = {
                "seconds": limit_seconds(works, rate, bandwidth),
                "gflops": sum(work.flops for work in works) / 1e9,
                "megabytes": sum(work.bytes for work in works) / 1e6,
            }
    return found
