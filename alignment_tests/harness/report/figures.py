"""Figures that the renderings share: the verdict's word, parts, ratios, the drift against an older report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.judge.report import Report, Row
from alignment_tests.harness.record.phases import GRADIENTS, LOSS, PHASES

TEMPLATES = Path(__file__).parent / "templates"
WORSE = 2.0  # an error that grows by more than this factor is drift
EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}
MEASURES = ("accumulated", "isolated", "gradients")  # of the ratio; see ``ratio_rows``
CURVE_ROWS = 20  # of a table with a row per step
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

RowKey = tuple[str, str]  # name, precision
VERDICTS = {
    "aligned": "ALIGNED",
    "known": "ALIGNED, BUT FOR JITTOR'S OWN LAYERS",
    "diverged": "DIVERGED",
    "incomplete": "INCOMPLETE",
    "empty": "NOTHING COMPARED",
}
GOOD = ("aligned", "known")
TABLE = "docs/jittor_conformity.md"  # of Jittor's own differences, each with a script that shows it


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
class Gradients:
    """Whether the gradient by every parameter was compared."""

    trained: int  # parameters that have a gradient in the reference
    compared: int
    without: tuple[str, ...]  # parameters that have none in the reference: nothing trains them


@dataclass(frozen=True)
class Curves:
    """The curves of a training run, as a table."""

    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | None, ...]], ...]  # step, a value of each curve
    steps: int


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
    used: float | None  # share of its budget that the row uses now

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
    """One of the keys of VERDICTS; one of GOOD only where the report is aligned."""
    if report.aligned:
        return "known" if report.known else "aligned"
    if not report.compared:
        return "empty"
    return "diverged" if report.failures or report.first_divergence else "incomplete"


def is_training(report: Report) -> bool:
    return any(row.step is not None for row in report.rows)


def part_of(row: Row) -> str:
    """First component of the module path, or the phase where there is none: terms of a loss are no modules."""
    if row.name.startswith(f"grad_activation/{LOSS}/"):
        return "(loss)"
    if row.phase in ("loss", "assignment"):
        return f"({row.phase})"
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


def shown(row: Row) -> Comparison | None:
    """The comparison whose scale stands for the row: of the whole run, or of the module alone if there is no other."""
    return row.isolated if row.accumulated is None else row.accumulated


def judged(row: Row, measure: str) -> Comparison | None:
    """A row's comparison, unless it only informs: a gradient of a whole float32 pass may fail in a row that passes."""
    comparison: Comparison | None = getattr(row, measure)
    return None if comparison is not None and not comparison.passed and row.verdict == "pass" else comparison


def informing(report: Report) -> list[Row]:
    """Rows with a comparison beyond its budget that only informs."""
    return [row for row in report.rows if row.accumulated is not None and judged(row, "accumulated") is None]


def budget_used(row: Row) -> float | None:
    """Largest share of the allowed error that a row uses; infinite where it fails without a number.

    None where nothing judges the row by itself.
    """
    deciding = [c for measure in ("accumulated", "isolated") if (c := judged(row, measure)) is not None]
    numbers = [share for c in deciding if (share := relative(c.max_abs_error, c.budget)) is not None]
    if row.verdict == "pass" and not deciding:
        return None
    return max(numbers, default=math.inf if row.verdict == "fail" else 0.0)


def worst_rows(report: Report, count: int) -> list[Row]:
    """The rows nearest to their budget, or furthest beyond it."""
    used = [(row, budget_used(row)) for row in report.rows if shown(row) is not None or row.verdict == "fail"]
    judging = [(row, share) for row, share in used if share is not None]
    return [row for row, _ in sorted(judging, key=lambda pair: pair[1], reverse=True)[:count]]


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
        _largest(ratio_of(judged(row, "accumulated")) for row in rows),
        _largest(ratio_of(row.isolated) for row in rows),
        _largest(relative_error(shown(row)) for row in rows if row.precision == "float64"),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def ratio_rows(report: Report, measure: str) -> list[Comparison]:
    """The float32 comparisons of one of the MEASURES; "gradients" are those of whole passes, which inform only."""
    field = "isolated" if measure == "isolated" else "accumulated"
    single = [row for row in report.rows if row.precision == "float32"]
    if measure != "isolated":
        single = [row for row in single if (row.phase in GRADIENTS) == (measure == "gradients")]
    return [c for row in single if (c := getattr(row, field)) is not None]


