"""``python -m fixtures.prepare_data``: what it makes, that it goes on after a stop, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import fixtures.data.writer
from alignment_tests.cases.batches import PHOTOGRAPHS
from alignment_tests.cases.datasets import noise, write_varied_coco
from fixtures.data.coco_subset import DEFAULT_CLASSES
from fixtures.data.dataset import DetectionDataset, file_digest, image_shape, load_dataset
from fixtures.data.shapes import NAMES, draw_scene
from fixtures.prepare_data import main

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "fixtures.prepare_data"]
CATEGORIES = ((1, "person"), (3, "car"), (17, "cat"), (18, "dog"))
SIZE = (40, 64)
PHOTOGRAPHS_MADE = "467a613c9a528faa758d3298c908ea1e8b9cafe951ae9695fb5c7ff96bda5e5a"


def annotation(number: int, image: int, category: int, box: list[float], crowd: int = 0) -> dict[str, Any]:
    area = box[2] * box[3]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd,
        "segmentation": [],
    }  # fmt: skip


def write_coco(root: Path, part: str, images: int, inside: str = "", extra: list[dict[str, Any]] | None = None) -> Path:
    """A COCO folder of that many images, numbered from 1; odd ones hold a cat and a dog, even ones a dog."""
    folder = root / inside / part
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    records, boxes = [], list(extra or [])
    for key in range(1, images + 1):
        name = f"{key:012d}.jpg"
        pixels = noise(*SIZE)
        pixels[:, :, 0] = key
        Image.fromarray(pixels).save(folder / name)
        records.append({"id": key, "file_name": name, "height": 40, "width": 64, "license": 4 if key % 2 else 5})
        boxes.append(annotation(10 * key, key, 18, [4, 6, 20, 12]))
        if key % 2:
            boxes.append(annotation(10 * key + 1, key, 17, [30, 10, 16.5, 20]))
    content = {
        "info": {"year": 2017},
        "licenses": [
            {"id": 4, "name": "Attribution", "url": "http://by"},
            {"id": 5, "name": "Share", "url": "http://sa"},
        ],
        "categories": [{"id": number, "name": name, "supercategory": "x"} for number, name in CATEGORIES],
        "images": records,
        "annotations": boxes,
    }
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco", "train2017", 12)
    return write_coco(tmp_path / "coco", "val2017", 5)


@pytest.fixture
def command(coco: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command on ``coco`` with more options; 10 images of cats and dogs unless they say otherwise."""

    def run(*options: str) -> int:
        usual = ["--source", str(coco), "--target", str(tmp_path / "made"), "--num-images", "10"]
        return main([*usual, "--classes", "dog,cat", *options])

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset_info.json").read_text())


def read_coco(path: Path) -> COCO:
    with redirect_stdout(StringIO()):
        return COCO(str(path))


# --- what it makes


def test_a_subset_of_coco_can_be_trained_on(command: Callable[..., int], tmp_path: Path) -> None:
    assert command() == 0
    made = tmp_path / "made"
    assert {path.name for path in made.iterdir()} == {
        "images", "labels", "annotations", "dataset.yaml", "dataset_info.json",
    }  # fmt: skip
    config = load_dataset(made / "dataset.yaml")
    assert config.names == ("dog", "cat")
    for split, count in (("train", 8), ("val", 2)):
        dataset = DetectionDataset(config, split)
        summary = dataset.summary()
        assert summary["images"] == count
        assert summary["classes"] == info(made)["splits"][split]["classes"]
        assert dataset.category_ids == [18, 17]
        for labels, key in zip(dataset.labels, dataset.image_ids, strict=True):
            wanted = [[0, 14 / 64, 12 / 40, 20 / 64, 12 / 40], [1, 38.25 / 64, 20 / 40, 16.5 / 64, 20 / 40]]
            np.testing.assert_allclose(labels, wanted[: 1 + key % 2], rtol=0, atol=1e-8)


def test_training_images_are_of_train2017_and_validation_images_of_val2017(
    command: Callable[..., int], coco: Path, tmp_path: Path
) -> None:
    assert command() == 0
    for split in ("train", "val"):
        for path in (tmp_path / "made" / "images" / split).iterdir():
            assert path.read_bytes() == (coco / f"{split}2017" / path.name).read_bytes()


