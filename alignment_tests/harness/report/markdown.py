"""A report as Markdown: the summary for a build's page."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.report.figures import (
    MEASURES,
    TABLE,
    TEMPLATES,
    VERDICTS,
    budget_used,
    caveats,
    counts,
    curves,
    drift,
    excuses,
    gradients,
    informing,
    is_training,
    known_lines,
    ledger,
    number,
    other_problems,
    parts,
    percent,
    printable,
    ratios,
    shown,
    state,
    times,
    worst_rows,
)


def summary_markdown(report: Report, baseline: dict[str, Any] | None = None) -> str:
    """Summary for a build's page; the drift against ``baseline`` (an older report.json) if given."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(md=_markdown_text, number=number, times=times, percent=percent)
    text = environment.get_template("summary.md.j2").render(
        report=report,
        verdict=VERDICTS[state(report)],
        caveats=caveats(report),
        problems=other_problems(report),
        counts=counts(report),
        ratios={measure: ratios(report, measure) for measure in MEASURES},
        parts=parts(report),
        worst=worst_rows(report, 10),
        used=budget_used,
        shown=shown,
        training=is_training(report),
        curves=curves(report),
        compared=ledger(report),
        gradients=gradients(report),
        informing=informing(report),
        excuses=excuses(report),
        known=known_lines(report),
        table=TABLE,
        drift=None if baseline is None else drift(report, baseline),
    )
    return printable(text)


def _markdown_text(value: object) -> str:
    """Text that Markdown shows as it is, in one table cell."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$@])", r"\\\1", text)
