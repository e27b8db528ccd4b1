"""Experiments around the network: data, post-processing, evaluation, conversion, measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import converters
import jt_impl.assigners
import torch_ref
import torch_ref.assigners
import torch_ref.postprocess
from alignment_tests.cases.trainees import Run
from alignment_tests.meta_tests.experiments.folders import folder_of
from alignment_tests.meta_tests.experiments.forward import CLASSES, narrow_config
from alignment_tests.meta_tests.experiments.outcome import Array, Blame, Outcome
from alignment_tests.meta_tests.experiments.training import AFTER_WARMUP, BATCH, SIZE, STEPS_PER_EPOCH, moving
from alignment_tests.meta_tests.experiments.values import Named, compared, exactly
from converters.errors import StateMismatchError
from fixtures.config import load_config
from fixtures.data import loader
from fixtures.data.dataset import DetectionDataset, load_dataset
from fixtures.data.shapes import demo_plan
from fixtures.data.writer import write_dataset
from fixtures.evaluation.coco_metrics import evaluate
from fixtures.evaluation.detections import per_image
from fixtures.runs.splits import annotations_of, coco_records
from fixtures.seeded import seeded_state, uniform
from fixtures.training.schedule import Schedule
from jt_impl import postprocess
from jt_impl.runtime import jittor as jt


class Exact:
    """Arrays that must be equal bit for bit. ``subject`` is what faults find to change, beside the modules.

    Args:
        reference: makes the arrays by the reference's way, once.
        candidate: makes them from the subject.
        final: pattern of names that a comparison of final outputs looks at.
    """

    def __init__(self, reference: Callable[[], Named], candidate: Callable[[Any], Named], subject: Any, final: str):
        self.expected, self.make, self.subject, self.final = reference(), candidate, subject, final

    def run(self) -> Outcome:
        try:
            return exactly(self.make(self.subject), self.expected, lambda name: name.startswith(self.final))
        except StateMismatchError as error:  # names every key; the first one is what a user reads first
            kind, lines = next(iter(error.problems.items()))
            text = Blame(f"{kind}/{lines[0].split()[0].rstrip(':')}")
            return Outcome(False, text, str(error).splitlines()[0], dict.fromkeys(self.plain_titles(), text))

    def plain_titles(self) -> Iterable[str]:
        return exactly(self.expected, self.expected, lambda name: True).plain


# Post-processing


def crowded(seed: int, images: int = 3, anchors: int = 400) -> Array:
    """Predictions on a coarse grid with few different scores: equal scores and overlaps exactly at a threshold."""
    numbers = uniform(seed, images * anchors * (5 + CLASSES)).reshape(images, anchors, 5 + CLASSES)
    numbers[..., :4] = np.floor(numbers[..., :4] * [6, 6, 4, 4] + [0, 0, 2, 2]) * 4
    numbers[..., 4] = np.where(numbers[..., 4] < 0.5, 1.0, 0.5)
    numbers[..., 5:] = np.floor(numbers[..., 5:] * 10) / 10
    return numbers.astype(np.float32)


@dataclass
class Suppressing:
    """Settings of the candidate's post-processing, which a port may have got wrong."""

    settings: dict[str, Any] = field(
        default_factory=lambda: {"conf_threshold": 0.4, "iou_threshold": 0.5, "max_detections": 1000}
    )
    finish: Callable[[list[Array]], list[Array]] = lambda rows: rows


def detections_of(rows: list[Array]) -> dict[str, Array]:
    whole = np.concatenate(rows)
    return {
        "detections/count": np.array([len(one) for one in rows]),
        "detections/class": whole[:, 5],
        "detections/score": whole[:, 4],
        "detections/box": whole[:, :4],
    }


def suppression(seed: int = 0) -> Exact:
    predictions, subject = crowded(seed), Suppressing()
    settings = dict(subject.settings)

    def reference() -> Named:
        made = torch_ref.postprocess.non_max_suppression(torch.from_numpy(predictions), **settings)
        return detections_of(per_image(made))

    def candidate(subject: Suppressing) -> Named:
        made = postprocess.non_max_suppression(jt.array(predictions), **subject.settings)
        return detections_of(subject.finish(per_image(made)))

    return Exact(reference, candidate, subject, "detections/")


# The assigner


