"""A pytest-benchmark file of the performance suite, as rows for a table: each with its environment and commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_tests.bench.benchmark_entry import FORMAT
from alignment_tests.bench.cases import NETWORK
from alignment_tests.bench.rounds import quartiles

PEAKS = ("driver", "reserved", "allocated", "resident")  # of memory; the first that both sides have is compared


def read_performance(path: Path) -> dict[str, Any]:
    """What a file of ``pytest --benchmark-only --benchmark-json`` says.

    Returns:
        "environments": facts by letter; "cases": objects with "name", "work", "rows" (a contender each) and
        "not_measured" (reason by contender); "not_run": reason by case. Times are in milliseconds per step, memory in
        bytes.

    Raises:
        ValueError: it is no such file, or holds no entry of the performance suite.
    """
    whole = _read(path)
    entries = [one["extra_info"] for one in whole["benchmarks"] if one.get("extra_info", {}).get("format") == FORMAT]
    if not entries:
        raise ValueError(f"the benchmark file must hold entries of the performance suite. Received: none in {path}")
    environments: dict[str, dict[str, str]] = {}
    cases: dict[str, dict[str, Any]] = {}
    for info in entries:
        case = cases.setdefault(info["case"], _case(info))
        case["rows"].append(_row(info, _letter(environments, _flat(info["environment"]))))
    for case in cases.values():
        _add_memory_ratios(case["rows"])
    return {
        "format": FORMAT,
        "kind": "performance",
        "source": path.name,
        "created": whole.get("datetime"),
        "not_run": whole.get("not_run", {}),
        "environments": environments,
        "cases": list(cases.values()),
    }


def _read(path: Path) -> dict[str, Any]:
    wanted = "the benchmark file must be one of `pytest --benchmark-only --benchmark-json`"
    try:
        whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        entries = whole["benchmarks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{wanted}. Received: {path} ({type(error).__name__}: {error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{wanted}. Received: {path}, whose `benchmarks` is no list of objects")
    return whole


def _case(info: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("what", "work", "config", "form", "device", "precision", "batch", "image_size", "not_measured")
    return {
        "name": info["case"],
        **{key: info[key] for key in keys},
        "load_average": info["load_average_before"],
        "rows": [],
    }


def _row(info: Mapping[str, Any], environment: str) -> dict[str, Any]:
    low, middle, high = (1e3 * value for value in quartiles(info["round_seconds"]))
    return {
        "contender": info["contender"],
        "framework": info["framework"],
        "median_ms": middle,
        "quartiles_ms": [low, high],
        "rounds": len(info["round_seconds"]),
        "steps_per_round": info["steps_per_round"],
        "images_per_second": 1e3 * info["batch"] / middle if info["what"] in NETWORK else None,
        "baseline": info["baseline"],
        "ratio": info["ratio"],
        "ratio_quartiles": list(quartiles(info["ratios"])[::2]) if info["ratios"] else None,
        "kernels": info["kernels_after"],
        "kernels_loaded_meanwhile": info["kernels_after"] - info["kernels_before"],
        "warm_up_seconds": info["warm_up_seconds"],
        "memory_bytes": info["memory_bytes"],
        "largest_batch": info.get("largest_batch"),
        "first_that_fails": info.get("first_that_fails"),
        "environment": environment,
        "commit": info["commit"],
        "short_commit": short(info["commit"]),
    }


def _add_memory_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """To the baseline, by the first measure of ``PEAKS`` that both have."""
    by_name = {row["contender"]: row for row in rows}
    for row in rows:
        other = by_name.get(row["baseline"] or "")
        held = {} if other is None else other["memory_bytes"]
        measure = next((peak for peak in PEAKS if row["memory_bytes"].get(peak) and held.get(peak)), None)
        row["memory_measure"] = measure
        row["memory_ratio"] = row["memory_bytes"][measure] / held[measure] if measure else None


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts by dotted name, as text."""
    found: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def short(commit: str) -> str:
    """Twelve digits of the hash, and whether files differed from it."""
    return commit[:12] + ("+changes" if commit.endswith("+changes") else "")


def _letter(environments: dict[str, dict[str, str]], facts: dict[str, str]) -> str:
    """The name under which equal facts are listed: A, B, ..., Z, then numbers."""
    for letter, known in environments.items():
        if known == facts:
            return letter
    count = len(environments)
    letter = chr(ord("A") + count) if count < 26 else str(count + 1)
    environments[letter] = facts
    return letter
