"""Experiments with a forward pass: a part of a network in either framework, in eval or train mode."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

import converters
import torch_ref
from alignment_tests.cases.modules import NORM
from alignment_tests.cases.pairs import Pair, make_pair, share_drop_path
from alignment_tests.harness.align_layers import judged, record_reference
from alignment_tests.harness.judge.rows import PRECISIONS
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import run_recorded
from alignment_tests.harness.record.side import Side
from alignment_tests.meta_tests.experiments.folders import folder_of
from alignment_tests.meta_tests.experiments.outcome import Array, Outcome, of_report, plain_outcomes
from fixtures.config import GoldYoloConfig, load_config
from fixtures.images import drawn_images
from fixtures.seeded import seeded_images, seeded_state

CLASSES = 10
Size = tuple[int, int]


def narrow_config(**options: Any) -> GoldYoloConfig:
    """Gold-YOLO-N with DFL at half its width: every kind of layer, an eighth of the work."""
    config = load_config("gold_yolo_n", CLASSES, use_dfl=True, **options)
    transformer = replace(config.neck.transformer, dim=176)
    neck = replace(config.neck, low_fusion_in=240, embed_channels=48, transformer=transformer)
    return replace(config, width=0.125, neck=neck)


@lru_cache(maxsize=4)
def narrow_pair(seed: int = 0, form: str = "train") -> Pair:
    config = narrow_config()
    reference = torch_ref.build_model(config)
    shapes = {name: tuple(value.shape) for name, value in reference.state_dict().items()}
    return make_pair(config, seeded_state(shapes, seed), form)


def inputs_of(pair: Pair, part: str, images: Array) -> Any:
    """What the reference's earlier parts give for the images, in eval mode."""
    if part == "backbone":
        return images
    model = pair.reference
    with torch.no_grad():
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        maps = model.backbone(torch.from_numpy(images))
        maps = model.neck(maps) if part == "detect" else maps
        for module, mode in modes:
            module.training = mode
    return [tuple(np.ascontiguousarray(x.numpy()) for x in maps)]


def part_of(pair: Pair, part: str) -> tuple[Any, Any]:
    return getattr(pair.reference, part), getattr(pair.candidate, part)


def blocks_pair(seed: int = 0) -> tuple[Any, Any]:
    """What sizes M and L have beside the narrow network: a CSP stage of plain blocks, and a pyramid with SiLU."""
    made = []
    for package in ("torch_ref", "jt_impl"):
        room = importlib.import_module(f"{package}.layers")
        stage = room.BepC3(8, 8, 4, ratio=0.5, block="conv_silu", norm=NORM)
        made.append(room.nn.Sequential(stage, room.SPPF(8, 8, norm=NORM, act=room.silu)))
    return seeded(made[0], made[1], seed)


def activations_pair() -> tuple[Any, Any]:
    """The activations of the network one after the other, the gate of an injection last."""
    made = []
    for package in ("torch_ref", "jt_impl"):
        layers, fusion = (importlib.import_module(f"{package}.{room}") for room in ("layers", "fusion"))
        parts = [layers.silu(), layers.relu6(), fusion.HardSigmoid(), layers.relu()]
        made.append(layers.nn.Sequential(*parts))
    return made[0], made[1]


def seeded(reference: Any, candidate: Any, seed: int = 0) -> tuple[Any, Any]:
    shapes = {name: array.shape for name, array in converters.read_state(reference).items()}
    converters.load_into(reference, seeded_state(shapes, seed))
    converters.load_into(candidate, converters.read_state(reference))
    share_drop_path(Pair(reference, candidate, ("", "")))
    return reference, candidate


class Forward:
    """One pair of modules on one input; the reference is recorded once."""

    def __init__(self, reference: Any, candidate: Any, inputs: Any, *, train: bool) -> None:
        self.reference = Side(adapter_for(reference), reference, inputs, train)
        self.candidate = Side(adapter_for(candidate), candidate, inputs, train)
        self.traces = record_reference(self.reference, folder_of(self), PRECISIONS, lambda text: None)
        trace = self.traces["float32"]
        self.expected = {name: trace[name] for name in trace if not name.startswith("input/")}

    @property
    def subject(self) -> Any:
        return self.candidate.model

    def run(self) -> Outcome:
        """Of the candidate as it is now."""
        report = judged(self.reference, self.candidate, self.traces)
        return of_report(report, self.plain())

    def plain(self) -> Mapping[str, Any]:
        side, found = self.candidate, Arrays()
        run_recorded(side.adapter, side.model, side.inputs, "float32", found, train=side.train)
        counted = {name: array for name, array in self.expected.items() if not name.endswith("num_batches_tracked")}
        return plain_outcomes(found.by_bare_name(counted), counted, lambda name: name.startswith("activation/#0/"))


