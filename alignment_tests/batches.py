"""Training batches: photographs of COCO with their boxes, or drawn scenes where there are none."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from alignment_tests.trainees import Batch
from fixtures.images import drawn_boxes, drawn_images, letterbox_place, letterboxed

# 318 photographs of COCO, which lie beside a checkout, never inside.
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "minicoco"


@lru_cache(maxsize=2)
def read_split(
    folder: Path, split: str
) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]], dict[int, int]]:
    """Images by id, their boxes without crowds, and class numbers by category, all of COCO's 80."""
    data = json.loads((folder / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
    boxes: dict[int, list[dict[str, Any]]] = {}
    for entry in data["annotations"]:
        if not entry["iscrowd"]:
            boxes.setdefault(entry["image_id"], []).append(entry)
    classes = {category: number for number, category in enumerate(sorted(c["id"] for c in data["categories"]))}
    return sorted(data["images"], key=lambda image: int(image["id"])), boxes, classes


def photographs(count: int, batch: int, size: tuple[int, int], split: str = "train2017") -> list[Batch]:
    """The first ``count * batch`` photographs of the split, letterboxed, with their boxes."""
    images, boxes, classes = read_split(PHOTOGRAPHS, split)
    if len(images) < count * batch:
        raise ValueError(f"`count` must be at most {len(images) // batch} batches of {batch}. Received: {count}")
    made = []
    for start in range(0, count * batch, batch):
        pixels, rows = [], []
        for place, image in enumerate(images[start : start + batch]):
            pixels.append(letterboxed(PHOTOGRAPHS / "images" / split / image["file_name"], size))
            scale, top, left = letterbox_place(image["height"], image["width"], size)
            for entry in boxes.get(image["id"], []):
                x, y, w, h = (side * scale for side in entry["bbox"])
                centre = (left + x + w / 2) / size[1], (top + y + h / 2) / size[0]
                rows.append([place, classes[entry["category_id"]], *centre, w / size[1], h / size[0]])
        made.append(Batch(np.stack(pixels), np.array(rows, np.float64).reshape(-1, 6)))
    return made


def drawn(count: int, batch: int, size: tuple[int, int]) -> list[Batch]:
    """Scenes from seeds 0, 1, ..."""
    return [Batch(drawn_images(batch, size, seed), drawn_boxes(batch, seed)) for seed in range(count)]


def training_batches(count: int, batch: int, size: tuple[int, int]) -> tuple[list[Batch], str]:
    """Batches, and in words what they are."""
    if PHOTOGRAPHS.is_dir():
        return photographs(count, batch, size), "photographs of COCO (train2017) with their boxes"
    return drawn(count, batch, size), "drawn scenes with their boxes"
