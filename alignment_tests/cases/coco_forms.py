"""A small file of COCO's form with its images, ways to change it, and the data set made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignment_tests.cases.datasets import noise
from fixtures.data.dataset import DetectionDataset, load_dataset
from fixtures.evaluation.coco_metrics import evaluate
from fixtures.prepare_data import main
from fixtures.runs.splits import annotations_of

Content = dict[str, Any]
Change = Callable[[Content], object]

SIZE = ROWS, COLUMNS = 48, 64
BOX = (4.0, 5.0, 20.0, 10.0)
LABEL = (1, 14 / 64, 10 / 48, 20 / 64, 10 / 48)  # of the box: a car
NAMES = tuple(f"{key}.png" for key in range(1, 6))


def coco_form(images: int = 5) -> Content:
    """What a plain file of COCO's form says: images ``1.png``, ``2.png``, ..., each with one car, and no person."""
    keys = range(1, images + 1)
    box = {"category_id": 3, "area": 150.0, "iscrowd": 0, "segmentation": []}
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "height": ROWS, "width": COLUMNS, "license": 1} for k in keys],
        "annotations": [{"id": 10 * k, "image_id": k, "bbox": [*BOX], **box} for k in keys],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }


def write_coco_form(file: Path, content: Any, folder: Path, names: Iterable[str] = ()) -> list[str]:
    """Write the annotations and the images; the options of ``prepare_data`` that take them.

    ``names`` are those of the images' files, where they aren't the ``file_name`` of the records.
    """
    for number, name in enumerate(names or [image["file_name"] for image in content["images"]]):
        pixels = noise(*SIZE)
        pixels[:, :, 0] = number
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return ["--annotations", str(file), "--images", str(folder)]


def prepare(root: Path, content: Any, *options: str, names: Iterable[str] = ()) -> int:
    """The command on this content, all images and classes; the data set is ``made``."""
    files = write_coco_form(root / "anything.json", content, root / "photos", names)
    return main([*files, "--target", str(root / "made"), *options])


def opened(root: Path, split: str) -> DetectionDataset:
    return DetectionDataset(load_dataset(root / "made" / "dataset.yaml"), split)


def info(root: Path) -> dict[str, Any]:
    return json.loads((root / "made" / "dataset_info.json").read_text(encoding="utf-8"))


def average_precision(dataset: DetectionDataset) -> float:
    """Of detections that are the boxes of the data set's labels."""
    records = [
        {
            "image_id": key, "category_id": dataset.category_ids[int(label)], "score": 0.9,
            "bbox": [(cx - w / 2) * COLUMNS, (cy - h / 2) * ROWS, w * COLUMNS, h * ROWS],
        }
        for key, labels in zip(dataset.image_ids, dataset.labels, strict=True)
        for label, cx, cy, w, h in labels.tolist()
    ]  # fmt: skip
    return evaluate(annotations_of(dataset), records).ap


def each(part: str, **values: Any) -> Change:
    """Sets keys of every entry; a function is called with the old value."""

    def change(content: Content) -> None:
        for entry in content[part]:
            entry.update({key: value(entry[key]) if callable(value) else value for key, value in values.items()})

    return change


def one(part: str, **values: Any) -> Change:
    """Sets keys of the third entry."""
    return lambda content: content[part][2].update(values)


def without(part: str, *keys: str) -> Change:
    return lambda content: [entry.pop(key) for entry in content[part] for key in keys]


def one_without(part: str, key: str) -> Change:
    return lambda content: content[part][2].pop(key)


def both(*changes: Change) -> Change:
    return lambda content: [change(content) for change in changes]


def refused(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing may have been written."""
    error = capsys.readouterr().err
    assert not (root / "made").exists()
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error
