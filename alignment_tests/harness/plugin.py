"""pytest plugin: compare two models, or judge a report, inside a test; put the figures into JUnit, save where asked.

pytest --alignment-reports reports/pytest      one folder with report.json and report.html per checked report

Installed with the package, it is there in every suite; ``pytest_plugins`` may name it too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every run of pytest imports this file
    from alignment_tests.harness.judge.report import Report

SUMMARY = "GITHUB_STEP_SUMMARY"  # the file that a CI run shows
REPORTS = pytest.StashKey[int]()  # how many reports a test has checked


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


def place_of(request: pytest.FixtureRequest) -> str:
    """A folder name for the test's next report."""
    count = request.node.stash.get(REPORTS, 0)
    test = f"{request.node.path.stem}-{request.node.name}" + (f"-{count + 1}" if count else "")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in test).strip("-")


@pytest.fixture
def check_alignment(request: pytest.FixtureRequest) -> Callable[[Report], None]:
    """``check_alignment(report)`` fails the test with the first divergence unless the report is aligned."""

    def check(report: Report) -> None:
        __tracebackhide__ = True
        # Not by ``record_property``, which warns about families of JUnit that are not the user's choice here.
        request.node.user_properties.extend(figures(report).items())
        folder = request.config.getoption("--alignment-reports")
        if folder is not None:
            report.save(folder / place_of(request))
        request.node.stash[REPORTS] = request.node.stash.get(REPORTS, 0) + 1
        try:
            report.raise_if_diverged()
        except AssertionError as error:
            raise AssertionError(str(error)) from None  # here, where the frame is hidden: the test's line is shown

    return check


@pytest.fixture
def assert_aligned(
    request: pytest.FixtureRequest, tmp_path: Path, check_alignment: Callable[[Report], None]
) -> Callable[..., Report]:
    """``assert_aligned(torch_model, jittor_model, inputs, ...)`` compares the models and fails the test if they differ.

    Takes the options of ``align`` and returns the report. Each row is a property of the test in JUnit; in CI the
    report's summary goes into that of the run. On divergence the script that reproduces it lies beside the report, or
    in the test's ``tmp_path``.
    """

    def compare(torch_model: Any, jittor_model: Any, inputs: Any, **options: Any) -> Report:
        __tracebackhide__ = True
        from alignment_tests.harness import align

        folder = request.config.getoption("--alignment-reports")
        place = (tmp_path if folder is None else folder) / place_of(request)
        report = align(torch_model, jittor_model, inputs, **{"title": request.node.name, "folder": place, **options})
        rows = {f"{row.name} [{row.precision}]": f"{row.verdict}: {row.reason}" for row in report.rows}
        request.node.user_properties.extend(rows.items())
        add_to_summary(report)
        check_alignment(report)
        return report

    return compare


def add_to_summary(report: Report) -> None:
    """Append the report's summary to the one of the CI run, where there is one."""
    path = os.environ.get(SUMMARY)
    if path:
        from alignment_tests.harness.report.markdown import summary_markdown

        with Path(path).open("a", encoding="utf-8") as file:
            file.write(summary_markdown(report) + "\n")
