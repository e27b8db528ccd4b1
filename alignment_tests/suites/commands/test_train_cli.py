"""The training commands as a user runs them: what they leave behind, equal batches, going on, being stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converters
from alignment_tests.cases.commands import (
    BATCH,
    PACKAGES,
    SIDE,
    STEPS,
    SUFFIX,
    assert_same_weights,
    dataset,
    record,
    run,
    training,
    weights,
)
from converters.optimizer_state import read_training_state
from fixtures.evaluation.detections import NotFiniteError
from fixtures.runs.record import COLUMNS

ROOT = Path(__file__).resolve().parents[3]
KILLS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short training of each package, from the same weights on the same data."""
    folders = {package: tmp_path_factory.mktemp("runs") / package for package in PACKAGES}
    for package, folder in folders.items():
        assert run(package, "train", training(data, folder)) == 0
    return folders


@pytest.mark.parametrize("package", PACKAGES)
def test_train_cli_leaves_weights_state_log_and_curves(runs: dict[str, Path], package: str) -> None:
    names = {path.name for path in runs[package].iterdir()}
    own = {f"{name}{end}" for name in ("last", "best") for end in (SUFFIX[package], ".safetensors")}
    assert names == {*own, "last.state.safetensors", "train.log", "training_log.json", "training_curves.png"}


@pytest.mark.parametrize("package", PACKAGES)
def test_train_cli_record_holds_every_step_and_epoch(runs: dict[str, Path], package: str) -> None:
    found = record(runs[package])
    assert found["status"] == "finished"
    assert set(found["steps"]) == set(COLUMNS)
    assert found["steps"]["step"] == list(range(2 * STEPS))
    assert found["steps"]["epoch"] == [0] * STEPS + [1] * STEPS
    assert [epoch["ap"] is None for epoch in found["epochs"]] == [True, False]
    assert all(np.isfinite(found["steps"]["total"]))


def test_train_cli_draws_the_same_batches_in_both_frameworks(runs: dict[str, Path]) -> None:
    ours, theirs = (record(runs[package]) for package in ("jt_impl", "torch_ref"))
    assert ours["steps"]["batch"] == theirs["steps"]["batch"]
    assert len(set(ours["steps"]["batch"])) == 2 * STEPS
    for key in ("data", "config"):
        assert ours[key] == theirs[key]
    for key in ("parameters", "trainable", "by_part"):
        assert ours["model"][key] == theirs["model"][key], key
    for column in ("lr", "bias_lr", "momentum", "updated"):
        assert ours["steps"][column] == theirs["steps"][column], column


def test_train_cli_starts_from_the_same_weights_in_both_frameworks(runs: dict[str, Path]) -> None:
    ours, theirs = (record(runs[package])["steps"] for package in ("jt_impl", "torch_ref"))
    for term in ("total", "iou", "cls"):
        assert ours[term][0] == pytest.approx(theirs[term][0], rel=1e-5), term


@pytest.mark.parametrize("package", PACKAGES)
def test_train_cli_weights_say_what_they_are(runs: dict[str, Path], package: str) -> None:
    checkpoint = converters.read_checkpoint(runs[package] / "best.safetensors")
    assert (checkpoint.config_name, checkpoint.num_classes) == ("gold_yolo_n", 3)
    assert (checkpoint.meta["image_size"], checkpoint.meta["epoch"]) == (SIDE, 2)
    own = converters.read_checkpoint(runs[package] / f"best{SUFFIX[package]}")
    assert_same_weights(own.state, checkpoint.state)