class Arrays:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.found: dict[str, Array] = {}

    def put(self, name: str, array: Array) -> None:
        self.found[name] = np.array(array)

    def alias(self, name: str, existing: str, values: Callable[[], Array]) -> None:
        self.found[name] = np.array(values())

    def by_bare_name(self, expected: Mapping[str, Array]) -> dict[str, Array]:
        """Under the reference's names: only there parameters and buffers are told apart."""
        bare = {name.partition("/")[2]: name for name in expected if name.startswith(("parameter/", "buffer/"))}
        return {
            bare.get(name.partition("/")[2], name) if name.startswith(("parameter/", "buffer/")) else name: array
            for name, array in self.found.items()
        }


# Smaller parts: the argument of each as maps of (channels, size as a factor of the smallest map's).
SMALL_PARTS: dict[str, Any] = {
    "backbone.stem": (3, 4),
    "backbone.ERBlock_5": (64, 2),
    "neck.low_FAM": [[(16, 8), (32, 4), (64, 2), (128, 1)]],
    "neck.LAF_p4": [[(32, 2), (64, 1), (32, 1)]],
    "neck.Inject_p4": [(32, 2), (64, 1)],
    "neck.Rep_p4": (32, 2),
    "neck.high_IFM": (176, 1),
    "neck.LAF_n4": [(16, 2), (16, 1)],
    "detect.cls_convs.1": (32, 2),
}


def maps_for(shapes: Any, batch: int, size: Size, seed: int) -> Any:
    """Seeded maps in the nest of (channels, factor)."""
    if isinstance(shapes, list):
        return [maps_for(one, batch, size, seed + 31 * place) for place, one in enumerate(shapes)]
    channels, factor = shapes
    shape = (batch, channels, size[0] * factor, size[1] * factor)
    return (2 * seeded_images(shape, seed) - 1).astype(np.float32)


def small_part(path: str, size: Size, seed: int, batch: int = 2, *, train: bool = False) -> Forward:
    """A part of the narrow network alone, on seeded maps."""
    sides = []
    for model in (narrow_pair(seed).reference, narrow_pair(seed).candidate):
        for name in path.split("."):
            model = getattr(model, name) if not name.isdigit() else model[int(name)]
        sides.append(model)
    return Forward(sides[0], sides[1], maps_for(SMALL_PARTS[path], batch, size, seed), train=train)


@dataclass(frozen=True)
class ForwardCase:
    """``part`` is of the narrow network ("backbone", "neck", "detect"), "blocks" or "activations"."""

    part: str
    size: Size
    batch: int = 1
    train: bool = False
    form: str = "train"

    def make(self, seed: int = 0) -> Forward:
        images = drawn_images(self.batch, self.size, seed)
        if self.part == "blocks":
            maps = seeded_maps(self.batch, self.size, seed)
            return Forward(*blocks_pair(seed), maps, train=self.train)
        if self.part == "activations":
            return Forward(*activations_pair(), 10 * seeded_maps(self.batch, self.size, seed), train=self.train)
        pair = narrow_pair(seed, self.form)
        return Forward(*part_of(pair, self.part), inputs_of(pair, self.part, images), train=self.train)


def seeded_maps(batch: int, size: Size, seed: int) -> Array:
    return (2 * seeded_images((batch, 8, *size), seed) - 1).astype(np.float32)


FORWARD: dict[str, ForwardCase] = {
    "backbone": ForwardCase("backbone", (64, 64)),
    "backbone, training": ForwardCase("backbone", (64, 96), 2, train=True),
    "backbone, deploy form": ForwardCase("backbone", (64, 64), form="deploy"),
    # 64x160: the coarsest map is 2x5, which no pool divides evenly.
    "neck": ForwardCase("neck", (64, 160)),
    "neck, training": ForwardCase("neck", (64, 160), 2, train=True),
    "head": ForwardCase("detect", (64, 64)),
    "head, training": ForwardCase("detect", (64, 64), 2, train=True),
    "blocks of M and L": ForwardCase("blocks", (12, 10)),
    "activations": ForwardCase("activations", (12, 10)),
}
