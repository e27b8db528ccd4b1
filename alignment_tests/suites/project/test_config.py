"""Configurations and seeded numbers: typed, frozen, strict, and equal to the public constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from fixtures import config as config_module
from fixtures.config import GoldYoloConfig, config_names, load_config
from fixtures.seeded import gen, seeded_images, seeded_state, uniform

SIZES = ("n", "s", "m", "l")
# Of the public configurations and of what their constructors make of them.
CHANNELS = {
    "n": (16, 32, 64, 128, 256, 64, 32, 32, 64, 64, 128),
    "s": (32, 64, 128, 256, 512, 128, 64, 64, 128, 128, 256),
    "m": (48, 96, 192, 384, 768, 192, 96, 96, 192, 192, 384),
    "l": (64, 128, 256, 512, 1024, 256, 128, 128, 256, 256, 512),
}
REPEATS = {
    "n": (1, 2, 4, 6, 2, 4, 4, 4, 4),
    "s": (1, 2, 4, 6, 2, 4, 4, 4, 4),
    "m": (1, 4, 7, 11, 4, 7, 7, 7, 7),
    "l": (1, 6, 12, 18, 6, 12, 12, 12, 12),
}
# Constants of the same: path -> values of N, S, M, L.
CONSTANTS: dict[str, tuple[Any, Any, Any, Any]] = {
    "depth": (0.33, 0.33, 0.60, 1.0),
    "width": (0.25, 0.50, 0.75, 1.0),
    "backbone.kind": ("efficient_rep", "efficient_rep", "csp", "csp"),
    "backbone.block": ("repvgg", "repvgg", "repvgg", "conv_silu"),
    "backbone.pooling": ("csp_sppf", "csp_sppf", "sppf", "sppf"),
    "backbone.csp_ratio": (0.0, 0.0, 2 / 3, 0.5),
    "neck.kind": ("rep", "rep", "csp", "csp"),
    "neck.last_fusion": ("n4", "n4", "n4", "p4"),
    "neck.low_fusion_in": (480, 960, 1440, 1920),
    "neck.embed_channels": (96, 128, 192, 192),
    "neck.fuse_blocks": (3, 3, 3, 3),
    "neck.trans_channels": ((64, 32, 64, 128), (128, 64, 128, 256), (192, 96, 192, 384), (256, 128, 256, 512)),
    "neck.pool_mode": ("torch",) * 4,
    "neck.norm_eps": (1e-5,) * 4,
    "neck.norm_momentum": (0.1,) * 4,
    "neck.transformer.depth": (2, 2, 2, 3),
    "neck.transformer.dim": (352, 704, 1056, 1408),
    "neck.transformer.heads": (4, 4, 4, 8),
    "neck.transformer.key_dim": (8,) * 4,
    "neck.transformer.mlp_ratio": (1,) * 4,
    "neck.transformer.attention_ratio": (2,) * 4,
    "neck.transformer.pool_stride": (2,) * 4,
    "neck.transformer.drop_path": (0.1,) * 4,
    "norm.eps": (1e-3,) * 4,
    "norm.momentum": (0.03,) * 4,
    "head.strides": ((8, 16, 32),) * 4,
    "head.use_dfl": (False, True, True, True),
    "head.reg_max": (0, 16, 16, 16),
    "head.prior_probability": (0.01,) * 4,
    "head.anchors": (((10, 13, 19, 19, 33, 23), (30, 61, 59, 59, 59, 119), (116, 90, 185, 185, 373, 326)),) * 4,
    "loss.iou": ("siou", "giou", "giou", "giou"),
    "loss.atss_warmup_epochs": (0,) * 4,
    "loss.class_weight": (1.0,) * 4,
    "loss.iou_weight": (2.5,) * 4,
    "loss.dfl_weight": (0.5,) * 4,
    "loss.distill_class_weight": (1.0, 1.0, 0.8, 2.0),
    "loss.distill_dfl_weight": (1.0,) * 4,
    "solver.lr0": (0.02, 0.01, 0.01, 0.01),
    "solver.lrf": (0.01,) * 4,
    "solver.momentum": (0.937,) * 4,
    "solver.weight_decay": (5e-4,) * 4,
    "solver.warmup_epochs": (3.0,) * 4,
    "solver.warmup_momentum": (0.8,) * 4,
    "solver.warmup_bias_lr": (0.1,) * 4,
    "augment.hsv_h": (0.015,) * 4,
    "augment.hsv_s": (0.7,) * 4,
    "augment.hsv_v": (0.4,) * 4,
    "augment.degrees": (0.0,) * 4,
    "augment.translate": (0.1,) * 4,
    "augment.scale": (0.5, 0.5, 0.9, 0.9),
    "augment.shear": (0.0,) * 4,
    "augment.flip_up_down": (0.0,) * 4,
    "augment.flip_left_right": (0.5,) * 4,
    "augment.mosaic": (1.0,) * 4,
    "augment.mixup": (0.0, 0.0, 0.1, 0.1),
}


def config_of(size: str, **options: Any) -> GoldYoloConfig:
    return load_config(f"gold_yolo_{size}", **options)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value, declared type) of every plain field."""
    hints = get_type_hints(type(value))
    for field in fields(value):
        inner, place = getattr(value, field.name), f"{path}{field.name}"
        if is_dataclass(inner):
            yield from leaves(inner, f"{place}.")
        else:
            yield place, inner, hints[field.name]