def test_one_part_of_coco_is_parted(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "coco", "val2017", 10, inside="images")
    arguments = ["--source", str(source), "--target", str(tmp_path / "made"), "--classes", "dog", "--num-images", "10"]
    assert main([*arguments, "--split", "0.7"]) == 0
    names = [{path.name for path in (tmp_path / "made" / "images" / split).iterdir()} for split in ("train", "val")]
    assert list(map(len, names)) == [7, 3]
    assert len(names[0] | names[1]) == 10


def test_a_part_without_images_is_not_used(command: Callable[..., int], coco: Path, tmp_path: Path) -> None:
    shutil.rmtree(coco / "val2017")
    assert command() == 0
    assert list(info(tmp_path / "made")["source"]) == ["train2017"]


def test_annotations_are_cocos_own_of_the_chosen_images(
    command: Callable[..., int], coco: Path, tmp_path: Path
) -> None:
    assert command("--classes", "cat", "--num-images", "5") == 0
    whole = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    made = json.loads((tmp_path / "made" / "annotations" / "instances_train.json").read_text())
    chosen = {image["id"] for image in made["images"]}
    assert made["images"] == [image for image in whole["images"] if image["id"] in chosen]
    assert made["categories"] == [category for category in whole["categories"] if category["name"] == "cat"]
    assert made["annotations"] == [
        box for box in sorted(whole["annotations"], key=lambda box: box["id"])
        if box["image_id"] in chosen and box["category_id"] == 17
    ]  # fmt: skip


def test_boxes_that_are_not_learned_are_counted(tmp_path: Path) -> None:
    """Crowds stay in the JSON, where the evaluation ignores them; boxes without area are nowhere."""
    extra = [
        annotation(1001, 1, 18, [0, 0, 30, 30], crowd=1),
        annotation(1002, 1, 18, [70, 10, 5, 5]),  # beyond the image
        annotation(1003, 2, 18, [10, 10, 0, 5]),
        annotation(1004, 2, 18, [50, 30, 30, 30]),  # reaches out of it
        annotation(1005, 2, 18, [4, 6, 20, 12]),  # once more
        annotation(1006, 4, 18, [1, 1, 8, 8], crowd=1),  # of an image with nothing else
    ]
    source = write_coco(tmp_path / "coco", "train2017", 4, extra=extra)
    path = source / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [box for box in content["annotations"] if box["id"] not in (30, 31, 40)]
    path.write_text(json.dumps(content))
    arguments = ["--source", str(source), "--target", str(tmp_path / "made"), "--num-images", "2", "--split", "0.5"]
    assert main([*arguments, "--classes", "dog,cat"]) == 0
    made = info(tmp_path / "made")
    kinds = ("crowd", "degenerate", "clipped", "duplicate")
    counts = {kind: sum(made["splits"][split][f"{kind}_boxes"] for split in ("train", "val")) for kind in kinds}
    assert counts == {"crowd": 1, "degenerate": 2, "clipped": 1, "duplicate": 1}
    assert made["source"]["train2017"] == {
        "images": 4, "eligible": 2, "not_on_disk": 0, "without_boxes_of_the_classes": 2,
    }  # fmt: skip
    entries = {
        box["id"]: box["iscrowd"]
        for split in ("train", "val")
        for box in json.loads((tmp_path / "made" / "annotations" / f"instances_{split}.json").read_text())[
            "annotations"
        ]
    }
    assert entries == {10: 0, 11: 0, 20: 0, 1001: 1, 1004: 0, 1005: 0}
    text = next((tmp_path / "made" / "labels").glob("*/000000000002.txt")).read_text()
    assert text == "0 0.89062500 0.87500000 0.21875000 0.25000000\n0 0.21875000 0.30000000 0.31250000 0.30000000\n" or (
        text == "0 0.21875000 0.30000000 0.31250000 0.30000000\n0 0.89062500 0.87500000 0.21875000 0.25000000\n"
    )


def test_the_info_tells_licences_and_checksums(command: Callable[..., int], tmp_path: Path) -> None:
    assert command() == 0
    made = tmp_path / "made"
    licences = [licence for split in ("train", "val") for licence in info(made)["splits"][split]["licences"]]
    assert sum(licence["images"] for licence in licences) == 10
    assert {licence["name"] for licence in licences} <= {"Attribution", "Share"}
    assert info(made)["settings"]["seed"] == 42
    checksums = info(made)["checksums"]
    assert len(checksums) == 10 + 10 + 2
    assert all(file_digest(made / name) == checksum for name, checksum in checksums.items())


