"""Weights between the frameworks and files: exact, strict, and nothing of a foreign file is run."""

from __future__ import annotations

import builtins
import copyreg
import os
import pickle
import random
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import (
    Checkpoint,
    CheckpointError,
    State,
    StateMismatchError,
    UnsafePickleError,
    load_into,
    read_checkpoint,
    read_state,
    write_checkpoint,
)
from converters.__main__ import main
from converters.pickle_constructors import Storage, TorchTensor
from converters.state import bits_equal, to_half, to_single, widen
from converters.torch_zip import TorchArchive
from converters.unpickle import Instance, read_pickle
from fixtures.golden import recorded_json

SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl")
FRAMEWORKS = ("torch", "jittor")
ROOT = Path(__file__).resolve().parents[3]

# Values whose bits a careless path changes: signed zero, infinities, NaN, the smallest subnormal.
HARD_VALUES = [-0.0, 0.0, np.inf, -np.inf, np.nan, 1e-45, 1.0 + 2**-20, -3.4e38]


@pytest.fixture(scope="module")
def jt() -> Any:
    from jt_impl.runtime import jittor

    return jittor


def small_state(dtype: str = "float32") -> State:
    """Weights of ``small_model``, of hard values, in its order."""
    return {
        "scale": np.array([-0.0], dtype),
        "layer.weight": np.array([HARD_VALUES[:4], HARD_VALUES[4:]], dtype),
        "layer.bias": np.array([0.1, 0.2], dtype),
        "layer.running_mean": np.array([0.3, 0.4], dtype),
    }


def small_torch(dtype: str = "float32") -> Any:
    model, layer = torch.nn.Module(), torch.nn.Module()
    kind = getattr(torch, dtype)
    model.scale = torch.nn.Parameter(torch.ones(1, dtype=kind))
    layer.weight = torch.nn.Parameter(torch.ones(2, 4, dtype=kind))
    layer.bias = torch.nn.Parameter(torch.ones(2, dtype=kind))
    layer.register_buffer("running_mean", torch.zeros(2, dtype=kind))
    layer.register_buffer("cache", torch.zeros(2), persistent=False)
    model.layer = layer
    return model


def small_jittor(dtype: str = "float32") -> Any:
    from jt_impl.runtime import jittor as jt

    model, layer = jt.Module(), jt.Module()
    model.scale = jt.array64(np.ones(1, dtype))
    layer.weight = jt.array64(np.ones((2, 4), dtype))
    layer.bias = jt.array64(np.ones(2, dtype))
    layer.running_mean = jt.array64(np.zeros(2, dtype)).stop_grad()
    layer._cache = jt.array64(np.zeros(2, dtype))
    model.layer = layer
    return model


def small_model(framework: str, dtype: str = "float32") -> Any:
    return {"torch": small_torch, "jittor": small_jittor}[framework](dtype)


def assert_same(actual: State, expected: State) -> None:
    assert list(actual) == list(expected)
    wrong = [name for name in expected if not bits_equal(actual[name], expected[name])]
    assert not wrong, f"arrays differ: {wrong}"


