"""A data set of drawn shapes and short command lines, for the tests of the commands."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import converters
from fixtures.prepare_data import main as prepare

PACKAGES = ("torch_ref", "jt_impl")
SUFFIX = {"torch_ref": ".pt", "jt_impl": ".pkl"}
SIDE, BATCH, IMAGES, STEPS = 64, 4, 16, 3  # 13 images to train on: three steps of four, what remains is left out


@lru_cache(maxsize=1)
def dataset(folder: Path) -> Path:
    """``dataset.yaml`` of a few drawn images, made once below the folder."""
    target = folder / "shapes"
    words = ["--demo", "--target", str(target), "--num-images", str(IMAGES), "--image-size", str(SIDE), "--split"]
    assert prepare([*words, "--seed", "3"]) == 0
    return target / "dataset.yaml"


def copied(folder: Path, target: Path) -> Path:
    """``dataset.yaml`` of a copy of the data set, to be damaged."""
    shutil.copytree(dataset(folder).parent, target)
    return target / "dataset.yaml"


def training(data: Path, output: Path, *more: str, epochs: int = 2) -> list[str]:
    """Words of a short training."""
    words = ["--data", str(data), "--config", "gold_yolo_n", "--epochs", str(epochs), "--batch-size", str(BATCH)]
    words += ["--img-size", str(SIDE), "--output-dir", str(output), "--lr", "0.01", "--grad-accum", "1"]
    return [*words, "--warmup-steps", "2", "--warmup-epochs", "0", "--val-interval", "0", "--workers", "0", *more]


def run(package: str, command: str, words: Sequence[str]) -> int:
    """A command of one package in this process; its exit code."""
    try:
        code: int = importlib.import_module(f"{package}.{command}").main(list(words))
    except SystemExit as exit:  # argparse's
        code = int(exit.code or 0)
    return code


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    return found


def weights(folder: Path) -> dict[str, Any]:
    return converters.read_checkpoint(folder / "last.safetensors").state


def assert_same_weights(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit."""
    assert list(actual) == list(expected)
    assert [name for name in expected if not np.array_equal(actual[name], expected[name])] == []
