"""What the plots of a report share: colours, look, axes, and SVG text.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; every meaning also has its own marker.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from alignment_tests.harness.report.figures import printable

Floats = npt.NDArray[np.float64]
BLUE, GREEN, PURPLE, RED, ORANGE = "#0072B2", "#009E73", "#AA4499", "#C62F00", "#E69F00"
INK, MUTED, BAND, GRID = "#222222", "#666666", "#D9DDE3", "#E8EAED"
SMALLEST, LARGEST = 1e-20, 1e12  # error / scale and ratios are drawn within these
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


def limits_of(*shown: float | Floats) -> tuple[float, float]:
    """Powers of ten with room for the zeros below and for the labels above."""
    values = np.concatenate([np.atleast_1d(part) for part in shown])
    powers = np.log10(values[values > 0])
    return 10.0 ** (math.floor(powers.min()) - 1), 10.0 ** (math.ceil(powers.max()) + 1)


def short(text: str, limit: int) -> str:
    """The end of a name says most."""
    text = printable(text)
    return text if len(text) <= limit else "…" + text[1 - limit :]


def plain(value: float, _: object = None) -> str:
    """A number for an axis: 0.25, 100, 1e−9."""
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")


@contextmanager
def styled() -> Iterator[None]:
    """The plots' look; names in scripts that the layout's font lacks are drawn by the reader's browser."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def svg_of(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
