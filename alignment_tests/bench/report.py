"""A report from the performance suite's figures: JSON, Markdown and a picture.

python -m alignment_tests.bench.report BENCHMARK.json --output-dir reports/performance
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment_tests.bench.plots import performance
from alignment_tests.bench.results import read_performance
from alignment_tests.compare import write
from alignment_tests.comparison.number_format import fixed, mib, whole
from alignment_tests.harness.report.figures import number
from fixtures.cli import Parser, fail
from fixtures.runs.record import finite

JSON, MARKDOWN, PICTURE = "performance.json", "performance.md", "performance_comparison.png"
HEADINGS = (
    "contender", "ms per step", "quartiles", "images/s", "over baseline", "quartiles of the ratio", "kernels",
    "resident MiB", "allocated", "reserved", "driver", "environment", "commit",
)  # fmt: skip


def markdown(figures: Mapping[str, Any]) -> str:
    """Every case as a table, then the environments."""
    return "\n".join(lines(figures)) + "\n"


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    yield "# Performance"
    yield ""
    yield f"From `{figures['source']}`. Every contender ran in a process of its own, rounds were taken in turn,"
    yield "and a ratio is the median of the rounds' ratios to the baseline: PyTorch eager, or for a captured pass the"
    yield "bare one."
    yield "Memory is the peak of the process's life. The letter names the environment below."
    for case in figures["cases"]:
        yield from ["", f"## {case['name']}", "", f"{case['work'][0].upper()}{case['work'][1:]}."]
        yield from [f"Load average of the machine before: {case['load_average']:.2f}.", ""]
        yield f"| {' | '.join(HEADINGS)} |"
        yield f"|{'---|' * len(HEADINGS)}"
        yield from (f"| {' | '.join(cells(row))} |" for row in case["rows"])
        for row in case["rows"]:
            yield from ["", limit_of(row)] if row["largest_batch"] else []
        for name, reason in case["not_measured"].items():
            yield from ["", f"Not measured: {name}: {reason}"]
    if figures["not_run"]:
        yield from ["", "## Not run", ""]
        yield from (f"- {name}: {reason}" for name, reason in figures["not_run"].items())
    for letter, facts in figures["environments"].items():
        yield from ["", f"## Environment {letter}", ""]
        yield from (f"- {name}: {value}" for name, value in facts.items())


def cells(row: Mapping[str, Any]) -> list[str]:
    held = row["memory_bytes"]
    return [
        row["contender"],
        number(row["median_ms"]),
        " … ".join(number(value) for value in row["quartiles_ms"]),
        number(row["images_per_second"]),
        fixed(row["ratio"], 3),
        " … ".join(fixed(value, 3) for value in row["ratio_quartiles"] or []) or "–",
        whole(row["kernels"]),
        *(mib(held.get(measure)) for measure in ("resident", "allocated", "reserved", "driver")),
        row["environment"],
        row["short_commit"],
    ]


def limit_of(row: Mapping[str, Any]) -> str:
    beyond = "more was not tried" if row["first_that_fails"] is None else f"{row['first_that_fails']} does not fit"
    return f"{row['contender']}: a batch of {row['largest_batch']} fits, {beyond}."


def render(figures: Mapping[str, Any]) -> dict[str, bytes]:
    """Every file by name."""
    text = json.dumps(finite(dict(figures)), indent=1, ensure_ascii=False, allow_nan=False)
    return {JSON: text.encode(), MARKDOWN: markdown(figures).encode(), PICTURE: performance(figures)}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m alignment_tests.bench.report", description=__doc__)
    parser.add_argument("benchmark", type=Path, help="file of pytest --benchmark-only --benchmark-json")
    parser.add_argument("--output-dir", type=Path, default=Path("reports/performance"), help="default: %(default)s")
    options = parser.parse_args(argv)
    folder: Path = options.output_dir
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`--output-dir` must be a folder. Received: {folder}")
        write(folder, render(read_performance(options.benchmark)))
    except (ValueError, OSError) as error:
        return fail(" ".join(str(error).split()))
    print(f"written: {', '.join(str(folder / name) for name in (JSON, MARKDOWN, PICTURE))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
