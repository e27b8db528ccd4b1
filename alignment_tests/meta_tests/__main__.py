"""Plant every fault, run without faults too, and write down what was found.

    python -m alignment_tests.meta_tests --output docs/proof.md
    python -m alignment_tests.meta_tests --only optimizer
    python -m alignment_tests.meta_tests --only none --clean-runs 200 --training-runs 60

The page is made of a JSON file, which is written beside it: docs/results/proof.json. Faults that are not asked for keep
what they have there. Progress goes to stderr. The exit code is 0 where every fault is found and no run without a fault
is alarmed about, else 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from alignment_tests.cases.child_processes import default_jobs
from fixtures.cli import positive

CLEAN_RUNS, TRAINING_RUNS = 200, 61


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_tests.meta_tests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("docs/proof.md"), help="the page (default: docs/proof.md)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="only faults whose name, kind or experiment holds it; none for no fault",
    )
    without = "%s without a fault (default: %d; with faults chosen by --only none)"
    parser.add_argument("--clean-runs", type=int, metavar="N", help=without % ("runs", CLEAN_RUNS))
    parser.add_argument("--training-runs", type=int, metavar="N", help=without % ("trainings", TRAINING_RUNS))
    parser.add_argument(
        "--training-seed", type=int, action="append", metavar="N", help="only this one of the trainings"
    )
    parser.add_argument(
        "--photographs",
        type=Path,
        metavar="FOLDER",
        help="of the trainings, in COCO form with instances_*.json (default: those that are here)",
    )
    parser.add_argument("--jobs", type=positive, default=default_jobs(), help="processes (default: %(default)s here)")
    options = parser.parse_args(arguments)
    for name, usual in (("clean_runs", CLEAN_RUNS), ("training_runs", TRAINING_RUNS)):
        if getattr(options, name) is None:
            setattr(options, name, usual if options.only in ([], ["none"]) else 0)
        if getattr(options, name) < 0:
            parser.error(f"`--{name.replace('_', '-')}` must be at least 0. Received: {getattr(options, name)}")
    if options.photographs is not None and not list(options.photographs.glob("annotations/instances_*.json")):
        parser.error(
            f"`--photographs` must be a folder with annotations/instances_*.json. Received: {options.photographs}"
        )
    try:
        return run(options)
    except UnknownFaultError as error:
        parser.error(str(error))


class UnknownFaultError(ValueError):
    """No fault has the text that was asked for."""


def run(options: argparse.Namespace) -> int:
    from jt_impl.runtime import progress

    start = time.perf_counter()
    with progress():
        from alignment_tests.cases.batches import PHOTOGRAPHS
        from alignment_tests.meta_tests.catalogue import FAULTS
        from alignment_tests.meta_tests.clean_training import training_runs
        from alignment_tests.meta_tests.partition import run_all
        from alignment_tests.meta_tests.proof_page import as_json, write
        from alignment_tests.meta_tests.runner import chosen

        faults = chosen(options.only)
        if not faults and options.only != ["none"]:
            raise UnknownFaultError(f"`--only` must be part of a name, kind or experiment. Received: {options.only}")
        trainings = training_runs(options.training_runs, options.photographs or PHOTOGRAPHS)
        trainings = (run for run in trainings if not options.training_seed or run.seed in options.training_seed)
        found = run_all(faults, options.clean_runs, options.jobs, trainings)
    data = as_json(*found, time.perf_counter() - start, options.jobs)
    write(options.output, data, list(FAULTS))
    print(f"written: {options.output}", file=sys.stderr)
    alarms = [run for run in (*data["clean"], *data["training"]) if not run["aligned"]]
    return int(bool(alarms) or any(not fault["detected"] for fault in data["faults"]))


if __name__ == "__main__":
    sys.exit(main())
