"""Numbers as people read them, in findings and on the page."""

from __future__ import annotations

import math

MIB = 2**20


def fixed(value: float | None, digits: int = 4) -> str:
    """So many decimals; a dash where there is no number."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """With its sign; a rounded zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.3g} %"


def whole(value: float | None) -> str:
    """With thin spaces between thousands."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u2009").replace("-", "−")


def mib(value: float | None) -> str:
    """Bytes in MiB."""
    return whole(None if value is None else value / MIB)


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"


def moment(text: str | None) -> str:
    """``2026-11-14T09:12:03+00:00`` to the minute, as the record has it in UTC."""
    return "–" if not text else text[:16].replace("T", " ")
