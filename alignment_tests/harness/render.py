"""A report in words and tables: terminal, Markdown, JUnit, and the drift against an older report."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignment_tests.harness.compare import Comparison
from alignment_tests.harness.report import Report, Row

TEMPLATES = Path(__file__).parent / "templates"
WORSE = 2.0  # an error that grows by more than this factor is drift
EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}
WORST_ROWS, FAILING_ROWS, ALL_ROWS = 15, 45, 40  # shown in a terminal: worst, failing; up to ALL_ROWS nothing is hidden
WIDE = 160  # columns of the table where the output is no terminal
COLUMNS = {  # of the terminal's table -> kept in a narrow terminal
    "name": True,
    "class": False,
    "bits": True,
    "max abs\nerror": True,
    "scale": False,
    "ratio": True,
    "isolated\nerror": False,
    "isolated\nratio": True,
    "cosine": False,
    "ULP": False,
    "smallest\ntolerance": False,
    "verdict": True,
}
VERDICTS = {"aligned": "ALIGNED", "diverged": "DIVERGED", "incomplete": "INCOMPLETE", "empty": "NOTHING COMPARED"}
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

RowKey = tuple[str, str]  # name, precision


# ---- what the renderings share -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Summary of the rows below one first component of the module path."""

    name: str
    rows: int
    failing: int
    worst_ratio: float | None
    worst_isolated_ratio: float | None
    worst_float64: float | None  # error / scale


@dataclass(frozen=True)
class Ratios:
    """Distribution of the candidate's error in units of the reference's own, over float32 rows."""

    count: int
    without: int  # rows that have no ratio: the reference is exact there, or the values could not be compared
    quantiles: dict[str, float]
    above: dict[str, float]  # threshold -> share of the rows


@dataclass(frozen=True)
class Change:
    """One row that differs from the baseline. ``before`` and ``after`` are error / scale."""

    name: str
    precision: str
    measure: str  # accumulated or isolated
    before: float | None
    after: float | None
    before_verdict: str
    after_verdict: str
    used: float  # share of its budget that the row uses now

    @property
    def factor(self) -> float | None:
        """Growth of the error; anything below one rounding counts as one rounding."""
        if self.before is None or self.after is None:
            return None
        floor = EPS.get(self.precision, 0.0) or math.ulp(1.0)
        return max(self.after, floor) / max(self.before, floor)


@dataclass(frozen=True)
class Drift:
    """What changed since the baseline: each row appears once, by its stronger change."""

    verdicts: tuple[Change, ...]
    worse: tuple[Change, ...]  # nearest to the budget first
    added: tuple[str, ...]
    removed: tuple[str, ...]
    context: tuple[str, ...]  # budget, settings and environment that differ
    shared: int
    better: int
    factors: dict[RowKey, float]


def state(report: Report) -> str:
    """One of the keys of VERDICTS; "aligned" only where the report says so."""
    if report.aligned:
        return "aligned"
    if not any(row.accumulated is not None for row in report.rows):
        return "empty"
    return "diverged" if report.failures or report.first_divergence else "incomplete"


def part_of(row: Row) -> str:
    """First component of the module path, or the phase where there is none."""
    return row.module.partition(".")[0] or f"({row.phase})"


def relative(error: float | None, scale: float) -> float | None:
    """Error in units of the scale; None where there is no number."""
    if error is None or math.isnan(error) or math.isnan(scale):
        return None
    if error == 0.0:
        return 0.0
    return error / scale if scale else math.inf


def value_of(comparison: Comparison | None, field: str) -> float | None:
    return None if comparison is None else getattr(comparison, field)


def relative_error(comparison: Comparison | None) -> float | None:
    return None if comparison is None else relative(comparison.max_abs_error, comparison.scale)


def ratio_of(comparison: Comparison | None) -> float | None:
    ratio = None if comparison is None else comparison.ratio
    return None if ratio is None or math.isnan(ratio) else ratio


def budget_used(row: Row) -> float:
    """Largest share of the allowed error that a row uses; infinite where it fails without a number."""
    shares = [relative(c.max_abs_error, c.budget) for c in (row.accumulated, row.isolated) if c is not None]
    numbers = [share for share in shares if share is not None]
    return max(numbers, default=math.inf if row.verdict == "fail" else 0.0)


def worst_rows(report: Report, count: int) -> list[Row]:
    """The rows nearest to their budget, or furthest beyond it."""
    compared = [row for row in report.rows if row.accumulated is not None or row.verdict == "fail"]
    return sorted(compared, key=budget_used, reverse=True)[:count]


