"""The sampler and the loaders: recorded evaluation batches, equal bits for any number of workers and after a stop."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fixtures.data.loader
from alignment_tests.cases.datasets import noise, open_val, write_folder, write_varied_coco
from fixtures.config import load_config
from fixtures.data.batching import AHEAD, Batch
from fixtures.data.coco_subset import coco_plan
from fixtures.data.dataset import DetectionDataset, load_dataset
from fixtures.data.loader import EvalLoader, TrainLoader
from fixtures.data.sampler import epoch_batches, sample_generator
from fixtures.data.shapes import demo_plan
from fixtures.data.writer import write_dataset
from fixtures.golden import PUBLIC, recorded_json

RECIPE = load_config("gold_yolo_s").augment
FLOAT32_ROUNDING = float(np.finfo(np.float32).eps)  # of shares recorded in float32
# Recorded evaluation batches: arguments of EvalLoader.
EVALUATIONS: dict[str, dict[str, Any]] = {
    "ds_train_eval_rect_pad.5": {"image_size": 640, "rect": True},
    "ds_val_rect_pad.5": {"image_size": 640, "rect": True},
    "ds_small_rect": {"image_size": 320, "rect": True},
    "ds_repro_636": {"image_size": 640, "load_size": 636, "return_int": True},
    "ds_repro_634": {"image_size": 640, "load_size": 634, "return_int": True},
    "ds_small_316": {"image_size": 320, "load_size": 316, "return_int": True},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(demo_plan(14, 3, 0.8, (96, 128)), folder)
    return DetectionDataset(load_dataset(folder / "dataset.yaml"), "train")


@pytest.fixture(scope="module", params=["drawn", "photographs"])
def dataset(request: pytest.FixtureRequest, drawn: DetectionDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Drawn pictures, and photographs of many sizes."""
    if request.param == "drawn":
        return drawn
    source = write_varied_coco(tmp_path_factory.mktemp("coco"))
    folder = tmp_path_factory.mktemp("photographs")
    write_dataset(coco_plan(source, 20, 0, 0.7, None), folder, link="symlink")
    return DetectionDataset(load_dataset(folder / "dataset.yaml"), "train")


def train_loader(dataset: DetectionDataset, workers: int = 0, batch_size: int = 4, **options: Any) -> TrainLoader:
    return TrainLoader(dataset, batch_size, 64, 7, RECIPE, workers, **options)


def checksums(batches: Any) -> list[str]:
    return [batch.checksum for batch in batches]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


# --- evaluation, against recordings of the public one


@pytest.fixture(scope="module")
def recorded_dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    images = {f"image{i}.png": np.asarray(Image.open(PUBLIC / "images" / f"image{i}.png")) for i in (1, 2, 3)}
    labels = {"image1.txt": "0 0.5 0.5 0.4 0.6\n3 0.2 0.3 0.1 0.1\n", "image2.txt": "1 0.31 0.42 0.25 0.33\n"}
    return open_val(write_folder(tmp_path_factory.mktemp("recorded"), images, labels))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_batches_are_the_recorded_ones(recorded_dataset: DetectionDataset, name: str) -> None:
    report = recorded_json("images/report")
    (batch,) = EvalLoader(recorded_dataset, 3, **EVALUATIONS[name])
    assert list(batch.pixels.shape[2:]) in report.get(f"{name}_batch_shapes", [[EVALUATIONS[name]["image_size"]] * 2])
    for place, path in enumerate(batch.paths):
        expected = report[f"{name}_{Path(path).stem}.jpg"]
        assert place == expected["order"]
        assert hashlib.sha256(batch.pixels[place].tobytes()).hexdigest() == expected["sha256"]
        found = [batch.original_shapes[place].tolist(), [batch.ratios[place].tolist(), batch.pads[place].tolist()]]
        assert found == expected["shapes"]
        rows = batch.targets[batch.targets[:, 0] == place][:, 1:]
        wanted = np.array(expected["labels"]).reshape(-1, 6)[:, 1:]
        np.testing.assert_allclose(rows, wanted, rtol=0, atol=FLOAT32_ROUNDING)


def test_rectangles_fit_their_images(tmp_path: Path) -> None:
    shapes = {"flat.png": (32, 128), "wide.png": (64, 128), "high.png": (128, 64), "tall.png": (128, 32)}
    path = write_folder(tmp_path, {n: noise(*shape) for n, shape in shapes.items()}, {"flat.txt": "0 .5 .5 .5 .5"})
    loader = EvalLoader(open_val(path), 2, 128, rect=True)
    assert loader.batch_shapes == [(96, 160), (160, 96)]
    assert [Path(path).stem for batch in loader for path in batch.paths] == ["flat", "wide", "high", "tall"]


