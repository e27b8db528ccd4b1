"""Training batches: the photographs that come with this repository, with their boxes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment_tests.trainees import Batch
from fixtures.images import letterbox_place, letterboxed

# 28 photographs of blood cells in the form of a COCO folder.
PHOTOGRAPHS = Path(__file__).resolve().parents[1] / "fixtures" / "photographs"
PARTS = ("train2017", "val2017")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Photograph:
    """An image file, its size, and its boxes (M, 5): class, x, y, w, h in pixels."""

    path: Path
    height: int
    width: int
    boxes: Array


@lru_cache(maxsize=1)
def all_photographs() -> tuple[Photograph, ...]:
    """Those to train on, then those to validate with, each by id."""
    found: list[Photograph] = []
    for part in PARTS:
        data = json.loads((PHOTOGRAPHS / "annotations" / f"instances_{part}.json").read_text(encoding="utf-8"))
        classes = {category: number for number, category in enumerate(sorted(c["id"] for c in data["categories"]))}
        boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in data["images"]}
        for entry in data["annotations"]:
            boxes[entry["image_id"]].append([classes[entry["category_id"]], *entry["bbox"]])
        for image in sorted(data["images"], key=lambda image: int(image["id"])):
            path, rows = PHOTOGRAPHS / "images" / part / image["file_name"], np.array(boxes[image["id"]], np.float64)
            found.append(Photograph(path, image["height"], image["width"], rows.reshape(-1, 5)))
    return tuple(found)


def letterboxed_photograph(number: int, size: tuple[int, int]) -> tuple[Array, Array]:
    """Photograph ``number``, counted over all rounds, with rows class, cx, cy, w, h; flipped in every second round."""
    everything = all_photographs()
    again, place = divmod(number, len(everything))
    one = everything[place]
    pixels = letterboxed(one.path, size)
    scale, top, left = letterbox_place(one.height, one.width, size)
    kinds, x, y, w, h = (one.boxes * [1, scale, scale, scale, scale]).T
    rows = np.stack([kinds, (left + x + w / 2) / size[1], (top + y + h / 2) / size[0], w / size[1], h / size[0]], 1)
    if again % 2:
        pixels, rows[:, 1] = np.ascontiguousarray(pixels[:, :, ::-1]), 1 - rows[:, 1]
    return pixels, rows


def photographs(count: int, batch: int, size: tuple[int, int]) -> list[Batch]:
    """``count`` batches of photographs, letterboxed, with their boxes.

    The 28 photographs come in the same order every time; where more are asked for, they begin again, flipped from left
    to right in every second round.
    """
    made = []
    for start in range(0, count * batch, batch):
        pairs = [letterboxed_photograph(number, size) for number in range(start, start + batch)]
        targets = [np.insert(rows, 0, place, axis=1) for place, (_, rows) in enumerate(pairs)]
        made.append(Batch(np.stack([pixels for pixels, _ in pairs]), np.concatenate(targets)))
    return made


def training_batches(count: int, batch: int, size: tuple[int, int]) -> tuple[list[Batch], str]:
    """Batches, and in words what they are."""
    return photographs(count, batch, size), "photographs of blood cells with their boxes"
