"""pytest plugin: judge a report inside a test, put its figures into JUnit, and save it where asked.

pytest --alignment-reports reports/pytest      one folder with report.json and report.html per checked report
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_tests.harness.judge.report import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("alignment")
    group.addoption("--alignment-reports", type=Path, metavar="FOLDER", help="save every checked report below FOLDER")


def figures(report: Report) -> dict[str, float | int | str]:
    """What a CI system should keep of a report: counts and the worst figures."""
    compared = [row.accumulated for row in report.rows if row.accumulated is not None]
    relative = [c.smallest_tolerance for c in compared if c.dtype == "float64" and c.smallest_tolerance is not None]
    ratios = [c.ratio for c in compared if c.ratio is not None]
    return {
        "rows": len(report.rows),
        "failing": len(report.failures),
        "worst_float64_error_over_scale": max(relative, default=float("nan")),
        "worst_float32_ratio": max(ratios, default=float("nan")),
        "first_divergence": report.first_divergence.name if report.first_divergence is not None else "none",
    }


@pytest.fixture
def check_alignment(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[Report], None]:
    """``check_alignment(report)`` fails the test with the first divergence unless the report is aligned."""

    def check(report: Report) -> None:
        for name, value in figures(report).items():
            record_property(name, value)
        folder = request.config.getoption("--alignment-reports")
        if folder is not None:
            test = f"{request.node.path.stem}-{request.node.name}"
            name = "".join(c if c.isalnum() or c in "-_." else "-" for c in test).strip("-")
            report.save(folder / name)
        report.raise_if_diverged()

    return check
