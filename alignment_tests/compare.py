"""Put two frameworks' training and test runs side by side: verdict with evidence, plots and one page.

python -m alignment_tests.compare --jittor RUN... --torch RUN... --output-dir experiments/alignment_comparison
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from alignment_tests.bench import plots as benchmark_plots
from alignment_tests.bench.results import read_performance
from alignment_tests.comparison import evidence, gallery, judge, page, plots, report
from fixtures.cli import Parser, fail
from fixtures.runs.record import finite

EXIT_NOT_ALIGNED = 1
JSON, HTML = "comparison_report.json", "alignment_summary.html"
PICTURES = {"training_curves": "training_curves_comparison.png", "performance": "performance_comparison.png"}
BENCHMARK = "performance_benchmark.png"


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m alignment_tests.compare",
        description="Put two frameworks' training and test runs side by side.",
        epilog="Exit code: 0 aligned, 1 not aligned or not proven, 2 bad input.",
    )
    add = parser.add_argument
    for side in ("jittor", "torch"):
        add(
            f"--{side}",
            type=Path,
            nargs="+",
            required=True,
            metavar="RUN",
            help="folders with training_log.json or test_results.json; several seeds may be given",
        )
    add("--output-dir", type=Path, default=Path("experiments/alignment_comparison"), help="default: %(default)s")
    add("--lang", choices=page.languages(), default=page.DEFAULT_LANGUAGE, help="language of the page")
    add("--layers", type=Path, metavar="REPORT.json", help="report of `python -m alignment_tests`, layer by layer")
    add("--steps", type=Path, metavar="REPORT.json", help="report on training steps, teacher-forced")
    add("--benchmark", type=Path, metavar="FILE", help="figures of `pytest --benchmark-only --benchmark-json FILE`")
    add("--annotations", type=Path, metavar="FILE", help="COCO JSON of the tested images, if it has moved")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    folder: Path = options.output_dir
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`--output-dir` must be a folder. Received: {folder}")
        found = evidence.gather(options.jittor, options.torch, options.annotations, options.layers, options.steps)
        judgement = judge.judge(found)
        benchmark = None if options.benchmark is None else read_performance(options.benchmark)
        files = render(found, judgement, folder, options.lang, benchmark)
        write(folder, files)
    except (ValueError, OSError) as error:
        return fail(" ".join(str(error).split()))
    strings = page.language("en")
    print(judgement.verdict.upper())
    for finding in judgement.reasons if judgement.verdict != judge.ALIGNED else ():
        print(f"  {report.text_of(finding, strings)}")
    print(f"page: {folder / HTML}")
    return 0 if judgement.verdict == judge.ALIGNED else EXIT_NOT_ALIGNED


def render(
    found: evidence.Evidence,
    judgement: judge.Judgement,
    folder: Path,
    lang: str,
    benchmark: dict[str, Any] | None = None,
) -> dict[str, bytes]:
    """Every file by name, before any is written."""
    content = finite({**report.report_of(found, judgement, page.language(lang), folder), "benchmark": benchmark})
    pictures = {"training_curves": plots.training_curves(content), "performance": plots.performance(content)}
    if benchmark is not None:
        pictures["benchmark"] = benchmark_plots.performance(benchmark)
    summary = page.summary_page(content, pictures, gallery.exhibits(found), lang=lang)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    named = {(PICTURES | {"benchmark": BENCHMARK})[name]: picture for name, picture in pictures.items()}
    return {JSON: text.encode(), **named, HTML: summary.encode()}


def write(folder: Path, files: dict[str, bytes]) -> None:
    """All under temporary names first, then renamed: a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}.part" for name in files}
    try:
        for name, content in files.items():
            temporary[name].write_bytes(content)
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
