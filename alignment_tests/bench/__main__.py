"""Measure what a user waits for and what the harness costs, and write it down.

    python -m alignment_tests.bench                     warm figures (minutes)
    python -m alignment_tests.bench --cold              also from an empty Jittor cache (some minutes more)
    python -m alignment_tests.bench --only steps        one part

Prints a Markdown table and writes it, with the environment and the commit of each part, to docs/results/bench.json.
Parts that were not asked for keep the figures they have there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from alignment_tests.bench.caches import empty_cache
from alignment_tests.bench.limits import bench_limits
from alignment_tests.bench.training import bench_cold_step, bench_inference, bench_steps
from fixtures.runs import record as run_record

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "docs" / "results" / "bench.json"
ROUNDS = 7


def timed(command: list[str], env: dict[str, str] | None = None) -> dict[str, float]:
    """Wall time and peak resident memory of one process.

    Raises:
        RuntimeError: it ends with another code than 0; the message holds the end of its output.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output.read()[-2000:]}")
    return {"seconds": seconds, "peak_memory_bytes": usage.ru_maxrss * 1024.0}


def align_command(folder: str) -> list[str]:
    return [sys.executable, "-m", "alignment_tests", "--config", "gold_yolo_s", "--output-dir", folder]


def bench_align() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {"align, warm": timed(align_command(folder))}


def bench_cold() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, empty_cache() as name:
        return {"align, cold": timed(align_command(folder), {"cache_name": name})}


def bench_cold_steps() -> dict[str, Any]:
    with empty_cache() as name:
        return bench_cold_step(name)


def bench_backbone() -> dict[str, Any]:
    return {"pytest -k backbone, warm": timed([sys.executable, "-m", "pytest", "-q", "-k", "backbone"])}


def bench_memory() -> dict[str, Any]:
    """Peak memory of the comparison over that of the same four forward passes without it."""
    bare, full = (timed([sys.executable, "-m", "alignment_tests.bench", "--child", kind]) for kind in ("bare", "align"))
    ratio = full["peak_memory_bytes"] / bare["peak_memory_bytes"]
    return {"four bare runs": bare, "their comparison": full, "memory ratio": {"ratio": ratio}}


def bench_capture() -> dict[str, Any]:
    """Capture to disk against the bare forward pass, float32, rounds interleaved."""
    from alignment_tests.cases.pairs import seeded_pair
    from alignment_tests.harness.record.adapters import adapter_for
    from alignment_tests.harness.record.capture import capture, run_plain
    from fixtures.images import drawn_images

    pair, images, found = seeded_pair("s"), drawn_images(1, (640, 640)), {}
    for name, model in (("PyTorch", pair.reference), ("Jittor", pair.candidate)):
        adapter = adapter_for(model)
        runs: dict[str, Callable[[], Any]] = {
            "bare": partial(run_plain, adapter, model, images, "float32", train=False),
            "captured": partial(capture, model, images, with_inputs=False),
        }
        found[f"capture overhead, {name}"] = interleaved(runs)
    return found


def interleaved(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of two runs taken in turn, and the median of the ratios pair by pair."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    kept = {name: values[2:] for name, values in times.items()}  # the first two warm caches and allocators
    first, second = kept.values()
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    return {f"{name}_seconds": statistics.median(values) for name, values in kept.items()} | {"ratio": ratio}


def child(kind: str) -> None:
    """One of the two processes whose memory is compared."""
    from alignment_tests.cases.pairs import seeded_pair
    from alignment_tests.harness import align
    from alignment_tests.harness.record.adapters import adapter_for
    from alignment_tests.harness.record.capture import run_plain
    from fixtures.images import drawn_images

    pair, images = seeded_pair("s"), drawn_images(1, (640, 640))
    if kind == "align":
        align(pair.reference, pair.candidate, images).raise_if_diverged()
        return
    for model in (pair.reference, pair.candidate):
        adapter = adapter_for(model)
        for precision in ("float32", "float64"):
            with adapter.in_precision(model, precision) as made:
                run_plain(adapter, made, images, precision, train=False)


def surroundings() -> dict[str, Any]:
    import torch

    from jt_impl.runtime import describe

    return {
        **run_record.surroundings(),
        "commit": run_record.commit_of(ROOT, ("docs/results",)),  # where the figures of each part are written
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "jittor": {key: value for key, value in describe().items() if key != "cache"},
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| what | time | peak memory | ratio | Jittor kernels |", "|---|---|---|---|---|"]
    for name, figures in results.items():
        times = [f"{value:.2f} s" for key, value in figures.items() if key.endswith("seconds")]
        memory = f"{figures['peak_memory_bytes'] / 2**20:.0f} MiB" if "peak_memory_bytes" in figures else ""
        ratio = f"{figures['ratio']:.2f}" if "ratio" in figures else ""
        lines.append(f"| {name} | {' -> '.join(times)} | {memory} | {ratio} | {figures.get('kernels', '')} |")
    return "\n".join(lines)


WARM = {
    "capture": bench_capture,
    "memory": bench_memory,
    "align": bench_align,
    "backbone": bench_backbone,
    "steps": bench_steps,
    "inference": bench_inference,
    "limits": bench_limits,
}
COLD = {"cold-align": bench_cold, "cold-steps": bench_cold_steps}


def record(name: str, results: dict[str, Any]) -> None:
    """Put one part's figures, with what they were measured on, in the place of its older ones."""
    parts = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    parts[name] = {"environment": surroundings(), "results": results}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    fresh = RESULT.with_suffix(".tmp")
    fresh.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    fresh.replace(RESULT)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m alignment_tests.bench", description=__doc__)
    parser.add_argument("--cold", action="store_true", help="also from an empty Jittor cache")
    parser.add_argument("--only", choices=[*WARM, *COLD], nargs="+", help="these parts")
    parser.add_argument("--child", choices=("bare", "align"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return 0
    parts = WARM | COLD
    results: dict[str, Any] = {}
    for name in options.only or [*WARM, *(COLD if options.cold else ())]:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        made = parts[name]()
        record(name, made)
        results |= made
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
