"""One contender's work in a process of its own, taken and timed on demand.

    python alignment_tests/bench/worker.py '{"package": "jt_impl", "setting": "eager", "case": {...}}'

Reads a number of steps per line of standard input, takes them with the device idle at both ends, and answers with a
line of JSON: seconds, Jittor's kernels (or compiled graphs) loaded so far, those of them that this process compiled,
peak memory. The first answer, to no line, tells that the work is ready, and in what environment. Whatever fails is an
answer too, and the last.

Run by its path, so that ``alignment_tests``, whose settings are for two frameworks in one process, is imported after
the framework has read its own.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = "bench: "  # in front of an answer; Jittor prints to standard output too
SIDES = {"torch_ref": ("torch_side", "TorchSide"), "jt_impl": ("jittor_side", "JittorSide")}


def make_side(package: str, setting: str, case: dict[str, Any], folder: str) -> Any:
    if package == "jt_impl":
        from jt_impl.runtime import load

        load()
    else:
        importlib.import_module(package)
    from alignment_tests.bench.cases import Case

    module, name = SIDES[package]
    made = getattr(importlib.import_module(f"alignment_tests.bench.{module}"), name)
    return made(Case(**case), setting, Path(folder))


def answer(side: Any, seconds: float, since: float, **more: Any) -> None:
    """One line: what ``seconds`` were taken for, and what the process holds."""
    from jt_impl.runtime import kernel_files  # Jittor itself is not imported by it

    kernels = kernel_files()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write(
        seconds=seconds,
        kernels=len(kernels) + side.graphs(),
        compiled=sum(os.path.getmtime(path) >= since for path in kernels),
        memory={"resident": peak, **side.memory()},
        **more,
    )


def write(**figures: Any) -> None:
    print(f"\n{MARK}{json.dumps(figures)}", flush=True)


def serve(options: dict[str, Any], folder: str) -> int:
    """Answer every line of standard input; the exit code."""
    start, since = time.perf_counter(), time.time()
    try:
        side = make_side(options["package"], options["setting"], options["case"], folder)
        side.wait()
        answer(side, time.perf_counter() - start, since, facts=side.facts())
        for line in sys.stdin:
            side.wait()
            start = time.perf_counter()
            for _ in range(int(line)):
                side.step()
                side.wait()
            answer(side, time.perf_counter() - start, since)
    except Exception as error:
        write(failed=describe(error), out_of_memory=is_out_of_memory(options["package"], error))
        return 1
    return 0


def describe(error: Exception) -> str:
    """In a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]


def is_out_of_memory(package: str, error: Exception) -> bool:
    try:
        devices = importlib.import_module(f"{package}.devices")
    except Exception:  # the framework itself does not load: that is what is told
        return False
    return bool(devices.is_out_of_memory(error))


def main() -> int:
    sys.path[0] = str(ROOT)  # in place of this folder, whose modules are to be imported by their full names only
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return serve(json.loads(sys.argv[1]), folder)


if __name__ == "__main__":
    sys.exit(main())
