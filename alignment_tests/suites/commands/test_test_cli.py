"""The commands ``test`` and ``predict`` as a user runs them (cli, map)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from alignment_tests.cases.commands import PACKAGES, SIDE, dataset, run, training

FAST = ["--speed-batches", "1,2", "--rounds", "3", "--warmup", "1", "--memory-batches", "1", "--samples", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, and its data."""
    base = tmp_path_factory.mktemp("tested")
    assert run("torch_ref", "train", training(dataset(base), base / "run", epochs=1)) == 0
    return base


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for package in PACKAGES:
        words = ["--weights", str(folder / "run" / "last.safetensors"), "--data", str(dataset(folder)), *FAST]
        assert run(package, "test", [*words, "--conf", "0.001", "--output-dir", str(folder / package)]) == 0
        found[package] = json.loads((folder / package / "test_results.json").read_text())
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_test_cli_leaves_results_detections_log_and_pictures(
    folder: Path, results: dict[str, dict[str, Any]], package: str
) -> None:
    names = {path.name for path in (folder / package).iterdir()}
    assert names == {"test_results.json", "detections.json", "annotations.json", "test.log", "inference_samples"}
    assert sorted(path.name for path in (folder / package / "inference_samples").iterdir()) == sorted(
        results[package]["samples"]
    )


def test_map_is_the_same_in_both_frameworks(results: dict[str, dict[str, Any]]) -> None:
    ours, theirs = (results[package]["accuracy"] for package in ("jt_impl", "torch_ref"))
    for key in ("ap", "ap50", "precision", "recall"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-3), key
    assert ours["per_class"].keys() == theirs["per_class"].keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_test_cli_speed_was_synchronised_and_compiled_nothing(results: dict[str, dict[str, Any]], package: str) -> None:
    for entry, size in zip(results[package]["speed"], (1, 2), strict=True):
        assert (entry["batch_size"], entry["synchronized"], entry["rounds"]) == (size, True, 3)
        assert entry["kernels_compiled"] == 0
        assert entry["latency_ms_quartiles"][0] <= entry["latency_ms"] <= entry["latency_ms_quartiles"][1]


@pytest.mark.parametrize("package", PACKAGES)
def test_test_cli_memory_is_that_of_a_process_of_its_own(results: dict[str, dict[str, Any]], package: str) -> None:
    (entry,) = results[package]["memory"]
    assert entry["fits"]
    assert entry["peak_bytes"] > 50 * 2**20


def test_test_cli_model_is_the_same_in_both_frameworks(results: dict[str, dict[str, Any]]) -> None:
    ours, theirs = (results[package]["model"] for package in ("jt_impl", "torch_ref"))
    assert ours == theirs
    assert theirs["structure"] == "ok"


@pytest.mark.parametrize("package", PACKAGES)
def test_predict_cli_draws_and_lists_detections(folder: Path, package: str, tmp_path: Path) -> None:
    source = dataset(folder).parent / "images" / "val"
    weights = folder / "run" / "last.pt"  # beside last.safetensors, which knows the image size and the names
    words = ["--weights", str(weights), "--source", str(source), "--conf", "0.001", "--output-dir", str(tmp_path)]
    assert run(package, "predict", words) == 0
    found = json.loads((tmp_path / "predictions.json").read_text())
    images = sorted(source.iterdir())
    assert [Path(entry["image"]).name for entry in found["images"]] == [path.name for path in images]
    for entry, path in zip(found["images"], images, strict=True):
        drawn, original = cv2.imread(str(tmp_path / entry["drawn"])), cv2.imread(str(path))
        assert drawn is not None
        assert original is not None
        assert drawn.shape == original.shape
        boxes = np.array([detection["box"] for detection in entry["detections"]]).reshape(-1, 4)
        assert boxes.min(initial=0.0) >= 0.0
        assert boxes.max(initial=0.0) <= SIDE
        assert {detection["class"] for detection in entry["detections"]} <= {"circle", "square", "triangle"}