class Assigning:
    """The task-aligned assigner alone, on boxes down to a pixel, which a network's first predictions never are.

    Judged in float64, as decisions are; the plain checks see float32.
    """

    def __init__(self, seed: int = 0, images: int = 2, boxes: int = 6, side: int = 16, stride: float = 4.0) -> None:
        numbers = iter(np.split(uniform(seed + 5, 40_000), 40))
        row, column = np.mgrid[0:side, 0:side] + 0.5
        self.points = np.stack([column, row], -1).reshape(-1, 2) * stride
        anchors = len(self.points)
        centres = next(numbers)[: images * boxes * 2].reshape(images, boxes, 2) * side * stride
        sides = 1.0 + 20.0 * next(numbers)[: images * boxes * 2].reshape(images, boxes, 2) ** 3
        self.truth = np.concatenate([centres - sides / 2, centres + sides / 2], -1)
        self.truth[:, -1] = self.truth[:, 0]  # twice there, as another class
        self.labels = np.arange(images * boxes).reshape(images, boxes) % CLASSES
        near = np.abs(self.points[None, :, None] - centres[:, None]).sum(-1).argmin(-1)
        moved = np.concatenate([next(numbers) for _ in range(4)])[: images * anchors * 4].reshape(images, anchors, 4)
        self.boxes = np.take_along_axis(self.truth, near[..., None], 1) + (moved - 0.5)
        scores = np.concatenate([next(numbers) for _ in range(8)])
        self.scores = scores[: images * anchors * CLASSES].reshape(images, anchors, CLASSES)
        self.subject = jt_impl.assigners
        self.expected = {kind: self.assigned(torch_ref.assigners, to_torch(kind)) for kind in ("float64", "float32")}

    def run(self) -> Outcome:
        found = {kind: self.assigned(jt_impl.assigners, to_jittor(kind)) for kind in ("float64", "float32")}
        return compared(found, self.expected, lambda name: True, kinds=("float64",))

    def assigned(self, room: Any, tensor: Callable[[Array], Any]) -> dict[str, Array]:
        valid = np.ones(self.labels.shape, bool)
        truth = room.GroundTruth(tensor(self.labels), tensor(self.truth), tensor(valid))
        made = room.assign_task_aligned(tensor(self.scores), tensor(self.boxes), tensor(self.points), truth)
        foreground = np.array(made.foreground.numpy())
        named = {"foreground": foreground, "labels": np.array(made.labels.numpy(), np.int64) * foreground}
        named["boxes"] = np.array(made.boxes.numpy()) * foreground[..., None]
        return {f"assignment/{n}": array for n, array in (named | {"scores": np.array(made.scores.numpy())}).items()}


def to_torch(kind: str) -> Callable[[Array], Any]:
    return lambda array: torch.from_numpy(array.astype(kind) if array.dtype.kind == "f" else array)


def to_jittor(kind: str) -> Callable[[Array], Any]:
    def tensor(array: Array) -> Any:
        if array.dtype.kind == "f":
            return (jt.array64 if kind == "float64" else jt.array)(array.astype(kind))
        return jt.array(array if array.dtype.kind == "b" else array.astype(np.int32))

    return tensor


# Data and evaluation


@lru_cache(maxsize=1)
def data_folder() -> Path:
    folder = folder_of(data_folder)
    write_dataset(demo_plan(12, 3, 0.5, (87, 131)), folder)
    return folder


def dataset(split: str) -> DetectionDataset:
    return DetectionDataset(load_dataset(data_folder() / "dataset.yaml"), split)


@dataclass
class Loading:
    seed: int


def data(seed: int = 0) -> Exact:
    """Batches of evaluation and of augmented training."""

    def batches(subject: Loading) -> Named:
        found: dict[str, Array] = {}
        evaluation = loader.EvalLoader(dataset("val"), 3, 96)
        train = loader.TrainLoader(dataset("train"), 3, 96, subject.seed, load_config("gold_yolo_s").augment)
        for kind, made in (("val", evaluation), ("train", train.epoch(1))):
            for number, batch in enumerate(made):
                names = ["indices", "pixels", "targets", "images", *(["ratios", "pads"] if kind == "val" else [])]
                found |= {f"{kind} {number}/{name}": np.array(getattr(batch, name)) for name in names}
        return found

    return Exact(lambda: batches(Loading(seed)), batches, Loading(seed), "")


@dataclass
class Evaluating:
    settings: dict[str, Any] = field(default_factory=lambda: {"conf_threshold": 0.03, "iou_threshold": 0.65})
    change_records: Callable[[list[Any]], list[Any]] = lambda records: records