def test_the_same_seed_gives_the_same_bytes(command: Callable[..., int], tmp_path: Path) -> None:
    for name, seed in (("one", "5"), ("two", "5"), ("other", "6")):
        assert command("--target", str(tmp_path / name), "--seed", seed) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    images = [set(info(tmp_path / name)["checksums"]) for name in ("one", "other")]
    assert images[0] != images[1]


def test_the_choice_does_not_depend_on_the_order_in_the_file(
    command: Callable[..., int], coco: Path, tmp_path: Path
) -> None:
    assert command("--target", str(tmp_path / "one")) == 0
    for path in (coco / "annotations").iterdir():
        content = json.loads(path.read_text())
        for part in ("images", "annotations"):
            content[part].reverse()
        path.write_text(json.dumps(content))
    assert command("--target", str(tmp_path / "two")) == 0
    assert info(tmp_path / "one")["checksums"] == info(tmp_path / "two")["checksums"]


def test_more_images_hold_the_fewer(command: Callable[..., int], tmp_path: Path) -> None:
    for count in ("5", "10"):
        assert command("--target", str(tmp_path / count), "--num-images", count) == 0
    few, more = ({n for n in info(tmp_path / c)["checksums"] if n.startswith("images")} for c in ("5", "10"))
    assert few < more


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_images_may_be_links(command: Callable[..., int], coco: Path, tmp_path: Path, link: str) -> None:
    assert command("--link", link) == 0
    for path in (tmp_path / "made" / "images" / "train").iterdir():
        assert path.is_symlink() == (link == "symlink")
        assert path.samefile(coco / "train2017" / path.name)
    assert DetectionDataset(load_dataset(tmp_path / "made" / "dataset.yaml"), "train").checksum
    before = contents(tmp_path / "made")
    assert command("--link", link) == 0
    assert contents(tmp_path / "made") == before


