"""A diverged report becomes a small script that shows the difference in both frameworks."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from alignment_tests.harness import align, copy_weights
from alignment_tests.harness.__main__ import main
from alignment_tests.harness.bisect import bisect, load_blamed, write_script
from alignment_tests.harness.judge.arguments import constructor
from alignment_tests.harness.shrink import Inputs, shrink
from jt_impl.runtime import jittor as jt

ROOT = Path(__file__).resolve().parents[3]
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 7, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jittor's average pool counts the padding, whatever it is told."""
    folder = tmp_path_factory.mktemp("report")
    pool = {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}
    reference = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AvgPool2d(**pool))
    candidate = jt.nn.Sequential(jt.nn.Conv2d(3, 2, 1), jt.nn.AvgPool2d(**pool))
    copy_weights(reference, candidate)
    found = align(reference, candidate, IMAGES, strict=True, folder=folder)
    assert found.first_divergence is not None
    assert found.first_divergence.module == "1"
    return found.save(folder)


@pytest.fixture(scope="module")
def script(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bisected")
    assert main(["bisect", str(report), "--output-dir", str(folder)]) == 0
    return folder / "repro.py"


def test_a_report_becomes_a_small_script(script: Path) -> None:
    """4x4 is the smallest map that Jittor's pool takes for windows of 3."""
    text = script.read_text(encoding="utf-8")
    assert "torch.nn.AvgPool2d(kernel_size=3, stride=1, padding=1, count_include_pad=False)" in text
    array = re.search(r"'input args\.0': np\.array\((.*), 'float\d+'\)\.reshape", text)
    assert array is not None
    assert np.array(ast.literal_eval(array[1])).shape == (1, 1, 4, 4)


def test_the_script_runs_in_both_and_they_differ(script: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    out = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True, check=True).stdout
    theirs, ours = out.partition("PyTorch:")[2].split("Jittor")
    assert theirs.strip()
    assert numbers(theirs) != numbers(ours)


def numbers(text: str) -> list[float]:
    return [round(float(found), 3) for found in re.findall(r"-?\d+\.\d*", text)]


def test_an_aligned_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(3, 2)
    align(model, model, IMAGES[0, 0, :, :3]).save(tmp_path)
    assert main(["bisect", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 2
    assert "must blame a call" in capsys.readouterr().err


def test_inputs_shrink_to_what_diverges() -> None:
    def diverges(inputs: Inputs) -> bool:
        return inputs["x"].shape[1] >= 3 and bool((inputs["x"] > 1.9).any())

    array = np.arange(32.0).reshape(4, 8) / 16.0 + 0.012345
    small = shrink({"x": array}, diverges)
    assert small["x"].shape == (1, 3)
    assert np.array_equal(small["x"], np.round(small["x"], 0))


def test_axes_that_mean_the_same_are_cut_together() -> None:
    small = shrink({"a": np.ones((6, 2)), "b": np.ones(6)}, lambda i: i["a"].shape[0] == i["b"].shape[0])
    assert small["a"].shape == (1, 1)
    assert small["b"].shape == (1,)


def test_inputs_that_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="must make the call diverge"):
        shrink({"x": np.ones(3)}, lambda inputs: False)


CONSTRUCTORS = {
    "torch.nn.Conv2d(in_channels=3, out_channels=4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), "
    "dilation=(1, 1), bias=False)": nn.Conv2d(3, 4, 3, 2, 1, bias=False),
    "torch.nn.BatchNorm2d(num_features=4, eps=0.001)": nn.BatchNorm2d(4, eps=1e-3),
    "jt.nn.Linear(in_features=3, out_features=2)": jt.nn.Linear(3, 2),
    "jt.nn.Linear(in_features=3, out_features=2, bias=False)": jt.nn.Linear(3, 2, bias=False),
    "jt.nn.Conv(in_channels=3, out_channels=4, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), "
    "dilation=(1, 1))": jt.nn.Conv2d(3, 4, 3),
}


@pytest.mark.parametrize(("text", "module"), CONSTRUCTORS.items())
def test_a_stock_layer_is_reported_by_its_constructor(text: str, module: Any) -> None:
    assert constructor(module) == text


def test_a_layer_of_jittor_is_reported_by_its_constructor() -> None:
    pool = jt.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    message = constructor(pool)
    assert message is not None
    assert message.startswith("jt.nn.AvgPool2d(kernel_size=(3, 3)")
    assert "count_include_pad=False" in message


def test_a_module_of_ones_own_is_not() -> None:
    class Mine(torch.nn.Module):
        pass

    assert constructor(Mine()) is None


def test_words_that_do_not_make_the_layer_again_are_not_reported() -> None:
    """Jittor's Conv1d holds (3, 1) as the size of its kernel and takes 3."""
    assert constructor(jt.nn.Conv1d(3, 4, 3)) is None


ARRAYS = {
    "mask": np.array([True, False]),
    "infinite": np.array([[-np.inf, np.nan, np.inf]], np.float32),
    "empty": np.zeros((0, 3)),
    "single": np.array(7),
}


def test_arrays_in_a_script_come_back_as_they_were(report: Path, tmp_path: Path) -> None:
    script = write_script(load_blamed(report), ARRAYS, "x", tmp_path)
    found = runpy.run_path(str(script))["DATA"]
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[f"input {name}"], array, strict=True)


def copied(report: Path, folder: Path, **limits: float) -> Path:
    """The report in another place, with other limits."""
    shutil.copytree(report, folder)
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    data["first_divergence"]["repro"] = str(folder / "repro")
    data["budget"].update(limits)
    (folder / "report.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_the_budget_of_the_report_is_kept(report: Path, tmp_path: Path) -> None:
    own = copied(report, tmp_path / "own", float64_bar=1e3)
    with pytest.raises(ValueError, match="must make the call diverge"):
        bisect(own, tmp_path / "out")


def test_mixed_precision_is_refused(report: Path, tmp_path: Path) -> None:
    own = copied(report, tmp_path / "own")
    save_file({"args.0": IMAGES.astype(np.float16)}, own / "repro" / "inputs.safetensors")
    with pytest.raises(ValueError, match="reports in mixed precision cannot be bisected"):
        bisect(own, tmp_path / "out")
