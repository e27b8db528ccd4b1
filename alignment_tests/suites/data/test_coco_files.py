"""``prepare_data`` on one file of COCO's form or two: which images go where, and the options that say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment_tests.cases.coco_forms import (
    Content,
    average_precision,
    coco_form,
    each,
    info,
    opened,
    prepare,
    refused,
    write_coco_form,
)
from fixtures.data.dataset import DetectionDataset
from fixtures.prepare_data import main, parser


def names_of(dataset: DetectionDataset) -> list[str]:
    return [path.name for path in dataset.paths]


def test_one_file_is_parted_by_the_seed(tmp_path: Path) -> None:
    parted = []
    for seed in ("0", "0", "1"):
        assert prepare(tmp_path, coco_form(20), "--seed", seed, "--split", "0.7", "--overwrite") == 0
        parted.append([names_of(opened(tmp_path, split)) for split in ("train", "val")])
    assert [len(names) for names in parted[0]] == [14, 6]
    assert sorted(parted[0][0] + parted[0][1]) == sorted(f"{key}.png" for key in range(1, 21))
    assert parted[0] == parted[1] != parted[2]


@pytest.mark.parametrize(("options", "counts"), [((), (16, 4)), (("--num-images", "10"), (8, 2))])
def test_all_images_are_taken_unless_a_number_is_given(
    options: tuple[str, ...], counts: tuple[int, int], tmp_path: Path
) -> None:
    assert prepare(tmp_path, coco_form(20), *options) == 0
    assert (len(opened(tmp_path, "train")), len(opened(tmp_path, "val"))) == counts
    assert info(tmp_path)["settings"]["num_images"] == (int(options[1]) if options else "all")


def two_files(root: Path, val: Content, *options: str) -> int:
    """The command on a file of five images to train on, and one to validate with, in folders of their own."""
    train = write_coco_form(root / "train" / "_annotations.coco.json", coco_form(), root / "train")
    file, folder = write_coco_form(root / "valid" / "_annotations.coco.json", val, root / "valid")[1::2]
    both_files = [*train, "--val-annotations", file, "--val-images", folder]
    return main([*both_files, "--target", str(root / "made"), *options])


def test_two_files_are_taken_whole(tmp_path: Path) -> None:
    assert two_files(tmp_path, coco_form(3)) == 0
    assert (len(opened(tmp_path, "train")), len(opened(tmp_path, "val"))) == (5, 3)
    assert list(info(tmp_path)["source"]) == ["train", "val"]


def test_a_number_of_images_is_shared_between_two_files(tmp_path: Path) -> None:
    assert two_files(tmp_path, coco_form(3), "--num-images", "5", "--split", "0.6") == 0
    assert (len(opened(tmp_path, "train")), len(opened(tmp_path, "val"))) == (3, 2)


def test_two_files_may_share_a_folder(tmp_path: Path) -> None:
    content, val = coco_form(6), coco_form(6)
    for part in ("images", "annotations"):
        content[part], val[part] = content[part][:4], val[part][4:]
    files = write_coco_form(tmp_path / "a.json", content, tmp_path / "photos")
    other = write_coco_form(tmp_path / "b.json", val, tmp_path / "photos")[1]
    assert main([*files, "--val-annotations", other, "--target", str(tmp_path / "made")]) == 0
    assert names_of(opened(tmp_path, "val")) == ["5.png", "6.png"]


def test_classes_go_by_their_names(tmp_path: Path) -> None:
    """The two files number them differently."""
    val = coco_form(3)
    val["categories"] = [{"id": 7, "name": "car"}, {"id": 8, "name": "person"}]
    each("annotations", category_id=7)(val)
    assert two_files(tmp_path, val) == 0
    for split, ids in (("train", [1, 3]), ("val", [8, 7])):
        dataset = opened(tmp_path, split)
        assert dataset.category_ids == ids
        assert {row[0] for rows in dataset.labels for row in rows} == {1}
        assert average_precision(dataset) == pytest.approx(1.0)


def test_other_classes_in_the_second_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    val = coco_form(3)
    val["categories"].append({"id": 9, "name": "bus"})
    assert two_files(tmp_path, val) == 2
    assert "must have the same classes; `classes` names those to take. Only in one of them: bus" in refused(
        tmp_path, capsys
    )
    assert two_files(tmp_path, val, "--classes", "car") == 0


def test_all_of_coco_can_be_taken(tmp_path: Path) -> None:
    for part, count in (("train2017", 5), ("val2017", 2)):
        file = tmp_path / "coco" / "annotations" / f"instances_{part}.json"
        write_coco_form(file, coco_form(count), tmp_path / "coco" / part)
    source = ["--source", str(tmp_path / "coco"), "--target", str(tmp_path / "made"), "--num-images", "all"]
    assert main([*source, "--classes", "all"]) == 0
    assert (len(opened(tmp_path, "train")), len(opened(tmp_path, "val"))) == (5, 2)


def test_a_part_of_coco_on_disk_will_do_unless_all_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    write_coco_form(file, coco_form(8), tmp_path / "coco" / "val2017", [f"{key}.png" for key in range(1, 7)])
    source = ["--source", str(tmp_path / "coco"), "--target", str(tmp_path / "made"), "--classes", "all"]
    assert main([*source, "--num-images", "all"]) == 2
    assert "Missing: '7.png' (id 7), and 1 more" in refused(tmp_path, capsys)
    assert main([*source, "--num-images", "5"]) == 0
    assert info(tmp_path)["source"]["val2017"]["not_on_disk"] == 2


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_images_in_folders_may_be_links(link: str, tmp_path: Path) -> None:
    content = coco_form()
    each("images", file_name="cam1/{}".format)(content)
    assert prepare(tmp_path, content, "--link", link) == 0
    for path in (tmp_path / "made" / "images" / "train" / "cam1").iterdir():
        assert path.is_symlink() == (link == "symlink")
        assert path.samefile(tmp_path / "photos" / "cam1" / path.name)


def test_the_same_command_finds_all_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_form()
    for part, key in (("images", "id"), ("annotations", "image_id")):
        each(part, **{key: "frame_{}".format})(content)
    assert [prepare(tmp_path, content), prepare(tmp_path, content)] == [0, 0]
    assert "; 0 files written, 14 were right" in capsys.readouterr().out


FORM = ("--annotations", "FORM", "--images", "PHOTOS")
OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "no such file": (("--annotations", "none.json", *FORM[2:]), "`annotations` must be a file. Received: none.json"),
    "a folder as file": (("--annotations", "PHOTOS", *FORM[2:]), "`annotations` must be a file. Received: "),
    "no such folder": ((*FORM[:3], "none"), "`images` must be a folder. Received: none"),
    "no such second file": ((*FORM, "--val-annotations", "none.json"), "`val_annotations` must be a file. Received: n"),
    "no such second folder": (
        (*FORM, "--val-annotations", "FORM", "--val-images", "none"), "`val_images` must be a folder. Received: none",
    ),
    "no folder": (FORM[:2], "--images must be the folder that the file names in --annotations start from"),
    "no file": (FORM[2:], "--images goes with --annotations, which is missing"),
    "second file alone": (("--val-annotations", "FORM"), "--val-annotations goes with --annotations, which is missing"),
    "second folder alone": ((*FORM, "--val-images", "PHOTOS"), "--val-images goes with --val-annotations, which is"),
    "COCO too": ((*FORM, "--source", "."), "--source is for COCO 2017: leave it out with --annotations"),
    "demo too": ((*FORM, "--demo"), "--annotations is for COCO: leave it out with --demo"),
    "all of the demo": (("--demo", "--num-images", "all"), "--num-images must be a number with --demo. Received: all"),
    "size of photographs": ((*FORM, "--image-size", "64"), "--image-size is for --demo"),
    "too many": ((*FORM, "--num-images", "9"), "asks for 9 images of FORM, and 5 have boxes of the classes"),
    "nothing to validate": ((*FORM, "--split", "0.95"), "must leave images to train and to validate. Received: 5 and"),
    "split of two whole files": (
        (*FORM, "--val-annotations", "FORM", "--split", "0.5"), "`split` must be left out where all images of two",
    ),
    "unknown class": ((*FORM, "--classes", "cat"), "must be classes of FORM. Received: 'cat'. Nearest: car. All: pers"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit_are_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options, message = OPTIONS[case]
    _, file, _, folder = write_coco_form(tmp_path / "anything.json", coco_form(), tmp_path / "photos")
    given = [{"FORM": file, "PHOTOS": folder}.get(option, option) for option in options]
    assert main(["--target", "made", *given]) == 2
    assert message.replace("FORM", file) in refused(tmp_path, capsys)


def test_the_help_names_defaults_and_examples() -> None:
    text = " ".join(parser().format_help().split())
    assert "(default: 1000 of --source, all of --annotations, 64 with --demo)" in text
    assert "--annotations train.json --val-annotations val.json --images photographs" in text