def parts(report: Report) -> list[Part]:
    """Per-part summary in execution order."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        groups.setdefault(part_of(row), []).append(row)
    return [_part(name, rows) for name, rows in groups.items()]


def _part(name: str, rows: list[Row]) -> Part:
    return Part(
        name,
        len(rows),
        sum(row.verdict == "fail" for row in rows),
        _largest(ratio_of(row.accumulated) for row in rows),
        _largest(ratio_of(row.isolated) for row in rows),
        _largest(relative_error(row.accumulated) for row in rows if row.precision == "float64"),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def ratios(report: Report, measure: str) -> Ratios:
    """Distribution of the float32 ratio; ``measure`` is "accumulated" or "isolated"."""
    compared = [c for row in report.rows if row.precision == "float32" and (c := getattr(row, measure)) is not None]
    values = np.array([ratio for c in compared if (ratio := ratio_of(c)) is not None])
    if not values.size:
        return Ratios(0, len(compared), {}, {})
    quantiles = {f"{q} %": float(np.percentile(values, q, method="inverted_cdf")) for q in (50, 90, 99)}
    limits = dict.fromkeys((1.0, 2.0, 3.0, report.budget.k))
    above = {f"{limit:g}": float(np.mean(values > limit)) for limit in limits}
    return Ratios(values.size, len(compared) - values.size, quantiles | {"max": float(values.max())}, above)


def counts(report: Report) -> list[tuple[str, str, dict[str, int]]]:
    """(phase, precision, verdict -> rows), phases and precisions in order of appearance."""
    table: dict[tuple[str, str], dict[str, int]] = {}
    for row in report.rows:
        verdicts = table.setdefault((row.phase, row.precision), {"pass": 0, "fail": 0, "excused": 0})
        verdicts[row.verdict] = verdicts.get(row.verdict, 0) + 1
    order = {phase: place for place, phase in enumerate(dict.fromkeys(row.phase for row in report.rows))}
    return [(*key, table[key]) for key in sorted(table, key=lambda key: (order[key[0]], key[1]))]


def other_problems(report: Report) -> list[str]:
    """The report's problems without the first divergence, which every rendering shows by itself."""
    return [problem for problem in report.problems if not problem.startswith("first divergence at ")]


def caveats(report: Report) -> list[str]:
    """Kinds of evidence that this report does not hold, so that a good verdict is not taken for more than it is."""
    compared = [row for row in report.rows if row.accumulated is not None]
    precisions = {row.precision for row in compared}
    lacks = {
        "no float64 rows: equal formulas are not proven": "float64" not in precisions,
        "no float32 rows: the float error is not judged": "float32" not in precisions,
        "no isolated errors: a fault cannot be told from what feeds it": all(row.isolated is None for row in compared),
    }
    return [text for text, lacking in lacks.items() if lacking and compared]


def excuses(report: Report) -> dict[str, list[str]]:
    """Reason -> the names that it excuses."""
    found: dict[str, list[str]] = {}
    for name, reason in report.coverage.excused.items():
        found.setdefault(reason, []).append(name)
    return found


# ---- drift -------------------------------------------------------------------------------------------------------


def drift(report: Report, baseline: dict[str, Any]) -> Drift:
    """Compare a report with an older report.json.

    A row has drifted when its verdict changed, or when its accumulated or isolated error / scale grew by more than
    WORSE. Errors below one rounding of the precision count as one rounding, so that 1e-17 -> 5e-17 is no drift.
    """
    old = {(row["name"], row["precision"]): row for row in baseline["rows"]}
    new = {(row.name, row.precision): row for row in report.rows}
    changes = {key: _change(row, old[key]) for key, row in new.items() if key in old}
    verdicts = [c for c in changes.values() if c.before_verdict != c.after_verdict]
    factors = {key: c.factor for key, c in changes.items() if c.factor is not None}
    settled = {(c.name, c.precision) for c in verdicts}
    worse = [changes[key] for key, factor in factors.items() if factor > WORSE and key not in settled]
    return Drift(
        verdicts=tuple(verdicts),
        worse=tuple(sorted(worse, key=lambda c: c.used, reverse=True)),
        added=tuple(f"{name} [{precision}]" for name, precision in new if (name, precision) not in old),
        removed=tuple(f"{name} [{precision}]" for name, precision in old if (name, precision) not in new),
        context=tuple(_context(report, baseline)),
        shared=len(changes),
        better=sum(factor < 1 / WORSE for factor in factors.values()),
        factors=factors,
    )


def _change(row: Row, old: dict[str, Any]) -> Change:
    """The stronger of the accumulated and the isolated change."""
    found = []
    for measure in ("accumulated", "isolated"):
        then = old.get(measure) or {}
        before = relative(then.get("max_abs_error"), then.get("scale") or 0.0)
        after = relative_error(getattr(row, measure))
        verdicts = old.get("verdict", "?"), row.verdict
        found.append(Change(row.name, row.precision, measure, before, after, *verdicts, budget_used(row)))
    return max(found, key=lambda change: -1.0 if change.factor is None else change.factor)


