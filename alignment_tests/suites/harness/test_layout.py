"""A port map as it is written, and what it does to the arrays of two models."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment_tests.harness import PortMap, PortMapError
from alignment_tests.harness.outline import Outline, followed
from alignment_tests.harness.port_map import LowRankParts, Parts
from alignment_tests.harness.record.layout import Layout
from alignment_tests.harness.resolve import resolve

WHOLE = PortMap(
    modules={"encoder.*": "h.*", "0": "1.10"},
    arrays={"norm.gamma": "norm.weight"},
    merged={"h.*.qkv": Parts(("h.*.q", "h.*.k"), axis=-1)},
    split={"packed.weight": Parts(("a.weight", "b.weight"))},
    low_rank={"fc.weight": LowRankParts("fc.weight", "fc.lora_A", "fc.lora_B", 0.5)},
    transposed={"fc.weight": (1, 0)},
    reshaped=("proj.weight",),
    tied={"candidate": {"head.weight": "tokens.weight"}},
    prefixes={"reference": ("module.", "_orig_mod.")},
    left_out={"reference": {"aux": "only for training"}, "candidate": {"no.weight": "a reason: with a colon"}},
)


# As it is written


def test_a_map_comes_back_from_its_file(tmp_path: Path) -> None:
    WHOLE.write(tmp_path / "map.yaml", ["a remark"])
    assert PortMap.read(tmp_path / "map.yaml") == WHOLE
    assert (tmp_path / "map.yaml").read_text().endswith("# a remark\n")


def test_names_stay_text_whatever_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("modules: {0: 1, 1.10: no, on: 0x1F}\n")
    assert PortMap.read(tmp_path / "map.yaml").modules == {"0": "1", "1.10": "no", "on": "0x1F"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "modules:\n"])
def test_an_empty_file_is_an_empty_map(text: str, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(text)
    assert PortMap.read(tmp_path / "map.yaml") == PortMap()


BAD_FILES = {
    "no YAML": ("modules: [", "is no YAML"),
    "a list": ("[a, b]", "must hold sections"),
    "unknown section": ("module: {a: b}", "unknown key 'module'"),
    "a key twice": ("modules:\n  a: b\n  a: c\n", "'a' occurs twice"),
    "a value that is no text": ("modules: {a: [b]}", "`modules` of a must be text"),
    "an unknown key of parts": ("merged: {a: {parts: [b, c], axes: 0}}", "unknown key 'axes'"),
    "one part": ("merged: {a: {parts: [b]}}", "at least two"),
    "an axis in words": ("merged: {a: {parts: [b, c], axis: last}}", "whole numbers"),
    "a scale in words": ("low_rank: {w: {weight: w, a: a, b: b, scale: big}}", "needs a number"),
    "a lacking part": ("low_rank: {w: {weight: w, a: a, b: b}}", "Lacking: scale"),
    "no order of axes": ("transposed: {w: [0, 2]}", "`transposed` of w must be an order"),
    "unknown side": ("left_out: {torch: {a: b}}", "unknown key 'torch'"),
    "no reason": ("left_out: {reference: {a: ''}}", "must give a reason for a"),
    "stars on one side": ("modules: {a.*: b}", "as many `*`"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(PortMapError) as error:
        PortMap.read(tmp_path / "map.yaml")
    assert message in str(error.value)
    assert "map.yaml" in str(error.value)
    assert "\n" not in str(error.value)


# Names


@pytest.mark.parametrize(
    ("path", "target"),
    [("a", "z"), ("a.b", "z.b"), ("a.0.x", "y.0.x"), ("a.0.q.w", "q.0.w"), ("ab", "ab"), ("", "")],
)
def test_the_longest_entry_decides_and_children_follow(path: str, target: str) -> None:
    assert followed(path, {"a": "z", "a.*": "y.*", "a.*.q": "q.*", "a.b": "z.b"})[0] == target


def outline(side: str, **arrays: tuple[int, ...]) -> Outline:
    names = {name.replace("__", "."): shape for name, shape in arrays.items()}
    modules = dict.fromkeys(["", *(name.rpartition(".")[0] for name in names)])
    return Outline(side, tuple(modules), {name: (shape, "parameter") for name, shape in names.items()})


UNKNOWN = {
    "module of the candidate": (PortMap(modules={"lin": "a"}), "`modules` names lin, which the candidate lacks"),
    "module of the reference": (PortMap(modules={"a": "line"}), "`modules` maps a to line, which the reference lacks"),
    "array": (PortMap(arrays={"a.weights": "a.weight"}), "Nearest: a.weight"),
    "part": (PortMap(merged={"a.weight": Parts(("a.weight", "c.weight"))}), "names c.weight, which the reference"),
    "turned": (PortMap(transposed={"a.wait": (1, 0)}), "`transposed` names a.wait"),
    "left out": (PortMap(left_out={"reference": {"aux": "r"}}), "`left_out` of the reference names aux"),
    "prefix": (PortMap(prefixes={"candidate": ("model.",)}), "no name has 'model.'"),
    "tied": (PortMap(tied={"candidate": {"a.weight": "c"}}), "`tied` of the candidate names c"),
}


@pytest.mark.parametrize(("port_map", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_does_not_exist_is_named_with_the_nearest(port_map: PortMap, message: str) -> None:
    with pytest.raises(PortMapError) as error:
        resolve(port_map, outline("reference", a__weight=(2, 2)), outline("candidate", a__weight=(2, 2)))
    assert message in str(error.value)
    assert "Nearest: " in str(error.value)


MISFITS = {
    "turned": (PortMap(transposed={"a": (1, 0)}), {"a": (2, 3)}, {"a": (2, 3)}),
    "turned with too few axes": (PortMap(transposed={"a": (1, 0)}), {"a": (2, 3, 1)}, {"a": (3, 2, 1)}),
    "not turned": (PortMap(merged={"a": Parts(("b", "c"))}), {"b": (2, 3), "c": (2, 3)}, {"a": (3, 4)}),
    "other sum": (PortMap(merged={"a": Parts(("b", "c"))}), {"b": (2, 3), "c": (2, 3)}, {"a": (5, 3)}),
    "no such axis": (PortMap(merged={"a": Parts(("b", "c"), 1)}), {"b": (2,), "c": (2,)}, {"a": (4,)}),
    "reshaped beyond ones": (PortMap(reshaped=("a",)), {"a": (2, 3)}, {"a": (3, 2)}),
}


@pytest.mark.parametrize(("port_map", "theirs", "ours"), MISFITS.values(), ids=MISFITS)
def test_an_entry_that_does_not_fit_the_shapes_is_refused(port_map: PortMap, theirs: Any, ours: Any) -> None:
    with pytest.raises(PortMapError, match="do not fit"):
        resolve(port_map, outline("reference", **theirs), outline("candidate", **ours))


def test_an_array_has_one_place() -> None:
    twice = PortMap(arrays={"a": "c", "b": "c"})
    with pytest.raises(PortMapError, match="another entry names too"):
        resolve(twice, outline("reference", c=(1,)), outline("candidate", a=(1,), b=(1,)))


def test_what_loses_its_name_to_an_entry_has_no_partner() -> None:
    theirs, ours = (
        outline("reference", **{"0__w": (1,), "1__w": (2,)}),
        outline("candidate", **{"1__w": (1,), "2__w": (2,)}),
    )
    found = resolve(PortMap(modules={"2": "1"}), theirs, ours)
    assert found.modules["2"] == "1"
    assert found.modules["1"] not in ("0", "1")
    assert found.unmapped == (("reference", "0.w"), ("candidate", "1.w"))


# Arrays

LAYOUTS = {
    "renamed": (PortMap(arrays={"b": "a"}), {"a": (2, 3)}, {"b": (2, 3)}),
    "turned": (PortMap(transposed={"a": (2, 0, 1)}), {"a": (2, 3, 4)}, {"a": (4, 2, 3)}),
    "turned and with a one": (PortMap(transposed={"a": (1, 0)}, reshaped=("a",)), {"a": (2, 3)}, {"a": (3, 2, 1)}),
    "with a one": (PortMap(reshaped=("a",)), {"a": (2, 1, 3)}, {"a": (1, 2, 3)}),
    "no axes": (PortMap(), {"a": ()}, {"a": (1,)}),
    "one axis": (PortMap(), {"a": (1,)}, {"a": ()}),
    "merged": (PortMap(merged={"a": Parts(("b", "c", "d"))}), {"b": (2, 3), "c": (1, 3), "d": (2, 3)}, {"a": (5, 3)}),
    "merged along the last axis, turned": (
        PortMap(merged={"a": Parts(("b", "c"), -1)}, transposed={"a": (1, 0)}),
        {"b": (3, 2), "c": (3, 1)},
        {"a": (3, 3)},
    ),
    "split and turned": (
        PortMap(split={"a": Parts(("b", "c"), 1)}, transposed={"b": (1, 0)}),
        {"a": (2, 5)},
        {"b": (3, 2), "c": (2, 2)},
    ),
}


@pytest.mark.parametrize(("port_map", "theirs", "ours"), LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_go_there_and_back_bit_for_bit(port_map: PortMap, theirs: Any, ours: Any) -> None:
    layout = resolve(port_map, outline("reference", **theirs), outline("candidate", **ours))
    arrays = {name: np.random.default_rng(len(name)).standard_normal(shape) for name, shape in theirs.items()}
    there = layout.forward(arrays)
    assert {name: array.shape for name, array in there.items()} == ours
    back = layout.back(there)
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())


def test_a_part_alone_makes_nothing() -> None:
    layout = resolve(
        PortMap(split={"a": Parts(("b", "c"))}), outline("reference", a=(4,)), outline("candidate", b=(2,), c=(2,))
    )
    assert layout.back({"b": np.zeros(2)}) == {}


def test_an_array_of_another_shape_keeps_it_for_the_comparison_to_say_so() -> None:
    layout = resolve(PortMap(transposed={"a": (1, 0)}), outline("reference", a=(2, 3)), outline("candidate", a=(3, 2)))
    assert layout.back({"a": np.zeros((2, 3))})["a"].shape == (2, 3)
    assert layout.back({"a": np.zeros((6, 1))})["a"].shape == (6, 1)


def test_an_empty_layout_changes_nothing() -> None:
    arrays = {"a.b.weight": np.zeros(2), "c": np.zeros(3)}
    assert Layout().back(arrays) == Layout().forward(arrays) == arrays


def test_leaving_an_array_out_excuses_no_output_of_that_name() -> None:
    theirs = outline("reference", mask=(1,), aid__weight=(1,))
    left_out = {"reference": {"mask": "r", "aid": "r"}}
    excused = resolve(PortMap(left_out=left_out), theirs, outline("candidate")).excused
    names = (
        "buffer/mask",
        "grad_parameter/aid.weight",
        "momentum/first/mask",
        "activation/aid#0/0",
        "activation/aid.0#1/0",
    )
    assert [name for name in names if not any(fnmatchcase(name, pattern) for pattern in excused)] == []
    others = ("activation/x#0/mask", "activation/x#0/aid.0", "parameter/x.mask", "activation/aids#0/0", "loss/mask")
    assert [name for name in others if any(fnmatchcase(name, pattern) for pattern in excused)] == []
