"""The comparison's two pictures as PNG: training curves, and accuracy with speed and memory.

Their words are English in every language of the page, like those of the harness's plots. PyTorch is grey, Jittor blue;
each has its own marker too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignment_tests.comparison.number_format import MIB
from alignment_tests.comparison.records import JITTOR, TITLES, TORCH
from alignment_tests.harness.report.plots.style import BAND, BLUE, INK, MUTED, RED, STYLE

DPI = 150
GREY = "#6B7280"
COLOURS = {JITTOR: BLUE, TORCH: GREY}
LINES: dict[str, dict[str, Any]] = {
    TORCH: {"color": GREY, "linewidth": 3.2, "alpha": 0.6, "solid_capstyle": "round"},
    JITTOR: {"color": BLUE, "linewidth": 1.4},
}
MARKERS = {TORCH: "s", JITTOR: "o"}
LOSS_TITLES = {"total": "total loss", "iou": "IoU loss", "cls": "class loss", "dfl": "DFL loss"}
AP_TITLES = {"ap50": "mAP@0.5", "ap": "mAP@[.5:.95]"}
MOST_CLASSES = 20  # that are drawn; of more, those with most boxes
GRID = 12  # columns of the grid that the panels of a row share
FLOOR = 1e-9  # on which differences of zero are drawn


def training_curves(report: dict[str, Any]) -> bytes:
    """PNG: each loss and AP by epoch, the difference of the total loss by epoch and by step."""
    training = report["training"]
    losses = [key for key in LOSS_TITLES if _drawable(training["runs"], key)] or ["total"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 9.6), layout="constrained")
        grid = figure.add_gridspec(3, GRID)
        width = GRID // len(losses)
        for place, key in enumerate(losses):
            axes = figure.add_subplot(grid[0, place * width : (place + 1) * width])
            _draw_epochs(axes, training, key, LOSS_TITLES[key])
        for place, key in enumerate(AP_TITLES):
            _draw_epochs(figure.add_subplot(grid[1, place * 4 : place * 4 + 4]), training, key, AP_TITLES[key])
        _draw_difference(figure.add_subplot(grid[1, 8:]), training)
        _draw_steps(figure.add_subplot(grid[2, :]), training)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=11)
        return _png(figure)


def performance(report: dict[str, Any]) -> bytes:
    """PNG: accuracy, its difference with intervals, accuracy per class, latency, throughput, memory."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 8.2), layout="constrained")
        panels = figure.subplots(2, 3).reshape(-1)
        _draw_accuracy(panels[0], report["accuracy"])
        _draw_intervals(panels[1], report["accuracy"])
        _draw_classes(panels[2], report["accuracy"]["per_class"])
        _draw_latency(panels[3], report["speed"])
        _draw_throughput(panels[4], report["speed"]["rows"])
        _draw_memory(panels[5], report["memory"]["rows"])
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=11)
        return _png(figure)


# ---- training ----------------------------------------------------------------------------------------------------