def fits(value: Any, kind: Any) -> bool:
    """Exactly of the declared type: neither an int for a float nor a bool for an int."""
    if get_origin(kind) is tuple:
        return type(value) is tuple and all(fits(item, get_args(kind)[0]) for item in value)
    return type(value) is kind


@pytest.mark.parametrize("size", SIZES)
def test_channels_and_repeats(size: str) -> None:
    assert (config_of(size).channels, config_of(size).repeats) == (CHANNELS[size], REPEATS[size])


@pytest.mark.parametrize("path", CONSTANTS)
def test_constant(path: str) -> None:
    values = tuple({place: value for place, value, _ in leaves(config_of(size))}[path] for size in SIZES)
    assert values == pytest.approx(CONSTANTS[path], rel=1e-15) if "ratio" in path else values == CONSTANTS[path]


@pytest.mark.parametrize("size", SIZES)
def test_every_value_has_its_declared_type(size: str) -> None:
    wrong = [
        f"{path}: {value!r} is no {kind}" for path, value, kind in leaves(config_of(size)) if not fits(value, kind)
    ]
    assert not wrong


def test_config_names() -> None:
    assert config_names() == ["gold_yolo_l", "gold_yolo_m", "gold_yolo_n", "gold_yolo_s"]


@pytest.mark.parametrize("name", ["gold_yolo_x", "yolov6_s", "", "../configs/gold_yolo_s", "gold_yolo_s.toml"])
def test_an_unknown_name_lists_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=r"one of \['gold_yolo_l', 'gold_yolo_m', 'gold_yolo_n', 'gold_yolo_s'\]"):
        load_config(name)


@pytest.mark.parametrize("classes", [0, -1])
def test_classes_below_one_are_refused(classes: int) -> None:
    with pytest.raises(ValueError, match=f"`num_classes` must be at least 1. Received: {classes}"):
        config_of("n", num_classes=classes)


@pytest.mark.parametrize(
    "part", ["", "backbone", "neck", "neck.transformer", "norm", "head", "loss", "solver", "augment"]
)
def test_every_part_is_frozen(part: str) -> None:
    value: Any = config_of("s")
    for name in filter(None, part.split(".")):
        value = getattr(value, name)
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, None)


def test_a_config_is_hashable_and_equal_to_its_like() -> None:
    assert len({config_of("s"), config_of("s"), config_of("s", num_classes=10)}) == 2


@pytest.mark.parametrize(("wanted", "expected"), [(True, (True, 16)), (False, (False, 0)), (None, (True, 16))])
def test_use_dfl_sets_the_bins(wanted: bool | None, expected: tuple[bool, int]) -> None:
    head = config_of("s", use_dfl=wanted).head
    assert (head.use_dfl, head.reg_max) == expected


def test_repeats_round_half_to_even() -> None:
    config = config_of("l")
    halves = replace(config, depth=0.5, backbone=replace(config.backbone, repeats=(1, 3, 5, 7, 2)))
    assert halves.repeats[:5] == (1, 2, 2, 4, 1)


def test_channels_round_up_to_a_multiple_of_8() -> None:
    config = config_of("l")
    odd = replace(config, width=0.33, backbone=replace(config.backbone, channels=(64, 24, 25, 8, 1)))
    assert odd.channels[:5] == (24, 8, 16, 8, 8)


