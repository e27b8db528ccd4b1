"""Reports of the harness that stand behind a verdict: layer by layer, or step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixtures.config import config_names

FORMAT = 1
LAYERS, STEPS = "layers", "steps"  # the two kinds, as the options are called


@dataclass(frozen=True)
class Proof:
    """What a report says.

    Attributes:
        config: the configuration that its title names, or None.
        float64, ratio, isolated_ratio: the worst error / scale in float64, and the worst float32 errors in units of the
            reference's own, accumulated and isolated; None where no row has one.
        steps: of training; 0 in a report on layers.
    """

    path: Path
    title: str
    config: str | None
    aligned: bool
    problems: tuple[str, ...]
    passed: int
    failed: int
    excused: int
    float64: float | None
    ratio: float | None
    isolated_ratio: float | None
    checks: dict[str, str]
    steps: int

    @property
    def page(self) -> Path:
        """The report that people read, or the file itself where it is not beside it."""
        page = self.path.with_suffix(".html")
        return page if page.is_file() else self.path


def read_proof(path: Path, kind: str) -> Proof:
    """Read a ``report.json``.

    Args:
        path: the file.
        kind: LAYERS or STEPS.

    Raises:
        ValueError: it is none, or one of the other kind.
    """
    content = _content(path, kind)
    rows = content["rows"]
    steps = max((row["step"] + 1 for row in rows if row.get("step") is not None), default=0)
    steps = max([steps, *(len(curve) for curve in (content.get("curves") or {}).values())])
    if rows and bool(steps) != (kind == STEPS):
        other = "training steps" if steps else "layers"
        raise ValueError(f"`--{kind}` must be a report on {kind}. Received: {path}, a report on {other}")
    verdicts = [row["verdict"] for row in rows]
    title = str(content.get("title", ""))
    return Proof(
        path=path,
        title=title,
        config=next((name for name in config_names() if name in title), None),
        aligned=bool(content.get("aligned")) and bool(rows) and "fail" not in verdicts,
        problems=tuple(map(str, content.get("problems") or ())),
        passed=verdicts.count("pass"),
        failed=verdicts.count("fail"),
        excused=verdicts.count("excused"),
        float64=_worst(_relative(row) for row in rows if row["precision"] == "float64"),
        ratio=_worst(_ratio(row, "accumulated") for row in rows if row["precision"] == "float32"),
        isolated_ratio=_worst(_ratio(row, "isolated") for row in rows if row["precision"] == "float32"),
        checks={str(name): str(fact) for name, fact in (content.get("checks") or {}).items()},
        steps=steps,
    )


def _content(path: Path, kind: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`--{kind}` must be a report.json of the harness. Received: {path}: {error}") from error
    wanted = isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("rows"), list)
    if not wanted or not all(
        isinstance(row, dict) and {"verdict", "precision"} <= row.keys() for row in content["rows"]
    ):
        raise ValueError(f"`--{kind}` must be a report.json of the harness, format {FORMAT}. Received: {path}")
    return content


def _judged(row: dict[str, Any], measure: str) -> dict[str, Any]:
    """A row's comparison, unless it only informs: gradients of whole float32 passes may fail in a row that passes."""
    compared = row.get(measure) or {}
    return {} if row["verdict"] == "pass" and compared.get("passed") is False else compared


def _relative(row: dict[str, Any]) -> float | None:
    compared = _judged(row, "accumulated") or _judged(row, "isolated")
    error, scale = compared.get("max_abs_error"), compared.get("scale")
    if error is None or scale is None:
        return None
    return error / scale if scale else 0.0 if error == 0 else math.inf


def _ratio(row: dict[str, Any], measure: str) -> float | None:
    return _judged(row, measure).get("ratio")


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None and not math.isnan(value)), default=None)
