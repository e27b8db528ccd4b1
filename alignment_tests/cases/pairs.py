"""Pairs of Gold-YOLO models, one per framework, that hold the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

import converters
import jt_impl
import torch_ref
from fixtures.config import GoldYoloConfig, load_config
from fixtures.seeded import seeded_state

FORMS = ("train", "deploy")
# A fixed draw lets both frameworks drop the same samples: at rate 0.1 the second of each pair goes.
DRAWN = np.array([0.95, 0.05], np.float32)


@dataclass(frozen=True)
class Pair:
    """The reference, the candidate, and source code that builds either (for a repro)."""

    reference: Any
    candidate: Any
    build: tuple[str, str]

    def part(self, name: str) -> Pair:
        """The same for one part: "backbone", "neck" or "detect"."""
        build = tuple(f"{source}\nmodel = model.{name}" for source in self.build)
        return Pair(getattr(self.reference, name), getattr(self.candidate, name), (build[0], build[1]))


def draw(batch: int) -> Any:
    """Uniform numbers for DropPath, equal on both sides and in every call."""
    return np.resize(DRAWN, batch)


def share_drop_path(pair: Pair) -> None:
    """Let both models drop the same paths in train mode."""
    for model in (pair.reference, pair.candidate):
        for module in model.modules():
            if type(module).__name__ == "DropPath":
                module.draw = draw


def make_pair(config: GoldYoloConfig, state: dict[str, Any] | None = None, form: str = "train") -> Pair:
    """Both models with the same weights.

    Args:
        config: which Gold-YOLO.
        state: weights under the public keys; seeded ones if None.
        form: "train", or "deploy": fused by the reference, the result converted, so that the weights are equal.
    """
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {FORMS}. Received: {form!r}")
    reference, candidate = torch_ref.build_model(config), jt_impl.build_model(config)
    shapes = {name: tuple(value.shape) for name, value in reference.state_dict().items()}
    weights = seeded_state(shapes) if state is None else state
    converters.load_into(reference, weights)
    converters.load_into(candidate, weights)
    if form == "deploy":
        reference, candidate = torch_ref.fuse(reference), jt_impl.fuse(candidate)
        converters.load_into(candidate, converters.read_state(reference))
    pair = Pair(reference, candidate, (_source("torch_ref", config, form), _source("jt_impl", config, form)))
    share_drop_path(pair)
    return pair


@lru_cache(maxsize=4)
def seeded_pair(size: str, classes: int = 80, form: str = "train") -> Pair:
    """A pair with seeded weights, kept for the next test that wants it. ``size`` is n, s, m or l."""
    return make_pair(load_config(f"gold_yolo_{size}", num_classes=classes), form=form)


def _source(package: str, config: GoldYoloConfig, form: str) -> str:
    lines = [
        f"import {package}",
        "from fixtures.config import load_config",
        f"model = {package}.build_model(load_config({config.name!r}, num_classes={config.num_classes}))",
    ]
    return "\n".join([*lines, f"model = {package}.fuse(model)"] if form == "deploy" else lines)