@pytest.mark.parametrize("rect", [False, True])
def test_every_image_is_evaluated_once_and_scales_back(dataset: DetectionDataset, rect: bool) -> None:
    seen = []
    for batch in EvalLoader(dataset, 3, 96, rect=rect, return_int=True):
        rows, columns = batch.pixels.shape[2:]
        for place, index in enumerate(batch.indices.tolist()):
            shares = batch.targets[batch.targets[:, 0] == place][:, 2:]
            centre = (shares[:, :2] * [columns, rows] - batch.pads[place]) / batch.ratios[place][::-1]
            wanted = dataset.labels[index][:, 1:3] * batch.original_shapes[place][::-1]
            np.testing.assert_allclose(centre, wanted, rtol=0, atol=0.51 / batch.ratios[place].min())
            seen.append(index)
    assert sorted(seen) == list(range(len(dataset)))


# --- training


@pytest.mark.parametrize("options", [{}, {"cache_bytes": 0}], ids=["cached", "not cached"])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_equal_for_any_number_of_workers(
    dataset: DetectionDataset, workers: int, options: dict[str, int]
) -> None:
    alone, together = train_loader(dataset), train_loader(dataset, workers, **options)
    for epoch in (0, 1):
        assert checksums(together.epoch(epoch)) == checksums(alone.epoch(epoch))


def test_evaluation_is_equal_for_any_number_of_workers(dataset: DetectionDataset) -> None:
    assert checksums(EvalLoader(dataset, 4, 64, workers=2)) == checksums(EvalLoader(dataset, 4, 64))