def evaluation(seed: int = 0) -> Exact:
    """From predictions to AP: what would be predicted is drawn around the true boxes."""
    split = dataset("val")
    batches = list(loader.EvalLoader(split, 3, 96))
    predictions = [near_the_truth(batch, seed) for batch in batches]

    def judged(suppress: Callable[[Array], list[Array]], change: Callable[[list[Any]], list[Any]]) -> Named:
        rows = [suppress(array) for array in predictions]
        pairs = list(zip(batches, rows, strict=True))
        records = change([record for batch, found in pairs for record in coco_records(batch, found, split)])
        metrics = evaluate(annotations_of(split), records)
        return {
            **detections_of([one for found in rows for one in found]),
            "records/category": np.array([record["category_id"] for record in records]),
            "records/score": np.array([record["score"] for record in records]),
            "records/box": np.array([record["bbox"] for record in records]),
            "metric/AP": np.array([metrics.ap, metrics.ap50]),
        }

    def reference() -> Named:
        settings = Evaluating().settings
        nms = torch_ref.postprocess.non_max_suppression
        return judged(lambda array: per_image(nms(torch.from_numpy(array), **settings)), lambda records: records)

    def candidate(subject: Evaluating) -> Named:
        nms = postprocess.non_max_suppression
        return judged(lambda array: per_image(nms(jt.array(array), **subject.settings)), subject.change_records)

    return Exact(reference, candidate, Evaluating(), "metric/")


def near_the_truth(batch: loader.Batch, seed: int, per_box: int = 6) -> Array:
    """Predictions (N, A, 5 + classes) around the boxes of a batch, shaken, with scores that fall with the distance."""
    classes = 3
    count = max(int((batch.targets[:, 0] == n).sum()) for n in range(len(batch)))
    made = np.zeros((len(batch), count * per_box, 5 + classes))
    numbers = uniform(seed + 17, made.shape[0] * made.shape[1] * 6).reshape(*made.shape[:2], 6)
    for image in range(len(batch)):
        rows = batch.targets[batch.targets[:, 0] == image]
        for place, row in enumerate(np.repeat(rows, per_box, axis=0)):
            shake, size = numbers[image, place, :4] - 0.5, row[4:6] * 96
            made[image, place, :2] = row[2:4] * 96 + 0.3 * shake[:2] * size
            made[image, place, 2:4] = size * (1 + 0.3 * shake[2:])
            made[image, place, 5 + int(row[1]) % classes] = 0.02 + 0.9 * numbers[image, place, 4]
            made[image, place, 5 + int(row[1] + 1) % classes] = 0.3 * numbers[image, place, 5]
    made[..., 4] = 1.0
    return made.astype(np.float32)


# Conversion


@dataclass
class Converting:
    """What a converter does to a state on its way, and how it is loaded."""

    change: Callable[[dict[str, Array]], dict[str, Array]] = lambda state: state
    load: Callable[[Any, Mapping[str, Array]], Any] = converters.load_into


def conversion(seed: int = 0) -> Exact:
    """From a PyTorch model through a file into a Jittor model."""
    model = torch_ref.build_model(narrow_config())
    shapes = {name: array.shape for name, array in converters.read_state(model).items()}
    converters.load_into(model, seeded_state(shapes, seed))
    target = jt_impl.build_model(narrow_config())
    path = folder_of(model) / "weights.safetensors"
    converters.write_checkpoint(path, converters.Checkpoint(converters.read_state(model)))
    zeros = {name: np.zeros_like(array) for name, array in converters.read_state(target).items()}

    def reference() -> Named:
        state = converters.read_state(model)
        return {f"weights/{name}": array for name, array in state.items() if "num_batches" not in name}

    def candidate(subject: Converting) -> Named:
        converters.load_into(target, zeros)
        subject.load(target, subject.change(dict(converters.read_checkpoint(path).state)))
        state = converters.read_state(target)
        return {name: state[name.removeprefix("weights/")] for name in reference()}

    return Exact(reference, candidate, Converting(), "weights/")


def conversion_of_training(seed: int = 0) -> Exact:
    """A training under way in PyTorch is handed to Jittor: weights, momentum, average, position."""
    config = narrow_config()
    schedule = Schedule(config.solver, 64, STEPS_PER_EPOCH, 300)
    run = Run(config, SIZE, BATCH, schedule, first_step=AFTER_WARMUP, seed=seed)
    source, target = (run.trainee(package, "float32") for package in ("torch_ref", "jt_impl"))
    state = moving(source.state())
    state["position/ema_updates"] = np.array(41)
    source.load(state)
    kept = {name: array for name, array in source.state().items() if "num_batches" not in name}

    def candidate(subject: Converting) -> Named:
        target.load(subject.change(dict(source.state())))
        found = target.state()
        return {name: found[name] for name in kept if name in found}

    return Exact(lambda: kept, candidate, Converting(), "")


PIPELINE: dict[str, Callable[..., Exact | Assigning]] = {
    "assigner": Assigning,
    "post-processing": suppression,
    "data": data,
    "evaluation": evaluation,
    "conversion": conversion,
    "conversion of a training": conversion_of_training,
}
