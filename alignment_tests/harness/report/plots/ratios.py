"""All plots of a report; here those of the ratios, of the error against magnitude, and of its place in the image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignment_tests.harness.judge.budget import EPS32
from alignment_tests.harness.judge.report import Detail, Report
from alignment_tests.harness.report.figures import MEASURES, ratio_of, ratio_rows
from alignment_tests.harness.report.plots.depth import error_along_depth
from alignment_tests.harness.report.plots.steps import drift_by_step, loss_by_step
from alignment_tests.harness.report.plots.style import (
    BLUE,
    LARGEST,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    Plot,
    plain,
    short,
    styled,
    svg_of,
)

PANELS = 9  # small multiples of at most this many detail rows


def all_plots(report: Report) -> list[Plot]:
    """Every plot for which the report has data."""
    drawn = (loss_by_step, drift_by_step, error_along_depth, ratio_histogram, error_against_magnitude, error_maps)
    return [plot for draw in drawn if (plot := draw(report)) is not None]


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
    with styled():
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
        svg = svg_of(figure)
    return Plot("ratios", svg, f"Histogram of the float32 ratio of {values.size} comparisons; k is {k:g}.")


# ---- details -----------------------------------------------------------------------------------------------------


def error_against_magnitude(report: Report) -> Plot | None:
    """Largest error per bin of the true magnitude, candidate and reference, for the detail rows."""
    details = [d for d in report.details if any(0 < m < math.inf for m in d.magnitudes)][:PANELS]
    if not details:
        return None
    with styled():
        figure, panels = _panels(len(details), 3.1)
        for axes, detail in zip(panels, details, strict=True):
            _draw_magnitudes(axes, detail)
        figure.supxlabel("|value| in the oracle", fontsize=11)
        figure.supylabel("largest |error|", fontsize=11)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=10.5)
        svg = svg_of(figure)
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
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.minorticks_off()
    axes.tick_params(labelsize=9)


def error_maps(report: Report) -> Plot | None:
    """Where in the image the largest error over batch and channels lies, for the detail rows."""
    details = [d for d in report.details if d.error_map and d.error_map[0]][:PANELS]
    if not details:
        return None
    with styled():
        figure, panels = _panels(len(details), 3.5)
        for axes, detail in zip(panels, details, strict=True):
            _draw_map(figure, axes, detail)
        figure.supxlabel("column", fontsize=11)
        figure.supylabel("row", fontsize=11)
        svg = svg_of(figure)
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
    bar = figure.colorbar(image, ax=axes, shrink=0.78, format=plain)
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


def _title(detail: Detail) -> str:
    return f"{short(detail.name.partition('/')[2] or detail.name, 38)}  [{detail.precision}]"
