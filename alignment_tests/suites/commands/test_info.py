"""``python -m torch_ref.info`` and ``python -m jt_impl.info``: a sound model passes, each fault fails its own line."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from fixtures.config import load_config
from fixtures.structure import Facts, checks, digests, main, output_shapes, relative_error

PACKAGES = ("torch_ref", "jt_impl")
CONFIG, SIZE = load_config("gold_yolo_n", 10), (96, 160)


@lru_cache(maxsize=2)
def facts_of(package: str) -> Facts:
    facts: Facts = importlib.import_module(f"{package}.info").measure(CONFIG, SIZE)
    return facts


def failed(facts: Facts) -> list[str]:
    return [check.name for check in checks(CONFIG, SIZE, facts) if not check.passed]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_sound_model_passes_every_check(package: str) -> None:
    """At 96x160 the gathered map of the high stage is rounded up, so its GFLOPs don't follow the area."""
    assert failed(facts_of(package)) == []


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["gold_yolo_s", "--num-classes", "10"], "pass  parameters, train       23,171,404"),
        (["gold_yolo_n", "--num_classes=3", "--image_size", "64"], "pass  head output, eval       2x84x8"),
    ],
)
def test_the_command_prints_a_line_per_check(
    package: str, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = importlib.import_module(f"{package}.info").measure
    assert main(package, measure, arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert line in printed
    assert all(row.startswith("pass  ") for row in printed[1:])
    assert len(printed) == 16


def test_json_holds_the_same_checks(capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of("torch_ref")
    code = main(
        "torch_ref", lambda *_: facts, ["gold_yolo_n", "--num-classes", "10", "--image-size", "96x160", "--json"]
    )
    printed = json.loads(capsys.readouterr().out)
    assert (code, printed["passed"], printed["config"]) == (0, True, "gold_yolo_n")
    assert [check["name"] for check in printed["checks"]] == [c.name for c in checks(CONFIG, SIZE, facts)]


def swap_entries(facts: Facts) -> Facts:
    entries = list(facts.entries["train"])
    entries[0], entries[1] = entries[1], entries[0]
    return replace(facts, entries=facts.entries | {"train": entries})


def change_shape(facts: Facts) -> Facts:
    entries = [
        (key, (*shape[:-1], 5) if key == "neck.conv_1x1_n.bias" else shape) for key, shape in facts.entries["deploy"]
    ]
    return replace(facts, entries=facts.entries | {"deploy": entries})


def drop_key(facts: Facts) -> Facts:
    return replace(facts, entries=facts.entries | {"fused": facts.entries["fused"][:-1]})


def add_part(facts: Facts) -> Facts:
    return replace(facts, entries=facts.entries | {"train": [*facts.entries["train"], ("detect.extra.weight", (1,))]})


def other_classes(facts: Facts) -> Facts:
    entries = [(k, (11, *s[1:]) if k.startswith("detect.cls_preds.1") else s) for k, s in facts.entries["train"]]
    return replace(facts, entries=facts.entries | {"train": entries})


def drop_counter(facts: Facts) -> Facts:
    place = next(i for i, (key, _) in enumerate(facts.entries["train"]) if key.endswith("num_batches_tracked"))
    entries = facts.entries["train"][:place] + facts.entries["train"][place + 1 :]
    return replace(facts, entries=facts.entries | {"train": entries})


def wrong_shape(facts: Facts, mode: str, part: str) -> Facts:
    shapes = {name: dict(parts) for name, parts in facts.shapes.items()}
    shapes[mode][part] = [*shapes[mode][part][::-1], (1,)]
    return replace(facts, shapes=shapes)


FAULTS: dict[str, tuple[Callable[[Facts], Facts], str]] = {
    "order": (swap_entries, "structure, train"),
    "shape": (change_shape, "structure, deploy"),
    "missing key": (drop_key, "structure, fused"),
    "extra part": (add_part, "structure, train"),
    "one level of other classes": (other_classes, "structure, train"),
    "a batch counter": (drop_counter, "structure, train"),
    "a parameter": (
        lambda f: replace(f, parameters=f.parameters | {"train": f.parameters["train"] + 1}),
        "parameters, train",
    ),
    "GFLOPs": (lambda f: replace(f, gflops=f.gflops | {"fused": f.gflops["fused"] * (1 + 1e-6)}), "GFLOPs, fused"),
    "backbone": (lambda f: wrong_shape(f, "eval", "backbone"), "backbone output, eval"),
    "neck": (lambda f: wrong_shape(f, "train", "neck"), "neck output, train"),
    "head": (lambda f: wrong_shape(f, "train", "head"), "head output, train"),
    "outputs of the deploy form": (lambda f: replace(f, deploy_error=2e-5), "outputs, fused"),
    "NaN in the deploy form": (lambda f: replace(f, deploy_error=math.nan), "outputs, fused"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_own_line_alone(fault: str) -> None:
    plant, line = FAULTS[fault]
    assert failed(plant(facts_of("torch_ref"))) == [line]


def test_a_wrong_structure_names_the_part() -> None:
    found = {check.name: check.detail for check in checks(CONFIG, SIZE, change_shape(facts_of("torch_ref")))}
    assert found["structure, deploy"] == "384 keys; wrong: neck.conv_1x1_n"


def test_a_fault_makes_the_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    facts = change_shape(facts_of("torch_ref"))
    assert main("torch_ref", lambda *_: facts, ["gold_yolo_n", "--num-classes", "10", "--image-size", "96x160"]) == 1
    assert "FAIL  structure, deploy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["gold_yolo_x"],
        ["gold_yolo_s", "--num-classes", "0"],
        ["gold_yolo_s", "--image-size", "100"],
        ["gold_yolo_s", "-x"],
    ],
)
def test_bad_arguments_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main("torch_ref", lambda *_: facts_of("torch_ref"), arguments)
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gold_yolo_m", "gold_yolo_l"])
@pytest.mark.parametrize("package", PACKAGES)
def test_macs_of_the_larger_sizes_follow_the_table(name: str, package: str) -> None:
    from fixtures.structure import expected_gflops

    config = load_config(name, 7)
    module = importlib.import_module(package)
    macs = importlib.import_module(f"{package}.info").conv_macs(module.build_model(config), (160, 96))
    assert 2e-9 * sum(macs.values()) == pytest.approx(expected_gflops(config, "train", (160, 96)), rel=1e-12)


def test_a_digest_does_not_depend_on_the_number_of_classes() -> None:
    rows = {c: [("detect.cls_preds.0.weight", (c, 8, 1, 1)), ("detect.cls_preds.0.bias", (c,))] for c in (10, 80)}
    assert digests(rows[10], 10) == digests(rows[80], 80) != digests(rows[10], 80)


def test_output_shapes_walk_nested_outputs() -> None:
    value: Any = ([np.zeros((1, 2)), np.zeros(3)], np.zeros((4, 5, 6)))
    assert output_shapes(value) == [(1, 2), (3,), (4, 5, 6)]


def test_relative_error_takes_boxes_and_scores_apart() -> None:
    expected = np.array([[[100.0, 1, 1, 1, 1, 0.5, 0.5]]])
    actual = expected.copy()
    actual[..., 6] += 0.05
    assert relative_error(actual, expected) == pytest.approx(0.1)
    assert relative_error(actual * np.nan, expected) == math.inf
