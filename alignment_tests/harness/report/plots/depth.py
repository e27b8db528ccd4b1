"""The plot of the error along depth: each activation in execution order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.judge.report import Report, Row
from alignment_tests.harness.report.figures import part_of, relative_error
from alignment_tests.harness.report.plots.style import (
    BAND,
    BLUE,
    GREEN,
    INK,
    LARGEST,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    SMALLEST,
    VECTOR_POINTS,
    Floats,
    Plot,
    limits_of,
    plain,
    short,
    styled,
    svg_of,
)


@dataclass(frozen=True)
class Step:
    """One activation in execution order, with its row in each precision."""

    name: str
    part: str
    rows: dict[str, Row]

    def comparison(self, precision: str, measure: str) -> Comparison | None:
        return getattr(self.rows.get(precision), measure, None)


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
    floor, top = limits_of(report.budget.float64_bar, own, allowed, *curves.values())
    with styled():
        figure = Figure(figsize=(13, 5.6), layout="constrained")
        axes = figure.subplots()
        _draw_budget(axes, own, allowed, report.budget.float64_bar, floor)
        zeros = _draw_curves(axes, curves, floor)
        _draw_failures(axes, order, curves, floor, top)
        _draw_parts(axes, order, top)
        _draw_blame(axes, order, report)
        axes.set(xlim=(-0.01 * len(order) - 0.5, 1.01 * len(order) - 0.5), ylim=(floor / 2, top), yscale="log")
        floor_note = f" (exact zeros are drawn on the lowest line, at {plain(floor)})" if zeros else ""
        axes.set(
            xlabel="activation, in execution order" + floor_note, ylabel="largest |error| / scale of the activation"
        )
        axes.yaxis.set_major_formatter(plain)
        axes.grid(visible=False, axis="x")
        if zeros:
            axes.axhline(floor, color="#B9BEC5", linewidth=0.8, zorder=0)
        figure.legend(loc="outside upper left", ncols=4, fontsize=10.5, markerscale=1.6)
        svg = svg_of(figure)
        box, limits = axes.get_position(), axes.get_xlim()
    alt = f"Error of {len(order)} activations in execution order; {_count_failing(order)} of them fail."
    return Plot("depth", svg, alt, (box.x0, box.x1, *limits))


def _series(order: Sequence[Step], precision: str, measure: str, value: Callable[[Comparison], float | None]) -> Floats:
    """One number per activation; NaN where there is none."""
    compared = (step.comparison(precision, measure) for step in order)
    numbers = [None if c is None else value(c) for c in compared]
    values = np.array([math.nan if n is None else n for n in numbers], dtype=np.float64)
    return np.where(values > 0, np.clip(values, SMALLEST, LARGEST), values)


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
    axes.axhline(bar, color=GREEN, linewidth=1.2, linestyle=(0, (5, 3)), label=f"float64 bar, {plain(bar)}")


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
                middle, top / 1.6, short(part, 24), ha="center", va="top", color=MUTED, fontsize=12, fontweight="bold"
            )
            last_label = middle
        start += width


def _draw_blame(axes: Any, order: Sequence[Step], report: Report) -> None:
    """Below the limit, where the rows that matter then leave room."""
    blamed = report.first_divergence
    places = [place for place, step in enumerate(order) if blamed is not None and step.name == blamed.name]
    if blamed is None or not places:
        return
    axes.axvline(places[0], color=RED, linewidth=1.2, linestyle=(0, (2, 2)))
    right = places[0] > 0.6 * len(order)
    text = f"first divergence: {short(blamed.module or blamed.name, 60)} "
    axes.annotate(
        text,
        (places[0], report.budget.float64_bar / 8),
        xytext=(-5 if right else 5, 0),
        textcoords="offset points",
        color=RED,
        ha="right" if right else "left",
        va="center",
        fontsize=10.5,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
    )


def _count_failing(order: Sequence[Step]) -> int:
    return sum(any(row.verdict == "fail" for row in step.rows.values()) for step in order)
