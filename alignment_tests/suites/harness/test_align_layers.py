"""The harness end to end: planted faults are named, other models align, both ways of running agree."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

import converters
from alignment_tests.cases.pairs import Pair, make_pair
from alignment_tests.harness import Report, align, compare, dump
from fixtures.config import load_config
from fixtures.seeded import seeded_images, uniform
from jt_impl import fusion, layers
from jt_impl.runtime import jittor as jt

ROOT = Path(__file__).resolve().parents[3]
IMAGES = seeded_images((1, 3, 96, 160))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(load_config("gold_yolo_n", num_classes=10))


@pytest.fixture(scope="module")
def clean(pair: Pair) -> Report:
    return align(pair.reference, pair.candidate, IMAGES)


def wrong_eps(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(pair.candidate.neck.Inject_p4.global_act.bn, "eps", 1e-3)
    return "neck.Inject_p4.global_act.bn"


def swapped_concat(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> str:
    pyramid = layers.pyramid

    def swapped(x: Any, pool: Any) -> Any:
        parts = pyramid(x, pool).split(x.shape[1], 1)
        return jt.concat([parts[0], parts[2], parts[1], parts[3]], dim=1)

    monkeypatch.setattr(layers, "pyramid", swapped)
    return "backbone.ERBlock_5.2"


def aligned_corners(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> str:
    def resize(x: Any, size: tuple[int, int]) -> Any:
        def matrix(count: int, out: int) -> Any:
            position = np.arange(out) * ((count - 1) / max(out - 1, 1))
            return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(count)[None]))

        return layers.resample(x, matrix(x.shape[2], size[0]), matrix(x.shape[3], size[1]))

    monkeypatch.setattr(fusion, "resize_bilinear", resize)
    return "neck.low_FAM"


def pool_counts_padding(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> str:
    """An average pool whose windows reach past the edge and count the zeros there."""

    def pool(x: Any, size: tuple[int, int], mode: str = "torch") -> Any:
        matrices = [padded_pooling_matrix(n, out) for n, out in zip(x.shape[-2:], size, strict=True)]
        return layers.resample(x, *matrices)

    monkeypatch.setattr(fusion, "adaptive_avg_pool2d", pool)
    return "neck.high_FAM"


def padded_pooling_matrix(size: int, out: int) -> Any:
    window = -(-size // out)
    matrix = np.zeros((out, size))
    for i in range(out):
        matrix[i, i * window : (i + 1) * window] = 1.0 / window
    return matrix


def altered_weight(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> str:
    conv = pair.candidate.detect.cls_convs[1].conv
    monkeypatch.setattr(conv, "weight", conv.weight.transpose(0, 1, 3, 2))
    return "detect.cls_convs.1.conv"


FAULTS = [wrong_eps, swapped_concat, aligned_corners, pool_counts_padding, altered_weight]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_named(
    fault: Callable[..., str], pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = fault(pair, monkeypatch)
    report = align(pair.reference, pair.candidate, IMAGES, folder=tmp_path)
    assert not report.aligned
    assert report.first_divergence is not None
    assert report.first_divergence.module == expected


def test_the_clean_pair_is_aligned(clean: Report, check_alignment: Callable[[Report], None]) -> None:
    check_alignment(clean)


def test_every_activation_parameter_and_buffer_is_in_the_ledger(clean: Report, pair: Pair) -> None:
    parameters, buffers = list(pair.reference.parameters()), list(pair.reference.named_buffers())
    counted = [name for name, _ in buffers if not name.endswith("num_batches_tracked")]
    assert clean.coverage.compared["parameter"] == len(parameters)
    assert clean.coverage.compared["buffer"] == len(counted)
    assert set(clean.coverage.excused) == {f"buffer/{name}" for name, _ in buffers} - {f"buffer/{n}" for n in counted}


def test_float64_rows_are_within_the_bar(clean: Report) -> None:
    rows = [row.accumulated for row in clean.rows if row.precision == "float64" and row.accumulated is not None]
    assert max(c.max_abs_error / c.scale for c in rows if c.max_abs_error is not None and c.scale) <= 1e-9


def test_running_buffers_are_compared_after_a_training_pass(
    pair: Pair, check_alignment: Callable[[Report], None]
) -> None:
    images = seeded_images((2, 3, 64, 96))
    report = align(pair.reference.backbone, pair.candidate.backbone, images, train=True)
    check_alignment(report)
    moved = [row for row in report.rows if row.phase == "buffer" and row.name.endswith("running_mean")]
    before = converters.read_state(pair.reference.backbone)
    name = moved[0].name.removeprefix("buffer/")
    assert moved[0].accumulated is not None
    assert moved[0].accumulated.worst_expected is not None
    assert not np.isclose(moved[0].accumulated.worst_expected, before[name][moved[0].accumulated.worst_index])


def test_dumps_compared_later_give_the_same_rows_bit_for_bit(clean: Report, pair: Pair, tmp_path: Path) -> None:
    dump(pair.reference, IMAGES, tmp_path / "reference")
    dump(pair.candidate, IMAGES, tmp_path / "candidate", reference=tmp_path / "reference")
    later = compare(tmp_path / "reference", tmp_path / "candidate")
    assert later.rows == clean.rows
    assert later.coverage == clean.coverage
    assert later.details == clean.details


def test_the_repro_shows_the_fault(pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong_eps(pair, monkeypatch)
    report = align(
        pair.reference.neck, pair.candidate.neck, [neck_maps(pair)], folder=tmp_path, precisions=("float64",)
    )
    assert report.first_divergence is not None
    assert report.first_divergence.repro is not None
    command = [sys.executable, str(Path(report.first_divergence.repro) / "repro.py")]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    lines = {line.split()[0]: float(line.split("max-abs-error ")[1].split()[0]) for line in run.stdout.splitlines()[1:]}
    assert lines["reference"] == 0.0
    assert lines["candidate"] > 1e-4


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def neck_maps(pair: Pair) -> Any:
    with torch.no_grad():
        maps = pair.reference.eval().backbone(torch.from_numpy(IMAGES))
    return tuple(x.numpy() for x in maps)


@pytest.fixture(scope="module")
def resnets() -> tuple[Any, Any]:
    import jittor.models

    torch.manual_seed(0)
    reference, candidate = torchvision.models.resnet18(), jittor.models.resnet18()
    for index, buffer in enumerate(b for n, b in reference.named_buffers() if "running" in n):
        buffer.copy_(torch.from_numpy(0.5 + uniform(index, buffer.numel())))
    converters.load_into(candidate, converters.read_state(reference))
    return reference, candidate


def test_a_pair_that_is_not_gold_yolo_aligns(
    resnets: tuple[Any, Any], check_alignment: Callable[[Report], None]
) -> None:
    check_alignment(align(*resnets, seeded_images((1, 3, 96, 96)), title="resnet18 of torchvision and Jittor"))


def test_other_weights_are_reported_as_such(pair: Pair, tmp_path: Path) -> None:
    other = make_pair(load_config("gold_yolo_n", num_classes=10))
    converters.load_into(
        other.candidate, {k: np.asarray(v * 2) for k, v in converters.read_state(pair.reference).items()}
    )
    report = align(pair.reference, other.candidate, IMAGES, precisions=("float64",), isolated=False, folder=tmp_path)
    assert any("convert first" in problem for problem in report.problems)


def test_a_model_of_no_framework_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module or a jittor\.Module"):
        align(object(), object(), IMAGES)


def test_an_unknown_precision_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="precisions"):
        align(pair.reference, pair.candidate, IMAGES, precisions=("float16",))


class Sliced(torch.nn.Module):
    """Gives its child an argument that is used up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.child = Columns()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(self.inner(x), iter([slice(0, 2)]))


