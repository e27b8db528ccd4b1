"""Plots of a report as SVG text: training by step, error along depth, against magnitude, where in the image, ratios.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; every meaning also has its own marker.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from alignment_tests.harness.budget import EPS32
from alignment_tests.harness.compare import Comparison
from alignment_tests.harness.digest import MEASURES, number, part_of, printable, ratio_of, ratio_rows, relative_error
from alignment_tests.harness.free_runs import FREE_RUN_FACTOR, limits
from alignment_tests.harness.report import Detail, Report, Row

Floats = npt.NDArray[np.float64]

BLUE, GREEN, PURPLE, RED, ORANGE = "#0072B2", "#009E73", "#AA4499", "#C62F00", "#E69F00"
INK, MUTED, BAND, GRID = "#222222", "#666666", "#D9DDE3", "#E8EAED"
SMALLEST, LARGEST = 1e-20, 1e12  # error / scale and ratios are drawn within these
PANELS = 9  # small multiples of at most this many detail rows
VECTOR_POINTS = 3000  # more activations than this are drawn as pixels inside the SVG
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignment",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "Liberation Sans", "DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9AA0A6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """One drawing. ``frame`` is the axes' left and right edge and the x limits, for a reader's pointer; or None."""

    key: str
    svg: str
    alt: str
    frame: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Step:
    """One activation in execution order, with its row in each precision."""

    name: str
    part: str
    rows: dict[str, Row]

    def comparison(self, precision: str, measure: str) -> Comparison | None:
        return getattr(self.rows.get(precision), measure, None)


def all_plots(report: Report) -> list[Plot]:
    """Every plot for which the report has data."""
    drawn = (loss_by_step, drift_by_step, error_along_depth, ratio_histogram, error_against_magnitude, error_maps)
    return [plot for draw in drawn if (plot := draw(report)) is not None]


# ---- error along depth -------------------------------------------------------------------------------------------


def steps(report: Report) -> list[Step]:
    """Activations in execution order."""
    found: dict[str, Step] = {}
    for row in sorted((row for row in report.rows if row.phase == "activation"), key=lambda row: row.index):
        found.setdefault(row.name, Step(row.name, part_of(row), {})).rows[row.precision] = row
    return list(found.values())


def error_along_depth(report: Report) -> Plot | None:
    """Error / scale of each activation in execution order, on a log axis, above the reference's own error."""
    order = steps(report)
    curves = {
        (precision, measure): _series(order, precision, measure, relative_error)
        for precision in ("float32", "float64")
        for measure in ("accumulated", "isolated")
    }
    own, allowed = (_series(order, "float32", "accumulated", share) for share in (_own_error, _allowed))
    if not _count_failing(order) and not any(np.isfinite(values).any() for values in curves.values()):
        return None
    floor, top = _limits(report.budget.float64_bar, own, allowed, *curves.values())
    with _style():
        figure = Figure(figsize=(13, 5.6), layout="constrained")
        axes = figure.subplots()
        _draw_budget(axes, own, allowed, report.budget.float64_bar, floor)
        zeros = _draw_curves(axes, curves, floor)
        _draw_failures(axes, order, curves, floor, top)
        _draw_parts(axes, order, top)
        _draw_blame(axes, order, report, top)
        axes.set(xlim=(-0.01 * len(order) - 0.5, 1.01 * len(order) - 0.5), ylim=(floor / 2, top), yscale="log")
        floor_note = f" (exact zeros are drawn on the lowest line, at {_plain(floor)})" if zeros else ""
        axes.set(
            xlabel="activation, in execution order" + floor_note, ylabel="largest |error| / scale of the activation"
        )
        axes.yaxis.set_major_formatter(_plain)
        axes.grid(visible=False, axis="x")
        if zeros:
            axes.axhline(floor, color="#B9BEC5", linewidth=0.8, zorder=0)
        figure.legend(loc="outside upper left", ncols=4, fontsize=10.5, markerscale=1.6)
        svg = _svg(figure)
        box, limits = axes.get_position(), axes.get_xlim()
    alt = f"Error of {len(order)} activations in execution order; {_count_failing(order)} of them fail."
    return Plot("depth", svg, alt, (box.x0, box.x1, *limits))


def _series(order: Sequence[Step], precision: str, measure: str, value: Callable[[Comparison], float | None]) -> Floats:
    """One number per activation; NaN where there is none."""
    compared = (step.comparison(precision, measure) for step in order)
    numbers = [None if c is None else value(c) for c in compared]
    values = np.array([math.nan if n is None else n for n in numbers], dtype=np.float64)
    return np.where(values > 0, np.clip(values, SMALLEST, LARGEST), values)


