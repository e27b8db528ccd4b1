"""A report as JUnit XML: a test case per row, with its figures as properties."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

from alignment_tests.harness.judge.report import Report, Row
from alignment_tests.harness.report.figures import Drift, drift, gradients, part_of, printable, shown, value_of


def junit_xml(report: Report, baseline: dict[str, Any] | None = None) -> str:
    """One suite with a test case per row, and one with what holds for the whole report; all green only if aligned."""
    drifted = None if baseline is None else drift(report, baseline)
    rows = [_row_case(row, drifted) for row in report.rows]
    suites = [_suite(report.title, rows), _suite(f"{report.title}: whole", list(_whole_cases(report)))]
    root = ET.Element("testsuites", {"name": printable(report.title), **_tally(suites)})
    root.extend(suites)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(name: str, cases: list[ET.Element]) -> ET.Element:
    totals = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": "0",
    }
    suite = ET.Element("testsuite", {"name": printable(name), **totals})
    suite.extend(cases)
    return suite


def _tally(suites: list[ET.Element]) -> dict[str, str]:
    return {key: str(sum(int(suite.attrib[key]) for suite in suites)) for key in ("tests", "failures", "errors")}


def _case(classname: str, name: str, failure: str | None) -> ET.Element:
    case = ET.Element("testcase", classname=printable(classname), name=printable(name), time="0")
    if failure is not None:
        ET.SubElement(case, "failure", message=printable(failure)).text = printable(failure)
    return case


def _row_case(row: Row, drifted: Drift | None) -> ET.Element:
    case = _case(row.module or part_of(row), f"{row.name} [{row.precision}]", None)
    properties = ET.SubElement(case, "properties")
    for key, value in _properties(row, drifted).items():
        ET.SubElement(properties, "property", name=key, value=printable(value))
    if row.verdict in ("excused", "known"):
        ET.SubElement(case, "skipped", message=printable(row.reason))
    elif row.verdict != "pass":
        detail = "".join(f"\n{key}: {value}" for key, value in _properties(row, drifted).items())
        ET.SubElement(case, "failure", message=printable(row.reason)).text = printable(row.reason + detail)
    return case


def _properties(row: Row, drifted: Drift | None) -> dict[str, str]:
    whole, alone = row.accumulated, row.isolated
    numbers = {
        "max_abs_error": value_of(whole, "max_abs_error"),
        "scale": value_of(shown(row), "scale"),
        "ratio": value_of(whole, "ratio"),
        "isolated": value_of(alone, "max_abs_error"),
        "isolated_ratio": value_of(alone, "ratio"),
        "smallest_tolerance": value_of(whole, "smallest_tolerance"),
    }
    found = {"class": row.kind, **{key: "none" if value is None else f"{value:.6g}" for key, value in numbers.items()}}
    if row.step is not None:
        found["step"] = str(row.step)
    if drifted is not None:
        factor = drifted.factors.get((row.name, row.precision))
        found["drift"] = "none" if factor is None else f"{factor:.3g}x"
    return {**found, "verdict": row.verdict}


def _whole_cases(report: Report) -> Iterator[ET.Element]:
    lists = {"missing": report.coverage.missing, "unexpected": report.coverage.unexpected}
    yield _case("report", "something was compared", None if report.compared else "nothing was compared")
    blamed = report.first_divergence
    words = None
    if blamed is not None:
        details = "".join(f"\n{label}: {text}" for label, text in blamed.details)
        words = f"{blamed.name} ({blamed.precision}): {blamed.reason}{details}"
    yield _case("report", "no module diverges", words)
    for what, names in lists.items():
        yield _case("coverage", f"no name is {what}", ", ".join(names) or None)
    by = gradients(report)
    if by is not None:
        described = f"{by.compared} of {by.trained} trained parameters"
        yield _case(
            "coverage", "every parameter's gradient was compared", described if by.compared < by.trained else None
        )
    for name, fact in report.checks.items():
        yield _case("checks", name, fact if fact.startswith("FAIL") else None)
