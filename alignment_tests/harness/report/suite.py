"""One page for all reports that a run of the suite saved, and the merging of runs that were sharded.

pytest --alignment-reports reports/part1 --shard 1/2       (and 2/2 elsewhere)
python -m alignment_tests.harness merge reports/part1 reports/part2 --output-dir reports/suite

The merged page is the one that a single run would have written: it is made from the reports alone, in the order of
their names.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment_tests.harness.judge.report import load_report_json
from alignment_tests.harness.record.temporary import write_text_atomically

PAGE, TABLE = "suite.json", "suite.md"
REPORT = "report.json"


def worst(rows: list[dict[str, Any]], dtype: str, figure: str) -> float | None:
    """The largest of one figure over the accumulated comparisons in that precision."""
    compared = [row["accumulated"] for row in rows if row["accumulated"] is not None]
    return max((c[figure] for c in compared if c["dtype"] == dtype and c[figure] is not None), default=None)


def entry(report: Path) -> dict[str, Any]:
    """What the page says of one report."""
    data = load_report_json(report)
    first = data["first_divergence"]
    return {
        "name": report.parent.name,
        "title": data["title"],
        "aligned": data["aligned"],
        "rows": len(data["rows"]),
        "worst_float64_error_over_scale": worst(data["rows"], "float64", "smallest_tolerance"),
        "worst_float32_ratio": worst(data["rows"], "float32", "ratio"),
        "first_divergence": first["name"] if first else None,
    }


def find_reports(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{REPORT}"))


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown."""
    aligned = sum(e["aligned"] for e in entries)
    lines = [f"{aligned} of {len(entries)} reports aligned, {sum(e['rows'] for e in entries)} rows", ""]
    lines += [
        "| report | rows | worst float64 error / scale | worst float32 ratio | verdict |",
        "|---|---:|---:|---:|---|",
    ]
    for e in entries:
        wide, single = e["worst_float64_error_over_scale"], e["worst_float32_ratio"]
        figures = ["–" if wide is None else f"{wide:.1e}", "–" if single is None else f"{single:.2f}"]
        verdict = "aligned" if e["aligned"] else f"not aligned: {e['first_divergence'] or 'incomplete'}"
        lines.append(" | ".join([f"| {e['name']}", str(e["rows"]), *figures, f"{verdict} |"]))
    return "\n".join(lines) + "\n"


def write(folder: Path) -> list[dict[str, Any]]:
    """Write suite.json and suite.md over the reports in ``folder``; return what they hold."""
    entries = [entry(report) for report in find_reports(folder)]
    write_text_atomically(folder / PAGE, json.dumps({"reports": entries}, indent=1) + "\n")
    write_text_atomically(folder / TABLE, table(entries))
    return entries


def merge(parts: Sequence[Path], target: Path) -> list[dict[str, Any]]:
    """Put the reports of all parts into ``target``, which must not exist, and write its page.

    Raises:
        ValueError: a part holds no report, two parts hold different reports of one name, or the target exists.
    """
    if target.exists():
        raise ValueError(f"`--output-dir` must not exist yet. Received: {target}")
    found: dict[str, Path] = {}
    for part in parts:
        reports = find_reports(part)
        if not reports:
            raise ValueError(f"each part must be a folder that `pytest --alignment-reports` wrote. Received: {part}")
        for report in reports:
            other = found.setdefault(report.parent.name, report)
            if not filecmp.cmp(other, report, shallow=False):
                raise ValueError(f"parts must not hold different reports of one name. Received: {other} and {report}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".merging-") as temporary:
        whole = Path(temporary) / "suite"
        for name, report in found.items():
            shutil.copytree(report.parent, whole / name)
        entries = write(whole)
        whole.rename(target)
    return entries