def _context(report: Report, baseline: dict[str, Any]) -> Iterator[str]:
    now = {"budget": asdict(report.budget), "settings": report.settings, "environment": report.environment}
    new = dict(_flat(now))
    old = dict(_flat({section: baseline.get(section) or {} for section in now}))
    for key in sorted(new.keys() | old.keys()):
        if new.get(key) != old.get(key):
            yield f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif value != {}:
        yield path, str(list(value)) if isinstance(value, tuple) else str(value)


# ---- numbers -----------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits; a dash where there is no number."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def times(value: float | None) -> str:
    return number(value) if value is None or not 0.01 <= value < 1000 else f"{value:.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def cosine(value: float | None) -> str:
    """Cosine with its distance from 1, which is what matters."""
    if value is None or not 0.999 < value < 1.0:
        return number(value)
    return f"1-{1 - value:.1e}"


def printable(text: str) -> str:
    """Text that every encoder and XML reader takes: what they refuse becomes U+FFFD."""
    return NOT_XML.sub("\ufffd", text)


# ---- terminal ----------------------------------------------------------------------------------------------------


def print_report(
    report: Report, *, limit: int | None = None, folder: str | None = None, console: Console | None = None
) -> None:
    """Print the table; ``folder`` is where the report was saved. Logs get wide lines, narrow terminals few columns."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDE)
    console.print(terminal_table(report, limit=limit, folder=folder, wide=console.width >= 0.8 * WIDE))


def terminal_table(
    report: Report, *, limit: int | None = None, folder: str | None = None, wide: bool = True
) -> RenderableType:
    """Verdict, first divergence, rows in execution order, per-part summary.

    Up to 40 rows are shown whole. Of more, or with a ``limit``, the failing rows and those nearest to their budget are
    shown, and the number that is hidden is told. Without ``wide``, only the columns that decide are kept.
    """
    shown = _selected(report, limit)
    blocks: list[RenderableType] = [_headline(report), _rows_table(shown, wide)]
    hidden = len(report.rows) - len(shown)
    if hidden:
        failing = len(report.failures) - sum(row.verdict == "fail" for row in shown)
        where = f"{folder}/report.html" if folder else "report.html and report.json, once the report is saved"
        blocks.append(Text(f"{hidden} of {len(report.rows)} rows hidden, {failing} of them failing: {where}", "yellow"))
        blocks.append(_parts_table(report))
    return Group(*blocks)


def _selected(report: Report, limit: int | None) -> list[Row]:
    if limit is None and len(report.rows) <= ALL_ROWS:
        return list(report.rows)
    failing = report.failures[: FAILING_ROWS if limit is None else limit]
    wanted = {id(row): row for row in [*failing, *worst_rows(report, WORST_ROWS)][:limit]}
    return [row for row in report.rows if id(row) in wanted]


def _headline(report: Report) -> Text:
    verdict = state(report)
    style = "bold white on green" if verdict == "aligned" else "bold white on red"
    text = Text.assemble((f" {VERDICTS[verdict]} ", style), f" {printable(report.title)}: {len(report.rows)} rows")
    for problem in report.problems[:6]:
        text.append(f"\n  {printable(problem)}", "red")
    if len(report.problems) > 6:
        text.append(f"\n  ... and {len(report.problems) - 6} more", "red")
    if report.first_divergence and report.first_divergence.repro:
        text.append(f"\n  reproduce: {printable(report.first_divergence.repro)}")
    for caveat in caveats(report):
        text.append(f"\n  note: {caveat}", "yellow")
    return text


def _rows_table(rows: list[Row], wide: bool) -> Table:
    kept = [title for title, narrow in COLUMNS.items() if wide or narrow]
    table = Table(show_edge=False, header_style="bold", row_styles=("", "dim"))
    for title in kept:
        text = title in ("name", "class", "verdict")
        table.add_column(
            title, justify="left" if text else "right", overflow="fold", ratio=1 if title == "name" else None
        )
    for row in rows:
        cells = _cells(row)
        table.add_row(*[cells[title] for title in kept], style="red not dim" if row.verdict == "fail" else None)
    return table


def _cells(row: Row) -> dict[str, Text]:
    whole, alone = row.accumulated, row.isolated
    cells = {
        "name": row.name,
        "class": row.kind,
        "bits": row.precision.removeprefix("float"),
        "max abs\nerror": number(value_of(whole, "max_abs_error")),
        "scale": number(value_of(whole, "scale")),
        "ratio": times(value_of(whole, "ratio")),
        "isolated\nerror": number(value_of(alone, "max_abs_error")),
        "isolated\nratio": times(value_of(alone, "ratio")),
        "cosine": cosine(value_of(whole, "cosine")),
        "ULP": number(value_of(whole, "max_ulp")),
        "smallest\ntolerance": number(value_of(whole, "smallest_tolerance")),
        "verdict": row.verdict,
    }
    colours = {"pass": "green", "fail": "bold red", "excused": "yellow"}
    return {
        key: Text(printable(text), colours.get(text, "") if key == "verdict" else "") for key, text in cells.items()
    }


def _parts_table(report: Report) -> Table:
    table = Table(show_edge=False, header_style="bold")
    table.add_column("part")
    for title in ("rows", "failing", "worst ratio", "worst isolated ratio", "worst float64 error / scale"):
        table.add_column(title, justify="right")
    for part in parts(report):
        failing = Text(str(part.failing), "bold red" if part.failing else "")
        ratio, alone = times(part.worst_ratio), times(part.worst_isolated_ratio)
        table.add_row(Text(printable(part.name)), str(part.rows), failing, ratio, alone, number(part.worst_float64))
    return table


# ---- Markdown ----------------------------------------------------------------------------------------------------


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
        ratios={measure: ratios(report, measure) for measure in ("accumulated", "isolated")},
        parts=parts(report),
        worst=worst_rows(report, 10),
        used=budget_used,
        excuses=excuses(report),
        drift=None if baseline is None else drift(report, baseline),
    )
    return printable(text)


def _markdown_text(value: object) -> str:
    """Text that Markdown shows as it is, in one table cell."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$@])", r"\\\1", text)


