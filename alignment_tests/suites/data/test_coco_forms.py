"""``prepare_data`` on any file of COCO's form: what is clear is put right, and every file that is named is found."""

from __future__ import annotations

import json
import unicodedata
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from alignment_tests.cases.coco_forms import (
    BOX,
    LABEL,
    SIZE,
    Change,
    average_precision,
    both,
    coco_form,
    each,
    info,
    one,
    one_without,
    opened,
    prepare,
    without,
)
from fixtures.data.coco_form import number, whole
from fixtures.data.image_folder import ImageFolder

NAN = float("nan")
# --- what is clear is put right


NO_CROWD, NO_AREA = "annotations without iscrowd; it is 0", "annotations without area; it is width times height"
ODD_IDS, NUMBERED = (
    "ids written as text or with a point",
    "annotation ids missing, repeated or no numbers; all were numbered from 1",
)
NO_SIZE, TEXT_BOX = "images without a size; it is that of their files", "boxes with numbers as text"
IMAGE_NAMES = "images with names as ids, numbered from 1 in the order of the names"
CATEGORY_NAMES = "categories with names as ids, numbered from 1 in the order of the names"

CLEAR: dict[str, tuple[Change, dict[str, int]]] = {
    "plain": (lambda content: None, {}),
    "no iscrowd": (without("annotations", "iscrowd"), {NO_CROWD: 5}),
    "null iscrowd": (one("annotations", iscrowd=None), {NO_CROWD: 1}),
    "iscrowd as a truth value": (each("annotations", iscrowd=False), {}),
    "no area": (without("annotations", "area"), {NO_AREA: 5}),
    "null area": (one("annotations", area=None), {NO_AREA: 1}),
    "no segmentation": (without("annotations", "segmentation"), {}),
    "no annotation ids": (without("annotations", "id"), {NUMBERED: 5}),
    "one annotation without id": (one_without("annotations", "id"), {NUMBERED: 1}),
    "repeated annotation ids": (each("annotations", id=7), {NUMBERED: 4}),
    "annotation ids that are names": (each("annotations", id="a{}".format), {NUMBERED: 5}),
    "annotation ids as text": (each("annotations", id=str), {ODD_IDS: 5}),
    "annotation ids from zero": (each("annotations", id=lambda key: key // 10 - 1), {}),
    "no licence": (without("images", "license"), {}),
    "licences without ids": (lambda content: content.update(licenses=[{"name": "MIT"}, None]), {}),
    "null licences": (lambda content: content.update(licenses=None), {}),
    "category ids as text": (
        both(each("categories", id=str), each("annotations", category_id=str)),
        {ODD_IDS: 7},
    ),
    "category ids as text in annotations": (each("annotations", category_id="3"), {ODD_IDS: 5}),
    "category ids as text in categories": (each("categories", id=str), {ODD_IDS: 2}),
    "category ids that are names": (
        lambda content: [
            content.update(categories=[{"id": name, "name": name} for name in ("person", "car")]),
            each("annotations", category_id="car")(content),
        ],
        {CATEGORY_NAMES: 2},
    ),
    "ids with a point": (
        both(each("images", id=float), each("annotations", image_id=float, category_id=3.0)),
        {ODD_IDS: 15},
    ),
    "image ids as text": (both(each("images", id=str), each("annotations", image_id=str)), {ODD_IDS: 10}),
    "image ids as text with zeros": (
        both(each("images", id="{:06d}".format), each("annotations", image_id="{:06d}".format)),
        {ODD_IDS: 10},
    ),
    "image ids as text with a point": (each("images", id=lambda key: f"{key}.0"), {ODD_IDS: 5}),
    "image ids that are names": (
        both(each("images", id="frame_{}".format), each("annotations", image_id="frame_{}".format)),
        {IMAGE_NAMES: 5},
    ),
    "image ids that are partly names": (
        both(one("images", id="x"), one("annotations", image_id="x")),
        {IMAGE_NAMES: 5},
    ),
    "image ids beyond 64 bits": (
        both(each("images", id=lambda key: key + 2**64), each("annotations", image_id=lambda key: key + 2**64)),
        {IMAGE_NAMES: 5},
    ),
    "no sizes": (without("images", "height", "width"), {NO_SIZE: 5}),
    "sizes of -1": (one("images", height=-1, width=-1), {NO_SIZE: 1}),
    "sizes of 0": (one("images", height=0, width=0), {NO_SIZE: 1}),
    "null height": (one("images", height=None), {NO_SIZE: 1}),
    "sizes as text": (each("images", height="48", width=64.0), {}),
    "box as text": (one("annotations", bbox=["4", "5.0", " 20", "1e1"]), {TEXT_BOX: 1}),
    "number as a class name": (lambda content: content["categories"][0].update(name=7), {}),
    "a category twice, one unused": (
        lambda content: content["categories"].insert(0, {"id": 0, "name": "car"}),
        {"categories left out that have no annotations and another's name": 1},
    ),
    "more than COCO has": (each("annotations", attributes={"occluded": True}), {}),
}


@pytest.mark.parametrize("case", CLEAR)
def test_what_is_clear_is_put_right_and_counted(case: str, tmp_path: Path) -> None:
    """The data set opens and evaluates, with the labels of the plain file."""
    change, wanted = CLEAR[case]
    content = coco_form()
    change(content)
    assert prepare(tmp_path, content) == 0
    assert info(tmp_path)["source"]["all"].get("put_right", {}) == wanted
    for split, count in (("train", 4), ("val", 1)):
        dataset = opened(tmp_path, split)
        np.testing.assert_allclose(np.concatenate(dataset.labels), [LABEL] * count, rtol=0, atol=1e-8)
        assert average_precision(dataset) == pytest.approx(1.0)


@pytest.mark.parametrize("case", CLEAR)
def test_what_is_written_is_strict(case: str, tmp_path: Path) -> None:
    content = coco_form()
    CLEAR[case][0](content)
    prepare(tmp_path, content)
    with redirect_stdout(StringIO()):
        read = COCO(str(tmp_path / "made" / "annotations" / "instances_train.json"))
    assert {type(key) for key in (*read.imgs, *read.anns, *read.cats)} == {int}
    assert len(read.anns) == 4
    for entry in read.anns.values():
        assert read.imgs[entry["image_id"]]["height"] == SIZE[0]
        assert (entry["bbox"], entry["iscrowd"]) == ([*BOX], 0)
        assert entry["area"] in (150.0, 200.0)


def test_a_plain_file_is_taken_as_it_is(tmp_path: Path) -> None:
    content = {"info": {"year": 2024}, **coco_form(), "more": [1]}
    prepare(tmp_path, content)
    made = [
        json.loads((tmp_path / "made" / "annotations" / f"instances_{split}.json").read_text())
        for split in ("train", "val")
    ]
    for part in ("images", "annotations"):
        assert sorted(made[0][part] + made[1][part], key=lambda entry: entry["id"]) == content[part]
    assert {key: made[0][key] for key in ("info", "categories", "more")} == {
        key: content[key] for key in ("info", "categories", "more")
    }


def test_ids_that_were_given_are_recorded(tmp_path: Path) -> None:
    content = coco_form()
    CLEAR["image ids that are names"][0](content)
    prepare(tmp_path, content)
    given = info(tmp_path)["source"]["all"]["image_ids"]
    assert given == {f"frame_{key}": key for key in range(1, 6)}
    for path, key in zip((dataset := opened(tmp_path, "train")).paths, dataset.image_ids, strict=True):
        assert given[f"frame_{path.stem}"] == key


def test_what_was_put_right_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_form()
    each("annotations", id=7)(content)
    prepare(tmp_path, content)
    assert capsys.readouterr().out.startswith(f"anything.json (all): 4 {NUMBERED}\n{tmp_path}")


VALUES: list[tuple[Any, int | None, float | None]] = [  # a value, the whole number that it is, the number
    (3, 3, 3), (3.0, 3, 3), ("3", 3, 3), ("3.0", 3, 3), (" +3 ", 3, 3), ("-3", -3, -3), ("03", 3, 3), (3.5, None, 3.5),
    ("3.5", None, 3.5), ("1e1", None, 10), ("1_0", None, None), ("٣", None, None), ("", None, None), (True, None, None),
    (None, None, None), ([3], None, None), (NAN, None, None), ("inf", None, None), (10**400, None, None),
    (str(2**64 + 1), 2**64 + 1, float(2**64)),
]  # fmt: skip


@pytest.mark.parametrize(("value", "as_whole", "as_number"), VALUES, ids=repr)
def test_numbers_are_read_as_they_are_written(value: Any, as_whole: int | None, as_number: float | None) -> None:
    assert (whole(value), number(value)) == (as_whole, as_number)


# --- names of files


NAMES: dict[str, tuple[str, str]] = {  # file_name, and the file
    "nested": ("cam1/{}.png", "cam1/{}.png"),
    "deeply nested": ("a/b/c/{}.png", "a/b/c/{}.png"),
    "the folder's own name": ("photos/{}.png", "{}.png"),
    "the folder's own name, nested": ("photos/cam1/{}.png", "cam1/{}.png"),
    "a folder of the same name in it": ("photos/{}.png", "photos/{}.png"),
    "from a folder above": ("data/photos/{}.png", "{}.png"),
    "from the root of another machine": ("/home/someone/photos/{}.png", "{}.png"),
    "backslashes": ("cam1\\{}.png", "cam1/{}.png"),
    "drive and backslashes": ("C:\\data\\photos\\{}.png", "{}.png"),
    "dot": ("./{}.png", "{}.png"),
    "doubled slash": ("cam1//{}.png", "cam1/{}.png"),
    "up and down": ("cam1/../{}.png", "{}.png"),
    "Chinese and a space": ("照片 ü{}.png", "照片 ü{}.png"),
    "folder with an accent": ("né/{}.png", "né/{}.png"),
    "composed accent": (unicodedata.normalize("NFC", "ü{}.png"), unicodedata.normalize("NFD", "ü{}.png")),
    "decomposed accent": (unicodedata.normalize("NFD", "ü{}.png"), unicodedata.normalize("NFC", "ü{}.png")),
    "dots": ("a.b.{}.png", "a.b.{}.png"),
    "upper case": ("{}.PNG", "{}.PNG"),
}


@pytest.mark.parametrize("case", NAMES)
def test_file_names_are_found_in_the_folder(case: str, tmp_path: Path) -> None:
    named, lying = NAMES[case]
    content = coco_form()
    each("images", file_name=lambda name: named.format(name[0]))(content)
    assert prepare(tmp_path, content, names=[lying.format(key) for key in range(1, 6)]) == 0
    train, val = opened(tmp_path, "train"), opened(tmp_path, "val")
    names = [path.relative_to(dataset.folder).as_posix() for dataset in (train, val) for path in dataset.paths]
    assert sorted(names) == [lying.format(key) for key in range(1, 6)]
    for dataset in (train, val):
        np.testing.assert_allclose(np.concatenate(dataset.labels), [LABEL] * len(dataset), rtol=0, atol=1e-8)
        assert average_precision(dataset) == pytest.approx(1.0)


def test_images_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    content = coco_form()
    each("images", file_name=lambda name: f"cam{name[0]}/image.png")(content)
    one("annotations", bbox=[0, 0, 64, 48])(content)
    assert prepare(tmp_path, content) == 0
    texts = {path.parent.name: path.read_text() for path in (tmp_path / "made" / "labels").rglob("*.txt")}
    assert len(texts) == 5
    assert [name for name, text in texts.items() if text == "1 0.50000000 0.50000000 1.00000000 1.00000000\n"] == [
        "cam3"
    ]


@pytest.mark.parametrize("name", ["../secret.png", "cam1/../../secret.png", "x\0.png", "x" * 300, "..", "photos", ""])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret.png").touch()
    assert ImageFolder(tmp_path / "photos").find(name) is None