# ---- faults in a file

FAULTS = {
    "unknown key": (
        'kind = "rep"',
        'kind = "rep"\nextra = 1',
        r"gold_yolo_n.neck.*Missing: \[\]. Unknown: \['extra'\]",
    ),
    "missing key": ("embed_channels = 96\n", "", r"gold_yolo_n.neck.*Missing: \['embed_channels'\]"),
    "unknown table": ("[norm]\n", "[extra]\n[norm]\n", r"Unknown: \['extra'\]"),
    "missing table": ("[loss]", "[lost]", r"Missing: \['loss'\]. Unknown: \['lost'\]"),
    "misspelt": ("momentum = 0.03", "momemtum = 0.03", r"gold_yolo_n.norm.*Missing: \['momentum'\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, message = FAULTS[fault]
    text = (config_module.CONFIG_FOLDER / "gold_yolo_n.toml").read_text()
    assert text.count(before) == 1
    (tmp_path / "gold_yolo_n.toml").write_text(text.replace(before, after))
    monkeypatch.setattr(config_module, "CONFIG_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=message):
        load_config("gold_yolo_n")


# ---- seeded numbers


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, [0.01406704, 0.25776725, 0.47156538]), (1, [0.06680201, 0.07901298, 0.00577712])],
)
def test_uniform_numbers(seed: int, expected: list[float]) -> None:
    assert np.round(uniform(seed, 3), 8).tolist() == expected


def test_images_are_the_same_numbers_in_float32() -> None:
    images = seeded_images((2, 3, 4, 5))
    assert (str(images.dtype), images.shape) == ("float32", (2, 3, 4, 5))
    assert np.array_equal(images.reshape(-1), uniform(0, 120).astype(np.float32))


GENERATED = {
    "counter": ("a.bn.num_batches_tracked", (), lambda v: v.dtype == np.int64 and v == 0),
    "bins": ("detect.proj", (17,), lambda v: np.array_equal(v, np.arange(17))),
    "bin kernel": ("detect.proj_conv.weight", (1, 17, 1, 1), lambda v: np.array_equal(v.reshape(-1), np.arange(17))),
    "running variance is positive": ("a.bn.running_var", (999,), lambda v: v.min() >= 1),
    "running mean": ("a.bn.running_mean", (999,), lambda v: abs(v.std() - 0.1) < 0.01 and abs(v.mean()) < 0.02),
    "alpha": ("a.m.conv1.alpha", (1,), lambda v: abs(v[0] - 0.5) < 0.18),
    "kernel": ("a.conv.weight", (64, 32, 3, 3), lambda v: abs(v.std() / (2 / 288) ** 0.5 - 1) < 0.02),
    "prediction": ("detect.cls_preds.0.weight", (64, 32, 1, 1), lambda v: abs(v.std() / (0.1 / 32) ** 0.5 - 1) < 0.05),
    "class bias": ("detect.cls_preds.0.bias", (999,), lambda v: abs(v.mean() + 3) < 0.1),
    "box bias": ("detect.reg_preds.0.bias", (999,), lambda v: abs(v.mean() - 2) < 0.1),
    "norm of a RepVGG branch": ("a.rbr_dense.bn.weight", (999,), lambda v: abs(v.mean() - 0.6) < 0.02),
    "norm of the transformer": ("neck.high_IFM.a.bn.weight", (999,), lambda v: abs(v.mean() - 0.5) < 0.02),
    "norm of L's block": ("a.m.b.block.bn.weight", (999,), lambda v: abs(v.mean() - 1.2) < 0.02),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_values(name: str) -> None:
    key, shape, holds = GENERATED[name]
    values = gen(key, shape)
    assert values.shape == shape
    assert holds(values)


def test_another_seed_or_key_gives_other_values() -> None:
    drawn = [gen("a.conv.weight", (4, 4)), gen("a.conv.weight", (4, 4), seed=1), gen("b.conv.weight", (4, 4))]
    assert len({values.tobytes() for values in drawn}) == 3


def test_a_state_keeps_keys_and_order() -> None:
    state = seeded_state({"b.weight": (2, 2), "a.bias": (3,)})
    assert [(key, value.shape) for key, value in state.items()] == [("b.weight", (2, 2)), ("a.bias", (3,))]


def test_drawing_leaves_numpys_own_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    gen("a.conv.weight", (4, 4))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