ALONE = """
import sys
from fixtures.config import load_config
from fixtures.data.dataset import DetectionDataset, load_dataset
from fixtures.data.loader import TrainLoader
dataset = DetectionDataset(load_dataset(sys.argv[1]), "train")
loader = TrainLoader(dataset, 4, 64, 7, load_config("gold_yolo_s").augment)
print(*(batch.checksum for batch in loader.epoch(0)))
assert not {"torch", "jittor"} & set(sys.modules)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_equal_beside_either_framework(drawn: DetectionDataset, workers: int) -> None:
    """Both compute in this process first: Jittor's kernels leave their thread in flush-to-zero mode."""
    import torch

    from jt_impl.runtime import jittor as jt

    assert float(torch.ones(8).sum()) == float(jt.ones(8).sum().numpy()[0]) == 8.0
    command = [sys.executable, "-c", ALONE, str(drawn.config.path)]
    alone = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert checksums(train_loader(drawn, workers).epoch(0)) == alone.stdout.split()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_any_batch(drawn: DetectionDataset, workers: int) -> None:
    loader = train_loader(drawn, workers)
    whole = checksums(loader.epoch(3))
    assert len(whole) == len(loader) == 3
    for first in range(len(loader) + 1):
        assert checksums(loader.epoch(3, first_batch=first)) == whole[first:]


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of every call of a function that the loader uses, as they come in."""
    calls: list[tuple[Any, ...]] = []
    original = vars(fixtures.data.loader)[name]

    def noted(*given: Any) -> Any:
        calls.append(given)
        return original(*given)

    monkeypatch.setattr(fixtures.data.loader, name, noted)
    return calls


def test_earlier_batches_are_not_made(drawn: DetectionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "sample_generator")
    batches = list(train_loader(drawn).epoch(0, first_batch=2))
    assert [index for _, _, index in calls] == [int(index) for batch in batches for index in batch.indices]


def test_every_image_differs_by_epoch_and_seed(drawn: DetectionDataset) -> None:
    made: dict[int, set[str]] = {}
    for loader in (train_loader(drawn, batch_size=1), TrainLoader(drawn, 1, 64, 8, RECIPE)):
        for batch in (batch for epoch in (0, 1) for batch in loader.epoch(epoch)):
            made.setdefault(int(batch.indices[0]), set()).add(batch.checksum)
    assert [len(checksums) for checksums in made.values()] == [4] * len(drawn)


def test_a_sample_does_not_depend_on_its_batch(drawn: DetectionDataset) -> None:
    large = next(train_loader(drawn, batch_size=11).epoch(2))
    for batch in train_loader(drawn, batch_size=1).epoch(2):
        place = large.indices.tolist().index(batch.indices[0])
        np.testing.assert_array_equal(batch.pixels[0], large.pixels[place])
        rows = large.targets[large.targets[:, 0] == place]
        np.testing.assert_array_equal(batch.targets[:, 1:], rows[:, 1:])


def test_an_epoch_holds_every_image_once(drawn: DetectionDataset) -> None:
    indices = np.concatenate([batch.indices for batch in train_loader(drawn).epoch(0)])
    assert sorted(indices) == list(range(len(drawn)))
    assert indices.tolist() != sorted(indices)


def test_a_batch_is_what_the_network_takes(drawn: DetectionDataset) -> None:
    batch = next(train_loader(drawn).epoch(0))
    assert batch.images.dtype == np.float32
    assert batch.images.shape == (4, 3, 64, 64)
    np.testing.assert_array_equal(batch.images, batch.pixels.astype(np.float32) / np.float32(255))
    assert batch.targets.dtype == np.float64
    assert (np.diff(batch.targets[:, 0]) >= 0).all()
    assert (batch.targets[:, 2:] >= 0).all()
    assert (batch.targets[:, 2:] <= 1).all()
    assert np.isnan(batch.ratios).all()


def changed(batch: Batch, what: str) -> Batch:
    array = vars(batch)[what].copy()
    array.flat[-1] += 1
    return replace(batch, **{what: array})


@pytest.mark.parametrize("what", ["pixels", "targets"])
def test_a_checksum_sees_a_single_value(drawn: DetectionDataset, what: str) -> None:
    batch = next(train_loader(drawn).epoch(0))
    assert changed(batch, what).checksum != batch.checksum


def test_a_batch_of_background_has_no_targets(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"a.png": noise(), "b.png": noise()}, {"b.txt": "0 .5 .5 .5 .5"})
    first, second = EvalLoader(open_val(path), 1, 64)
    assert first.targets.shape == (0, 6)
    assert first.checksum != second.checksum


@pytest.mark.parametrize("ending", ["break", "interrupt"])
def test_threads_end_with_the_epoch_or_before(drawn: DetectionDataset, ending: str) -> None:
    batches = train_loader(drawn, 2, batch_size=1).epoch(0)
    next(batches)
    assert loader_threads()
    if ending == "break":
        batches.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not loader_threads()


def test_no_more_than_a_few_batches_are_made_ahead(drawn: DetectionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spy(monkeypatch, "make_sample")
    batches = train_loader(drawn, 2, batch_size=1).epoch(0)
    next(batches)
    time.sleep(0.2)
    assert len(made) == 1 + AHEAD
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_worker_names_the_image(tmp_path: Path, workers: int) -> None:
    path = write_folder(tmp_path, {f"{n}.png": noise() for n in "abc"}, {"a.txt": "0 .5 .5 .5 .5"})
    dataset = open_val(path)
    (tmp_path / "images" / "val" / "b.png").write_bytes(b"gone bad")
    with pytest.raises(ValueError, match=r"no sample could be made of .*b\.png: cannot read the image .*b\.png"):
        list(EvalLoader(dataset, 1, 64, workers))
    assert not loader_threads()


LOADER_ERRORS: dict[str, Callable[[DetectionDataset], object]] = {
    "`batch_size` must be at least 1. Received: 0": lambda d: EvalLoader(d, 0, 64),
    "`image_size` must be a multiple of 32. Received: 100": lambda d: TrainLoader(d, 1, 100, 0, RECIPE),
    "`workers` must be at least 0. Received: -1": lambda d: EvalLoader(d, 1, 64, -1),
    "`seed` must be in 0..4294967295. Received: -1": lambda d: TrainLoader(d, 1, 64, -1, RECIPE),
    "`first_batch` must be in 0..3, the batches of an epoch. Received: 4": lambda d: train_loader(d).epoch(0, 4),
    "`epoch` must be in 0..4294967295. Received: -1": lambda d: train_loader(d).epoch(-1),
    "`load_size` must be in 1..64, the image size. Received: 65": lambda d: EvalLoader(d, 1, 64, load_size=65),
    "`batch_size` must be at most the 11 images": lambda d: train_loader(d, batch_size=12, drop_last=True),
}


@pytest.mark.parametrize("message", LOADER_ERRORS)
def test_wrong_arguments_of_loaders_are_named(drawn: DetectionDataset, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
        LOADER_ERRORS[message](drawn)


# --- sampler


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_the_last_batch_holds_what_remains(drop_last: bool, sizes: list[int]) -> None:
    assert [len(batch) for batch in epoch_batches(10, 4, 0, 0, drop_last=drop_last)] == sizes


def test_order_without_shuffling() -> None:
    assert np.concatenate(epoch_batches(5, 2, 0, 0, shuffle=False)).tolist() == [0, 1, 2, 3, 4]


def test_the_order_stays_what_it_was() -> None:
    """Runs of other versions can be gone on with: these numbers must not change."""
    assert np.concatenate(epoch_batches(8, 3, seed=1, epoch=2)).tolist() == [1, 0, 6, 5, 4, 7, 2, 3]
    assert sample_generator(1, 2, 3).random() == 0.822728260539971


def test_streams_differ_in_every_part_of_their_key() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
    assert len({sample_generator(*key).random() for key in keys}) == len(keys)
    assert epoch_batches(50, 50, 0, 0)[0].tolist() != np.argsort(sample_generator(0, 0, 0).random(50)).tolist()