@pytest.mark.parametrize("package", PACKAGES)
def test_train_cli_goes_on_as_if_never_stopped(
    runs: dict[str, Path], data: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in mid-epoch, by the signal that Ctrl-C sends; the partial epoch is gone on with."""
    stop_after(package, 2, monkeypatch)
    assert run(package, "train", training(data, tmp_path / "run")) == 130
    monkeypatch.undo()
    assert record(tmp_path / "run")["status"] == "interrupted"
    assert run(package, "train", training(data, tmp_path / "run", "--resume")) == 0
    assert_same_weights(weights(tmp_path / "run"), weights(runs[package]))
    resumed, whole = record(tmp_path / "run"), record(runs[package])
    assert resumed["resumed"] == [2]
    for column in ("step", "total", "batch", "lr"):
        assert resumed["steps"][column] == whole["steps"][column], column


@pytest.mark.parametrize("steps", [STEPS, 2 * STEPS])
def test_train_cli_stopped_at_the_end_of_an_epoch_still_ends_it(
    runs: dict[str, Path], data: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record, its validation and its weights come with the resumed run, after the very last step too."""
    stop_after("torch_ref", steps, monkeypatch)
    assert run("torch_ref", "train", training(data, tmp_path / "run")) == 130
    monkeypatch.undo()
    assert run("torch_ref", "train", training(data, tmp_path / "run", "--resume")) == 0
    assert_same_weights(weights(tmp_path / "run"), weights(runs["torch_ref"]))
    resumed, whole = record(tmp_path / "run")["epochs"], record(runs["torch_ref"])["epochs"]
    for key in ("epoch", "losses", "ap"):
        assert [entry[key] for entry in resumed] == [entry[key] for entry in whole], key


def test_train_cli_goes_on_in_the_other_framework(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: dict[str, Path]
) -> None:
    stop_after("torch_ref", 2, monkeypatch)
    run("torch_ref", "train", training(data, tmp_path / "torch"))
    monkeypatch.undo()
    words = training(data, tmp_path / "jittor", "--resume", str(tmp_path / "torch"))
    assert run("jt_impl", "train", words) == 0
    ours, theirs = record(tmp_path / "jittor")["steps"], record(runs["torch_ref"])["steps"]
    assert ours["batch"] == theirs["batch"]
    assert ours["total"][:2] == theirs["total"][:2]
    assert ours["total"][2] == pytest.approx(theirs["total"][2], rel=1e-4)


def stop_after(package: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGINT within a step of a run."""
    import importlib

    trainer = importlib.import_module(f"{package}.trainer").Trainer
    original = trainer.step

    def step(self: Any, *arguments: Any) -> Any:
        result = original(self, *arguments)
        if self.step_number == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(trainer, "step", step)


# A process of its own kills: Jittor ends a process whose child dies by a signal, as this one would be.
KILLER = """
import json, pathlib, random, signal, subprocess, sys, time
words, log, kills, longest = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
draw, done, state = random.Random(0), 0, log.parent / "last.state.safetensors"
while done < kills:
    more = ["--resume"] if log.exists() else []
    process = subprocess.Popen([*words, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    line = process.stderr.readline()
    while line and b" step " not in line:
        line = process.stderr.readline()
    while not state.exists() and process.poll() is None:  # the first life lasts until there is something to go on from
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, longest))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        break
    done += 1
print(done)
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_train_cli_killed_at_random_moments_ends_in_the_same_weights(data: Path, tmp_path: Path, package: str) -> None:
    """SIGKILL, ten times in one training: while it computes, while it writes. Each time the next life goes on."""
    epochs = 20
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(package, "train", training(data, whole, "--save-interval", "1", epochs=epochs)) == 0
    words = [sys.executable, "-m", f"{package}.train", *training(data, killed, "--save-interval", "1", epochs=epochs)]
    # Some steps and their saves, as fast as this machine is now.
    longest = 4 * float(np.median(record(whole)["steps"]["seconds"]))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps(words), str(killed / "training_log.json"), str(KILLS), str(longest)],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    kills = int(done.stdout)
    assert kills == KILLS, "the training ended before it was killed often enough"
    if read_training_state(killed / "last.state.safetensors").position["step"] < epochs * STEPS:
        assert run(package, "train", training(data, killed, "--resume", epochs=epochs)) == 0
    assert_same_weights(weights(killed), weights(whole))
    assert record(killed)["steps"]["total"] == record(whole)["steps"]["total"]
    assert not list(killed.glob(".*.part"))


@pytest.mark.parametrize("package", PACKAGES)
def test_train_cli_tells_the_largest_batch_that_fits(
    data: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory for two images, planted: the third makes the framework's own complaint."""
    import importlib

    trainer = importlib.import_module(f"{package}.trainer").Trainer
    original = trainer.forward

    def forward(self: Any, images: Any) -> Any:
        if len(images) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return original(self, images)

    monkeypatch.setattr(trainer, "forward", forward)
    assert run(package, "train", training(data, tmp_path / "run")) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        f"out of memory at step 0 with batches of {BATCH} at {SIDE}x{SIDE}; the largest batch that fits is 2" in message
    )


def test_train_cli_validation_counts_what_training_does_not_see(runs: dict[str, Path]) -> None:
    found = record(runs["torch_ref"])
    assert found["data"]["train"]["images"] + found["data"]["val"]["images"] == 16
    assert found["data"]["train"]["checksum"] != found["data"]["val"]["checksum"]


def test_train_cli_loses_no_epoch_to_predictions_that_are_not_finite(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_ref.train import TorchBackend

    detect = TorchBackend.detect

    def detect_after_the_first_epoch(self: Any, *arguments: Any) -> Any:
        if self.position == STEPS:
            raise NotFiniteError(0)
        return detect(self, *arguments)

    monkeypatch.setattr(TorchBackend, "detect", detect_after_the_first_epoch)
    assert run("torch_ref", "train", training(data, tmp_path, "--val-interval", "1")) == 0
    assert [epoch["ap"] is None for epoch in record(tmp_path)["epochs"]] == [True, False]
    assert "epoch 1: no accuracy, since the predictions hold NaN or infinity" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_train_cli_help_has_both_spellings(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(package, "train", ["--help"]) == 0
    assert "--batch-size" in capsys.readouterr().out
    assert run(package, "train", ["--batch_size", "0", "--data", "x", "--output_dir", "y"]) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_steps_cli_compares_what_the_commands_would_train(data: Path, tmp_path: Path) -> None:
    """In float64 and float32, from the first weights of a run, on its batches."""
    from alignment_tests.steps import main

    assert main(training(data, tmp_path, "--steps", "2")) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["steps"] == 2
    assert {row["verdict"] for row in report["rows"]} <= {"pass", "excused"}


def test_steps_cli_compares_the_second_training_of_the_recipe(data: Path, tmp_path: Path) -> None:
    """The teacher comes from the first one, by the command."""
    from alignment_tests.steps import main

    teacher = tmp_path / "teacher"
    assert run("torch_ref", "train", training(data, teacher, "--fuse-ab", "--dfl", epochs=1)) == 0
    words = training(data, tmp_path, "--steps", "2", "--distill", str(teacher / "last.safetensors"))
    assert main(words) == 0
    names = {row["name"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert {"assignment/teacher.scores", "assignment/teacher.distances", "loss/cls", "loss/dfl"} <= names


@pytest.mark.parametrize("option", ["--amp", "--resume"])
def test_steps_cli_refuses_what_it_cannot_compare(
    data: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignment_tests.steps import main

    assert main(training(data, tmp_path, option)) == 2
    assert f"`{option}` is not for this command" in capsys.readouterr().err
