"""All that is done on a GPU, within minutes: compile Jittor, compare layers, benchmark; figures are kept as they come.

python -m alignment_tests.gpu --wheels build/wheels --output-dir reports/gpu
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from alignment_tests.gpu import plan
from alignment_tests.gpu.stages import Runner, Stage, table
from alignment_tests.gpu.wheels import installed_version
from fixtures.cli import Parser, fail, positive
from fixtures.runs.record import commit_of

MINUTES, DRY_MINUTES = 10, 240
RESERVED_SECONDS = 20  # for a stage that is slow to end, and for the table
CARD_FACTS = "name,driver_version,memory.total,clocks.sm,power.limit"


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m alignment_tests.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="folder for what is missing here")
    parser.add_argument("--output-dir", type=Path, default=Path("reports/gpu"), help="(default: %(default)s)")
    parser.add_argument("--minutes", type=positive, help=f"for all stages; default {MINUTES}, dry {DRY_MINUTES}")
    parser.add_argument("--dry", action="store_true", help="compile only, with stubs of CUDA: needs no GPU")
    parser.add_argument("--home", type=Path, default=Path("build/gpu/home"), help="dry: of the stubs and their cache")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="these stages, and those that they need")
    parser.add_argument("--list", action="store_true", help="print the stages and their commands, and run nothing")
    return parser


def chosen(stages: list[Stage], only: Sequence[str]) -> list[Stage]:
    """The named stages with what they need, in their order.

    Raises:
        ValueError: there is no stage of that name.
    """
    unknown = [name for name in only if name not in {stage.name for stage in stages}]
    if unknown:
        names = ", ".join(stage.name for stage in stages)
        raise ValueError(f"`--only` takes stages: {names}. Received: {', '.join(unknown)}")
    wanted = set(only) | {need for stage in stages if stage.name in only for need in stage.needs}
    return [stage for stage in stages if not only or stage.name in wanted]


def facts(dry: bool) -> dict[str, object]:
    """What a figure is worth nothing without. Of NVIDIA's own tool: card, driver, clocks as they are."""
    query = ["nvidia-smi", "--format=csv,noheader", f"--query-gpu={CARD_FACTS}"]
    try:
        card = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        card = ""
    versions = {name: installed_version(name) for name in ("torch", "numpy", "jittor")}
    return {
        "dry": dry,
        "gpu": card,
        "commit": commit_of(Path(__file__).parent),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "installed": versions,
    }


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    output = options.output_dir
    places = plan.Places(options.wheels, Path("build/gpu/site"), output, options.home)
    try:
        stages = chosen((plan.dry if options.dry else plan.on_a_gpu)(places), options.only)
    except ValueError as error:
        return fail(str(error))
    if options.list:
        for stage in stages:
            print(f"{stage.name:<16} {stage.seconds:5.0f} s  {' '.join(stage.command) or stage.omitted}")
        return 0
    minutes = options.minutes or (DRY_MINUTES if options.dry else MINUTES)
    environment = plan.environment(os.environ, places, device=not options.dry)
    runner = Runner(output, minutes * 60 - RESERVED_SECONDS, environment, facts(options.dry))
    code = runner.run(stages)
    print(f"\n{table(runner.results, time.monotonic() - runner.start, output)}")
    if options.dry:
        print("Dry run: what passed was compiled for a GPU, and nothing was run on one.")
    return code


if __name__ == "__main__":
    sys.exit(main())