def _limits(*shown: float | Floats) -> tuple[float, float]:
    """Powers of ten with room for the zeros below and for the labels above."""
    values = np.concatenate([np.atleast_1d(part) for part in shown])
    powers = np.log10(values[values > 0])
    return 10.0 ** (math.floor(powers.min()) - 1), 10.0 ** (math.ceil(powers.max()) + 1)


def _own_error(comparison: Comparison) -> float | None:
    own = comparison.reference_error
    return own / comparison.scale if own is not None and comparison.scale else None


def _allowed(comparison: Comparison) -> float | None:
    return comparison.budget / comparison.scale if comparison.scale else None


def _draw_budget(axes: Any, own: Floats, allowed: Floats, bar: float, floor: float) -> None:
    x = np.arange(own.size)
    if np.isfinite(own).any():
        axes.fill_between(x, np.maximum(own, floor), allowed, color=BAND, linewidth=0, label="float32 budget")
        axes.plot(x, np.maximum(own, floor), color="#8A919B", linewidth=1.2, label="reference's own float32 error")
    axes.axhline(bar, color=GREEN, linewidth=1.2, linestyle=(0, (5, 3)), label=f"float64 bar, {_plain(bar)}")


def _draw_curves(axes: Any, curves: dict[tuple[str, str], Floats], floor: float) -> int:
    """Accumulated errors as lines, isolated ones as dots; returns how many exact zeros stand on the floor."""
    styles: dict[tuple[str, str], dict[str, Any]] = {
        ("float32", "accumulated"): {"color": BLUE, "linewidth": 1.6, "label": "candidate float32, accumulated"},
        ("float32", "isolated"): {"color": PURPLE, "marker": ".", "label": "candidate float32, isolated"},
        ("float64", "accumulated"): {"color": GREEN, "linewidth": 1.6, "label": "candidate float64, accumulated"},
        ("float64", "isolated"): {
            "color": ORANGE,
            "marker": "^",
            "markersize": 2.6,
            "label": "candidate float64, isolated",
        },
    }
    zeros = 0
    for key, values in curves.items():
        if np.isfinite(values).any():
            style = styles[key] if "linewidth" in styles[key] else {"linestyle": "none", "markersize": 4, **styles[key]}
            axes.plot(np.maximum(values, floor), rasterized=values.size > VECTOR_POINTS, **style)
            zeros += int(np.count_nonzero(values == 0.0))
    return zeros


def _draw_failures(
    axes: Any, order: Sequence[Step], curves: dict[tuple[str, str], Floats], floor: float, top: float
) -> None:
    """Red marks on errors beyond their budget: a cross if accumulated, a diamond if isolated (the module itself)."""
    styles: dict[str, dict[str, Any]] = {
        "accumulated": {"marker": "x", "markersize": 4.5, "markeredgewidth": 0.9, "alpha": 0.75},
        "isolated": {"marker": "D", "markersize": 6.5, "markeredgecolor": INK, "markeredgewidth": 0.8, "zorder": 5},
    }
    for measure, style in styles.items():
        keys = [key for key in curves if key[1] == measure]
        points = {(place, curves[key][place]) for place, step in enumerate(order) for key in keys if _beyond(step, key)}
        seen = sorted(point for point in points if not math.isnan(point[1]))
        if seen:
            x, y = zip(*seen, strict=True)
            label = f"{measure} beyond budget ({len(set(x))} of {len(order)})"
            axes.plot(x, np.maximum(y, floor), linestyle="none", color=RED, label=label, **style)
    lost = [place for place, step in enumerate(order) if any(_without_number(row) for row in step.rows.values())]
    if lost:
        label = f"fails without a number: NaN, shape ({len(lost)})"
        axes.plot(lost, [top / 12] * len(lost), linestyle="none", color=RED, marker="v", markersize=7, label=label)


def _beyond(step: Step, key: tuple[str, str]) -> bool:
    comparison = step.comparison(*key)
    return comparison is not None and not comparison.passed


def _without_number(row: Row) -> bool:
    failed = [c for c in (row.accumulated, row.isolated) if c is not None and not c.passed]
    return row.verdict == "fail" and (not failed or any(relative_error(c) is None for c in failed))


