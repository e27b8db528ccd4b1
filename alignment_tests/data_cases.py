"""Small data sets on disk, for the tests of the data room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fixtures.dataset import DetectionDataset, load_dataset


def write_folder(root: Path, images: dict[str, Any], labels: dict[str, str], names: str = "[a, b, c, d]") -> Path:
    """A data set with one split, "val"; its dataset.yaml."""
    for kind in ("images", "labels"):
        (root / kind / "val").mkdir(parents=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(root / "images" / "val" / name)
    for name, text in labels.items():
        (root / "labels" / "val" / name).write_text(text)
    (root / "dataset.yaml").write_text(f"val: images/val\nnames: {names}\n")
    return root / "dataset.yaml"


def noise(rows: int = 40, columns: int = 64) -> Any:
    return np.random.Generator(np.random.Philox(0)).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def open_val(path: Path) -> DetectionDataset:
    return DetectionDataset(load_dataset(path), "val")
