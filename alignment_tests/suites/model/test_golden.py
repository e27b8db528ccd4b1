"""Is the reference Gold-YOLO? ``torch_ref`` and ``jt_impl`` against what the public implementation computed.

``fixtures/golden/README.md`` tells how the recordings were made.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import converters
import torch_ref
from alignment_tests.cases.modules import UNITS, unit_arrays
from alignment_tests.cases.recordings import INPUTS, buffers, parse, record, run, seeded_model, training_model
from alignment_tests.harness.judge.compare import compare_arrays
from alignment_tests.make_golden import structure
from fixtures.config import config_names, load_config
from fixtures.golden import (
    Summary,
    distance,
    flatten,
    recorded_arrays,
    recorded_json,
    recorded_summaries,
    summarise,
)
from fixtures.seeded import gen, seeded_images, seeded_state
from fixtures.structure import COUNTER, table

# Two float64 implementations of the same formulas differ by rounding: 3e-14 was measured. A wrong eps shows at 1e-4.
BAR = 1e-10
PACKAGES = ("torch_ref", "jt_impl")
EVAL_RUNS = [
    ("n_nc80", "sq"),
    ("n_nc80", "ns"),
    ("s_nc80", "sq"),
    ("n_dfl_nc80", "small"),
    ("m_nc80", "small"),
    ("l_nc80", "small"),
]
DETECTION_RUNS = [("n_nc80", "sq"), ("n_nc80", "ns"), ("n_dfl_nc80", "small"), ("s_nc80", "sq"), ("s_nc80", "ns")]
DEPLOY_RUNS = [("n_nc80", "sq"), ("n_dfl_nc80", "small"), ("s_nc80", "sq")]
TRAIN_RUNS = ("n_nc80", "n_dfl_nc80", "s_nc80")
INVENTORIES = ("n_nc10", "n_nc80", "n_dfl_nc80", "s_nc10", "s_nc80", "m_nc80", "l_nc80")
COUNTED = ("n_nc80", "s_nc80", "m_nc80", "l_nc80", "n_nc10", "s_nc10", "m_nc10", "l_nc10", "n_dfl_nc80", "n_dfl_nc10")

Array = npt.NDArray[Any]


def assert_close(actual: dict[str, Summary], expected: dict[str, Summary], bar: float = BAR) -> None:
    """All names, in order, and every statistic and sample of each; the first in execution order leads the message."""
    assert expected, "nothing was recorded"
    assert list(actual) == list(expected)
    errors = {name: distance(actual[name], expected[name]) for name in expected}
    wrong = [f"{name}: {error:.1e}" for name, error in errors.items() if not error <= bar]
    assert not wrong, f"{len(wrong)} of {len(errors)} outputs beyond {bar:g} of scale, first {wrong[:5]}"


def assert_same_detections(actual: Array, expected: Array, bar: float = BAR) -> None:
    """Boxes, the constant and the scores, each in units of its own scale."""
    assert actual.shape == expected.shape
    for part in (slice(0, 4), slice(4, 5), slice(5, None)):
        error = np.abs(actual[..., part] - expected[..., part]).max() / np.abs(expected[..., part]).max()
        assert error <= bar


def assert_within_noise(actual: Array, expected: Array, oracle: Array) -> None:
    """float32 boxes and scores, judged by the error of the public implementation's own float32."""
    for part in (slice(0, 4), slice(5, None)):
        comparison = compare_arrays(actual[..., part], expected[..., part], oracle=oracle[..., part])
        assert comparison.passed, comparison.reason


# ---- weights and images


def test_gen_has_the_recorded_bits() -> None:
    for name, row in recorded_json("weights")["keys"].items():
        values = gen(name.split(":")[1], tuple(row["shape"]))
        assert hashlib.sha256(values.tobytes()).hexdigest() == row["sha256"], name


def test_images_have_the_recorded_bits() -> None:
    for shape, digest in recorded_json("weights")["image"].items():
        images = seeded_images(tuple(json.loads(shape.replace("(", "[").replace(")", "]"))))
        assert hashlib.sha256(images.tobytes()).hexdigest() == digest, shape


@pytest.mark.parametrize("tag", ["n_nc80", "s_nc80", "s_nc10", "n_dfl_nc80", "m_nc80", "l_nc80"])
def test_a_whole_state_has_the_recorded_bits(tag: str) -> None:
    digest = hashlib.sha256()
    for value in seeded_state(dict(keys_and_shapes(tag))).values():
        if value.dtype == np.float32:
            digest.update(value.tobytes())
    assert digest.hexdigest() == recorded_json("weights")["state_dicts"][tag]


# ---- structure