def _draw_parts(axes: Any, order: Sequence[Step], top: float) -> None:
    start, last_label = 0, -math.inf
    for part, members in groupby(order, key=lambda step: step.part):
        width = sum(1 for _ in members)
        if start:
            axes.axvline(start - 0.5, color="#B9BEC5", linewidth=1)
        middle = start + (width - 1) / 2
        if width >= 0.03 * len(order) and middle - last_label > 0.05 * len(order):
            axes.text(
                middle, top / 1.6, _short(part, 24), ha="center", va="top", color=MUTED, fontsize=12, fontweight="bold"
            )
            last_label = middle
        start += width


def _draw_blame(axes: Any, order: Sequence[Step], report: Report, top: float) -> None:
    blamed = report.first_divergence
    places = [place for place, step in enumerate(order) if blamed is not None and step.name == blamed.name]
    if blamed is None or not places:
        return
    axes.axvline(places[0], color=RED, linewidth=1.2, linestyle=(0, (2, 2)))
    right = places[0] > 0.6 * len(order)
    text = f"first divergence: {_short(blamed.module or blamed.name, 60)} "
    axes.annotate(text, (places[0], top / 40), xytext=(-5 if right else 5, 0), textcoords="offset points", color=RED,
                  ha="right" if right else "left", va="center", fontsize=10.5)  # fmt: skip


def _count_failing(order: Sequence[Step]) -> int:
    return sum(any(row.verdict == "fail" for row in step.rows.values()) for step in order)


# ---- training by step --------------------------------------------------------------------------------------------

REFERENCE_STYLES: dict[str, dict[str, Any]] = {
    "reference float64": {"color": "#C3C8CF", "linewidth": 6, "solid_capstyle": "round"},
    "reference float32": {"color": "#8A919B", "linewidth": 1.6, "linestyle": (0, (4, 2))},
    "reference float64 nudged": {"color": "#8A919B", "linewidth": 1.6, "linestyle": (0, (1, 2))},
}
CANDIDATE_STYLES: dict[str, dict[str, Any]] = {
    "candidate float64": {"color": GREEN, "linewidth": 1.4, "marker": "^", "markersize": 5},
    "candidate float32": {"color": BLUE, "linewidth": 1.4, "marker": "o", "markersize": 4},
}
STEP_STYLES = REFERENCE_STYLES | CANDIDATE_STYLES


def loss_by_step(report: Report) -> Plot | None:
    """Total loss of each free run."""
    curves = _curves(report, "loss")
    if not curves:
        return None
    values = np.concatenate(list(curves.values()))
    finite = values[np.isfinite(values)]
    wide = finite.size and finite.min() > 0 and finite.max() > 30 * finite.min()
    with _style():
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        axes = figure.subplots()
        _draw_steps(axes, curves)
        axes.set(ylabel="total loss", yscale="log" if wide else "linear")
        if wide:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(_plain)
        _finish_steps(figure, axes, curves)
        svg = _svg(figure)
    ends = "; ".join(f"{name} {number(v[0])} to {number(v[-1])}" for name, v in curves.items())
    return Plot("loss", svg, f"Total loss over {_steps_of(curves)} steps: {ends}.")


def drift_by_step(report: Report) -> Plot | None:
    """Drift of each free run from the oracle on a log axis, below the limit that the reference's own drift sets."""
    curves = _curves(report, "drift")
    if not curves:
        return None
    limit = np.array(limits(report.curves, "float32"))
    drawn = {name: _drawable(values) for name, values in curves.items()}
    positive = [values[values > 0] for values in (*drawn.values(), _drawable(limit))]
    floor, top = _limits(*positive) if any(values.size for values in positive) else (1e-17, 1e-15)
    with _style():
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        axes = figure.subplots()
        allowed = np.maximum(_drawable(limit), floor)
        axes.fill_between(np.arange(limit.size), floor / 2, allowed, color=BAND, alpha=0.6, linewidth=0)
        label = f"limit: {FREE_RUN_FACTOR:g} x the reference's float32 drift so far"
        axes.plot(allowed, color=RED, linewidth=1.6, label=label)
        if top > 1:
            axes.axhline(1, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), label="1: the whole way")
        _draw_steps(axes, {name: np.maximum(values, floor) for name, values in drawn.items()})
        beyond = _draw_beyond(axes, report, curves, floor, top)
        axes.set(ylabel="distance / way of the reference", yscale="log", ylim=(floor / 2, top))
        axes.yaxis.set_major_formatter(_plain)
        zeros = any((values == 0).any() for values in curves.values())
        note = f" (exact zeros are drawn on the lowest line, at {_plain(floor)})" if zeros else ""
        _finish_steps(figure, axes, curves, note)
        svg = _svg(figure)
    ends = "; ".join(f"{name} {number(values[-1])}" for name, values in curves.items())
    return Plot("drift", svg, f"Drift after {_steps_of(curves)} steps: {ends}. {beyond} points lie beyond the limit.")


