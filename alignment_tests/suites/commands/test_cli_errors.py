"""Bad input to the commands that train, test and predict: one clear line, exit code 2, nothing half-written (cli)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_tests.cases.commands import PACKAGES, copied, dataset, run, training
from converters import Checkpoint, write_checkpoint
from fixtures.runs import record

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("errors")


def refused(capsys: pytest.CaptureFixture[str], package: str, command: str, words: list[str]) -> str:
    """The one line on standard error."""
    capsys.readouterr()
    assert run(package, command, words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    message = [line for line in lines if "error:" in line]
    assert len(message) == 1, lines
    return message[0]


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


def write(pattern: str, text: str) -> Damage:
    return lambda folder: first(folder, pattern).write_text(text)


def empty_labels(folder: Path) -> None:
    for path in (folder / "labels" / "train").glob("*.txt"):
        path.write_text("")


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no images": (lambda folder: (folder / "images" / "train").rename(folder / "elsewhere"), "`train` in"),
    "empty labels": (empty_labels, "no labels found"),
    "unknown class": (write("labels/train/*.txt", "7 0.5 0.5 0.2 0.2\n"), "class"),
    "label out of range": (write("labels/train/*.txt", "0 1.5 0.5 0.2 0.2\n"), "0..1"),
    "unreadable image": (write("images/train/*.*", "not an image"), "image"),
    "dataset.yaml is no YAML": (write("dataset.yaml", "names: [a, b"), "YAML"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_data_is_refused(base: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, expected = DAMAGES[name]
    data = copied(base, tmp_path / "data")
    damage(data.parent)
    assert expected in refused(capsys, "torch_ref", "train", training(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


OPTIONS: dict[str, tuple[list[str], str]] = {
    "wrong image size": (["--img-size", "100"], "multiple of 32"),
    "another number of classes": (["--num-classes", "10"], "`--num-classes` must be that of"),
    "more than there is": (["--batch-size", "500"], "`--batch-size` must be at most"),
    "weights that are not there": (["--weights", "nowhere.pt"], "nowhere.pt"),
    "two recipes at once": (["--fuse-ab", "--distill", "teacher.pt"], "two steps of the recipe"),
    "an unknown recipe": (["--recipe", "rtx"], "rtx4060_8gb"),
    "nothing to resume": (["--resume"], "`resume` must be the folder of a run"),
    "an unknown device": (["--device", "tpu"], "tpu"),
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options_are_refused(
    base: Path, tmp_path: Path, name: str, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = OPTIONS[name]
    message = refused(capsys, package, "train", training(dataset(base), tmp_path / "run", *words))
    assert expected in message
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("command", ["train", "test", "predict"])
def test_missing_files_are_refused(
    base: Path, tmp_path: Path, command: str, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = training(tmp_path / "none.yaml", tmp_path / "run")
    if command == "test":
        words = ["--weights", str(tmp_path / "none.pt"), "--data", str(dataset(base)), "--output-dir", str(tmp_path)]
        words += ["--memory-batches", ""]
    if command == "predict":
        words = ["--weights", "x.pt", "--source", str(tmp_path / "none"), "--output-dir", str(tmp_path / "run")]
    assert "none" in refused(capsys, package, command, words)


@pytest.mark.parametrize("package", PACKAGES)
def test_weights_of_another_size_are_refused(
    base: Path, tmp_path: Path, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import converters
    from fixtures.config import load_config
    from torch_ref import build_model

    state = converters.read_state(build_model(load_config("gold_yolo_s", 3)))
    write_checkpoint(tmp_path / "s.pt", Checkpoint(state))
    words = training(dataset(base), tmp_path / "run", "--weights", str(tmp_path / "s.pt"))
    assert "`--weights` must be of this model" in refused(capsys, package, "train", words)


def test_a_folder_with_a_run_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "training_log.json").write_text("{}")
    assert "holds a run" in refused(capsys, "torch_ref", "train", training(dataset(base), tmp_path))
    assert (tmp_path / "training_log.json").read_text() == "{}"


def test_resuming_with_other_options_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = dataset(base), tmp_path / "run"
    assert run("torch_ref", "train", training(data, folder, epochs=1)) == 0
    message = refused(capsys, "torch_ref", "train", training(data, folder, "--resume", "--seed", "5", epochs=1))
    assert "seed (then 0, now 5)" in message


def test_resuming_with_other_data_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = copied(base, tmp_path / "data"), tmp_path / "run"
    assert run("torch_ref", "train", training(data, folder, epochs=1)) == 0
    first(data.parent, "labels/train/*.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    message = refused(capsys, "torch_ref", "train", training(data, folder, "--resume", epochs=1))
    assert "`--data` must be the data of the resumed run. What differs: train" in message


def test_a_damaged_record_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "training_log.json").write_text('{"format": 1')
    assert "is damaged" in refused(capsys, "torch_ref", "train", training(dataset(base), tmp_path, "--resume"))


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, "no space is left"), (errno.EROFS, "read-only")])
def test_a_full_or_read_only_disk_is_reported_and_leaves_nothing_half_written(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    words = training(dataset(base), folder, "--save-interval", "1", epochs=1)
    assert run("torch_ref", "train", words) == 0
    before = (folder / record.NAME).read_bytes()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    more = training(dataset(base), folder, "--resume", "--save-interval", "1", epochs=1)
    assert expected in refused(capsys, "torch_ref", "train", more)
    assert (folder / record.NAME).read_bytes() == before
    assert not list(folder.glob(".*.part"))


def test_the_recorded_options_are_all_there(base: Path, tmp_path: Path) -> None:
    assert run("torch_ref", "train", training(dataset(base), tmp_path / "run", epochs=1)) == 0
    options = json.loads((tmp_path / "run" / record.NAME).read_text())["options"]
    assert {"lr", "epochs", "seed", "amp", "augment", "image_size", "warmup_steps"} <= set(options)
