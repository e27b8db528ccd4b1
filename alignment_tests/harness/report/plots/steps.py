"""Plots of a training by step: the loss, and how far each free run has drifted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.report.figures import number
from alignment_tests.harness.report.plots.style import (
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

REFERENCE_STYLES: dict[str, dict[str, Any]] = {
    "reference float64": {"color": "#C3C8CF", "linewidth": 6, "solid_capstyle": "round"},
    "reference float32": {"color": "#8A919B", "linewidth": 1.6, "linestyle": (0, (4, 2))},
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
    """Drift of each free run from the oracle on a log axis, beside the reference's own in float32."""
    curves = _curves(report, "drift")
    if not curves:
        return None
    drawn = {name: _drawable(values) for name, values in curves.items()}
    positive = [values[values > 0] for values in drawn.values()]
    floor, top = limits_of(*positive) if any(values.size for values in positive) else (1e-17, 1e-15)
    with styled():
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        axes = figure.subplots()
        if top > 1:
            axes.axhline(1, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), label="1: the whole way")
        _draw_steps(axes, {name: np.maximum(values, floor) for name, values in drawn.items()})
        lost = _draw_lost(axes, curves, top)
        axes.set(ylabel="distance / way of the reference", yscale="log", ylim=(floor / 2, top))
        axes.yaxis.set_major_formatter(plain)
        zeros = any((values == 0).any() for values in curves.values())
        note = f" (exact zeros are drawn on the lowest line, at {plain(floor)})" if zeros else ""
        _finish_steps(figure, axes, curves, note)
        svg = svg_of(figure)
    ends = "; ".join(f"{name} {number(values[-1])}" for name, values in curves.items())
    return Plot("drift", svg, f"Drift after {_steps_of(curves)} steps: {ends}. {lost} points are not finite.")


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


def _draw_lost(axes: Any, curves: dict[str, Floats], top: float) -> int:
    """Red triangles where there is no number; returns how many."""
    lost = [step for values in curves.values() for step, value in enumerate(values) if not math.isfinite(value)]
    if lost:
        style = {"linestyle": "none", "color": RED, "marker": "v", "markeredgewidth": 1.4, "zorder": 6}
        size, label = 9 if len(lost) < 30 else 5, f"not finite ({len(lost)})"
        axes.plot(lost, [top / 2] * len(lost), markersize=size, label=label, **style)
    return len(lost)


def _finish_steps(figure: Any, axes: Any, curves: dict[str, Floats], note: str = "") -> None:
    count = _steps_of(curves)
    axes.set(xlabel="step" + note, xlim=(-0.02 * count - 0.1, 1.02 * count - 0.9))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper left", ncols=4, fontsize=10.5)