class Columns(torch.nn.Module):
    def forward(self, x: torch.Tensor, columns: Iterator[slice]) -> torch.Tensor:
        return x[:, next(columns)]


def test_a_call_that_cannot_be_repeated_is_reported_and_not_blamed() -> None:
    report = align(model := Sliced(), model, np.ones((2, 4), np.float32))
    assert report.aligned
    assert "child#0" in report.checks["isolated"]
    assert {row.isolated is None for row in report.rows if row.module == "child"} == {True}


def renamed_pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    reference = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    candidate = torch.nn.Sequential()
    candidate.add_module("product", reference[0])
    candidate.add_module("act", reference[1])
    return reference, candidate


def test_renamed_modules_are_compared_weights_included(tmp_path: Path) -> None:
    renamed = {"product": "0", "act": "1"}
    reference, candidate = renamed_pair()
    report = align(reference, candidate, np.ones((2, 4), np.float32), renamed=renamed)
    assert report.aligned
    assert report.coverage.compared == {"activation": 3, "parameter": 2}
    assert all(row.isolated is not None for row in report.rows if row.phase == "activation")


def test_the_repro_of_a_renamed_module_is_written(tmp_path: Path) -> None:
    reference, _ = renamed_pair()
    _, candidate = renamed_pair()
    report = align(
        reference, candidate, np.ones((2, 4), np.float32), renamed={"product": "0", "act": "1"}, folder=tmp_path
    )
    assert report.first_divergence is not None
    assert report.first_divergence.module == "0"
    assert (tmp_path / "repro" / "repro.py").is_file() == report.first_divergence.name.startswith("activation/")


# Arguments changed in place


class TorchBranches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.ReLU(), torch.nn.ReLU6()

    def forward(self, x: Any) -> Any:
        x = x - 0.5
        return self.first(x) + self.second(x)


class WritingReLU(jt.Module):
    def execute(self, x: Any) -> Any:
        return x.assign(layers.ReLU()(x).copy())


class JittorBranches(jt.Module):
    def __init__(self, first: Any) -> None:
        self.first, self.second = first, layers.ReLU6()

    def execute(self, x: Any) -> Any:
        x = x - 0.5
        return self.first(x) + self.second(x)


def test_a_module_that_writes_into_its_input_is_named(tmp_path: Path) -> None:
    """Its output is right, and so is everything that reads the spoilt map, alone."""
    report = align(TorchBranches(), JittorBranches(WritingReLU()), IMAGES, folder=tmp_path)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "first"
    assert "changes its argument args.0 in place" in report.first_divergence.reason


def test_a_reference_that_writes_too_excuses_the_candidate(tmp_path: Path) -> None:
    """And models without any parameter can be aligned."""
    reference = TorchBranches()
    reference.first = torch.nn.ReLU(inplace=True)
    align(reference, JittorBranches(WritingReLU()), IMAGES, folder=tmp_path).raise_if_diverged()