# ---- models


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_returns_the_bits_that_were_loaded(framework: str, dtype: str) -> None:
    model = small_model(framework, dtype)
    load_into(model, small_state(dtype))
    assert_same(read_state(model), small_state(dtype))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_read_state_gives_copies(framework: str) -> None:
    model = small_model(framework)
    read_state(model)["layer.bias"][:] = 7
    assert read_state(model)["layer.bias"].tolist() == [1, 1]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_loading_keeps_no_hold_on_the_callers_arrays(framework: str) -> None:
    model, state = small_model(framework), small_state()
    load_into(model, state)
    state["layer.bias"][:] = 7
    assert_same(read_state(model), small_state())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_strided_arrays_load_as_they_read(framework: str) -> None:
    model = small_model(framework, "float64")
    state = {name: np.asfortranarray(array) for name, array in small_state("float64").items()}
    state["layer.bias"] = np.array([0.1, 9.0, 0.2])[::2]
    load_into(model, state)
    assert_same(read_state(model), small_state("float64"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("narrow", "wide"), [("float16", "float32"), ("float32", "float64")])
def test_widening_is_exact_and_reported(framework: str, narrow: str, wide: str) -> None:
    model = small_model(framework, wide)
    with np.errstate(over="ignore"):
        state = small_state(narrow)
    result = load_into(model, state)
    assert set(result.converted.values()) == {f"{narrow} -> {wide}"}
    assert_same(read_state(model), {name: array.astype(wide) for name, array in state.items()})


MISFITS = {
    "missing": lambda state: state.pop("layer.bias"),
    "unexpected": lambda state: state.update(extra=np.zeros(1, np.float32)),
    "transposed": lambda state: state.update({"layer.weight": state["layer.weight"].T}),
    "broadcast": lambda state: state.update({"layer.bias": np.zeros(1, np.float32)}),
    "two axes for none": lambda state: state.update(scale=np.zeros((1, 1), np.float32)),
    "narrowing": lambda state: state.update({"layer.bias": np.zeros(2, np.float64)}),
    "kind": lambda state: state.update({"layer.bias": np.zeros(2, np.int32)}),
    "bool": lambda state: state.update({"layer.bias": np.zeros(2, np.bool_)}),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_is_refused_before_anything_is_written(framework: str, misfit: str) -> None:
    model, state = small_model(framework), small_state()
    before = read_state(model)
    MISFITS[misfit](state)
    with pytest.raises(StateMismatchError):
        load_into(model, state)
    assert_same(read_state(model), before)


def scalar_model(framework: str) -> Any:
    """A temperature and a counter: without axes in PyTorch, of shape (1,) in Jittor, where integers have 32 bits."""
    if framework == "torch":
        model = torch.nn.Module()
        model.scale = torch.nn.Parameter(torch.tensor(0.5))
        model.register_buffer("places", torch.tensor([3, -(2**31), 2**31 - 1]))
        return model
    from jt_impl.runtime import jittor as jt

    model = jt.Module()
    model.scale, model.places = jt.array([1.0]), jt.array([0, 0, 0]).stop_grad()
    return model


@pytest.mark.parametrize("there", FRAMEWORKS)
@pytest.mark.parametrize("back", FRAMEWORKS)
def test_a_number_and_integers_go_to_either_framework_and_back(there: str, back: str) -> None:
    state = read_state(scalar_model("torch"))
    model, again = scalar_model(there), scalar_model(back)
    load_into(model, state)
    load_into(again, read_state(model))
    found = read_state(again)
    assert found["scale"].reshape(()) == 0.5
    assert found["places"].tolist() == state["places"].tolist()


def test_what_jittor_has_no_array_for_is_told(jt: Any) -> None:
    result = load_into(scalar_model("jittor"), read_state(scalar_model("torch")))
    assert result.converted == {"scale": "() -> (1,)", "places": "int64 -> int32"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_number_loads_with_and_without_an_axis(framework: str) -> None:
    model = small_model(framework)
    result = load_into(model, {**small_state(), "scale": np.array(7.5, np.float32)})
    assert (read_state(model)["scale"].tolist(), result.converted) == ([7.5], {"scale": "() -> (1,)"})


@pytest.mark.parametrize("beyond", [2**31, -(2**31) - 1, 2**40])
def test_an_integer_that_jittor_does_not_hold_is_refused(beyond: int, jt: Any) -> None:
    state = {"scale": np.ones(1, np.float32), "places": np.array([0, 1, beyond])}
    with pytest.raises(StateMismatchError, match="with values that it does not hold"):
        load_into(scalar_model("jittor"), state)


def test_a_mismatch_lists_every_key_sorted() -> None:
    state: State = {"z": np.zeros(1), "a": np.zeros(1), "scale": np.zeros(3, np.float32)}
    with pytest.raises(StateMismatchError) as caught:
        load_into(small_torch(), state)
    assert [line.split(" ")[0] for line in caught.value.problems["unexpected"]] == ["a", "z"]
    assert caught.value.problems["shape"] == ["scale: expected (1,), received (3,)"]
    assert len(caught.value.problems["missing"]) == 3


def test_a_counter_that_the_model_lacks_is_ignored_with_a_reason(jt: Any) -> None:
    state = {**small_state(), "layer.num_batches_tracked": np.array(3)}
    result = load_into(small_jittor(), state)
    assert list(result.ignored) == ["layer.num_batches_tracked"]
    assert "Jittor" in result.ignored["layer.num_batches_tracked"]


def test_a_counter_that_the_state_lacks_stays_and_is_listed() -> None:
    norm = torch.nn.BatchNorm1d(2)
    state = read_state(norm)
    del state["num_batches_tracked"]
    norm.num_batches_tracked.fill_(5)
    assert list(load_into(norm, state).ignored) == ["num_batches_tracked"]
    assert norm.num_batches_tracked == 5


def test_tied_weights_must_be_given_equal_arrays() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    state = read_state(model)
    state["1.weight"] = state["1.weight"] + 1
    with pytest.raises(StateMismatchError, match=r"ties it to 0\.weight"):
        load_into(model, state)


def tied_model(framework: str) -> Any:
    """Two layers that share their weight."""
    from jt_impl.runtime import jittor

    nn: Any = torch.nn if framework == "torch" else jittor.nn
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kept", ["0.weight", "1.weight"])
def test_a_file_may_hold_a_tied_weight_once(kept: str, framework: str) -> None:
    state = read_state(tied_model("torch"))
    state[kept] = state[kept] + 1
    del state["0.weight" if kept == "1.weight" else "1.weight"]
    model = tied_model(framework)
    result = load_into(model, state)
    assert list(result.ignored.values()) == [f"the model ties it to {kept}, which the state holds"]
    assert [read_state(model)[name].tolist() for name in ("0.weight", "1.weight")] == [state[kept].tolist()] * 2


def test_a_weight_that_is_tied_elsewhere_only_is_missing() -> None:
    state = read_state(tied_model("torch"))
    del state["1.weight"]
    with pytest.raises(StateMismatchError, match=r"missing.*1\.weight"):
        load_into(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), state)


@pytest.mark.parametrize("kind", ["ParameterList", "ParameterDict"])
def test_parameters_in_lists_have_the_same_names_and_are_loaded(kind: str, jt: Any) -> None:
    values = {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}
    given: dict[str, Any] = {}
    for framework, nn, tensor in (("torch", torch.nn, torch.from_numpy), ("jittor", jt.nn, jt.array)):
        held = {name: tensor(value) for name, value in values.items()}
        made = getattr(nn, kind)(list(held.values()) if kind == "ParameterList" else held)
        given[framework] = nn.Sequential(made)
    state = {name: array + 1 for name, array in read_state(given["torch"]).items()}
    load_into(given["jittor"], state)
    assert {n: a.tolist() for n, a in read_state(given["jittor"]).items()} == {n: a.tolist() for n, a in state.items()}
    assert list(state) == (["0.0", "0.1"] if kind == "ParameterList" else ["0.a", "0.b"])


@pytest.mark.parametrize("stranger", [3, torch.zeros(2), {"a": 1}], ids=["int", "tensor", "dict"])
def test_only_modules_of_the_two_frameworks_are_models(stranger: object) -> None:
    with pytest.raises(TypeError, match="`model` must be"):
        read_state(stranger)


def test_a_state_of_tensors_is_refused() -> None:
    with pytest.raises(TypeError, match="numpy arrays"):
        load_into(small_torch(), small_torch().state_dict())


def test_bfloat16_models_are_refused() -> None:
    with pytest.raises(TypeError, match="bfloat16"):
        read_state(small_torch("bfloat16"))


# ---- what Jittor would do otherwise


@pytest.mark.parametrize("no_grad", [False, True])
def test_jittor_parameters_stay_trainable_and_buffers_frozen(jt: Any, no_grad: bool) -> None:
    model = small_jittor()
    with jt.flag_scope(no_grad=int(no_grad)):
        load_into(model, small_state())
    assert [model.scale.is_stop_grad(), model.layer.weight.is_stop_grad()] == [False, False]
    assert model.layer.running_mean.is_stop_grad()


def test_a_jittor_model_loaded_in_eval_mode_trains_again_after_train(jt: Any) -> None:
    model = small_jittor()
    model.eval()
    load_into(model, small_state())
    assert model.layer.weight.is_stop_grad()
    model.train()
    assert not model.layer.weight.is_stop_grad()


def test_jittor_vars_keep_their_identity(jt: Any) -> None:
    model = small_jittor()
    held = model.layer.weight  # as an optimizer holds it
    load_into(model, small_state())
    assert held is model.layer.weight
    assert bits_equal(held.numpy(), small_state()["layer.weight"])


def test_jittor_names_follow_lists_and_leave_out_private_vars(jt: Any) -> None:
    model = jt.nn.Sequential(small_jittor(), jt.nn.ReLU())
    assert list(read_state(model)) == [f"0.{name}" for name in small_state()]


def test_jittor_int64_stays_int64(jt: Any) -> None:
    model = jt.Module()
    model.count = jt.array64(np.zeros(1, np.int64))
    load_into(model, {"count": np.array([2**40])})
    assert read_state(model)["count"].tolist() == [2**40]


def test_reading_a_checkpoint_imports_neither_framework(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", Checkpoint(small_state()))
    code = f"import sys; from converters import read_checkpoint as r; r({str(tmp_path / 'a.pt')!r}); "
    code += "sys.exit('torch' in sys.modules or 'jittor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- conversions of dtype


def test_to_single_refuses_what_float32_does_not_hold() -> None:
    with pytest.raises(ValueError, match="`a` holds float64 values"):
        to_single({"a": np.array([0.1])})


def test_to_single_reports_each_widened_array() -> None:
    state, converted = to_single({"a": np.array([0.1], np.float16), "n": np.array(3)})
    assert state["a"].dtype == np.float32
    assert converted == {"a": "float16 -> float32"}


def test_every_float16_survives_the_way_to_float32_and_back() -> None:
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    half = half[~np.isnan(half)]
    assert bits_equal(widen(half, np.dtype(np.float32)).astype(np.float16), half)


@pytest.fixture
def flush_to_zero() -> Iterator[None]:
    """Subnormals become zero in this thread, as Jittor's default build does to it."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals to zero")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flush_to_zero")
def test_widening_that_loses_subnormals_is_refused() -> None:
    with pytest.raises(ValueError, match="flush-to-zero"):
        widen(np.array([1], np.uint32).view(np.float32), np.dtype(np.float64))


@pytest.mark.usefixtures("flush_to_zero")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_loading_keeps_subnormals_under_flush_to_zero(framework: str) -> None:
    model = small_model(framework)
    state = {name: np.full_like(array, np.uint32(1).view(np.float32)) for name, array in small_state().items()}
    load_into(model, state)
    assert read_state(model)["layer.bias"].view(np.uint32).tolist() == [1, 1]


def test_to_half_refuses_overflow() -> None:
    with pytest.raises(ValueError, match="`a` holds values beyond float16"):
        to_half({"a": np.array([70000.0], np.float32)})


# ---- files


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_file_returns_the_bits_that_were_written(tmp_path: Path, suffix: str, dtype: str) -> None:
    with np.errstate(over="ignore"):
        state = {**small_state(dtype), "n": np.array(2**40), "empty": np.zeros((0, 3), dtype), "ok": np.array([True])}
    write_checkpoint(tmp_path / f"a{suffix}", Checkpoint(state))
    assert_same(read_checkpoint(tmp_path / f"a{suffix}").state, state)


def test_a_chain_through_every_form_and_both_frameworks_changes_no_bit(tmp_path: Path) -> None:
    state = small_state()
    for step, suffix in enumerate(SUFFIXES):
        model = small_model(FRAMEWORKS[step % 2])
        load_into(model, state)
        write_checkpoint(tmp_path / f"a{suffix}", Checkpoint(read_state(model)))
        state = read_checkpoint(tmp_path / f"a{suffix}").state
    assert_same(state, small_state())


def test_safetensors_keeps_config_and_meta(tmp_path: Path) -> None:
    written = Checkpoint(small_state(), "gold_yolo_s", 10, {"epoch": 3, "norms": [[0.001, 0.03, 2]]})
    write_checkpoint(tmp_path / "a.safetensors", written)
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert (read.config_name, read.num_classes, read.meta) == ("gold_yolo_s", 10, written.meta)


def test_torch_loads_what_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", Checkpoint(small_state()))
    model = small_torch()
    model.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert_same(read_state(model), small_state())


def test_jittor_loads_what_was_written(tmp_path: Path, jt: Any) -> None:
    write_checkpoint(tmp_path / "a.pkl", Checkpoint(small_state()))
    model = small_jittor()
    model.load_state_dict(jt.load(str(tmp_path / "a.pkl")))
    assert_same(read_state(model), small_state())


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_what_jittor_saved_is_read(tmp_path: Path, jt: Any, name: str) -> None:
    model = small_jittor()
    load_into(model, small_state())
    jt.save(model.state_dict(), str(tmp_path / name))
    assert_same(read_checkpoint(tmp_path / name).state, small_state())


def test_a_jittor_module_saved_by_itself_is_read(tmp_path: Path, jt: Any) -> None:
    model = small_jittor()
    load_into(model, small_state())
    model.save(str(tmp_path / "a.pkl"))
    assert_same(read_checkpoint(tmp_path / "a.pkl").state, small_state())


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_are_read_from_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    state = {"a": np.arange(6, dtype=">f4").reshape(2, 3), "b": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    read = read_pickle(pickle.dumps(state, protocol))
    assert_same({name: value.array for name, value in read.items()}, {"a": state["a"].astype("<f4"), "b": state["b"]})


TORCH_TENSORS = {
    "half": torch.tensor([1.5, -0.0]).half(),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "int64": torch.tensor(2**40),
    "int32": torch.tensor([1, -1], dtype=torch.int32),
    "int16": torch.tensor([1, -1], dtype=torch.int16),
    "int8": torch.tensor([1, -1], dtype=torch.int8),
    "uint8": torch.tensor([255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "sliced": torch.arange(10.0)[3:8:2],
    "channels_last": torch.arange(16.0).reshape(1, 4, 2, 2).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("case", TORCH_TENSORS)
def test_torch_tensors_are_read_without_torch(tmp_path: Path, case: str) -> None:
    torch.save({"a": TORCH_TENSORS[case]}, tmp_path / "a.pt")
    assert_same(read_checkpoint(tmp_path / "a.pt").state, {"a": np.array(TORCH_TENSORS[case].numpy(), order="C")})


def test_bfloat16_is_widened_and_said_so(tmp_path: Path) -> None:
    values = torch.tensor([1.0078125, -3e38, 0.0], dtype=torch.bfloat16)
    torch.save({"a": values}, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert bits_equal(read.state["a"], values.float().numpy())
    assert read.meta["widened"] == "1 arrays bfloat16 -> float32"


def rewrite(path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Replace (or, with None, drop) entries of a ``.pt`` archive by the end of their names."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            new = change.get(name.split("/", 1)[1], data)
            if new is not None:
                archive.writestr(name, new)


def test_big_endian_archives_are_read(tmp_path: Path) -> None:
    values = np.array([1.0, 2.5, -0.0], np.float32)
    torch.save({"a": torch.from_numpy(values)}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", {"byteorder": b"big", "data/0": values.astype(">f4").tobytes()})
    assert_same(read_checkpoint(tmp_path / "a.pt").state, {"a": values})


# ---- damaged and wrong files


def good_bytes(suffix: str, folder: Path) -> bytes:
    write_checkpoint(folder / f"good{suffix}", Checkpoint(small_state()))
    return (folder / f"good{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("part", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, suffix: str, part: float) -> None:
    whole = good_bytes(suffix, tmp_path)
    (tmp_path / f"a{suffix}").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CheckpointError, match="a" + suffix):
        read_checkpoint(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("suffix", "other"),
    [(a, b) for a in SUFFIXES for b in (".safetensors", ".pt", ".pkl") if a != b and (a, b) != (".pth", ".pt")],
)
def test_a_wrong_suffix_is_one_clear_error(tmp_path: Path, suffix: str, other: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(good_bytes(other, tmp_path))
    with pytest.raises(CheckpointError, match="a" + suffix):
        read_checkpoint(tmp_path / f"a{suffix}")


def test_an_unknown_suffix_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors, \.pt, \.pth, \.pkl"):
        read_checkpoint(tmp_path / "a.onnx")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        read_checkpoint(tmp_path / "gone.pt")


def test_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.pt"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_file_of_old_torch_tells_how_to_save_it_anew(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch\.save\(torch\.load"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_changed_byte_in_a_jittor_file_is_found(tmp_path: Path) -> None:
    data = bytearray(good_bytes(".pkl", tmp_path))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        read_checkpoint(tmp_path / "a.pkl")


DAMAGED_ENTRIES: dict[str, tuple[dict[str, bytes | None], str]] = {
    "storage gone": ({"data/0": None}, "lacks its entry `data/0`"),
    "storage short": ({"data/0": b"1234567"}, "should have 8 bytes, has 7"),
    "storage long": ({"data/0": b"123456789"}, "should have 8 bytes, has 9"),
    "no pickle": ({"data.pkl": None}, "one data.pkl"),
    "odd byte order": ({"byteorder": b"middle"}, "little or big"),
    "no weights": ({"data.pkl": pickle.dumps({})}, "holds no weights"),
    "a number": ({"data.pkl": pickle.dumps({"a": 3})}, "expected a tensor under 'a'"),
    "a list": ({"data.pkl": pickle.dumps([1])}, "expected a state dict"),
}


@pytest.mark.parametrize("case", DAMAGED_ENTRIES)
def test_a_damaged_archive_says_what_is_wrong(tmp_path: Path, case: str) -> None:
    change, message = DAMAGED_ENTRIES[case]
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.pt")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="must not be compressed"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (1, (2,), (1,)),
        (0, (3,), (1,)),
        (0, (2,), (2,)),
        (2**39, (1,), (1,)),
        (0, (10**9,), (0,)),
        (0, (2,), ()),
        (0, (1,) * 40, (1,) * 40),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, offset: int, shape: Any, stride: Any) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    tensor = TorchTensor(Storage("FloatStorage", "0", 2), offset, shape, stride)
    with TorchArchive(tmp_path / "a.pt") as archive, pytest.raises(CheckpointError, match="its storage of 2"):
        archive.array(tensor)


# ---- hostile pickles


class Call:
    """Pickles as a call of ``function``, which ``pickle.load`` would make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def hostile(mark: str) -> dict[str, bytes]:
    touch, code = f"touch {mark}", f"open({mark!r}, 'w')"
    return {
        "os.system": pickle.dumps(Call(os.system, touch)),
        "os.system, oldest protocol": pickle.dumps(Call(os.system, touch), 0),
        "eval": pickle.dumps(Call(builtins.eval, code)),
        "exec": pickle.dumps({"a": [Call(builtins.exec, code)]}),
        "open": pickle.dumps(Call(open, mark, "w")),
        "getattr": pickle.dumps(Call(getattr, "", "join")),
        "import": pickle.dumps(Call(builtins.__import__, "os")),
        "Popen": pickle.dumps(Call(subprocess.Popen, ["touch", mark])),
        "copyreg": pickle.dumps(Call(copyreg._reconstructor, dict, object, None)),  # type: ignore[attr-defined]
        "dotted name": b"\x80\x04\x8c\x02os\x8c\x0dpath.os.popen\x93.",
        "INST": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'{touch}'\no.".encode(),
        "extension registry": b"\x80\x02\x82\x01.",
        "module that only looks known": b"cyolov6evil\nrun\n.",
        "numpy file reader": pickle.dumps(Call(np.fromfile, mark)),
        "torch.load": b"ctorch\nload\n.",
        "torch.hub": b"ctorch.hub\nload\n.",
        "call of data": b"cnumpy\nndarray\n)R.",
        "call of text": b"S'text'\n)R.",
        "state of text": b"S'text'\n}b.",
        "state of a class": b"ccollections\nOrderedDict\n}b.",
    }


@pytest.mark.parametrize("case", hostile(""))
def test_a_hostile_pickle_runs_nothing_and_is_refused(tmp_path: Path, case: str) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(UnsafePickleError):
        read_pickle(hostile(str(mark))[case])
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_a_hostile_file_names_what_it_asked_for_and_what_to_do(tmp_path: Path, suffix: str) -> None:
    attack = hostile(str(tmp_path / "mark"))["eval"]
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", {"data.pkl": attack})
    (tmp_path / "a.pkl").write_bytes(attack)
    with pytest.raises(UnsafePickleError, match=r"a\.\w+: `builtins\.eval` is not on the list.*torch\.save"):
        read_checkpoint(tmp_path / f"a{suffix}")


def test_calls_of_inert_names_make_inert_objects() -> None:
    made = read_pickle(b"ctorch.nn.functional\nadaptive_avg_pool2d\n(S'x'\ntR.")
    assert isinstance(made, Instance)
    assert str(made.origin) == "torch.nn.functional.adaptive_avg_pool2d"


def test_an_inert_name_cannot_reach_through_its_module() -> None:
    data = b"\x80\x04\x8c\x08torch.nn\x8c\x14functional.os.system\x93\x8c\x02ls\x85R."
    assert isinstance(read_pickle(data), Instance)


@pytest.fixture
def foreign() -> Iterator[types.ModuleType]:
    """A module ``yolov6.trap`` that is importable while the test runs."""
    module = types.ModuleType("yolov6.trap")
    sys.modules["yolov6"], sys.modules["yolov6.trap"] = types.ModuleType("yolov6"), module
    yield module
    del sys.modules["yolov6"], sys.modules["yolov6.trap"]


def adopt(module: types.ModuleType, cls: type) -> type:
    cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
    setattr(module, cls.__name__, cls)
    return cls


def test_setstate_of_an_importable_foreign_class_is_not_called(foreign: types.ModuleType) -> None:
    called = []

    class Trap:
        def __getstate__(self) -> dict[str, int]:
            return {"a": 1}

        def __setstate__(self, state: dict[str, int]) -> None:
            called.append(state)

    adopt(foreign, Trap)
    made = read_pickle(pickle.dumps(Trap()))
    assert made.state == {"a": 1}
    assert called == []


def test_every_cut_of_a_pickle_is_a_clear_error() -> None:
    data = pickle.dumps({"a": np.zeros(2), "b": [(1, 2.5), {"c"}]})
    for end in range(len(data)):
        with pytest.raises(CheckpointError):
            read_pickle(data[:end])


def test_changed_bytes_give_a_value_or_a_clear_error() -> None:
    data, random_bytes = pickle.dumps({"a": np.zeros(2), "b": [(1, 2.5), {"c"}]}), random.Random(0)
    for _ in range(2000):
        changed = bytearray(data)
        changed[random_bytes.randrange(len(data))] = random_bytes.randrange(256)
        try:
            read_pickle(bytes(changed))
        except CheckpointError:
            continue


@pytest.mark.parametrize("data", [b"(" * 10 + b")" + b"\x85" * 10**5 + b"}" + b".", b")" + b"\x85" * 10**5 + b"."])
def test_deep_nesting_does_not_crash(data: bytes) -> None:
    read_pickle(data)


def test_a_deeply_nested_key_is_refused() -> None:
    with pytest.raises(CheckpointError, match="keys must be plain"):
        read_pickle(b"})" + b"\x85" * 10**5 + b"Ns.")


def test_modules_that_hold_each_other_are_refused(tmp_path: Path) -> None:
    loop = b"cmodels\nNet\n)\x81p0\n}S'_modules'\n}S'a'\ng0\nssb."
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", {"data.pkl": loop})
    with pytest.raises(CheckpointError, match="a loop"):
        read_checkpoint(tmp_path / "a.pt")


# ---- training checkpoints with whole modules


class Net(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cv = torch.nn.Conv2d(3, 4, 1, bias=False)
        self.bn = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
        self.register_buffer("grid", torch.zeros(2), persistent=False)
        self.alpha = torch.nn.Parameter(torch.tensor([1.5]))
        self.pool = torch.nn.functional.adaptive_avg_pool2d


def save_training(folder: Path, foreign: types.ModuleType, **entries: Any) -> Path:
    """A checkpoint of pickled modules of a class of ``yolov6.trap``."""
    home = Net.__module__
    try:
        adopt(foreign, Net)
        torch.save(entries, folder / "last.pt")
    finally:
        Net.__module__ = home
    return folder / "last.pt"


def test_the_averaged_weights_are_taken_in_official_order(tmp_path: Path, foreign: types.ModuleType) -> None:
    model, ema = Net(0).half(), Net(1).half()
    path = save_training(tmp_path, foreign, model=model, ema=ema, updates=7, epoch=3)
    assert_same(read_checkpoint(path).state, read_state(ema))


def test_a_stripped_checkpoint_gives_its_model(tmp_path: Path, foreign: types.ModuleType) -> None:
    model = Net(0).half()
    path = save_training(tmp_path, foreign, model=model, ema=None, optimizer=None, epoch=3)
    assert_same(read_checkpoint(path).state, read_state(model))


def test_the_facts_of_a_training_checkpoint_are_kept(tmp_path: Path, foreign: types.ModuleType) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    path = save_training(tmp_path, foreign, model=Net(0), ema=Net(1), epoch=3, optimizer=optimizer.state_dict())
    read = read_checkpoint(path)
    assert read.meta == {
        "weights_from": "ema",
        "model_class": "yolov6.trap.Net",
        "norms": [[0.001, 0.03, 1]],
        "epoch": 3,
    }
    assert sorted(read.ignored) == ["grid", "model", "optimizer"]


def test_a_foreign_model_has_no_config(tmp_path: Path, foreign: types.ModuleType) -> None:
    read = read_checkpoint(save_training(tmp_path, foreign, model=Net(0)))
    assert (read.config_name, read.num_classes) == (None, None)
    with pytest.raises(CheckpointError, match="does not tell its config"):
        read.require_config()


def test_a_nested_state_dict_is_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": OrderedDict(small_torch().state_dict())}, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert_same(read.state, read_state(small_torch()))
    assert read.meta == {"weights_from": "state_dict", "epoch": 3}


# ---- Gold-YOLO


def test_the_official_like_checkpoint_has_the_official_keys_shapes_and_order(official_like: Path) -> None:
    inventory = recorded_json("structure/n_nc80")["train"]
    state = read_checkpoint(official_like).state
    assert [(name, array.shape) for name, array in state.items()] == [(row[0], tuple(row[1])) for row in inventory]


def test_the_official_like_checkpoint_tells_its_config(official_like: Path) -> None:
    read = read_checkpoint(official_like)
    assert read.require_config() == ("gold_yolo_n", 80)
    assert {"head": "plain", "reg_max": 0, "epoch": 299}.items() <= read.meta.items()
    assert read.meta["norms"] == [[0.001, 0.03, 133], [1e-05, 0.1, 24]]


def test_the_official_like_checkpoint_holds_the_seeded_weights_in_half(official_like: Path) -> None:
    from fixtures.seeded import gen

    state = read_checkpoint(official_like).state
    expected = {name: gen(name, array.shape) for name, array in state.items()}
    assert_same(state, {name: a.astype(np.float16) if a.dtype == np.float32 else a for name, a in expected.items()})


@pytest.mark.parametrize("variant", ["n_nc80", "n_nc10", "n_dfl_nc80", "s_nc80", "s_nc10", "m_nc80", "l_nc80"])
@pytest.mark.parametrize("form", ["train", "deploy", "fused_deploy"])
def test_config_and_classes_are_reported_by_shapes(variant: str, form: str) -> None:
    from converters.find_state import identify

    rows = recorded_json(f"structure/{variant}")[form]
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape, *_ in rows}
    name, classes, facts = identify(state)
    letter, *_, count = variant.split("_")
    assert (name, f"nc{classes}") == (f"gold_yolo_{letter}", count)
    assert facts["reg_max"] == (0 if variant.startswith("n_nc") else 16)


@pytest.mark.parametrize("package", ["torch_ref", "jt_impl"])
def test_the_official_like_checkpoint_loads_into_both_models(official_like: Path, package: str) -> None:
    import importlib

    from fixtures.config import load_config

    model = importlib.import_module(package).build_model(load_config("gold_yolo_n", num_classes=80))
    checkpoint = read_checkpoint(official_like)
    result = load_into(model, checkpoint.state)
    assert all(name.endswith("num_batches_tracked") for name in result.ignored)
    assert len(result.loaded) + len(result.ignored) == len(checkpoint.state) == 929
    assert_same(read_state(model), {n: a for n, a in to_single(checkpoint.state)[0].items() if n in result.loaded})


@pytest.mark.parametrize("package", ["torch_ref", "jt_impl"])
@pytest.mark.parametrize("head", ["plain", "fuse_ab", "distill_ns"])
def test_a_checkpoint_tells_which_model_to_build(tmp_path: Path, head: str, package: str) -> None:
    import importlib

    from fixtures.config import load_config

    module = importlib.import_module(package)
    model = module.build_model(load_config("gold_yolo_n", 10, use_dfl=True, head=head))
    write_checkpoint(tmp_path / "weights.pt", Checkpoint(read_state(model)))
    read = read_checkpoint(tmp_path / "weights.pt")
    assert read.meta["head"] == head
    assert read.model_config() == model.config
    again = module.build_model(read.model_config())
    load_into(again, read.state)
    assert_same(read_state(again), read_state(model))


def test_weights_of_another_model_tell_no_config() -> None:
    with pytest.raises(CheckpointError, match="does not tell its config"):
        Checkpoint(small_state()).model_config()


# ---- writing and the command


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(path, Checkpoint(small_state()))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: b"old"}


def test_writing_into_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="existing folder"):
        write_checkpoint(tmp_path / "gone" / "a.pkl", Checkpoint(small_state()))


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_the_command_converts_between_all_forms(tmp_path: Path, source: str, target: str) -> None:
    write_checkpoint(tmp_path / f"a{source}", Checkpoint(small_state()))
    assert main([str(tmp_path / f"a{source}"), str(tmp_path / f"b{target}")]) == 0
    assert_same(read_checkpoint(tmp_path / f"b{target}").state, small_state())


def test_the_command_tells_what_it_mapped_and_ignored(
    tmp_path: Path, foreign: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_training(tmp_path, foreign, model=Net(0).half(), ema=Net(1).half(), epoch=3)
    assert main([str(source), str(tmp_path / "b.pkl"), "--float"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "mapped     6 arrays float32",
        "mapped     1 arrays int64",
        "converted  6 arrays float16 -> float32",
        "ignored    model: the weights of `ema` are taken",
        "ignored    grid: a non-persistent buffer",
        "ignored    meta: a .pkl file is a plain state dict",
    ):
        assert line in printed


def test_the_command_rounds_to_half_on_request(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pkl", Checkpoint({"a": np.array([0.1], np.float32)}))
    assert main([str(tmp_path / "a.pkl"), str(tmp_path / "b.pt"), "--half"]) == 0
    assert_same(read_checkpoint(tmp_path / "b.pt").state, {"a": np.array([0.1], np.float16)})


BAD_COMMANDS = {
    "missing": ["gone.pt", "b.pkl"],
    "damaged": ["bad.pt", "b.pkl"],
    "unknown form": ["a.pkl", "b.onnx"],
    "onto itself": ["a.pkl", "a.pkl"],
    "no folder": ["a.pkl", "gone/b.pkl"],
    "beyond half": ["a.pkl", "b.pt", "--half"],
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_input_is_one_line_code_2_and_no_file(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint("a.pkl", Checkpoint({"a": np.array([1e6], np.float32)}))
    Path("bad.pt").write_bytes(b"PK\x03\x04")
    assert main(BAD_COMMANDS[case]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pkl", "bad.pt"]


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python -m converters gold_yolo_n.pt gold_yolo_n.safetensors --float" in capsys.readouterr().out