def _drawable(runs: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether any run has a value there; a loss that is zero throughout is of another configuration."""
    values = [value for run in runs for value in run[key] if value is not None]
    return any(values)


def _draw_epochs(axes: Any, training: dict[str, Any], key: str, title: str) -> None:
    """The first pair as lines, other seeds as thin ones, and the range of all seeds of the reference as a band."""
    runs = training["runs"]
    main = training["pairs"][0]["seed"] if training["pairs"] else None
    axes.set_title(title)
    _draw_band(axes, [run for run in runs if run["side"] == TORCH], key)
    for side in (TORCH, JITTOR):
        for place, run in enumerate([run for run in runs if run["side"] == side]):
            known = [(x, y) for x, y in zip(run["epoch"], run[key], strict=True) if y is not None]
            if not known:
                continue
            x, y = zip(*known, strict=True)
            chosen = run["seed"] == main or (main is None and place == 0)
            style = LINES[side] if chosen else {"color": COLOURS[side], "linewidth": 0.8, "alpha": 0.6}
            label = f"{TITLES[side]}, seed {run['seed']}" if chosen else None
            few = len(x) <= 30 and chosen
            axes.plot(x, y, label=label, marker=MARKERS[side] if few else None, markersize=4, **style)
    if not axes.lines:
        return _say(axes, "not recorded")
    _finish_epochs(axes)
    top = max((value for run in runs for value in run[key] if value), default=1.0)
    axes.set_ylim(0, 1.06 * top)
    return None


def _finish_epochs(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _draw_difference(axes: Any, training: dict[str, Any]) -> None:
    """Jittor - PyTorch in total loss by epoch; as a band the other PyTorch seeds minus that of the pair."""
    axes.set_title("total loss, Jittor - PyTorch, %")
    if not training["pairs"]:
        return _say(axes, "no pair of training runs")
    seed = training["pairs"][0]["seed"]
    own = next(run for run in training["runs"] if run["side"] == TORCH and run["seed"] == seed)
    others = [run for run in training["runs"] if run["side"] == TORCH and run["seed"] != seed]
    if others:
        apart = [_relative(run, own) for run in others]
        length = min(map(len, apart))
        values = np.array([one[:length] for one in apart] + [np.zeros(length)])
        label = {"color": BAND, "linewidth": 0}
        axes.fill_between(own["epoch"][:length], values.min(0), values.max(0), **label)
    for run in [run for run in training["runs"] if run["side"] == JITTOR and run["seed"] == seed]:
        apart = _relative(run, own)
        axes.plot(own["epoch"][: len(apart)], apart, **LINES[JITTOR])
    axes.axhline(0, color=INK, linewidth=0.8)
    _finish_epochs(axes)
    return None


def _relative(run: dict[str, Any], own: dict[str, Any]) -> Any:
    """Total loss of a run minus that of another, as percent of the latter, as far as both go."""
    length = min(len(run["total"]), len(own["total"]))
    mine, other = (np.array(one["total"][:length], np.float64) for one in (run, own))
    return 100 * (mine - other) / np.where(other == 0, np.nan, other)


def _draw_band(axes: Any, references: Sequence[dict[str, Any]], key: str) -> None:
    length = min((len(run[key]) for run in references), default=0)
    if len(references) < 2 or not length:
        return
    values = np.array([run[key][:length] for run in references], np.float64)
    seen = np.isfinite(values).all(0)
    epochs = np.array(references[0]["epoch"][:length])[seen]
    label = f"range of {len(references)} PyTorch seeds"
    axes.fill_between(epochs, values.min(0)[seen], values.max(0)[seen], color=BAND, linewidth=0, label=label)


def _draw_steps(axes: Any, training: dict[str, Any]) -> None:
    """Relative difference of the total loss at each step, on a log axis; zeros on the lowest line."""
    axes.set_title("|Jittor - PyTorch| / PyTorch of the total loss by step (no difference: on the lowest line)")
    for number, pair in enumerate(training["pairs"]):
        known = [(x, max(y, FLOOR)) for x, y in zip(pair["at"], pair["difference"], strict=True) if y is not None]
        if known:
            style = {"linewidth": 1.1 if number == 0 else 0.7, "alpha": 1.0 if number == 0 else 0.5}
            axes.plot(*zip(*known, strict=True), color=BLUE, **style)
    if not axes.lines:
        return _say(axes, "no pair of training runs")
    axes.axhline(training["parted"], color=RED, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.text(
        0.995, training["parted"], "1 % ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=RED
    )
    axes.set(xlabel="step (0 is the first)", yscale="log")
    axes.set_ylim(bottom=FLOOR / 2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    return None


# ---- performance -------------------------------------------------------------------------------------------------


def _draw_accuracy(axes: Any, accuracy: dict[str, Any]) -> None:
    axes.set_title("accuracy")
    if not accuracy["pairs"]:
        return _say(axes, "no pair of tests")
    rows = accuracy["pairs"][0]["rows"]
    names = {"ap50": "mAP\n@0.5", "ap": "mAP\n@[.5:.95]", "precision": "precision", "recall": "recall"}
    _draw_bars(
        axes, [names[row["metric"]] for row in rows], {side: [row[side] for row in rows] for side in TITLES}, ".3f"
    )
    axes.set_ylim(0, 1.08)
    return None


def _draw_intervals(axes: Any, accuracy: dict[str, Any]) -> None:
    """Differences in AP with their intervals, on the margin that is allowed."""
    axes.set_title("difference in AP, with 95 % interval")
    rows = [(pair["seed"], row) for pair in accuracy["pairs"] for row in pair["rows"] if row["low"] is not None]
    if not rows:
        return _say(axes, "no detections to compare")
    labels = []
    for place, (seed, row) in enumerate(reversed(rows)):
        axes.barh(place, 2 * row["margin"], left=-row["margin"], height=0.7, color=BAND)
        colour = RED if row["status"] == "beyond" else BLUE
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(row["difference"], place, marker="o", markersize=8, color=colour)
        name = AP_TITLES[row["metric"]]
        labels.append(name if seed is None or len(accuracy["pairs"]) < 2 else f"{name}, seed {seed}")
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(-0.8, max(1.8, len(rows) - 0.2))
    reach = 1.15 * max(max(abs(row["low"]), abs(row["high"]), row["margin"]) for _, row in rows)
    axes.set_xlim(-reach, reach)
    axes.set_xlabel("Jittor - PyTorch; grey: allowed margin beside zero")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    return None


def _draw_classes(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    axes.set_title("mAP@[.5:.95] by class")
    known = [row for row in rows if any(row["ap"][side] is not None for side in TITLES)]
    shown = sorted(known, key=lambda row: -(row["boxes"] or 0))[:MOST_CLASSES]
    if not shown:
        return _say(axes, "no classes")
    places = np.arange(len(shown))[::-1]
    for place, row in zip(places, shown, strict=True):
        ends = [row["ap"][side] for side in TITLES if row["ap"][side] is not None]
        axes.plot(ends, [place] * len(ends), color=BAND, linewidth=4, zorder=1, solid_capstyle="butt")
    for side, size in ((TORCH, 8), (JITTOR, 5)):
        values = [np.nan if row["ap"][side] is None else row["ap"][side] for row in shown]
        axes.plot(values, places, linestyle="none", marker=MARKERS[side], markersize=size, color=COLOURS[side])
    size = 10 if len(shown) <= 12 else 8
    axes.set_yticks(places, [_short(row["name"]) for row in shown], fontsize=size)
    axes.set_xlim(-0.02, 1.02)  # whole marks at 0 and 1
    return None


def _draw_latency(axes: Any, speed: dict[str, Any]) -> None:
    """Median latency of a batch, with quartiles."""
    axes.set_title("latency of a batch, ms (median, quartiles)" + ("" if speed["stated"] else "; not comparable"))
    rows = [row for row in speed["rows"] if any(row[side]["latency_ms"] for side in TITLES)]
    if not rows:
        return _say(axes, "not measured")
    values = {side: [row[side]["latency_ms"] for row in rows] for side in TITLES}
    _draw_bars(axes, [str(row["batch_size"]) for row in rows], values, ".3g", [
        {side: row[side]["latency_ms_quartiles"] for side in TITLES} for row in rows
    ])  # fmt: skip
    axes.set_xlabel("batch size")
    return None


def _draw_throughput(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    axes.set_title("throughput, images per second")
    known = [row for row in rows if any(row[side]["throughput_fps"] for side in TITLES)]
    if not known:
        return _say(axes, "not measured")
    values = {side: [row[side]["throughput_fps"] for row in known] for side in TITLES}
    _draw_bars(axes, [str(row["batch_size"]) for row in known], values, ".3g")
    axes.set_xlabel("batch size")
    return None


def _draw_memory(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    axes.set_title("peak memory, MiB")
    known = [row for row in rows if any(row[side]["peak_bytes"] for side in TITLES)]
    if not known:
        return _say(axes, "not measured")
    values = {
        side: [None if (peak := row[side]["peak_bytes"]) is None else peak / MIB for row in known] for side in TITLES
    }
    _draw_bars(axes, [str(row["batch_size"]) for row in known], values, ".0f")
    axes.set_xlabel("batch size")
    return None


def _draw_bars(
    axes: Any,
    names: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    spec: str,
    quartiles: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Two bars per name with their values above; a bar that is missing is marked by a cross."""
    places, width = np.arange(len(names)), 0.38
    top = max((value for side in values.values() for value in side if value), default=1.0)
    for shift, side in ((-width / 2, JITTOR), (width / 2, TORCH)):
        heights = [value or 0.0 for value in values[side]]
        axes.bar(places + shift, heights, width * 0.94, color=COLOURS[side], alpha=0.85, label=TITLES[side])
        for place, value in zip(places + shift, values[side], strict=True):
            index = round(place - shift)
            spread = quartiles[index][side] if quartiles else None
            if value is not None and spread and None not in spread:
                axes.plot([place, place], spread, color=INK, linewidth=1.6)
            above = max(value or 0.0, spread[-1] if spread and None not in spread else 0.0)
            text, colour = ("×", RED) if value is None else (format(value, spec), INK)
            size = 14 if value is None else 9 if len(names) <= 3 else 7.5
            axes.text(place, above + 0.015 * top, text, ha="center", va="bottom", fontsize=size, color=colour)
    axes.set_xticks(places, names, fontsize=10)
    axes.set_ylim(0, 1.15 * top)
    axes.grid(visible=False, axis="x")


# ---- helpers -----------------------------------------------------------------------------------------------------


def _say(axes: Any, text: str) -> None:
    """An empty panel with the reason."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])


def _short(text: str, limit: int = 14) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