def _drawable(values: Floats) -> Floats:
    """Within the limits of the drawing; what is not finite leaves a gap."""
    values = np.where(np.isfinite(values), values, np.nan)
    return np.where(values > 0, np.clip(values, SMALLEST, LARGEST), values)


def _curves(report: Report, kind: str) -> dict[str, Floats]:
    """The curves of one kind by side and precision, the reference's first."""
    named = {name.removeprefix(f"{kind}, "): np.array(values, np.float64)
             for name, values in report.curves.items() if name.startswith(f"{kind}, ") and values}  # fmt: skip
    return {
        name: named[name]
        for name in [*(n for n in STEP_STYLES if n in named), *(n for n in named if n not in STEP_STYLES)]
    }


def _steps_of(curves: dict[str, Floats]) -> int:
    return max(values.size for values in curves.values())


def _draw_steps(axes: Any, curves: dict[str, Floats]) -> None:
    for name, values in curves.items():
        axes.plot(
            values, label=name, **{"markevery": max(1, values.size // 60), **STEP_STYLES.get(name, {"color": PURPLE})}
        )


def _draw_beyond(axes: Any, report: Report, curves: dict[str, Floats], floor: float, top: float) -> int:
    """Red crosses on the candidate's drifts beyond their limit, triangles where there is no number; returns how many.

    The limit that is drawn is that of float32; float64 has its own, a multiple of the nudged reference.
    """
    points = [
        (step, value)
        for name, values in curves.items()
        if name in CANDIDATE_STYLES
        for step, (value, most) in enumerate(zip(values, limits(report.curves, name.split()[-1]), strict=False))
        if not value <= most
    ]
    seen = [(step, float(np.clip(value, floor, LARGEST))) for step, value in points if math.isfinite(value)]
    lost = [(step, top / 2) for step, value in points if not math.isfinite(value)]
    for marked, marker, words in ((seen, "x", "beyond the limit"), (lost, "v", "not finite")):
        if marked:
            x, y = zip(*marked, strict=True)
            size, label = 9 if len(marked) < 30 else 5, f"{words} ({len(marked)})"
            style = {"linestyle": "none", "color": RED, "marker": marker, "markeredgewidth": 1.4, "zorder": 6}
            axes.plot(x, y, markersize=size, label=label, **style)
    return len(points)


def _finish_steps(figure: Any, axes: Any, curves: dict[str, Floats], note: str = "") -> None:
    count = _steps_of(curves)
    axes.set(xlabel="step" + note, xlim=(-0.02 * count - 0.1, 1.02 * count - 0.9))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper left", ncols=4, fontsize=10.5)


# ---- ratios ------------------------------------------------------------------------------------------------------


def ratio_histogram(report: Report) -> Plot | None:
    """How many float32 rows have which ratio of the candidate's error to the reference's own."""
    found = {
        measure: np.array([r for c in ratio_rows(report, measure) if (r := ratio_of(c)) is not None])
        for measure in MEASURES
    }
    found = {measure: np.minimum(ratios, LARGEST) for measure, ratios in found.items() if ratios.size}
    values = np.concatenate([*found.values(), np.array([])])
    if not values.size:
        return None
    low, k = 0.125, report.budget.k
    high = max(2 * k, 1.1 * float(values.max()))
    bins: Any = np.geomspace(low, high, 41 if high < 100 else 61)
    with _style():
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        axes = figure.subplots()
        colours = {"accumulated": BLUE, "isolated": PURPLE, "gradients": ORANGE}
        words = {"gradients": "gradients of whole passes (inform only)"}
        for measure, ratios in found.items():
            over = int(np.count_nonzero(ratios > k))
            label = f"{words.get(measure, measure)}: {ratios.size} rows, {over} above k"
            axes.hist(np.maximum(ratios, low), bins=bins, histtype="stepfilled", alpha=0.28, color=colours[measure])
            axes.hist(
                np.maximum(ratios, low), bins=bins, histtype="step", linewidth=1.6, color=colours[measure], label=label
            )
        axes.axvline(1, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), label="1: as exact as the reference")
        axes.axvline(k, color=RED, linewidth=1.6, label=f"k = {k:g}: the limit, unless the floor c allows more")
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(0.7, None))
        axes.set(
            xlabel=f"candidate's float32 error / reference's own ({low:g} and below in the first bin)", ylabel="rows"
        )
        ticks = [t for t in (0.125, 0.25, 0.5, 1, 2, 4, 8, *(10.0 ** np.arange(2, 20))) if low <= t <= high]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        figure.legend(loc="outside upper left", ncols=4 if len(found) < 3 else 3, fontsize=10.5)
        svg = _svg(figure)
    return Plot("ratios", svg, f"Histogram of the float32 ratio of {values.size} comparisons; k is {k:g}.")


