"""Plots of a training by step: the loss, and how far each free run has drifted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from alignment_tests.harness.digest import number
from alignment_tests.harness.free_runs import FREE_RUN_FACTOR, limits
from alignment_tests.harness.plot_style import (
    BAND,
    BLUE,
    GREEN,
    LARGEST,
    MUTED,
    PURPLE,
    RED,
    SMALLEST,
    Floats,
    Plot,
    limits_of,
    plain,
    styled,
    svg_of,
)
from alignment_tests.harness.report import Report

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
    with styled():
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        axes = figure.subplots()
        _draw_steps(axes, curves)
        axes.set(ylabel="total loss", yscale="log" if wide else "linear")
        if wide:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(plain)
        _finish_steps(figure, axes, curves)
        svg = svg_of(figure)
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
    floor, top = limits_of(*positive) if any(values.size for values in positive) else (1e-17, 1e-15)
    with styled():
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
        axes.yaxis.set_major_formatter(plain)
        zeros = any((values == 0).any() for values in curves.values())
        note = f" (exact zeros are drawn on the lowest line, at {plain(floor)})" if zeros else ""
        _finish_steps(figure, axes, curves, note)
        svg = svg_of(figure)
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
