"""The commands as a user types them: what works, and one clear line with exit code 2 for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from alignment_tests.__main__ import main as align_main
from alignment_tests.harness.__main__ import main as harness_main

SMALL = ["--config", "gold_yolo_n", "--image-size", "64x96", "--num-classes", "10"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (50, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    return folder


def test_align_writes_a_report(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align_main([*SMALL, "--images", str(photographs), "--output_dir", str(tmp_path / "report")]) == 0
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {"report.json", "report.html", "summary.md", "junit.xml"}
    assert "ALIGNED" in capsys.readouterr().out


def test_align_with_a_baseline_shows_the_drift(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    quick = [*SMALL, "--no-isolated", "--precision", "float64"]
    assert align_main([*quick, "--output-dir", str(first)]) == 0
    assert align_main([*quick, "--output-dir", str(second), "--baseline", str(first / "report.json")]) == 0
    assert "baseline" in (second / "summary.md").read_text().lower()


BAD_OPTIONS = {
    "no such folder": (["--images", "nowhere"], "must be a folder of images"),
    "too few images": (["--images", "PHOTOS", "--batch-size", "3"], "at most the images"),
    "no such weights": (["--weights", "nowhere.pt"], "nowhere.pt"),
    "no such baseline": (["--baseline", "nowhere.json"], "must be a report.json"),
    "baseline of another kind": (["--baseline", "OTHER"], "report.json of format"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_align_refuses(
    name: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"format": 99}))
    options, message = BAD_OPTIONS[name]
    places = {"PHOTOS": str(photographs), "OTHER": str(tmp_path / "other.json")}
    assert align_main([*SMALL, *(places.get(option, option) for option in options)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("size", ["100", "64x", "0", "640x640x3", "large"])
def test_align_refuses_image_sizes(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        align_main(["--image-size", size])
    assert stop.value.code == 2
    assert "multiple of 32" in capsys.readouterr().err


def test_an_unreadable_image_is_named(
    photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photographs / "broken.jpg").write_bytes(b"not an image")
    assert align_main([*SMALL, "--images", str(photographs)]) == 2
    assert "broken.jpg" in capsys.readouterr().err


def small_torch_model() -> object:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())


def test_dump_and_compare_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"images": np.ones((1, 3, 8, 8), np.float32)}, tmp_path / "inputs.safetensors")
    given = ["--model", f"{__name__}:small_torch_model", "--inputs", str(tmp_path / "inputs.safetensors")]
    reference, candidate = str(tmp_path / "reference"), str(tmp_path / "candidate")
    assert harness_main(["dump", *given, "--output-dir", reference]) == 0
    assert harness_main(["dump", *given, "--reference", reference, "--output-dir", candidate]) == 0
    assert harness_main(["compare", reference, candidate, "--output-dir", str(tmp_path / "report")]) == 0
    assert json.loads((tmp_path / "report" / "report.json").read_text())["aligned"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "nowhere", "nowhere"], "must be a folder made by `dump`"),
        (["dump", "--model", "nocolon", "--inputs", "x", "--output-dir", "y"], "safetensors file"),
    ],
)
def test_harness_commands_refuse(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert harness_main(arguments) == 2
    assert message in capsys.readouterr().err
