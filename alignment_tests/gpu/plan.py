"""The stages of ``make gpu`` and of its dry run, as commands that a user could type."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignment_tests.gpu.stages import Stage

PYTHON = sys.executable
NEEDS_GPU = "needs a GPU"
# Models and precisions; the second row only in time that is left.
COMPARISONS = (("gold_yolo_n", "both"), ("gold_yolo_n", "tf32"), ("gold_yolo_n", "half"))
MORE_COMPARISONS = (("gold_yolo_s", "both"), ("gold_yolo_s", "half"))
BENCH_SECONDS = 180


@dataclass(frozen=True)
class Places:
    """Folders of a run: the wheels, what is installed from them, results, and for a dry run Jittor's cache."""

    wheels: Path
    site: Path
    output: Path
    home: Path


def module(name: str, *words: object) -> tuple[str, ...]:
    return (PYTHON, "-m", name, *map(str, words))


def set_up(places: Places) -> list[Stage]:
    """What both runs begin with."""
    folders = ("--wheels", places.wheels, "--target", places.site)
    return [
        Stage("install", module("alignment_tests.gpu.wheels", "install", *folders), 90),
        Stage("imports", module("alignment_tests.gpu.wheels", "probe"), 60, needs=("install",)),
        Stage("doctor", module("jt_impl.doctor"), 60, needs=("install",)),
    ]


def on_a_gpu(places: Places) -> list[Stage]:
    """The whole run. Every stage after the compilers' keeps some of the time for itself."""
    output = places.output
    return [
        *set_up(places),
        compiling("core", module("jt_impl.cuda.phases", "--only", "load"), 240, 60),
        convolution(output),
        compiling("kernels", module("jt_impl.cuda.phases"), 150, 20),
        compiling("kernels-modules", module("alignment_tests.gpu.kernels"), 120, 20),
        *(comparison(output, *which, kept=20) for which in COMPARISONS),
        benchmarks(output),
        *(comparison(output, *which, kept=0) for which in MORE_COMPARISONS),
    ]


def compiling(name: str, command: tuple[str, ...], seconds: float, kept: float) -> Stage:
    return Stage(name, command, seconds, kept, ("install",), phases_line(name))


def dry(places: Places) -> list[Stage]:
    """Compiles all that a GPU would be given; the rest is named and left out."""
    wet = {stage.name: stage for stage in on_a_gpu(places)}
    home = ("--home", places.home)
    left_out = [name for name in wet if name.startswith(("convolution", "layers", "benchmarks"))]
    return [
        *set_up(places),
        Stage("kernels", module("jt_impl.cuda.compile_check", *home), 7200, headline=compiled("kernels")),
        Stage(
            "kernels-modules",
            module("alignment_tests.gpu.kernels", "--stub-libraries", places.home),
            7200,
            headline=compiled("kernels-modules"),
        ),
        *(Stage(name, omitted=NEEDS_GPU) for name in left_out),
    ]


def convolution(output: Path) -> Stage:
    words = ("--device", "cuda", "--output", output / "convolution.json")
    command = module("alignment_tests.gpu.convolution", *words)
    return Stage("convolution", command, 60, 15, needs=("install",), headline=convolution_line)


def comparison(output: Path, config: str, precision: str, kept: float) -> Stage:
    name = f"layers-{config.removeprefix('gold_yolo_')}-{'float32' if precision == 'both' else precision}"
    words = ("--config", config, "--image-size", 640, "--precision", precision, "--device", "cuda")
    command = module("alignment_tests", *words, "--output-dir", output / name)
    return Stage(name, command, 90, kept, ("install",), partial(report_line, name=name))


def benchmarks(output: Path) -> Stage:
    """By pytest; warnings of other versions of the packages are no errors here."""
    words: list[object] = ["--benchmark-only", "--bench-device", "cuda", "--bench-seconds", BENCH_SECONDS]
    words += ["--benchmark-json", output / "benchmarks.json", "-W", "default", "-p", "no:cacheprovider"]
    return Stage("benchmarks", module("pytest", *words), BENCH_SECONDS + 60, 150, ("install",), benchmark_line)


def environment(variables: Mapping[str, str], places: Places, *, device: bool) -> dict[str, str]:
    """Of the commands: the installed wheels come first, then this project.

    On a GPU Jittor is asked for CUDA and does without oneDNN. A variable that overrides TF32 in NVIDIA's libraries
    would make two settings of one.
    """
    path = [str(places.site.absolute()), str(Path(__file__).resolve().parents[2]), variables.get("PYTHONPATH", "")]
    made = {name: value for name, value in variables.items() if name != "NVIDIA_TF32_OVERRIDE"}
    made |= {"PYTHONPATH": ":".join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
    return made | ({"ALIGN_CUDA": "1", "use_mkl": "0"} if device else {})


# The figures of the table, each from what its stage has written.


def phases_in(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"phase"')]


def phases_line(stage: str) -> Callable[[Path], str]:
    """Phases that are done, the kernels that they loaded, and the first that failed."""

    def line(folder: Path) -> str:
        found = phases_in(folder / f"{stage}.log")
        done = [row for row in found if row["result"] == "done"]
        text = f"{len(done)} of {len(found)} phases, {sum(row['kernels'] for row in found)} kernels"
        failed = next((row for row in found if row["result"] != "done"), None)
        return text if failed is None else f"{text}; {failed['phase']}: {failed['result'][:80]}"

    return line


def compiled(stage: str) -> Callable[[Path], str]:
    """The line with the counts of a compile check."""

    def line(folder: Path) -> str:
        rows = (folder / f"{stage}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((row for row in reversed(rows) if row.startswith("kernels for the GPU")), "")

    return line


def report_line(folder: Path, name: str) -> str:
    """The verdict of a report on layers, and its worst ratio."""
    report = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
    rows = report["rows"]
    failing = sum(row["verdict"] == "fail" for row in rows)
    ratios = [row["accumulated"]["ratio"] for row in rows if (row["accumulated"] or {}).get("ratio") is not None]
    worst = f", worst ratio {max(ratios):.3g}" if ratios else ""
    return f"{'aligned' if report['aligned'] else 'not aligned'}, {failing} of {len(rows)} rows fail{worst}"


def convolution_line(folder: Path) -> str:
    found = json.loads((folder / "convolution.json").read_text(encoding="utf-8"))
    times = f"Jittor {found['jittor_ms']:.3g} ms, PyTorch {found['torch_ms']:.3g} ms"
    return f"{times}, error {found['candidate_error']:.2g} of {found['allowed']:.2g} allowed"


def benchmark_line(folder: Path) -> str:
    found = json.loads((folder / "benchmarks.json").read_text(encoding="utf-8"))
    return f"{len(found['benchmarks'])} benchmarks"