@lru_cache(maxsize=4)
def shadow(tag: str, form: str = "train") -> Any:
    """``torch_ref`` without values: only keys, shapes and flags."""
    with torch.device("meta"):
        model = torch_ref.build_model(parse(tag).config)
        return model if form == "train" else torch_ref.fuse(model, fold_norms=False)


def keys_and_shapes(tag: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in shadow(tag).state_dict().items()]


def torch_rows(tag: str, form: str) -> list[list[Any]]:
    """Key, shape, dtype, kind, trainable: a row of the inventory."""
    rows = []
    for name, value in shadow(tag, form).state_dict(keep_vars=True).items():
        kind = "param" if isinstance(value, torch.nn.Parameter) else "buffer"
        rows.append([name, list(value.shape), str(value.dtype).removeprefix("torch."), kind, value.requires_grad])
    return rows


def jittor_rows(tag: str, form: str) -> list[list[Any]]:
    """Key, shape, dtype, trainable. Jittor does not tell a frozen parameter from a buffer."""
    from jt_impl.model import build_model, fuse

    model = build_model(parse(tag).config)
    if form == "deploy":
        model = fuse(model, fold_norms=False)
        model.train()  # in eval mode Jittor stops the gradients of all parameters
    named = converters.adapter(model).named_vars(model)
    return [[name, list(var.shape), str(var.dtype), not var.is_stop_grad()] for name, var in named.items()]


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("tag", INVENTORIES)
def test_torch_keys_shapes_order_and_flags(tag: str, form: str) -> None:
    inventory = recorded_json(f"structure/{tag}")[form]
    assert torch_rows(tag, form) == inventory


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("tag", INVENTORIES)
def test_jittor_keys_shapes_order_and_flags(tag: str, form: str) -> None:
    inventory = recorded_json(f"structure/{tag}")[form]
    kept = [[key, shape, dtype, trainable] for key, shape, dtype, _, trainable in inventory if COUNTER not in key]
    assert jittor_rows(tag, form) == kept


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("tag", COUNTED)
def test_counts(tag: str, form: str) -> None:
    model = shadow(tag, form)
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trainable = sum(n for n, flag in parameters if flag)
    counts = [sum(n for n, _ in parameters), trainable, len(list(model.buffers())), len(model.state_dict())]
    assert counts == recorded_json("structure/counts")[tag][form]


@pytest.mark.parametrize("classes", [1, 10, 20, 80])
@pytest.mark.parametrize("head", ["n", "n_dfl", "s"])
def test_counts_at_other_numbers_of_classes(head: str, classes: int) -> None:
    expected = recorded_json("structure/counts")["all_heads"][f"{head}_nc{classes}_std"]
    total = sum(p.numel() for p in shadow(f"{head}_nc{classes}").parameters())
    assert total == expected["train_total"]


