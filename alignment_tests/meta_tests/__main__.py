"""Plant every fault, run without faults too, and write down what was found.

    python -m alignment_tests.meta_tests --output docs/proof.md
    python -m alignment_tests.meta_tests --only optimizer --clean-runs 0
    python -m alignment_tests.meta_tests --only none --clean-runs 200

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

from alignment_tests.children import default_jobs
from fixtures.cli import positive


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
    parser.add_argument("--clean-runs", type=int, default=200, metavar="N", help="runs without a fault (default: 200)")
    parser.add_argument("--jobs", type=positive, default=default_jobs(), help="processes (default: %(default)s here)")
    options = parser.parse_args(arguments)
    if options.clean_runs < 0:
        parser.error(f"`--clean-runs` must be at least 0. Received: {options.clean_runs}")
    try:
        return run(options.output, options.only, options.clean_runs, options.jobs)
    except UnknownFaultError as error:
        parser.error(str(error))


class UnknownFaultError(ValueError):
    """No fault has the text that was asked for."""


def run(output: Path, only: Sequence[str], clean: int, jobs: int) -> int:
    from jt_impl.runtime import progress

    start = time.perf_counter()
    with progress():
        from alignment_tests.meta_tests.experiments import FAULTS
        from alignment_tests.meta_tests.proof import as_json, write
        from alignment_tests.meta_tests.runner import chosen
        from alignment_tests.meta_tests.shares import run_all

        faults = chosen(only)
        if not faults and list(only) != ["none"]:
            raise UnknownFaultError(f"`--only` must be part of a name, kind or experiment. Received: {list(only)}")
        findings, runs = run_all(faults, clean, jobs)
    data = as_json(findings, runs, time.perf_counter() - start, jobs)
    write(output, data, list(FAULTS))
    print(f"written: {output}", file=sys.stderr)
    return int(any(not f["detected"] for f in data["faults"]) or any(not r["aligned"] for r in data["clean"]))


if __name__ == "__main__":
    sys.exit(main())