# ---- JUnit -------------------------------------------------------------------------------------------------------


def junit_xml(report: Report, baseline: dict[str, Any] | None = None) -> str:
    """One suite with a test case per row, and one with what holds for the whole report; all green only if aligned."""
    drifted = None if baseline is None else drift(report, baseline)
    rows = [_row_case(row, drifted) for row in report.rows]
    suites = [_suite(report.title, rows), _suite(f"{report.title}: whole", list(_whole_cases(report)))]
    root = ET.Element("testsuites", {"name": printable(report.title), **_tally(suites)})
    root.extend(suites)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(name: str, cases: list[ET.Element]) -> ET.Element:
    totals = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": "0",
    }
    suite = ET.Element("testsuite", {"name": printable(name), **totals})
    suite.extend(cases)
    return suite


def _tally(suites: list[ET.Element]) -> dict[str, str]:
    return {key: str(sum(int(suite.attrib[key]) for suite in suites)) for key in ("tests", "failures", "errors")}


def _case(classname: str, name: str, failure: str | None) -> ET.Element:
    case = ET.Element("testcase", classname=printable(classname), name=printable(name), time="0")
    if failure is not None:
        ET.SubElement(case, "failure", message=printable(failure)).text = printable(failure)
    return case


def _row_case(row: Row, drifted: Drift | None) -> ET.Element:
    case = _case(row.module or part_of(row), f"{row.name} [{row.precision}]", None)
    properties = ET.SubElement(case, "properties")
    for key, value in _properties(row, drifted).items():
        ET.SubElement(properties, "property", name=key, value=printable(value))
    if row.verdict == "excused":
        ET.SubElement(case, "skipped", message=printable(row.reason))
    elif row.verdict != "pass":
        detail = "".join(f"\n{key}: {value}" for key, value in _properties(row, drifted).items())
        ET.SubElement(case, "failure", message=printable(row.reason)).text = printable(row.reason + detail)
    return case


def _properties(row: Row, drifted: Drift | None) -> dict[str, str]:
    whole, alone = row.accumulated, row.isolated
    numbers = {
        "max_abs_error": value_of(whole, "max_abs_error"),
        "scale": value_of(whole, "scale"),
        "ratio": value_of(whole, "ratio"),
        "isolated": value_of(alone, "max_abs_error"),
        "isolated_ratio": value_of(alone, "ratio"),
        "smallest_tolerance": value_of(whole, "smallest_tolerance"),
    }
    shown = {"class": row.kind, **{key: "none" if value is None else f"{value:.6g}" for key, value in numbers.items()}}
    if drifted is not None:
        factor = drifted.factors.get((row.name, row.precision))
        shown["drift"] = "none" if factor is None else f"{factor:.3g}x"
    return {**shown, "verdict": row.verdict}


def _whole_cases(report: Report) -> Iterator[ET.Element]:
    lists = {"missing": report.coverage.missing, "unexpected": report.coverage.unexpected}
    compared = any(row.accumulated is not None for row in report.rows)
    yield _case("report", "something was compared", None if compared else "nothing was compared")
    blamed = report.first_divergence
    words = f"{blamed.name} ({blamed.precision}): {blamed.reason}" if blamed else None
    yield _case("report", "no module diverges", words)
    for what, names in lists.items():
        yield _case("coverage", f"no name is {what}", ", ".join(names) or None)
    for name, fact in report.checks.items():
        yield _case("checks", name, fact if fact.startswith("FAIL") else None)
