"""Detections of both sides drawn on the images in which they differ most, and on typical ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from alignment_tests.comparison.accuracy import Tested
from alignment_tests.comparison.boxes import Floats, Matched, chosen
from alignment_tests.comparison.evidence import Evidence
from alignment_tests.comparison.records import JITTOR, TORCH
from fixtures.data.dataset import load_dataset, read_image
from fixtures.evaluation.drawing import draw_detections
from fixtures.images import list_images

WIDTH, QUALITY = 560, 85  # of a drawn picture, pixels and JPEG
FRAME = 4  # pixels between a box without a partner and the frame around it


@dataclass(frozen=True)
class Exhibit:
    """One image. ``kind`` is "different" or "typical"; the pictures are data URIs by side."""

    kind: str
    name: str
    image: Matched
    pictures: dict[str, str]


def exhibits(evidence: Evidence) -> tuple[Exhibit, ...]:
    """Chosen images of the first pair of tests whose files are found; none where the data set is not here."""
    if not evidence.images:
        return ()
    tested = evidence.tests[0]
    annotations, folders = tested.annotations or {}, image_folders(tested)
    names = [str(category["name"]) for category in annotations["categories"]]
    found = []
    for kind, image in chosen(evidence.images):
        path = _file_of(image, folders, named="file_name" in annotations["images"][0])
        if path is not None:
            found.append(Exhibit(kind, path.name, image, _pictures(path, image, names)))
    return tuple(found)


def _file_of(image: Matched, folders: Sequence[Path], named: bool) -> Path | None:
    """By its name; annotations that were made of YOLO labels have none, and number the images in sorted order."""
    for folder in folders:
        if named and (folder / image.file_name).is_file():
            return folder / image.file_name
        if not named and folder.is_dir():
            return list_images(folder)[image.image_id]
    return None


def image_folders(tested: Tested) -> list[Path]:
    """Where the images may lie: as the data set's YAML says, seen from here or from the run; beside the annotations."""
    found = []
    for test in tested.pair.sides.values():
        split = str(test.data.get("split") or "val")
        for base in (Path(), test.folder):
            file = base / str(test.data.get("yaml") or "")
            try:
                found.append(load_dataset(file).splits[split])
            except (OSError, ValueError, KeyError):
                continue
        if tested.annotations_path is not None:
            beside = tested.annotations_path.parent
            found += [root / "images" / split for root in (beside, beside.parent)]
    return list(dict.fromkeys(found))


def _pictures(path: Path, image: Matched, names: list[str]) -> dict[str, str]:
    pixels: Any = Image.fromarray(np.ascontiguousarray(read_image(path)[..., ::-1]))
    scale = WIDTH / pixels.width
    resized = pixels.resize((WIDTH, max(1, round(pixels.height * scale))), Image.Resampling.BICUBIC)
    factors = np.array([scale, resized.height / pixels.height] * 2 + [1.0, 1.0])
    sides = {JITTOR: (image.jittor, image.alone_jittor), TORCH: (image.torch, image.alone_torch)}
    return {
        side: _jpeg(_framed(draw_detections(np.asarray(resized), rows * factors, names), (rows * factors)[list(alone)]))
        for side, (rows, alone) in sides.items()
    }


def _framed(pixels: Any, alone: Floats) -> Any:
    """A white frame, dark outside, around each box without a partner."""
    picture = Image.fromarray(pixels)
    brush = ImageDraw.Draw(picture)
    for x1, y1, x2, y2 in alone[:, :4].round().astype(int).tolist():
        for away, colour, width in ((FRAME + 1, "black", 1), (FRAME, "white", 3)):
            low = max(x1 - away, 0), max(y1 - away, 0)
            high = min(x2 + away, picture.width - 1), min(y2 + away, picture.height - 1)
            if low[0] < high[0] and low[1] < high[1]:
                brush.rectangle((*low, *high), outline=colour, width=width)
    return np.asarray(picture)


def _jpeg(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
