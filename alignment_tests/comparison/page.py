"""The comparison as one HTML page that opens offline: pictures are inside, no script, font or file beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignment_tests.comparison.gallery import Exhibit
from alignment_tests.comparison.number_format import fixed, mib, moment, percent, seconds, signed, whole
from alignment_tests.comparison.records import TITLES
from alignment_tests.harness.report.figures import number, printable

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_LANGUAGE = "en"
EPOCH_ROWS = 120  # of the table; of longer runs an even choice, and the epochs that were validated
IMAGE_ROWS = 40  # of the table of matched boxes
MARKS = {"holds": "✓", "against": "✗", "unproven": "?", "note": "i", "open": "–"}


def language(lang: str) -> dict[str, str]:
    """The page's words in one language.

    Raises:
        ValueError: the language is unknown.
    """
    known = _all_strings()
    if lang not in known:
        raise ValueError(f"`lang` must be one of {', '.join(known)}. Received: {lang!r}")
    return known[lang]


@cache
def _all_strings() -> dict[str, dict[str, str]]:
    return json.loads((TEMPLATES / "strings.json").read_text(encoding="utf-8"))


def languages() -> list[str]:
    return list(_all_strings())


def summary_page(
    report: dict[str, Any], pictures: Mapping[str, bytes], exhibits: Sequence[Exhibit], *, lang: str = DEFAULT_LANGUAGE
) -> str:
    """The whole page.

    Args:
        report: as ``report.report_of`` makes it, in the same language.
        pictures: PNG by name: "training_curves", "performance", and "benchmark" where the report has one.
        exhibits: the detection gallery.
        lang: "en" or "zh".

    Raises:
        ValueError: the language is unknown.
    """
    strings = language(lang)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        fixed=fixed,
        signed=signed,
        percent=percent,
        whole=whole,
        mib=mib,
        seconds=seconds,
        moment=moment,
        png=_png,
    )
    state = report["verdict"].replace(" ", "_")
    page = environment.get_template("comparison.html.j2").render(
        lang=lang,
        t=strings,
        r=report,
        state=state,
        given=[kind for kind in ("layers", "steps") if report[kind] is not None],
        titles=TITLES,
        marks=MARKS,
        subject=subject_of(report, strings),
        tiles=tiles(report, strings),
        losses=losses_of(report),
        epochs=epoch_rows(report),
        pictures=pictures,
        exhibits=exhibits,
        images=_most_different(report["boxes"]["images"]),
        image_rows=IMAGE_ROWS,
        benchmark=report.get("benchmark"),
    )
    return printable(page)


def subject_of(report: dict[str, Any], strings: Mapping[str, str]) -> str:
    """Configuration, size, length and data in a line."""
    facts = report["subject"]
    size = facts["image_size"]
    sides = [size, size] if isinstance(size, int) else size or []
    known = [facts["config"], "×".join(map(str, sides))]
    for key, fact, field in (
        ("subject_epochs", "epochs", "count"),
        ("subject_batch", "batch_size", "size"),
        ("subject_train", "train_images", "count"),
        ("subject_test", "test_images", "count"),
    ):
        known.append("" if facts[fact] is None else strings[key].format(**{field: facts[fact]}))
    return " · ".join(str(one) for one in known if one)


def tiles(report: dict[str, Any], strings: Mapping[str, str]) -> list[dict[str, Any]]:
    """Key numbers: value, words, whether it is bad news."""
    found = []
    pairs = report["accuracy"]["pairs"]
    for row in [row for row in pairs[0]["rows"] if row["metric"] in ("ap50", "ap")] if pairs else []:
        values = f"{fixed(row['jittor'])} / {fixed(row['torch'])}"
        found.append(_tile(values, f"{strings[row['metric']]}, Jittor / PyTorch"))
        if row["low"] is not None:
            words = strings["tile_difference"].format(
                metric=strings[row["metric"]], low=signed(row["low"]), high=signed(row["high"])
            )
            found.append(_tile(signed(row["difference"]), words, row["status"] == "beyond"))
    counts = next((row for row in report["model"]["counts"] if row["name"] == "parameters"), None)
    if counts and counts["torch"] is not None:
        same = counts["jittor"] == counts["torch"]
        value = whole(counts["torch"]) if same else f"{whole(counts['jittor'])} / {whole(counts['torch'])}"
        found.append(_tile(value, strings["tile_parameters"], not same))
    found += _outcome_tiles(report, strings)
    rows = [row for row in report["speed"]["rows"] if row["ratio"] is not None]
    if rows:
        ends = dict.fromkeys(f"{end(row['ratio'] for row in rows):.2f}" for end in (min, max))
        found.append(_tile("–".join(ends) + "×", strings["tile_speed"]))
    elif report["speed"]["rows"]:
        found.append(_tile("–", strings["tile_no_speed"], True))
    boxes = report["boxes"]
    if boxes["images"]:
        value = f"{boxes['both']} · {boxes['only_jittor']} · {boxes['only_torch']}"
        found.append(_tile(value, strings["tile_boxes"]))
    return found


def _outcome_tiles(report: dict[str, Any], strings: Mapping[str, str]) -> list[dict[str, Any]]:
    """Batches, loss curves and the harness's reports."""
    found = []
    outcomes = {finding["check"]: finding for finding in report["findings"]}
    if outcomes["batches"]["outcome"] == "holds":
        found.append(_tile(whole(outcomes["batches"]["values"]["steps"]), strings["tile_batches"]))
    elif outcomes["batches"]["outcome"] == "against":
        found.append(_tile("✗", strings["tile_batches_differ"], True))
    known = [row for row in report["training"]["distances"] if row["nearest"] is not None and row["loss"] == "total"]
    for row in known:
        words = strings["tile_curves"].format(allowed=percent(row["allowed"]))
        found.append(_tile(percent(row["nearest"]), words, row["status"] == "beyond"))
    for check in ("layers", "steps"):
        proof = report[check]
        if proof is not None:
            value = f"{proof['passed']} / {proof['passed'] + proof['failed']}"
            found.append(_tile(value, strings[f"tile_{check}"], not proof["aligned"]))
    return found


