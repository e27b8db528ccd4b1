"""Data sets read from disk: what is read, what is counted, and the one clear error for everything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignment_tests.cases.datasets import noise, open_val, write_folder
from fixtures.data.dataset import DetectionDataset, image_shape, load_dataset, read_image
from fixtures.data.yolo_labels import format_labels, parse_labels

# --- labels and images


WRONG_LABELS = {
    "1 0.5 0.5 0.2": "line 1 must hold 5 numbers",
    "1 0.5 0.5 0.2 0.2 0.9": "line 1 must hold 5 numbers",
    "1 0.5 0.5 0.2 0.2\n\n1 0.5 x 0.2 0.2": "line 3 must hold numbers. Received: 1 0.5 x 0.2 0.2",
    "4 0.5 0.5 0.2 0.2": "line 1 must have a class in 0..3. Received: 4 0.5",
    "-1 0.5 0.5 0.2 0.2": "line 1 must have a class in 0..3",
    "0.5 0.5 0.5 0.2 0.2": "line 1 must have a class in 0..3",
    "1 nan 0.5 0.2 0.2": "line 1 must hold finite numbers",
    "1 0.5 inf 0.2 0.2": "line 1 must hold finite numbers",
    "0 0.5 0.5 1 1\n1 320 240 64 64": "line 2 must have cx, cy, w, h in 0..1 (shares of the image, not pixels)",
    "1 0.5 1.001 0.2 0.2": "line 1 must have cx, cy, w, h in 0..1",
    "1 0.5 0.5 -0.2 0.2": "line 1 must have cx, cy, w, h in 0..1",
}


@pytest.mark.parametrize("text", WRONG_LABELS)
def test_wrong_labels_are_named(text: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"a.png": noise()}, {"a.txt": text})
    with pytest.raises(ValueError, match=r"cannot read the labels .*a\.txt: ") as error:
        open_val(path)
    assert WRONG_LABELS[text] in str(error.value)


def test_duplicates_and_boxes_without_area_are_left_out_and_counted() -> None:
    labels = parse_labels("2 .5 .5 .2 .2\n0 .1 .1 .1 .1\n2 .5 .5 .2 .2\n\n1 .5 .5 0 .2\n", 4)
    assert labels.rows.tolist() == [[2, 0.5, 0.5, 0.2, 0.2], [0, 0.1, 0.1, 0.1, 0.1]]
    assert (labels.duplicates, labels.degenerate) == (1, 1)


def test_labels_survive_writing() -> None:
    rows = np.array([[3, 1 / 3, 0.5, 1e-4, 1.0], [0, 0, 1, 0.25, 2 / 3]])
    np.testing.assert_allclose(parse_labels(format_labels(rows), 4).rows, rows, rtol=0, atol=0.5e-8)


def test_the_summary_counts_what_is_there(tmp_path: Path) -> None:
    labels = {"a.txt": "1 .5 .5 .2 .2\n1 .2 .2 .2 .2\n0 .5 .5 .1 .1\n0 .5 .5 .1 .1", "b.txt": "1 .5 .5 0 .1\n"}
    path = write_folder(tmp_path, {f"{n}.png": noise() for n in "abc"}, {**labels, "gone.txt": ""})
    assert open_val(path).summary() == {
        "split": "val",
        "images": 3,
        "background_images": 2,
        "boxes": 3,
        "duplicate_boxes": 1,
        "degenerate_boxes": 1,
        "unused_label_files": 1,
        "classes": {
            "a": {"boxes": 1, "images": 1},
            "b": {"boxes": 2, "images": 1},
            "c": {"boxes": 0, "images": 0},
            "d": {"boxes": 0, "images": 0},
        },
    }


def test_the_checksum_follows_from_names_images_and_labels(tmp_path: Path) -> None:
    def made(name: str, image: str, value: int, label: str, classes: str) -> str:
        pixels = noise()
        pixels[0, 0, 0] = value
        return open_val(
            write_folder(tmp_path / name, {f"{image}.png": pixels}, {f"{image}.txt": label}, classes)
        ).checksum

    usual = ("a", 1, "0 .5 .5 .5 .5", "[x, y]")
    others = [("b", *usual[1:]), ("a", 2, *usual[2:]), (*usual[:2], "0 .5 .5 .5 .6", "[x, y]"), (*usual[:3], "[y, x]")]
    first = made("first", *usual)
    assert made("second", *usual) == first
    assert len({first, *(made(f"other{i}", *other) for i, other in enumerate(others))}) == 5


def jpeg(path: Path, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(40, 64)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shapes_are_those_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    path = jpeg(tmp_path / "a.jpg", orientation)
    assert image_shape(path) == read_image(path).shape[:2]


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"cut off": data[: len(data) // 2], "empty": b"", "text": b"not an image"}[kind])


@pytest.mark.parametrize("kind", ["cut off", "empty", "text"])
def test_damaged_images_are_named_before_training(tmp_path: Path, kind: str) -> None:
    path = write_folder(tmp_path, {"a.png": noise()}, {"a.txt": "0 .5 .5 .5 .5"})
    for name in ("b.jpg", "c.jpg"):
        damage(jpeg(tmp_path / "images" / "val" / name), kind)
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.jpg: .* \(1 more files of val are wrong\)"):
        open_val(path)


def test_all_kinds_of_images_become_three_channels(tmp_path: Path) -> None:
    for name, image in {
        "grey.png": Image.fromarray(noise()[..., 0]),
        "alpha.png": Image.fromarray(noise()).convert("RGBA"),
        "palette.png": Image.fromarray(noise()).convert("P"),
    }.items():
        image.save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (40, 64, 3)


# --- dataset.yaml


def test_missing_labels_are_an_error_not_an_ap_of_zero(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"a.png": noise()}, {})
    with pytest.raises(ValueError, match=r"no labels found for the 1 images .*there must be \.txt files"):
        open_val(path)
    (tmp_path / "labels" / "val" / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"no labels found .*the 1 label files in .* are empty"):
        open_val(path)


WRONG_FILES = {
    "val: [": "must be YAML",
    "just words": "must hold keys such as train, val, names. Received: str",
    "names: [a]": "must name a folder of images under `train` or `val`",
    "val: images/val": "`names` in .* must be the classes' names",
    "val: images/val\nnames: []": "`names` in .* must be the classes' names",
    "val: images/val\nnames: [a, 1]": "`names` in .* must be the classes' names",
    "val: images/val\nnames: {1: a, 2: b}": r"must be numbered 0\.\.1. Received: \[1, 2\]",
    "val: images/val\nnames: [a, a]": "must differ",
    "val: images/val\nnames: [a]\nnc: 2": "`nc` in .* must be the number of names, 1. Received: 2",
    "val: [x, y]\nnames: [a]": "`val` in .* must be one path",
    "val: images/val\nnames: [a]\npath: nowhere": "`path` in .* must be a folder",
    "val: images/val\nnames: [a]\nannotations: x.json": "must map splits to COCO JSON files",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_wrong_dataset_files_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(ValueError, match=WRONG_FILES[text]):
        load_dataset(tmp_path / "dataset.yaml")


def test_a_dataset_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"described by a dataset\.yaml"):
        load_dataset(tmp_path / "dataset.yaml")


def test_names_may_be_numbered_and_paths_start_from_path(tmp_path: Path) -> None:
    write_folder(tmp_path / "inside", {"a.png": noise()}, {"a.txt": "1 .5 .5 .5 .5"})
    (tmp_path / "dataset.yaml").write_text("path: inside\nval: images/val\nnames: {1: b, 0: a}\nnc: 2\nother: 3\n")
    config = load_dataset(tmp_path / "dataset.yaml")
    assert (config.names, config.num_classes) == (("a", "b"), 2)
    assert DetectionDataset(config, "val").labels[0][0, 0] == 1


@pytest.mark.parametrize(
    ("split", "text", "message"),
    [
        ("train", "val: images/val", r"`split` must be one of \['val'\]"),
        ("val", "val: images/nowhere", "`val` in .*: `folder` must be a folder of images"),
        ("val", "val: labels/val", "`val` in .*: `folder` must hold images"),
        ("val", "val: pictures", "must have a folder `images` in its path"),
    ],
)
def test_wrong_splits_are_named(tmp_path: Path, split: str, text: str, message: str) -> None:
    write_folder(tmp_path, {"a.png": noise()}, {"a.txt": "1 .5 .5 .5 .5"})
    shutil.copytree(tmp_path / "images" / "val", tmp_path / "pictures")
    (tmp_path / "dataset.yaml").write_text(f"{text}\nnames: [a, b]\n")
    with pytest.raises(ValueError, match=message):
        DetectionDataset(load_dataset(tmp_path / "dataset.yaml"), split)


def with_annotations(tmp_path: Path, **changes: Any) -> Path:
    path = write_folder(tmp_path, {"a.png": noise(), "b.png": noise()}, {"a.txt": "1 .5 .5 .5 .5"}, "[dog, cat]")
    images = [{"id": 90, "file_name": "b.png"}, {"id": 70, "file_name": "a.png"}]
    content = {
        "images": [{**image, "height": 40, "width": 64} for image in images],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [],
        **changes,
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    path.write_text(path.read_text() + "annotations: {val: val.json}\n")
    return path


def test_ids_come_from_the_annotations(tmp_path: Path) -> None:
    dataset = open_val(with_annotations(tmp_path))
    assert (dataset.image_ids, dataset.category_ids) == ([70, 90], [18, 17])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, r"must hold every image of .* Missing: a\.png"),
        ({"categories": [{"id": 1, "name": "cat"}]}, r"must hold the classes of .* Missing: \['dog'\]"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 40}]}, "must give a.png its size"),
        ({"images": [{"id": 1}]}, "must be a COCO JSON"),
    ],
)
def test_annotations_of_another_data_set_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_val(with_annotations(tmp_path, **changes))


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    path = with_annotations(tmp_path)
    (tmp_path / "val.json").unlink()
    with pytest.raises(ValueError, match=r"cannot read the annotations .*val\.json: No such file"):
        open_val(path)
