"""Small data sets on disk, for the tests of the data room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignment_tests.cases.batches import Photographs
from fixtures.data.dataset import DetectionDataset, load_dataset
from fixtures.golden import recorded_json


def write_folder(root: Path, images: dict[str, Any], labels: dict[str, str], names: str = "[a, b, c, d]") -> Path:
    """A data set with one split, "val"; its dataset.yaml."""
    for kind in ("images", "labels"):
        (root / kind / "val").mkdir(parents=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(root / "images" / "val" / name)
    for name, text in labels.items():
        (root / "labels" / "val" / name).write_text(text)
    (root / "dataset.yaml").write_text(f"val: images/val\nnames: {names}\n")
    return root / "dataset.yaml"


def noise(rows: int = 40, columns: int = 64) -> Any:
    return np.random.Generator(np.random.Philox(0)).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def open_val(path: Path) -> DetectionDataset:
    return DetectionDataset(load_dataset(path), "val")


# Ten of COCO's classes and four others; its 80 classes have ids up to 90.
CATEGORIES = {
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6, "truck": 8, "cat": 17, "dog": 18, "bottle": 44,
    "chair": 62, "airplane": 5, "fire hydrant": 11, "stop sign": 13, "toothbrush": 90,
}  # fmt: skip
CUTS = ((480, 640), (480, 320), (300, 640), (213, 260))  # rows and columns that are left of a photograph
OTHERS_ONLY, WITHOUT_BOXES = 4, 9  # of ten photographs, this one shows other classes only, that one nothing


def write_varied_coco(root: Path) -> Path:
    """The photographs as a COCO folder that has what COCO has and they lack.

    That is: 80 classes with gaps in their ids, crowds, sides that are no whole numbers, upright, small and grey images,
    and images without a box or with boxes of rare classes only.
    """
    known = recorded_json("postprocess/coco_records")["coco80_to_91"]
    names = {number: name for name, number in CATEGORIES.items()}
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number, photograph in enumerate(Photographs().all):
        part, name = photograph.path.parent.name, photograph.path.name
        upright, grey = number % 5 == 0, number % 7 == 3
        size, boxes = cut(photograph.boxes[:, 1:], CUTS[number % len(CUTS)], upright)
        with Image.open(photograph.path) as file:
            pixels = np.asarray(file.convert("L" if grey else "RGB"))
        pixels = np.swapaxes(pixels, 0, 1)[: size[0], : size[1]] if upright else pixels[: size[0], : size[1]]
        (root / "images" / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "images" / part / name)
        content = parts.setdefault(part, {"images": [], "annotations": []})
        content["images"].append(
            {"id": 1000 + number, "file_name": name, "height": size[0], "width": size[1], "license": 1 + number % 7}
        )
        content["annotations"] += coco_records(number, [] if number % 10 == WITHOUT_BOXES else boxes, size)
    (root / "annotations").mkdir()
    categories = [{"id": key, "name": names.get(key, f"class {key}"), "supercategory": "thing"} for key in known]
    for part, content in parts.items():
        whole = {"info": {"year": 2017}, "licenses": [], "categories": categories, **content}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(whole))
    return root


def cut(boxes: Any, shape: tuple[int, int], upright: bool) -> tuple[tuple[int, int], list[list[float]]]:
    """Rows and columns of what is left of an image, and the boxes x, y, w, h in it, each a quarter pixel smaller."""
    low, high = boxes[:, :2] + 0.25, np.minimum(boxes[:, :2] + boxes[:, 2:] - 0.25, shape[::-1])
    kept = np.concatenate([low, high - low], axis=1)[((high - low) > 4).all(1)]
    return (shape[::-1], kept[:, [1, 0, 3, 2]].tolist()) if upright else (shape, kept.tolist())


def coco_records(number: int, boxes: list[list[float]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """COCO's records of the boxes of photograph ``number``: classes in turn, every ninth box a crowd."""
    ids = list(CATEGORIES.values())
    made = []
    for place, box in enumerate(boxes):
        crowd = place % 9 == 5
        category = ids[-1] if number % 10 == OTHERS_ONLY else ids[(number + place) % len(ids)]
        record = {"id": 100 * number + place + 1, "image_id": 1000 + number, "category_id": category, "bbox": box}
        outline = {"size": list(size), "counts": [size[0] * size[1]]} if crowd else [[box[0], box[1]] * 4]
        made.append(
            {**record, "area": 0.7 * box[2] * box[3], "iscrowd": int(crowd), "segmentation": outline},
        )
    return made
