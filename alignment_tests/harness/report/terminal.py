"""A report in the terminal: verdict, table, parts."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignment_tests.harness.judge.report import Report, Row
from alignment_tests.harness.report.figures import (
    GOOD,
    TABLE,
    VERDICTS,
    caveats,
    cosine,
    gradients,
    informing,
    is_training,
    known_lines,
    number,
    parts,
    printable,
    shown,
    state,
    times,
    value_of,
    worst_rows,
)

WORST_ROWS, FAILING_ROWS, ALL_ROWS = 15, 45, 40  # shown in a terminal: worst, failing; up to ALL_ROWS nothing is hidden
WIDE = 160  # columns of the table where the output is no terminal
COLUMNS = {  # of the terminal's table -> kept in a narrow terminal
    "name": True,
    "class": False,
    "bits": True,
    "step": False,  # of training only
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
    selected = _selected(report, limit)
    blocks: list[RenderableType] = [_headline(report), _rows_table(selected, wide, steps=is_training(report))]
    hidden = len(report.rows) - len(selected)
    if hidden:
        failing = len(report.failures) - sum(row.verdict == "fail" for row in selected)
        where = f"{folder}/report.html" if folder else "report.html and report.json, once the report is saved"
        blocks.append(Text(f"{hidden} of {len(report.rows)} rows hidden, {failing} of them failing: {where}", "yellow"))
        blocks.append(_parts_table(report))
    if is_training(report):
        blocks.append(_checks(report))
    return Group(*blocks)


def _selected(report: Report, limit: int | None) -> list[Row]:
    if limit is None and len(report.rows) <= ALL_ROWS:
        return list(report.rows)
    failing = report.failures[: FAILING_ROWS if limit is None else limit]
    wanted = {id(row): row for row in [*failing, *worst_rows(report, WORST_ROWS)][:limit]}
    return [row for row in report.rows if id(row) in wanted]


def _headline(report: Report) -> Text:
    verdict = state(report)
    style = "bold white on green" if verdict in GOOD else "bold white on red"
    text = Text.assemble((f" {VERDICTS[verdict]} ", style), f" {printable(report.title)}: {len(report.rows)} rows")
    for problem in report.problems[:6]:
        text.append(f"\n  {printable(problem)}", "red")
        if report.first_divergence and problem.startswith("first divergence"):
            for label, line in report.first_divergence.details:
                text.append(f"\n    {label}: {printable(line)}", "bold")
    if len(report.problems) > 6:
        text.append(f"\n  ... and {len(report.problems) - 6} more", "red")
    if report.first_divergence and report.first_divergence.repro:
        text.append(f"\n  reproduce: {printable(report.first_divergence.repro)}")
    for line in known_lines(report):
        text.append(f"\n  known: {printable(line)}; see {TABLE}", "yellow")
    for caveat in caveats(report):
        text.append(f"\n  note: {caveat}", "yellow")
    return text


def _checks(report: Report) -> Text:
    """What was proven of the whole run; failed checks stand in the headline."""
    facts = [f"{name}: {fact}" for name, fact in report.checks.items() if not fact.startswith("FAIL")]
    ledger_of = gradients(report)
    if ledger_of is not None:
        facts.append(f"gradients: compared by {ledger_of.compared} of {ledger_of.trained} trained parameters")
    if inform := informing(report):
        facts.append(f"{len(inform)} float32 gradients of whole passes are beyond their budget and inform only")
    return Text("\n".join(printable(fact) for fact in facts))


def _rows_table(rows: list[Row], wide: bool, *, steps: bool) -> Table:
    kept = [title for title, narrow in COLUMNS.items() if (wide or narrow) and (steps or title != "step")]
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
        "step": "" if row.step is None else str(row.step),
        "max abs\nerror": number(value_of(whole, "max_abs_error")),
        "scale": number(value_of(shown(row), "scale")),
        "ratio": times(value_of(whole, "ratio")),
        "isolated\nerror": number(value_of(alone, "max_abs_error")),
        "isolated\nratio": times(value_of(alone, "ratio")),
        "cosine": cosine(value_of(whole, "cosine")),
        "ULP": number(value_of(whole, "max_ulp")),
        "smallest\ntolerance": number(value_of(whole, "smallest_tolerance")),
        "verdict": row.verdict,
    }
    colours = {"pass": "green", "fail": "bold red", "excused": "yellow", "known": "yellow"}
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