@pytest.mark.parametrize("tag", COUNTED)
def test_norm_settings(tag: str) -> None:
    norms = [m for m in shadow(tag).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    expected = recorded_json("structure/counts")[tag]["norms_train"]
    for _, eps, momentum, count in expected:
        assert sum((norm.eps, norm.momentum) == (eps, momentum) for norm in norms) == count
    assert len(norms) == sum(row[3] for row in expected)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("tag", ["n_nc10", "n_nc80", "n_dfl_nc80", "s_nc80", "m_nc80", "l_nc80"])
def test_gflops(tag: str, package: str) -> None:
    info = importlib.import_module(f"{package}.info")
    model = importlib.import_module(package).build_model(parse(tag).config)
    gflops = 2e-9 * sum(info.conv_macs(model, (640, 640)).values())
    expected = recorded_json("structure/counts")[tag]["conv_gflops_640_train"]
    assert gflops == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tag", ["n_nc10", "n_nc80", "n_dfl_nc80", "s_nc80", "m_nc80", "l_nc80"])
def test_gflops_of_the_deploy_form(tag: str) -> None:
    from torch_ref.info import conv_macs

    expected = recorded_json("structure/counts")[tag]["conv_gflops_640_fused"]
    assert 2e-9 * sum(conv_macs(shadow(tag, "deploy"), (640, 640)).values()) == pytest.approx(expected, rel=1e-12)


# ---- initialisation


def moments(values: Array) -> tuple[float, float, float]:
    values = values.astype(np.float64)
    return float(values.mean()), float(values.std()), float(np.abs(values - values.mean()).max())


def initial_state(package: str, size: str) -> dict[str, Array]:
    torch.manual_seed(0)
    if package == "jt_impl":
        from jt_impl.runtime import jittor as jt

        jt.set_seed(0)
    return converters.read_state(importlib.import_module(package).build_model(load_config(f"gold_yolo_{size}")))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("size", ["n", "l"])
def test_initial_values(package: str, size: str) -> None:
    expected = recorded_json("structure/initial_values")[size]
    state = {key: value for key, value in initial_state(package, size).items() if COUNTER not in key}
    assert list(state) == list(expected)
    wrong = [key for key, value in state.items() if not drawn_alike(value, expected[key])]
    assert not wrong


def drawn_alike(values: Array, row: dict[str, float]) -> bool:
    """Could both be draws from the same distribution? Constants must be equal.

    The means of two draws of n numbers differ by sigma * sqrt(2 / n), their deviations by at most sigma / sqrt(n)
    (normal; less if uniform), so seven times that is chance in none of the thousand parameters. The reach separates a
    uniform draw (1.7 sigma) from a normal one (over 3 sigma).
    """
    mean, std, reach = moments(values)
    if row["std"] == 0.0:
        return bool(std == 0.0 and np.isclose(mean, row["mean"], rtol=1e-7, atol=0))
    same_place = abs(mean - row["mean"]) <= 7 * row["std"] * (2 / values.size) ** 0.5
    same_width = abs(std / row["std"] - 1) <= 7 / values.size**0.5
    normal, reach_of_row = reach > 2.4 * std, max(row["max"] - row["mean"], row["mean"] - row["min"])
    return same_place and same_width and (values.size < 1000 or normal == (reach_of_row > 2.4 * row["std"]))


# ---- modules alone


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", UNITS)
def test_module_alone(name: str, package: str) -> None:
    expected = recorded_arrays("modules/alone")[name]
    actual = unit_arrays(package, UNITS[name])["output"]
    assert actual.shape == expected.shape
    assert actual.dtype == np.float64
    # The bar between the frameworks is 1e-9.
    assert np.abs(actual - expected).max() <= (BAR if package == "torch_ref" else 1e-9) * np.abs(expected).max()


def test_every_recorded_module_is_tested() -> None:
    assert sorted(recorded_arrays("modules/alone")) == sorted(UNITS)


# ---- the whole network in eval mode


@lru_cache(maxsize=8)
def evaluated(tag: str, images: str) -> tuple[dict[str, Summary], Array]:
    """Every module's output and the detections of one pass in float64."""
    kept: list[Array] = []
    model = seeded_model(parse(tag))
    handle = model.register_forward_hook(lambda _module, _inputs, output: kept.append(output.numpy()))
    modules = record(model, INPUTS[images])
    handle.remove()
    return modules, kept[0]


@pytest.mark.parametrize(("tag", "images"), EVAL_RUNS)
def test_every_module(tag: str, images: str) -> None:
    assert_close(evaluated(tag, images)[0], recorded_summaries(f"modules/eval_{tag}_{images}"))


@pytest.mark.parametrize(("tag", "images"), DETECTION_RUNS)
def test_detections(tag: str, images: str) -> None:
    assert_same_detections(evaluated(tag, images)[1], recorded_arrays(f"detections/{tag}")[f"{images}_f64"])


@pytest.mark.parametrize(("tag", "images"), DETECTION_RUNS)
def test_detections_in_float32(tag: str, images: str) -> None:
    recorded = recorded_arrays(f"detections/{tag}")
    actual = run(seeded_model(parse(tag), "float32"), INPUTS[images]).numpy()
    assert_within_noise(actual, recorded[f"{images}_f32"], recorded[f"{images}_f64"])


@pytest.mark.parametrize("fold_norms", [False, True])
@pytest.mark.parametrize(("tag", "images"), DEPLOY_RUNS)
def test_deploy_form(tag: str, images: str, fold_norms: bool) -> None:
    expected = recorded_arrays(f"detections/{tag}")[f"switch_{images}_f64"]
    model = torch_ref.fuse(seeded_model(parse(tag)), fold_norms=fold_norms)
    assert_same_detections(run(model, INPUTS[images]).numpy(), expected)


@pytest.mark.parametrize(("tag", "images"), DEPLOY_RUNS)
def test_deploy_form_in_float32(tag: str, images: str) -> None:
    recorded = recorded_arrays(f"detections/{tag}")
    actual = run(torch_ref.fuse(seeded_model(parse(tag), "float32")), INPUTS[images]).numpy()
    assert_within_noise(actual, recorded[f"fused_{images}_f32"], recorded[f"switch_{images}_f64"])


# ---- the public checkpoint


def checkpoint_detections(package: str, path: Path, *, fused: bool, dtype: str = "float32") -> Array:
    checkpoint = converters.read_checkpoint(path)
    name, classes = checkpoint.require_config()
    module = importlib.import_module(package)
    model = module.build_model(load_config(name, classes), dtype)
    converters.load_into(model, checkpoint.state)
    model = module.fuse(model) if fused else model.eval()
    images = seeded_images(INPUTS["small"])
    if package == "torch_ref":
        with torch.no_grad():
            return model(torch.from_numpy(images).to(getattr(torch, dtype))).numpy()
    from jt_impl.runtime import jittor as jt

    with jt.no_grad():
        return model(jt.array(images)).numpy()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("form", ["train_form", "fused_deploy"])
def test_the_official_like_checkpoint(official_like: Path, package: str, form: str) -> None:
    expected = recorded_arrays("checkpoint/detections")[f"n_{form}"]
    oracle = checkpoint_detections("torch_ref", official_like, fused=False, dtype="float64")
    actual = checkpoint_detections(package, official_like, fused=form == "fused_deploy")
    assert_within_noise(actual, expected, oracle)


# ---- the whole network in train mode


@lru_cache(maxsize=len(TRAIN_RUNS))
def training_run(tag: str, side: int) -> tuple[dict[str, Summary], dict[str, Summary], dict[str, Summary]]:
    """Modules, running statistics and outputs of one forward pass in train mode."""
    model, outputs = training_model(parse(tag)), {}

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        for name, tensor in zip(("cls", "reg"), output[1:], strict=True):
            outputs[name] = summarise(f"train:{name}", tensor.numpy(), 4096)

    model.register_forward_hook(keep)
    modules = record(model, (4, 3, side, side))
    return modules, buffers(model), outputs


def trained(tag: str) -> tuple[dict[str, Summary], dict[str, Summary], dict[str, Summary]]:
    return training_run(tag, recorded_json("modules/train")[tag]["size"])


@pytest.mark.parametrize("tag", TRAIN_RUNS)
def test_every_module_in_train_mode(tag: str) -> None:
    assert_close(trained(tag)[0], recorded_summaries("modules/train", f"{tag}_modules"))


@pytest.mark.parametrize("tag", TRAIN_RUNS)
def test_running_statistics_after_a_pass(tag: str) -> None:
    expected = recorded_summaries("modules/train", f"{tag}_bn")
    assert_close(trained(tag)[1], {f"bn:{name}": summary for name, summary in expected.items()})


@pytest.mark.parametrize("tag", TRAIN_RUNS)
def test_training_outputs(tag: str) -> None:
    recorded = recorded_arrays("modules/train")
    rows = {name: [recorded[f"{tag}_{name}_{part}"] for part in ("stats", "samples")] for name in ("cls", "reg")}
    assert_close(trained(tag)[2], {name: Summary(*row) for name, row in rows.items()})


# ---- the other implementation, and what is made from this one


@pytest.mark.parametrize(("tag", "images"), [("n_nc80", "ns"), ("s_nc80", "sq"), ("n_dfl_nc80", "small")])
def test_jittor_computes_the_recorded_outputs(tag: str, images: str) -> None:
    import jt_impl
    from jt_impl.runtime import jittor as jt

    model = jt_impl.build_model(parse(tag).config, "float64")
    converters.load_into(model, seeded_state(dict(keys_and_shapes(tag))))
    model.eval()
    with jt.no_grad():
        backbone = model.backbone(jt.array64(seeded_images(INPUTS[images]).astype(np.float64)))
        neck = model.neck(backbone)
        output = {"backbone#0": backbone, "neck#0": neck, "detect#0": model.detect(neck)}
    named = [pair for name, value in output.items() for pair in flatten(name, value)]
    actual = {name: summarise(name, value.numpy()) for name, value in named}
    expected = recorded_summaries(f"modules/eval_{tag}_{images}")
    assert_close(actual, {name: expected[name] for name in actual}, bar=1e-9)


@pytest.mark.parametrize("name", config_names())
def test_own_structure_table(name: str) -> None:
    assert structure(name) == table()[name]


SEEN: dict[str, Callable[[Array], Array]] = {
    "one element off by 1e-9": lambda x: np.where(np.arange(x.size) == 3, x + 1e-9 * np.abs(x).max(), x),
    "shuffled": lambda x: x[::-1],
    "sign-flipped": lambda x: -x,
    "one element NaN": lambda x: np.where(np.arange(x.size) == 3, np.nan, x),
    "shorter": lambda x: x[:-1],
    "empty of meaning": np.zeros_like,
}


@pytest.mark.parametrize("fault", SEEN)
def test_a_planted_fault_shows_in_a_summary(fault: str) -> None:
    values = np.sin(np.arange(1.0, 9.0))
    assert distance(summarise("x", SEEN[fault](values)), summarise("x", values)) > BAR
