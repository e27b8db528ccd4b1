"""The performance suite's picture: time and memory of every contender over its baseline's, PyTorch eager in most."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from alignment_tests.harness.report.plots.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, STYLE

DPI = 150
MOST_CASES = 30  # that are drawn; the table has all
MARKS: dict[str, tuple[str, str]] = {
    "jittor": ("o", BLUE),
    "jittor-captured": ("*", BLUE),
    "pytorch-captured": ("s", MUTED),
    "pytorch-compile": ("^", ORANGE),
    "pytorch-channels-last": ("D", GREEN),
    "pytorch-cudnn-benchmark": ("v", PURPLE),
    "pytorch-half-weights": ("P", RED),
}
OTHER = ("x", INK)


def performance(figures: Mapping[str, Any]) -> bytes:
    """PNG of what ``read_performance`` gives."""
    cases = [case for case in figures["cases"] if any(shown(row) for row in case["rows"])]
    drawn = cases[:MOST_CASES]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 2.4 + 0.34 * max(len(drawn), 4)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        draw(left, drawn, "ratio", "time of a step over the baseline's (median, quartiles)")
        draw(right, drawn, "memory_ratio", "peak memory over the baseline's")
        more = f" · {len(cases) - len(drawn)} further cases are in the table" if len(cases) > len(drawn) else ""
        handles = {one.get_label(): one for one in left.collections if not str(one.get_label()).startswith("_")}
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=6, fontsize=10)
        figure.supxlabel(origin(figures) + more, fontsize=8, color=MUTED)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()


def shown(row: Mapping[str, Any]) -> bool:
    """A contender that is compared with another."""
    return row["ratio"] is not None and row["contender"] != row["baseline"]


def origin(figures: Mapping[str, Any]) -> str:
    """Processors and commits, in a line."""
    facts = figures["environments"].values()
    places = dict.fromkeys(one.get("gpu") or one.get("processor") or "unknown" for one in facts)
    commits = dict.fromkeys(row["short_commit"] for case in figures["cases"] for row in case["rows"])
    return f"{', '.join(places)} · commit {', '.join(commits)}"


def draw(axes: Any, cases: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    axes.set_title(title, fontsize=10)
    for place, case in enumerate(cases):
        for row in case["rows"]:
            if not shown(row) or row[key] is None:
                continue
            mark, colour = MARKS.get(row["contender"], OTHER)
            spread = row["ratio_quartiles"] if key == "ratio" else None
            if spread:
                axes.plot(spread, [place, place], color=colour, linewidth=1.6, alpha=0.6)
            axes.scatter([row[key]], [place], marker=mark, s=42, color=colour, label=row["contender"], zorder=3)
    axes.axvline(1.0, color=RED, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    axes.set_xticks(
        [tick for tick in (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10) if low <= tick <= high]
    )
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases], fontsize=8)
    axes.set_ylim(len(cases) - 0.4, -0.6)
