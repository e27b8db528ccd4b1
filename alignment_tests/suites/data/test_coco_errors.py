"""Wrong files of COCO's form: one line with file, entry and demand, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignment_tests.cases.coco_forms import (
    NAMES,
    Change,
    both,
    coco_form,
    each,
    info,
    one,
    one_without,
    prepare,
    refused,
    without,
    write_coco_form,
)
from alignment_tests.cases.datasets import noise
from fixtures.data.dataset import image_shape
from fixtures.evaluation.coco_metrics import evaluate
from fixtures.prepare_data import main

NAN = float("nan")
ID = "a whole number or a name"
PIXELS = "a positive whole number, or -1 if it is not known"
BOX = "four finite numbers: left, top, width and height, the last two not negative"
WRONG_BOXES: tuple[Any, ...] = (
    None, [], {}, "", 5, [4, 5, 20], [4, 5, 20, 10, 0], [NAN, 5, 20, 10], [4, 5, float("inf"), 10], [30, 5, -20, 10],
    [4, 5, 20, -1e-3], ["4", "5", "20", "ten"], ["4", "5", "nan", "10"], ["0x4", "5", "20", "10"],
    ["4", "5", "2_0", "10"], [4, None, 20, 10], [4, True, 20, 10], [[4], 5, 20, 10], [4, 5, 10**309, 10],
    {"x": 4, "y": 5, "width": 20, "height": 10},
)  # fmt: skip

# By part and key: what the value must be, and values that are not that.
WRONG_VALUES: dict[tuple[str, str], tuple[str, Sequence[Any]]] = {
    ("annotations", "bbox"): (BOX, WRONG_BOXES),
    ("annotations", "area"): ("a finite number that is not negative", ("big", -1, NAN, [], True)),
    ("annotations", "iscrowd"): ("0 or 1", (2, -1, 0.5, "yes", [])),
    ("annotations", "image_id"): ("the id of one of the images", (500, "500", "f", None, 3.5, True, [3], {}, "")),
    ("annotations", "category_id"): ("the id of one of the categories", (2, 0, "car", None, 1.5, [3])),
    ("images", "id"): (ID, (None, 1.5, NAN, True, "", " ", [1], {})),
    ("images", "file_name"): ("the name of its file", (None, "", " ", 3, ["3.png"])),
    ("images", "height"): (PIXELS, (-48, -2, 48.5, "tall", NAN, [48], True)),
    ("images", "width"): (PIXELS, (-64, "64px")),
    ("categories", "id"): (ID, (None, 0.5, False)),
    ("categories", "name"): ("the name of the class", (None, "", " ", 1.5, ["cat"])),
}
WRONG_ENTRIES = [(*place, value, demand) for place, (demand, values) in WRONG_VALUES.items() for value in values]


@pytest.mark.parametrize(("part", "key", "value", "demand"), WRONG_ENTRIES)
def test_a_wrong_value_is_one_line(
    part: str, key: str, value: Any, demand: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = coco_form()
    content["categories"].append({"id": 9, "name": "cat"})
    own = "" if key == "id" else f" (id {content[part][2]['id']})"
    one(part, **{key: value})(content)
    assert prepare(tmp_path, content, names=NAMES) == 2
    wanted = f"{tmp_path}/anything.json: {part}[2]{own}: `{key}` must be {demand}. Received: {json.dumps(value)[:80]}"
    assert wanted in refused(tmp_path, capsys)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("annotations", "bbox"), ("annotations", "image_id"), ("annotations", "category_id"), ("images", "id"),
        ("images", "file_name"), ("categories", "id"), ("categories", "name"),
    ],
)  # fmt: skip
def test_a_missing_value_is_one_line(part: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_form()
    content["categories"].append({"id": 9, "name": "cat"})
    one_without(part, key)(content)
    assert prepare(tmp_path, content, names=NAMES) == 2
    assert refused(tmp_path, capsys).endswith(". Received: nothing\n")


WRONG: dict[str, tuple[Change, str]] = {
    "an image id twice": (one("images", id=1), "images[2] must have an `id` of its own. Received: 1, which images[0]"),
    "an image id twice, once as text": (one("images", id="1"), 'images[2] must have an `id` of its own. Received: "1"'),
    "a category id twice": (
        lambda content: content["categories"].append({"id": 3, "name": "bus"}),
        "categories[2] must have an `id` of its own. Received: 3, which categories[1] has too",
    ),
    "a category name twice, both used": (
        both(one("annotations", category_id=1), lambda content: content["categories"][0].update(name="car")),
        "categories must have names of their own. Received: 'car' with the ids 1 and 3, both with annotations",
    ),
    "a wrong box without an id": (
        both(without("annotations", "id"), one("annotations", bbox=None)),
        "annotations[2]: `bbox` must be four",
    ),
    "another size": (
        one("images", height=64, width=48),
        "3.png must have the size of its record, 64 rows and 48 columns. Received: (48, 64)",
    ),
    "one side of another size": (
        one("images", height=-1, width=48),
        "3.png must have the size of its record, 48 rows and 48 columns",
    ),
    "two images of one file": (one("images", file_name="1.png"), "Received: 1.png (id 1) and 1.png (id 3)"),
    "two images of one label file": (
        one("images", file_name="1.jpg"),
        "must have names that differ, even without their endings. Received: 1.png (id 1) and 1.jpg (id 3)",
    ),
    "an image of another kind": (
        one("images", file_name="3.tiff"),
        "the image with id 3 must be one of .jpg, .jpeg, .png, .bmp, .webp. Received: 3.tiff",
    ),
    "an annotation that is a list": (
        lambda content: content["annotations"].insert(1, [4]),
        "annotations[1] must be an object. Received: [4]",
    ),
    "an image that is text": (
        lambda content: content["images"].append("6.png"),
        'images[5] must be an object. Received: "6.png"',
    ),
    "no categories": (lambda content: content.pop("categories"), "with the lists images, annotations, categories. Mis"),
    "null annotations": (lambda content: content.update(annotations=None), "Missing: annotations"),
    "no boxes at all": (lambda content: content["annotations"].clear(), "must have images with boxes of the classes"),
    "nothing but crowds": (each("annotations", iscrowd=1), "must have images with boxes of the classes. Received: no"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = WRONG[case]
    content = coco_form()
    change(content)
    assert prepare(tmp_path, content, names=[*NAMES, "1.jpg", "3.tiff"]) == 2
    assert message in refused(tmp_path, capsys)


@pytest.mark.parametrize("text", ["", "[]", '"text"', '{"images": [', "[1, 2", "null", "\udcff", "[" * 100_000])
def test_other_files_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_coco_form(tmp_path / "anything.json", coco_form(), tmp_path / "photos")
    (tmp_path / "anything.json").write_bytes(text.encode(errors="surrogateescape"))
    assert main([*files, "--target", str(tmp_path / "made")]) == 2
    assert "anything.json must be COCO's instances JSON" in refused(tmp_path, capsys)


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text_file(path: Path) -> None:
    path.write_text("no image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def smaller(path: Path) -> None:
    Image.fromarray(noise(20, 30)).save(path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (missing, "photos must hold all images that {file} has boxes of. Missing: '3.png' (id 3)"),
    "a folder": (a_folder, "photos must hold all images that {file} has boxes of. Missing: '3.png' (id 3)"),
    "text": (text_file, "cannot read the image {image}: cannot identify image file"),
    "empty": (empty, "cannot read the image {image}: cannot identify image file"),
    "cut off": (cut_off, "cannot read the image {image}: the file is cut off"),
    "smaller": (smaller, "the image {image} must have the size of its record, 48 rows and 64 columns. Received: (20,"),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_image_files_are_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = FILES[case]
    files = write_coco_form(tmp_path / "anything.json", coco_form(), tmp_path / "photos")
    change(image := tmp_path / "photos" / "3.png")
    assert main([*files, "--target", str(tmp_path / "made")]) == 2
    assert message.format(file=tmp_path / "anything.json", image=image) in refused(tmp_path, capsys)


def test_all_missing_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, coco_form(), names=["1.png", "5.png"]) == 2
    assert "Missing: '2.png' (id 2), and 2 more" in refused(tmp_path, capsys)


def test_images_without_boxes_may_be_anything(tmp_path: Path) -> None:
    content = coco_form(6)
    content["annotations"].pop()
    content["images"][-1].update(file_name="nowhere.gif", height=-1)
    assert prepare(tmp_path, content, names=NAMES) == 0
    assert info(tmp_path)["source"]["all"] == {
        "file": "anything.json", "images": 6, "eligible": 5, "not_on_disk": 0, "without_boxes_of_the_classes": 1,
    }  # fmt: skip


def test_a_png_must_have_an_end(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    assert image_shape(tmp_path / "a.png") == (40, 64)
    cut_off(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: the file is cut off"):
        image_shape(tmp_path / "a.png")


# --- the evaluation, on a file that was not prepared


EVALUATED: dict[str, tuple[Change, str]] = {
    "null box": (one("annotations", bbox=None), r"`annotations\[2\]` must have a bbox .* Received: None"),
    "short box": (one("annotations", bbox=[1, 2]), r"`annotations\[2\]` must have a bbox .* Received: \[1, 2\]"),
    "text in a box": (one("annotations", bbox=["4", 5, 20, 10]), r"`annotations\[2\]` must have a bbox"),
    "NaN in a box": (one("annotations", bbox=[NAN, 5, 20, 10]), r"`annotations\[2\]` must have a bbox"),
    "negative width": (one("annotations", bbox=[30, 5, -20, 10]), r"`annotations\[2\]` must have a bbox"),
    "no box": (one_without("annotations", "bbox"), r"`annotations\[2\]` must have image_id, .* Missing: bbox"),
    "no image id": (one_without("annotations", "image_id"), r"`annotations\[2\]` .* Missing: image_id"),
    "null area": (one("annotations", area=None), r"`annotations\[2\]` must have a number as `area`.* Received: None"),
    "no image's id": (one_without("images", "id"), r"`images\[2\]` must have id. Missing: id"),
    "no name": (lambda content: content["categories"][0].pop("name"), r"`categories\[0\]` must have id, name. Miss"),
    "text for an image": (lambda content: content["images"].append("x"), r"`images\[5\]` must have id. Missing: id"),
}  # fmt: skip


@pytest.mark.parametrize("case", EVALUATED)
def test_wrong_annotations_are_named_by_the_evaluation(case: str, tmp_path: Path) -> None:
    change, message = EVALUATED[case]
    content = coco_form()
    change(content)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"truth\.json: {message}"):
        evaluate(tmp_path / "truth.json", [])


@pytest.mark.parametrize("key", ["iscrowd", "area", "segmentation", "id"])
def test_the_evaluation_needs_no_more_than_boxes(key: str) -> None:
    content = coco_form()
    without("annotations", key)(content)
    assert evaluate(content, []).ap == 0