# ---- details -----------------------------------------------------------------------------------------------------


def error_against_magnitude(report: Report) -> Plot | None:
    """Largest error per bin of the true magnitude, candidate and reference, for the detail rows."""
    details = [d for d in report.details if any(0 < m < math.inf for m in d.magnitudes)][:PANELS]
    if not details:
        return None
    with _style():
        figure, panels = _panels(len(details), 3.1)
        for axes, detail in zip(panels, details, strict=True):
            _draw_magnitudes(axes, detail)
        figure.supxlabel("|value| in the oracle", fontsize=11)
        figure.supylabel("largest |error|", fontsize=11)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=10.5)
        svg = _svg(figure)
    return Plot("magnitude", svg, "Error against magnitude for: " + ", ".join(d.name for d in details))


def _draw_magnitudes(axes: Any, detail: Detail) -> None:
    x = np.array(detail.magnitudes)
    axes.set(xscale="log", yscale="log")
    if detail.precision == "float32":
        seen = (x > 0) & np.isfinite(x)
        axes.plot(
            x[seen], EPS32 / 2 * x[seen], color=MUTED, linestyle=":", linewidth=1.2, label="one rounding of the value"
        )
    for errors, colour, marker, label in (
        (detail.reference_errors, "#8A919B", "s", "reference"),
        (detail.candidate_errors, BLUE, "o", "candidate"),
    ):
        y = np.array(errors)
        seen = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
        axes.plot(x[seen], y[seen], color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
    axes.set_title(_title(detail), fontsize=10)
    axes.xaxis.set_major_formatter(_plain)
    axes.yaxis.set_major_formatter(_plain)
    axes.minorticks_off()
    axes.tick_params(labelsize=9)


def error_maps(report: Report) -> Plot | None:
    """Where in the image the largest error over batch and channels lies, for the detail rows."""
    details = [d for d in report.details if d.error_map and d.error_map[0]][:PANELS]
    if not details:
        return None
    with _style():
        figure, panels = _panels(len(details), 3.5)
        for axes, detail in zip(panels, details, strict=True):
            _draw_map(figure, axes, detail)
        figure.supxlabel("column", fontsize=11)
        figure.supylabel("row", fontsize=11)
        svg = _svg(figure)
    return Plot("maps", svg, "Heat maps of the error for: " + ", ".join(d.name for d in details))


def _draw_map(figure: Any, axes: Any, detail: Detail) -> None:
    values = np.ma.masked_invalid(np.array(detail.error_map, dtype=np.float64))
    image = axes.imshow(values, cmap="cividis", vmin=0.0, interpolation="nearest", aspect="equal")
    if values.count() and values.max() > 0:
        row, column = np.unravel_index(int(np.ma.argmax(values)), values.shape)
        axes.plot(
            column, row, marker="o", markersize=13, markerfacecolor="none", markeredgecolor=RED, markeredgewidth=1.8
        )
    axes.set_title(_title(detail), fontsize=10)
    axes.grid(visible=False)
    axes.tick_params(labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar = figure.colorbar(image, ax=axes, shrink=0.78, format=_plain)
    bar.ax.tick_params(labelsize=9)
    bar.set_label("largest |error|", fontsize=9)


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(13 if columns == 3 else 6.5 * columns, height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, list(panels[:count])


# ---- helpers -----------------------------------------------------------------------------------------------------


def _title(detail: Detail) -> str:
    return f"{_short(detail.name.partition('/')[2] or detail.name, 38)}  [{detail.precision}]"


def _short(text: str, limit: int) -> str:
    """The end of a name says most."""
    text = printable(text)
    return text if len(text) <= limit else "…" + text[1 - limit :]


def _plain(value: float, _: object = None) -> str:
    """A number for an axis: 0.25, 100, 1e−9."""
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")


@contextmanager
def _style() -> Iterator[None]:
    """The plots' look; names in scripts that the layout's font lacks are drawn by the reader's browser."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