def _tile(value: str, words: str, bad: bool = False) -> dict[str, Any]:
    return {"value": value, "words": words, "bad": bad}


def losses_of(report: dict[str, Any]) -> list[str]:
    """Losses that the runs have, in order."""
    return [row["loss"] for row in report["training"]["distances"]]


def epoch_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per epoch of the first pair: each loss and AP of both sides and the difference."""
    training = report["training"]
    if not training["pairs"]:
        return []
    seed = training["pairs"][0]["seed"]
    runs = {run["side"]: run for run in training["runs"] if run["seed"] == seed}
    length = min(len(run["epoch"]) for run in runs.values())
    even = [round(place) for place in np.linspace(0, length - 1, min(length, EPOCH_ROWS))] if length else []
    validated = [place for place in range(length) if runs["torch"]["ap"][place] is not None]
    chosen = sorted({*even, *validated[-EPOCH_ROWS:]})
    rows = []
    for place in chosen:
        row: dict[str, Any] = {"epoch": runs["torch"]["epoch"][place]}
        for key in (*losses_of(report), "ap50", "ap"):
            mine, other = (runs[side][key][place] for side in ("jittor", "torch"))
            known = mine is not None and other is not None
            row[key] = {"jittor": mine, "torch": other, "difference": mine - other if known else None}
        rows.append(row)
    return rows


def _most_different(images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of matched boxes, most boxes without a partner first."""
    seen = [image for image in images if image["both"] or image["only_jittor"] or image["only_torch"]]
    order = sorted(seen, key=lambda one: (one["only_jittor"] + one["only_torch"], one["score_difference"] or 0.0))
    return order[::-1][:IMAGE_ROWS]


def _png(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
