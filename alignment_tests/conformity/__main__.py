"""Measure Jittor's own models and operators beside PyTorch's and write the document.

python -m alignment_tests.conformity                       both tables (progress on stderr)
python -m alignment_tests.conformity --only operators      the other table keeps its figures
python -m alignment_tests.conformity --only none           write the document anew from the figures that are there
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from alignment_tests.cases.child_processes import default_jobs
from alignment_tests.conformity.document import document
from alignment_tests.conformity.measure import measure
from alignment_tests.conformity.zoo.table import check_names
from alignment_tests.harness.record.temporary import write_text_atomically
from fixtures.cli import positive

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "results" / "conformity.json", ROOT / "docs" / "jittor_conformity.md"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_tests.conformity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=("operators", "zoo", "none"), help="measure one part, or none")
    parser.add_argument("--rows", type=Path, help="folder that keeps rows as they come, so that a cut run goes on")
    parser.add_argument("--models", nargs="+", help="architectures to run (all but the deepest); others keep rows")
    parser.add_argument(
        "--jobs", type=positive, default=default_jobs(), help="processes at a time (default: %(default)s here)"
    )
    parser.add_argument("--note", help="what else is to be known of this run, such as other work on the machine")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON of the figures")
    parser.add_argument("--output", type=Path, default=PAGE, help="the document")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    older = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else None
    wanted = {None: ("operators", "zoo"), "none": ()}.get(options.only, (options.only,))
    lacking = {"operators", "zoo"} - set(wanted) - set(older or {})
    if lacking:
        print(
            f"error: `--only {options.only}` needs figures of {sorted(lacking)} in {options.results}", file=sys.stderr
        )
        return 2
    try:
        check_names(options.models or ())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data = measure(tell, wanted, older, options.rows, options.models, options.jobs)
    for part in wanted if options.note else ():
        data[part]["note"] = options.note
    options.results.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(options.results, json.dumps(data, indent=1, allow_nan=False) + "\n")
    write_text_atomically(options.output, document(data))
    print(f"{options.output}")
    return 0


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
