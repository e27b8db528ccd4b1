"""What the contenders of a case are given: numpy arrays and files, the same for all."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import converters
from alignment_tests.bench.cases import Case
from fixtures.anchors import anchor_points
from fixtures.config import GoldYoloConfig, load_config
from fixtures.data.dataset import DetectionDataset, load_dataset
from fixtures.data.loader import TrainLoader
from fixtures.data.shapes import demo_plan
from fixtures.data.writer import write_dataset
from fixtures.images import drawn_boxes, drawn_images
from fixtures.seeded import seeded_state
from fixtures.training.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
Float32 = npt.NDArray[np.float32]
BATCHES, SCENES = 4, 8  # of training; scenes that are drawn, of which larger batches repeat some
CROWDED = 400  # power of a uniform number that makes scores: of each 100 labels about one is above 0.03
LOADED_IMAGES = 64


def seeded_model(package: str, config_name: str) -> Any:
    model = importlib.import_module(package).build_model(load_config(config_name))
    shapes = {name: array.shape for name, array in converters.read_state(model).items()}
    converters.load_into(model, seeded_state(shapes))
    return model


def images_of(case: Case, seed: int = 0) -> Float32:
    """(batch, 3, side, side) in 0..1."""
    scenes = drawn_images(min(case.batch, SCENES), (case.side, case.side), seed)
    return np.ascontiguousarray(scenes[np.arange(case.batch) % len(scenes)])


def training_batches(case: Case) -> list[tuple[Float32, Any]]:
    return [(images_of(case, n), drawn_boxes(case.batch, n)) for n in range(BATCHES)]


def schedule_of(config: GoldYoloConfig, case: Case) -> Schedule:
    return Schedule(config.solver, case.batch, 400, 300)


def map_sizes(case: Case, config: GoldYoloConfig) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of each level of the head."""
    return tuple((case.side // stride, case.side // stride) for stride in config.head.strides)


def feature_maps(case: Case, config: GoldYoloConfig) -> list[Float32]:
    """Of the head, of which the assigner takes only rows and columns."""
    return [np.zeros((1, 1, *size), np.float32) for size in map_sizes(case, config)]


def head_outputs(case: Case, config: GoldYoloConfig) -> tuple[Float32, Float32]:
    """Class scores (N, A, classes) and raw distances as of a model in training, at random from a seed."""
    anchors = sum(rows * columns for rows, columns in map_sizes(case, config))
    generator = np.random.default_rng(0)
    width = 4 * (config.head.reg_max + 1) if config.head.use_dfl else 4
    scores = generator.random((case.batch, anchors, config.num_classes), dtype=np.float32)
    distances = generator.random((case.batch, anchors, width), dtype=np.float32)
    return scores**8, 4 * distances


def raw_predictions(case: Case, config: GoldYoloConfig) -> Float32:
    """(N, A, 5 + classes): boxes around every anchor, with some thousand labels above the usual threshold."""
    points, strides = anchor_points(map_sizes(case, config), config.head.strides)
    generator, anchors = np.random.default_rng(0), len(points)
    predictions = np.ones((case.batch, anchors, 5 + config.num_classes), np.float32)
    predictions[..., :2] = points * strides
    predictions[..., 2:4] = strides * generator.uniform(1, 6, (case.batch, anchors, 2))
    predictions[..., 5:] = generator.random((case.batch, anchors, config.num_classes)) ** CROWDED
    return predictions


def loaded_batches(case: Case, config: GoldYoloConfig, folder: Path) -> Iterator[Float32]:
    """Training batches without end, made when asked for; every image is decoded anew, as from a large data set."""
    write_dataset(demo_plan(LOADED_IMAGES, 0, 0.75, (case.side, case.side)), folder / "data")
    dataset = DetectionDataset(load_dataset(folder / "data" / "dataset.yaml"), "train")
    loader = TrainLoader(dataset, case.batch, case.side, 0, config.augment, drop_last=True, cache_bytes=0)
    epoch = 0
    while True:
        for batch in loader.epoch(epoch):
            yield batch.images
        epoch += 1


def foreign_checkpoint(model: Any, suffix: str, folder: Path) -> Path:
    """The model's weights in the form of the other framework, which a process of its own writes: it may need it."""
    own, foreign = folder / "weights.safetensors", folder / f"weights{suffix}"
    converters.write_checkpoint(own, converters.Checkpoint(converters.read_state(model)))
    subprocess.run([sys.executable, "-m", "converters", own, foreign], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return foreign
