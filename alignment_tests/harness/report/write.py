"""The files of a report. `Report.save` writes those that are listed here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment_tests.harness.judge.report import WRITERS, Report
from alignment_tests.harness.record.temporary import write_text_atomically

Baseline = dict[str, Any] | None  # an older report.json


# The renderings load matplotlib and jinja2, which a comparison that is not saved need not wait for.
def _json(report: Report, baseline: Baseline) -> str:
    return json.dumps(report.to_json(), indent=1, allow_nan=True)


def _summary(report: Report, baseline: Baseline) -> str:
    from alignment_tests.harness.report.markdown import summary_markdown

    return summary_markdown(report, baseline)


def _junit(report: Report, baseline: Baseline) -> str:
    from alignment_tests.harness.report.junit import junit_xml

    return junit_xml(report, baseline)


def _page(report: Report, baseline: Baseline) -> str:
    from alignment_tests.harness.report.html import report_page

    return report_page(report, baseline)


FILES: dict[str, Callable[[Report, Baseline], str]] = {
    "report.json": _json,
    "summary.md": _summary,
    "junit.xml": _junit,
    "report.html": _page,
}


def write_files(report: Report, folder: Path, baseline: Baseline) -> None:
    """Write FILES into ``folder``, which exists, each under a temporary name that is then renamed."""
    for name, content in FILES.items():
        write_text_atomically(folder / name, content(report, baseline))


WRITERS.append(write_files)
