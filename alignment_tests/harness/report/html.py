"""A report as one HTML page that opens offline: no file, font or script beside it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.judge.report import Report, Row
from alignment_tests.harness.report import figures
from alignment_tests.harness.report.figures import Drift
from alignment_tests.harness.report.plots.depth import steps
from alignment_tests.harness.report.plots.ratios import all_plots
from alignment_tests.harness.report.plots.style import Plot

DEFAULT_LANGUAGE = "en"
FIELDS = [field.name for field in fields(Comparison)]
EXACT = ("cosine", "worst_actual", "worst_expected")  # kept with every digit; other numbers with six


def report_page(report: Report, baseline: dict[str, Any] | None = None, *, lang: str = DEFAULT_LANGUAGE) -> str:
    """The whole page. ``baseline`` is an older report.json; ``lang`` is "en" or "zh".

    Raises:
        ValueError: the language is unknown.
    """
    strings = language(lang)
    drifted = None if baseline is None else figures.drift(report, baseline)
    plots = all_plots(report)
    environment = Environment(
        loader=FileSystemLoader(figures.TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=figures.number, times=figures.times, percent=figures.percent, data_uri=_data_uri)
    page = environment.get_template("report.html.j2").render(
        lang=lang,
        t=strings,
        report=report,
        state=figures.state(report),
        caveats=figures.caveats(report),
        problems=figures.other_problems(report),
        totals=_totals(report),
        tiles=_tiles(report, strings),
        plots=plots,
        parts=figures.parts(report),
        counts=figures.counts(report),
        ratios={measure: figures.ratios(report, measure) for measure in figures.MEASURES},
        compared=figures.ledger(report),
        gradients=figures.gradients(report),
        training=figures.is_training(report),
        excuses=figures.excuses(report),
        good=figures.state(report) in figures.GOOD,
        known=figures.known_lines(report),
        table=figures.TABLE,
        drift=drifted,
        worse=f"{figures.WORSE:g}",
        data=safe_json(_data(report, strings, drifted, plots)),
    )
    return figures.printable(page)


@cache
def _all_strings() -> dict[str, dict[str, str]]:
    return json.loads((figures.TEMPLATES / "strings.json").read_text(encoding="utf-8"))


def language(lang: str) -> dict[str, str]:
    """The page's words in one language."""
    known = _all_strings()
    if lang not in known:
        raise ValueError(f"`lang` must be one of {', '.join(known)}. Received: {lang!r}")
    return known[lang]


def safe_json(data: Any) -> str:
    """JSON that may stand in a <script>: ASCII only, no markup, NaN and Inf as text."""
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return {"inf": "Infinity", "-inf": "-Infinity"}.get(str(data), "NaN")
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def _data_uri(plot: Plot) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(plot.svg.encode()).decode()


def _totals(report: Report) -> dict[str, int]:
    verdicts = [row.verdict for row in report.rows]
    words = {"passed": "pass", "known": "known", "failing": "fail", "excused": "excused"}
    return {key: verdicts.count(verdict) for key, verdict in words.items()}


def _tiles(report: Report, strings: dict[str, str]) -> list[dict[str, Any]]:
    """Key numbers: value, words, whether it is bad news, and the filter of the table that shows it."""
    whole, alone = (figures.ratios(report, measure).quantiles for measure in ("accumulated", "isolated"))
    totals = _totals(report)
    float64 = [row for row in report.rows if row.precision == "float64"]
    parts = figures.parts(report)
    worst64, worst32 = (
        max((value for part in parts if (value := getattr(part, key)) is not None), default=None)
        for key in ("worst_float64", "worst_ratio")
    )
    unmatched = len(report.coverage.missing) + len(report.coverage.unexpected)
    failed = sum(fact.startswith("FAIL") for fact in report.checks.values())
    bar, k = figures.number(report.budget.float64_bar), figures.number(report.budget.k)
    passed = f"{len(report.checks) - failed} / {len(report.checks)}"
    above = any(row.verdict == "fail" for row in float64)
    inform = len(figures.informing(report))
    return [
        _tile(len(report.rows), strings["rows_compared"], not report.rows),
        _tile(totals["failing"], strings["rows_failing"], bool(report.failures), "fail"),
        _tile(figures.number(worst64), strings["float64_max"].format(bar=bar), above),
        _tile(figures.times(worst32), strings["ratio_max"].format(k=k)),
        _tile(figures.times(alone.get("max")), strings["ratio_max_isolated"]),
        _tile(figures.times(whole.get("99 %")), strings["ratio_99"]),
        _tile(totals["excused"], strings["rows_excused"], verdict="excused"),
        _tile(len(report.coverage.excused), strings["names_excused"]),
        _tile(unmatched, strings["names_unmatched"], bool(unmatched)),
        _tile(passed, strings["checks_passed"], bool(failed)),
        *([_tile(inform, strings["rows_informing"], find="informs only")] if inform else []),
    ]


def _tile(
    value: object, words: str, bad: bool = False, verdict: str | None = None, find: str | None = None
) -> dict[str, Any]:
    """``verdict`` and ``find`` (a text) are what the table is filtered by when the tile is clicked."""
    wanted = {"verdict": verdict, "text": find}
    return {"value": value, "words": words, "bad": bad, "filter": {k: v for k, v in wanted.items() if v and value}}


def _data(report: Report, strings: dict[str, str], drifted: Drift | None, plots: Iterable[Plot]) -> dict[str, Any]:
    """What the page's script needs: the rows, the words, and which row stands where in the plot along depth."""
    places = {id(row): place for place, row in enumerate(report.rows)}
    depth = next((plot for plot in plots if plot.key == "depth"), None)
    return {
        "rows": [_row(row, drifted) for row in report.rows],
        "phases": figures.in_order(row.phase for row in report.rows),
        "drift": drifted is not None,
        "training": figures.is_training(report),
        "words": strings,
        "fields": FIELDS,
        "frame": depth and depth.frame,
        "steps": [[places[id(row)] for row in step.rows.values()] for step in steps(report)] if depth else [],
    }


def _row(row: Row, drifted: Drift | None) -> dict[str, Any]:
    whole, alone = row.accumulated, row.isolated
    return {
        "index": row.index,
        "verdict": row.verdict,
        "phase": row.phase,
        "part": figures.part_of(row),
        "name": row.name,
        "kind": row.kind,
        "precision": row.precision,
        "reason": row.reason,
        "step": row.step,
        "used": _rounded(figures.budget_used(row)),
        "drift": _rounded(drifted and drifted.factors.get((row.name, row.precision))),
        "accumulated": _comparison(whole),
        "isolated": _comparison(alone),
    }


def _comparison(comparison: Comparison | None) -> list[Any] | None:
    """Values in the order of FIELDS."""
    if comparison is None:
        return None
    return [getattr(comparison, key) if key in EXACT else _rounded(getattr(comparison, key)) for key in FIELDS]


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