def ratios(report: Report, measure: str) -> Ratios:
    """Distribution of the float32 ratio; ``measure`` is one of MEASURES."""
    compared = ratio_rows(report, measure)
    values = np.array([ratio for c in compared if (ratio := ratio_of(c)) is not None])
    if not values.size:
        return Ratios(0, len(compared), {}, {})
    quantiles = {f"{q} %": float(np.percentile(values, q, method="inverted_cdf")) for q in (50, 90, 99)}
    limits = dict.fromkeys((1.0, 2.0, 3.0, report.budget.k))
    above = {f"{limit:g}": float(np.mean(values > limit)) for limit in limits}
    return Ratios(values.size, len(compared) - values.size, quantiles | {"max": float(values.max())}, above)


def in_order(phases: Iterable[str]) -> list[str]:
    """Causes before effects, as training is judged; what training has not comes first, in order of appearance."""
    place = {phase: number for number, phase in enumerate(PHASES)}
    return sorted(dict.fromkeys(phases), key=lambda phase: place.get(phase, -1))


def counts(report: Report) -> list[tuple[str, str, dict[str, int]]]:
    """(phase, precision, verdict -> rows), by phase and precision."""
    table: dict[tuple[str, str], dict[str, int]] = {}
    for row in report.rows:
        verdicts = table.setdefault((row.phase, row.precision), {"pass": 0, "known": 0, "fail": 0, "excused": 0})
        verdicts[row.verdict] = verdicts.get(row.verdict, 0) + 1
    order = {phase: place for place, phase in enumerate(in_order(row.phase for row in report.rows))}
    return [(*key, table[key]) for key in sorted(table, key=lambda key: (order[key[0]], key[1]))]


def ledger(report: Report) -> dict[str, int]:
    """How many names were compared, by phase."""
    return {phase: report.coverage.compared[phase] for phase in in_order(report.coverage.compared)}


def gradients(report: Report) -> Gradients | None:
    """None where no gradients by parameters were asked for."""
    names = {phase: {row.name.split("/", 1)[1] for row in report.rows if row.phase == phase}
             for phase in ("parameter", "grad_parameter")}  # fmt: skip
    lost = {name.split("/", 1)[1] for name in report.coverage.missing if name.startswith("grad_parameter/")}
    trained = names["grad_parameter"] | lost
    if not trained:
        return None
    without = tuple(sorted(names["parameter"] - trained))
    return Gradients(len(trained), report.coverage.compared.get("grad_parameter", 0), without)


def curves(report: Report) -> Curves | None:
    """Losses and drifts by step; of a long run an even choice of steps with the first and the last."""
    if not report.curves:
        return None
    names = tuple(sorted(report.curves, key=lambda name: not name.startswith("loss")))
    steps = max(len(values) for values in report.curves.values())
    chosen = sorted({round(place) for place in np.linspace(0, steps - 1, min(steps, CURVE_ROWS))})
    rows = [(step, tuple(_at(report.curves[name], step) for name in names)) for step in chosen]
    return Curves(names, tuple(rows), steps)


def _at(values: Sequence[float], step: int) -> float | None:
    return values[step] if step < len(values) else None


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
        "no isolated errors: a fault cannot be told from what feeds it": all(
            row.isolated is None for row in report.rows
        ),
        "no free-running training: what is carried from step to step beside the state is not seen": (
            is_training(report) and not report.curves
        ),
    }
    branches = [f"not proven: {report.checks['not proven']}"] if "not proven" in report.checks else []
    return [text for text, lacking in lacks.items() if lacking and compared] + branches


def known_lines(report: Report) -> list[str]:
    """Jittor's operators behind the rows that are known, in words."""
    return [
        f"{known.operator} differs from PyTorch's by {number(known.size)} of the scale ({known.precision}), in "
        + ", ".join(known.places[:5])
        + (f" and {len(known.places) - 5} more" if len(known.places) > 5 else "")
        for known in report.known
    ]


def excuses(report: Report) -> dict[str, list[str]]:
    """Reason -> the names that it excuses."""
    found: dict[str, list[str]] = {}
    for name, reason in report.coverage.excused.items():
        found.setdefault(reason, []).append(name)
    return found


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
        worse=tuple(sorted(worse, key=lambda c: c.used or 0.0, reverse=True)),
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
        if old.get("verdict") == "pass" and then.get("passed") is False:
            then = {}  # it only informed: whether such a row is near or far is chance
        before = relative(then.get("max_abs_error"), then.get("scale") or 0.0)
        after = relative_error(judged(row, measure))
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
