"""Training batches: photographs with their boxes, those that come with this repository or another COCO folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment_tests.cases.trainees import Batch
from fixtures.images import letterbox_place, letterboxed

# 28 photographs of blood cells in the form of a COCO folder.
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "fixtures" / "photographs"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Photograph:
    """An image file, its size, and its boxes (M, 5): class, x, y, w, h in pixels."""

    path: Path
    height: int
    width: int
    boxes: Array


@dataclass(frozen=True)
class Photographs:
    """A folder with ``annotations/instances_PART.json`` and ``images/PART/``; all parts by name, each by image id."""

    folder: Path = PHOTOGRAPHS

    @property
    def all(self) -> tuple[Photograph, ...]:
        return read_photographs(self.folder)

    def one(self, number: int, size: tuple[int, int]) -> tuple[Array, Array]:
        """Number ``number``, counted over all rounds, letterboxed, with rows class, cx, cy, w, h.

        In every second round it is flipped from left to right.
        """
        again, place = divmod(number, len(self.all))
        one = self.all[place]
        pixels = letterboxed(one.path, size)
        scale, top, left = letterbox_place(one.height, one.width, size)
        kinds, x, y, w, h = (one.boxes * [1, scale, scale, scale, scale]).T
        rows = np.stack([kinds, (left + x + w / 2) / size[1], (top + y + h / 2) / size[0], w / size[1], h / size[0]], 1)
        if again % 2:
            pixels, rows[:, 1] = np.ascontiguousarray(pixels[:, :, ::-1]), 1 - rows[:, 1]
        return pixels, rows

    def batches(self, count: int, batch: int, size: tuple[int, int], first: int = 0) -> list[Batch]:
        """``count`` batches, from number ``first`` on."""
        made = []
        for start in range(first, first + count * batch, batch):
            pairs = [self.one(number, size) for number in range(start, start + batch)]
            targets = [np.insert(rows, 0, place, axis=1) for place, (_, rows) in enumerate(pairs)]
            made.append(Batch(np.stack([pixels for pixels, _ in pairs]), np.concatenate(targets)))
        return made


@lru_cache(maxsize=2)
def read_photographs(folder: Path) -> tuple[Photograph, ...]:
    """What ``Photographs`` holds.

    Raises:
        ValueError: there are no annotations.
    """
    found: list[Photograph] = []
    for file in sorted((folder / "annotations").glob("instances_*.json")):
        part, data = file.stem.removeprefix("instances_"), json.loads(file.read_text(encoding="utf-8"))
        classes = {category: number for number, category in enumerate(sorted(c["id"] for c in data["categories"]))}
        boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in data["images"]}
        for entry in data["annotations"]:
            if not entry.get("iscrowd"):
                boxes[entry["image_id"]].append([classes[entry["category_id"]], *entry["bbox"]])
        for image in sorted(data["images"], key=lambda image: int(image["id"])):
            rows = np.array(boxes[image["id"]], np.float64).reshape(-1, 5)
            path = folder / "images" / part / image["file_name"]
            found.append(Photograph(path, image["height"], image["width"], rows))
    if not found:
        raise ValueError(f"`photographs` must be a folder with annotations/instances_*.json. Received: {folder}")
    return tuple(found)


def training_batches(count: int, batch: int, size: tuple[int, int]) -> tuple[list[Batch], str]:
    """Batches of the photographs that are here, and in words what they are."""
    return Photographs().batches(count, batch, size), "photographs of blood cells with their boxes"
