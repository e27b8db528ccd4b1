"""What is compared with the recordings: runs of ``torch_ref`` in float64, every module's output summarised as it
returns; and the recorded checkpoint.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import converters
import torch_ref
from fixtures.config import GoldYoloConfig, load_config
from fixtures.golden import (
    BUFFER_SAMPLES,
    Summary,
    flatten,
    recorded_arrays,
    recorded_json,
    summarise,
)
from fixtures.seeded import gen, seeded_images, seeded_state

INPUTS = {"sq": (2, 3, 320, 320), "ns": (1, 3, 256, 416), "small": (1, 3, 128, 160)}


@dataclass(frozen=True)
class Variant:
    """One of the recorded networks; ``tag`` is its name in ``fixtures/golden``."""

    size: str
    classes: int = 80
    use_dfl: bool | None = None

    @property
    def tag(self) -> str:
        return f"{self.size}{'_dfl' if self.use_dfl else ''}_nc{self.classes}"

    @property
    def config(self) -> GoldYoloConfig:
        return load_config(f"gold_yolo_{self.size}", self.classes, use_dfl=self.use_dfl)


def parse(tag: str) -> Variant:
    """``n_dfl_nc80`` as a variant."""
    size, *dfl, classes = tag.split("_")
    return Variant(size, int(classes.removeprefix("nc")), True if dfl else None)


@lru_cache(maxsize=2)
def seeded_model(variant: Variant, dtype: str = "float64") -> torch_ref.GoldYolo:
    """``torch_ref`` with the seeded weights, in eval mode; every caller gets this one, so leave it as it is."""
    model = torch_ref.build_model(variant.config, dtype)
    converters.load_into(model, seeded_state({name: tuple(v.shape) for name, v in model.state_dict().items()}))
    return model.eval()


def run(model: Any, shape: tuple[int, int, int, int]) -> Any:
    """Output for the seeded images of this shape, in the model's own precision."""
    images = torch.from_numpy(seeded_images(shape)).to(next(model.parameters()).dtype)
    with torch.no_grad():
        return model(images)


def record(model: Any, shape: tuple[int, int, int, int]) -> dict[str, Summary]:
    """Summaries of every module's output, ``path#call``, in the order in which the modules return.

    The public root returns the neck's maps beside the head's output; so does the record.
    """
    summaries: dict[str, Summary] = {}
    calls: Counter[str] = Counter()
    maps: list[Any] = []

    def hook(path: str, output: Any) -> None:
        if path == "neck":
            maps.extend(output)
        name = f"{path}#{calls[path]}" if path else "<root>#0"
        output = output if path else [output, maps]
        calls[path] += 1
        summaries.update({key: summarise(key, tensor.numpy()) for key, tensor in flatten(name, output)})

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, path=path: hook(path, output))
        for path, module in model.named_modules()
    ]
    run(model, shape)
    for handle in handles:
        handle.remove()
    return summaries


def training_model(variant: Variant) -> torch_ref.GoldYolo:
    """A seeded model of its own in train mode that drops no path."""
    model = torch_ref.build_model(variant.config, "float64")
    converters.load_into(model, seeded_state({name: tuple(v.shape) for name, v in model.state_dict().items()}))
    for block in model.neck.high_IFM.transformer_blocks:
        block.drop_path.rate = 0.0
    return model.train()


def buffers(model: Any) -> dict[str, Summary]:
    """Summaries of the running statistics, under ``bn:name``."""
    named = {f"bn:{name}": buffer for name, buffer in model.named_buffers() if "running" in name}
    return {name: summarise(name, buffer.numpy(), BUFFER_SAMPLES) for name, buffer in named.items()}


def restore_checkpoint(path: Path) -> None:
    """Write the recorded checkpoint, byte for byte what the public implementation wrote.

    Its 12 MB are the seeded weights in half precision: they are made anew and filled in between the bytes that were
    kept. The whole file is held to its recorded sha256.
    """
    described, kept = recorded_json("checkpoint/official_like_n"), recorded_arrays("checkpoint/official_like_n")
    shapes = {key: tuple(shape) for key, shape, *_ in recorded_json("structure/n_nc80")["train"]}
    rest, whole = kept["rest"].tobytes(), bytearray()
    for key, start in zip(described["filled"], kept["starts"].tolist(), strict=True):
        between = start - len(whole)
        whole += rest[:between] + gen(key, shapes[key]).astype(np.float16).tobytes()
        rest = rest[between:]
    whole += rest
    digest = hashlib.sha256(whole).hexdigest()
    if digest != described["sha256"]:
        raise ValueError(f"the restored checkpoint must have the sha256 {described['sha256']}. Received: {digest}")
    path.write_bytes(whole)