def test_all_classes(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--classes", "all") == 0
    assert load_dataset(tmp_path / "made" / "dataset.yaml").names == ("person", "car", "cat", "dog")


def test_the_photographs_that_come_along(tmp_path: Path) -> None:
    """All of them, every class: the counts that their README gives."""
    target = tmp_path / "made"
    arguments = ["--source", str(PHOTOGRAPHS), "--target", str(target), "--link", "symlink", "--classes", "all"]
    assert main([*arguments, "--num-images", "28", "--split", "0.72"]) == 0
    assert load_dataset(target / "dataset.yaml").names == ("RBC", "WBC", "Platelets")
    found = info(target)["splits"]
    counts = {name: (part["images"], *(k["boxes"] for k in part["classes"].values())) for name, part in found.items()}
    assert counts == {"train": (20, 199, 20, 29), "val": (8, 69, 8, 10)}
    # Its checksums are those of every file: a data set that was made once is made again to the byte.
    assert file_digest(target / "dataset_info.json") == PHOTOGRAPHS_MADE


def test_photographs_of_coco(tmp_path: Path) -> None:
    """All with a box of the ten classes, of a folder with 80 classes and all that COCO has in it."""
    source, target = write_varied_coco(tmp_path / "coco"), tmp_path / "made"
    wanted = {split: ten_classes(source, f"{split}2017") for split in ("train", "val")}
    train, val = (len(boxes) for boxes, _ in wanted.values())
    assert (train, val) == (14, 6)
    arguments = ["--source", str(source), "--target", str(target), "--link", "symlink"]
    assert main([*arguments, "--num_images", str(train + val), "--split", str(train / (train + val))]) == 0
    assert load_dataset(target / "dataset.yaml").names == DEFAULT_CLASSES
    left_out = [info(target)["source"][f"{split}2017"]["without_boxes_of_the_classes"] for split in wanted]
    assert left_out == [20 - train, 8 - val]
    for split, (boxes, crowds) in wanted.items():
        found, names = info(target)["splits"][split], [name for image in boxes.values() for name in image]
        assert (found["images"], found["boxes"], found["crowd_boxes"]) == (len(boxes), len(names), crowds)
        assert {name: found["classes"][name]["boxes"] for name in DEFAULT_CLASSES} == {
            name: names.count(name) for name in DEFAULT_CLASSES
        }
        assert crowds > 0
        dataset = DetectionDataset(load_dataset(target / "dataset.yaml"), split)
        assert sorted(dataset.image_ids) == sorted(boxes)
        read = read_coco(target / "annotations" / f"instances_{split}.json")
        assert sorted(read.getImgIds()) == sorted(boxes)
        assert len({tuple(shape) for shape in dataset.shapes.tolist()}) > 4
    assert {mode(path) for path in (target / "images" / "train").iterdir()} == {"RGB", "L"}


def mode(path: Path) -> str:
    with Image.open(path) as file:
        return file.mode


def ten_classes(source: Path, part: str) -> tuple[dict[int, list[str]], int]:
    """By image, the class of each box to learn of the ten classes, and how many crowds these images have of them."""
    content = json.loads((source / "annotations" / f"instances_{part}.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    known = [box for box in content["annotations"] if names[box["category_id"]] in DEFAULT_CLASSES]
    boxes: dict[int, list[str]] = {}
    for box in known:
        if not box["iscrowd"]:
            boxes.setdefault(box["image_id"], []).append(names[box["category_id"]])
    return boxes, sum(box["iscrowd"] and box["image_id"] in boxes for box in known)


# --- drawn pictures


def test_the_demo_needs_no_coco(tmp_path: Path) -> None:
    assert main(["--demo", "--target", str(tmp_path / "demo"), "--num-images", "10", "--image-size", "64x96"]) == 0
    config = load_dataset(tmp_path / "demo" / "dataset.yaml")
    dataset = DetectionDataset(config, "train")
    assert (config.names, len(dataset), dataset.shapes[0].tolist()) == (NAMES, 8, [64, 96])
    entries = read_coco(tmp_path / "demo" / "annotations" / "instances_train.json")
    for key, labels in zip(dataset.image_ids, dataset.labels, strict=True):
        boxes = [entry["bbox"] for entry in entries.imgToAnns[key]]
        wanted = np.array([[(x + w / 2) / 96, (y + h / 2) / 64, w / 96, h / 64] for x, y, w, h in boxes])
        np.testing.assert_allclose(labels[:, 1:], wanted, rtol=0, atol=1e-8)


def test_the_demo_is_64_pictures_of_256_pixels(tmp_path: Path) -> None:
    assert main(["--demo", "--target", str(tmp_path)]) == 0
    images = sorted((tmp_path / "images").rglob("*.png"))
    assert (len(images), {image_shape(path) for path in images}) == (64, {(256, 256)})
    classes = info(tmp_path)["splits"]["train"]["classes"]
    assert min(counts["boxes"] for counts in classes.values()) >= 20


def test_drawn_boxes_enclose_their_shapes() -> None:
    """The class's colour fills the box from edge to edge, and is nowhere outside of boxes."""
    for index in range(20):
        picture, rows = draw_scene((128, 160), 1, index)
        strongest = picture.argmax(-1)
        shape = picture.max(-1).astype(int) - picture.min(-1) > 70
        assert 1 <= len(rows) <= 4
        for kind, x1, y1, x2, y2, area in rows.tolist():
            inside = shape[y1:y2, x1:x2] & (strongest[y1:y2, x1:x2] == kind)
            assert inside.any(0).all()
            assert inside.any(1).all()
            assert inside.sum() == area
            shape[y1:y2, x1:x2] = False
        assert not shape.any()


# --- stopped and run again


def test_a_complete_data_set_is_verified_and_left_alone(command: Callable[..., int], tmp_path: Path) -> None:
    assert command() == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")}
    assert command() == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")} == times


@pytest.mark.parametrize("pattern", ["images/train/*.jpg", "labels/val/*.txt", "annotations/*.json"])
def test_a_damaged_file_is_written_again(command: Callable[..., int], tmp_path: Path, pattern: str) -> None:
    assert command() == 0
    before = contents(tmp_path / "made")
    damaged = next((tmp_path / "made").glob(pattern))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert command() == 0
    assert contents(tmp_path / "made") == before


@pytest.mark.parametrize("files", [0, 1, 5, 20, 22, 23])
def test_a_full_disk_stops_the_run_and_the_next_goes_on(
    command: Callable[..., int],
    tmp_path: Path,
    files: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("--target", str(tmp_path / "whole")) == 0
    capsys.readouterr()
    replaced: list[Path] = []
    rename = Path.replace

    def full(path: Path, target: Path) -> Path:
        if len(replaced) > files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        replaced.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", full)
    assert command() == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "made" / "dataset.yaml").exists()
    assert not list((tmp_path / "made").rglob("*.part"))
    monkeypatch.undo()
    times = {path: path.stat().st_mtime_ns for path in replaced if path.name != "preparing.json"}
    assert command() == 0
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in times} == times


# Starts the command, sends it a signal as soon as it has written 20 pictures, and prints how it ended. A process of its
# own, since Jittor, where it is loaded, ends a process whose child was killed.
KILLER = """
import json, pathlib, subprocess, sys, time
kill, target, *command = sys.argv[1:]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
while process.poll() is None and len(list(pathlib.Path(target).rglob("*.png"))) < 20:
    time.sleep(0.01)
process.send_signal(int(kill))
output, error = process.communicate(timeout=30)
print(json.dumps([process.returncode, output, error]))
"""


@pytest.mark.parametrize(
    ("kill", "code", "message"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGINT, 130, "stopped. What is there stays: run it again to go on\n"),
    ],
)
def test_a_killed_run_goes_on(tmp_path: Path, kill: signal.Signals, code: int, message: str) -> None:
    arguments = ["--demo", "--num-images", "400", "--image-size", "64", "--target"]
    command = [*COMMAND, *arguments, str(tmp_path / "made")]
    killer = [sys.executable, "-c", KILLER, str(int(kill)), str(tmp_path / "made"), *command]
    done = subprocess.run(killer, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [code, "", message]
    assert not (tmp_path / "made" / "dataset.yaml").exists()
    for name in ("made", "whole"):
        assert main([*arguments, str(tmp_path / name)]) == 0
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def test_a_run_killed_at_its_first_file_goes_on(command: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ".preparing.json.part").write_text('{"set')
    assert command() == 0
    assert not list((tmp_path / "made").glob(".*"))


def test_a_file_that_cannot_grow_is_an_error(tmp_path: Path) -> None:
    """A limit of the process stands for a full disk: the write itself fails."""
    limited = ["sh", "-c", 'ulimit -f 8 && exec "$@"', "sh", *COMMAND]  # eight blocks of 512 bytes
    done = subprocess.run(
        [*limited, "--demo", "--num-images", "4", "--target", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read or write ")
    assert done.stderr.count("\n") == 1
    assert set(contents(tmp_path)) == {"preparing.json"}


def test_other_settings_are_refused_unless_asked_for(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    (tmp_path / "made" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "made")
    assert command("--seed", "1", "--num-images", "5") == 2
    assert "was made with another num_images, seed; --overwrite replaces it" in capsys.readouterr().err
    assert contents(tmp_path / "made") == before
    assert command("--seed", "1", "--num-images", "5", "--overwrite") == 0
    assert info(tmp_path / "made")["splits"]["train"]["images"] == 4
    assert (tmp_path / "made" / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "made" / "images").rglob("*.jpg"))) == 5


# --- what it refuses


def with_foreign_folder(_: Path, target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("mine")


def with_foreign_image(_: Path, target: Path) -> None:
    (target / "images" / "train").mkdir(parents=True)
    (target / "images" / "train" / "other.jpg").write_bytes(b"x")
    settings = {
        "kind": "demo", "num_images": 4, "seed": 42, "split": 0.8, "image_size": [64, 64], "link": "copy",
    }  # fmt: skip
    (target / "preparing.json").write_text(json.dumps({"settings": settings}))


def with_a_file(_: Path, target: Path) -> None:
    target.write_text("mine")


def with_broken_json(coco: Path, _: Path) -> None:
    (coco / "annotations" / "instances_train2017.json").write_text('{"images": [')


def with_other_json(coco: Path, _: Path) -> None:
    (coco / "annotations" / "instances_train2017.json").write_text('{"images": [{"id": 1}]}')


def without_images(coco: Path, _: Path) -> None:
    shutil.rmtree(coco / "train2017")
    shutil.rmtree(coco / "val2017")


def without_some_images(coco: Path, _: Path) -> None:
    for path in sorted((coco / "train2017").iterdir())[:6]:
        path.unlink()


def with_cut_off_images(coco: Path, _: Path) -> None:
    for path in (coco / "train2017").iterdir():
        path.write_bytes(path.read_bytes()[:-20])


def with_smaller_images(coco: Path, _: Path) -> None:
    for path in (coco / "train2017").iterdir():
        Image.fromarray(noise(20, 32)).save(path)


def nothing(*_: Path) -> None:
    pass


Refusal = tuple[Callable[[Path, Path], None], list[str], str]
REFUSALS: dict[str, Refusal] = {
    "no source": (nothing, ["--source", "nowhere"], "`source` must be a folder with COCO in it. Received: nowhere"),
    "no annotations": (nothing, ["--source", "."], "`source` must hold annotations/instances_train2017.json"),
    "no folder of images": (without_images, [], "must hold a folder of images beside its annotations. Looked for:"),
    "broken annotations": (with_broken_json, [], "instances_train2017.json must be COCO's instances JSON"),
    "other annotations": (with_other_json, [], "instances_train2017.json must be COCO's instances JSON"),
    "unknown class": (nothing, ["--classes", "dogs"], "Received: 'dogs'. Nearest: dog. All: person, car, cat, dog"),
    "class twice": (nothing, ["--classes", "dog,dog"], "`classes` must differ"),
    "too many images": (nothing, ["--num-images", "20"], "asks for 16 images of train2017, and 12 have boxes"),
    "images missing": (without_some_images, [], "6 have boxes of the classes and are on disk (6 are not on disk)"),
    "cut-off image": (with_cut_off_images, [], ".jpg: the file is cut off"),
    "other size": (with_smaller_images, [], "must have the size of its record, 40 rows and 64 columns"),
    "nothing to validate": (nothing, ["--num-images", "1"], "must leave images to train and to validate"),
    "foreign folder": (with_foreign_folder, [], "must be new, empty, or made by this command, and is none of them"),
    "foreign folder, overwritten": (with_foreign_folder, ["--overwrite"], "must be new, empty, or made by this"),
    "a file": (with_a_file, [], "`target` must be a folder"),
    "below a file": (nothing, ["--target", "FILE/made"], "cannot read or write"),
    "no room": (nothing, ["--target", "/proc/made"], "MB are free at /proc"),
    "image size of photographs": (nothing, ["--image-size", "64"], "--image-size is for --demo"),
    "source of the demo": (nothing, ["--demo"], "--source is for COCO: leave it out with --demo"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    case: str,
    command: Callable[..., int],
    coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    prepare, options, message = REFUSALS[case]
    prepare(coco, tmp_path / "made")
    before = contents(tmp_path)
    assert command(*[option.replace("FILE", str(tmp_path / "file")) for option in options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


DEMO_REFUSALS: dict[str, Refusal] = {
    "foreign image": (with_foreign_image, [], "holds a file that is not part of the data set"),
    "links": (nothing, ["--link", "symlink"], "--link is for COCO"),
    "classes": (nothing, ["--classes", "dog"], "--classes is for COCO"),
}


@pytest.mark.parametrize("case", DEMO_REFUSALS)
def test_bad_input_of_the_demo_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, options, message = DEMO_REFUSALS[case]
    prepare(tmp_path, tmp_path / "made")
    before = contents(tmp_path)
    small = ["--demo", "--num-images", "4", "--image-size", "64", "--target", str(tmp_path / "made")]
    assert main([*small, *options]) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_source_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", str(tmp_path / "made")]) == 2
    assert "--source must be the folder that COCO lies in; --demo draws images instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-images", "0"], "must be a whole number of at least 1. Received: 0"),
        (["--split", "1.5"], "must be between 0 and 1, for instance 0.8. Received: 1.5"),
        (["--split", "half"], "must be between 0 and 1"),
        (["--seed", "-1"], "must be a whole number from 0 to 4294967295"),
        (["--classes", ","], "must be names with commas between them"),
        (["--link", "move"], "invalid choice: 'move'"),
        (["--image-size", "100"], "must be a multiple of 32"),
    ],
)
def test_options_are_checked(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--demo", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_writer_checks_the_kind_of_link(tmp_path: Path) -> None:
    plan = fixtures.data.writer.Plan({}, (), {}, {}, {})
    with pytest.raises(ValueError, match=r"`link` must be one of .* Received: 'move'"):
        fixtures.data.writer.write_dataset(plan, tmp_path, link="move")


def test_a_bare_split_is_four_fifths(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--split") == 0
    assert info(tmp_path / "made")["splits"]["val"]["images"] == 2
