"""Dump one side of a comparison, compare two dumps, merge the reports of a sharded suite, or make what is blamed small.

python -m alignment_tests.harness dump --model package.module:function --inputs inputs.safetensors --output-dir DIR
python -m alignment_tests.harness dump --model ... --inputs ... --reference DIR --output-dir OTHER
python -m alignment_tests.harness compare DIR OTHER --output-dir reports/mine
python -m alignment_tests.harness merge reports/part1 reports/part2 --output-dir reports/suite
python -m alignment_tests.harness bisect reports/mine --output-dir repros/mine --setup package.module:function
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.numpy import load_file

from alignment_tests.harness.bisect import bisect
from alignment_tests.harness.offline import compare, dump
from alignment_tests.harness.record.capture import RaisedInCallError
from alignment_tests.harness.report.suite import merge
from alignment_tests.harness.report.suite import table as suite_table
from alignment_tests.harness.report.terminal import print_report

EXIT_DIVERGED, EXIT_BAD_INPUT = 1, 2


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_tests.harness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("dump", help="run one side and write its traces")
    one.add_argument("--model", required=True, help="MODULE:FUNCTION; called without arguments, returns the model")
    one.add_argument(
        "--inputs", required=True, type=Path, help="safetensors file; its arrays, sorted by name, are the arguments"
    )
    one.add_argument("--reference", type=Path, help="the reference's dump, when this side is the candidate")
    one.add_argument("--output-dir", "--output_dir", required=True, type=Path)
    one.add_argument("--train", action="store_true", help="train mode")
    two = commands.add_parser("compare", help="judge a candidate's dump against the reference's")
    two.add_argument("reference", type=Path)
    two.add_argument("candidate", type=Path)
    two.add_argument("--output-dir", "--output_dir", type=Path, default=Path("reports/offline"))
    two.add_argument("--baseline", type=Path, help="older report.json to show the drift against")
    three = commands.add_parser("merge", help="one page of the reports of `pytest --shard` on several machines")
    three.add_argument("parts", type=Path, nargs="+", help="folders that `pytest --alignment-reports` wrote")
    three.add_argument("--output-dir", "--output_dir", required=True, type=Path)
    four = commands.add_parser("bisect", help="shrink the call that a diverged report blames to a script of its own")
    four.add_argument(
        "report", type=Path, help="folder of a report made by `align`; it holds pickles: open only your own"
    )
    four.add_argument("--output-dir", "--output_dir", required=True, type=Path)
    four.add_argument("--setup", help="MODULE:FUNCTION, called first; it loads Jittor as your program needs it")
    return parser


def load_factory(text: str) -> Callable[[], Any]:
    """The function that ``MODULE:FUNCTION`` names.

    Raises:
        ValueError: the text has another form, or there is no such module or function.
    """
    module, colon, name = text.partition(":")
    if not colon:
        raise ValueError(f"`--model` must be MODULE:FUNCTION. Received: {text}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`--model` must name an importable function: {error}. Received: {text}") from error


def run_dump(options: argparse.Namespace) -> int:
    if not options.inputs.is_file():
        raise FileNotFoundError(f"`--inputs` must be a safetensors file. Received: {options.inputs}")
    sys.path.insert(0, str(Path.cwd()))
    arrays = load_file(options.inputs)
    model, inputs = load_factory(options.model)(), [arrays[name] for name in sorted(arrays)]
    console = Console(stderr=True)
    folder = dump(
        model, inputs, options.output_dir, reference=options.reference, train=options.train, notify=console.print
    )
    print(f"dump: {folder}")
    return 0


def run_compare(options: argparse.Namespace) -> int:
    report = compare(options.reference, options.candidate)
    report.save(options.output_dir, baseline=options.baseline)
    print_report(report, folder=str(options.output_dir))
    return 0 if report.aligned else EXIT_DIVERGED


def run_merge(options: argparse.Namespace) -> int:
    entries = merge(options.parts, options.output_dir)
    print(suite_table(entries), end="")
    print(f"\nsuite: {options.output_dir}")
    return 0 if all(entry["aligned"] for entry in entries) else EXIT_DIVERGED


def run_bisect(options: argparse.Namespace) -> int:
    sys.path.insert(0, str(Path.cwd()))
    if options.setup:
        load_factory(options.setup)()
    found = bisect(options.report, options.output_dir, Console(stderr=True).print)
    print(f"{found.call}: {found.reason}\n{found.script}")
    return 0


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    try:
        return {"dump": run_dump, "compare": run_compare, "merge": run_merge, "bisect": run_bisect}[options.command](
            options
        )
    except (ValueError, OSError, TypeError, RaisedInCallError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
