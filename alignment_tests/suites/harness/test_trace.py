"""Traces and nested arguments: what is written is what is read, nothing is held, and what is no trace says so."""

from __future__ import annotations

import json
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from alignment_tests.harness.record import trace as trace_module
from alignment_tests.harness.record.nested import OpaqueArgumentError, flatten, unflatten
from alignment_tests.harness.record.trace import ARRAYS, PHASES, SAFETENSORS_NAMES, Call, Trace, TraceWriter

NAME = "activation/a.b#0/0"
BYTES = np.random.default_rng(0).integers(0, 256, 8 * 24, dtype=np.uint8)


def sample(dtype: str) -> Any:
    """24 elements of any bit pattern: NaN payloads, subnormals and infinities are among them."""
    if dtype == "bool":
        return BYTES[:24] > 100
    return BYTES.view(dtype)[:24]


def identical(actual: Any, expected: Any) -> bool:
    return (actual.dtype, actual.shape, actual.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def written(folder: Path, arrays: dict[str, Any]) -> Trace:
    with TraceWriter(folder) as writer:
        for name, array in arrays.items():
            writer.put(name, array)
    return Trace.open(folder)


# Round trip

SHAPES: dict[str, Any] = {
    "flat": lambda a: a,
    "4-d": lambda a: a.reshape(1, 2, 3, 4),
    "0-d": lambda a: a[7].reshape(()),
    "empty": lambda a: a[:0].reshape(3, 0, 2),
    "strided": lambda a: a[::3],
    "reversed": lambda a: a[::-1],
    "transposed": lambda a: a.reshape(4, 6).T,
    "Fortran order": lambda a: np.asfortranarray(a.reshape(2, 3, 4)),
    "broadcast": lambda a: np.broadcast_to(a[:1], (5, 1)),
}


@pytest.mark.parametrize("dtype", SAFETENSORS_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_is_bit_exact(shape: str, dtype: str, tmp_path: Path) -> None:
    array = SHAPES[shape](sample(dtype))
    before = np.ones(3, np.uint8)  # an odd number of bytes: what follows is not aligned in the file
    trace = written(tmp_path, {"input/#0/0": before, NAME: array})
    assert identical(trace[NAME], array)
    assert identical(trace["input/#0/0"], before)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFC12345, 0x00000001, 0x80000000])
def test_nan_payloads_and_signed_zero_survive(bits: int, tmp_path: Path) -> None:
    array = np.array([bits], np.uint32).view(np.float32)
    assert written(tmp_path, {NAME: array})[NAME].view(np.uint32)[0] == bits


def test_the_array_file_is_a_safetensors_file(tmp_path: Path) -> None:
    arrays = {
        f"activation/{dtype}#0/{shape}": SHAPES[shape](sample(dtype)) for dtype in SAFETENSORS_NAMES for shape in SHAPES
    }
    written(tmp_path, arrays)
    found = load_file(tmp_path / ARRAYS)
    assert set(found) == set(arrays)
    assert [name for name in arrays if not identical(found[name], arrays[name])] == []


def test_a_trace_without_arrays_is_one(tmp_path: Path) -> None:
    assert written(tmp_path, {}).names() == []
    assert load_file(tmp_path / ARRAYS) == {}


def test_a_written_trace_reads_at_once(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path)
    writer.put(NAME, sample("float32"))
    assert identical(writer.close()[NAME], sample("float32"))


def test_changing_what_was_read_changes_nothing(tmp_path: Path) -> None:
    trace = written(tmp_path, {NAME: sample("float64")})
    trace[NAME][:] = 0
    assert identical(trace[NAME], sample("float64"))


def test_changing_an_array_after_put_changes_nothing(tmp_path: Path) -> None:
    array = sample("int32").copy()
    with TraceWriter(tmp_path) as writer:
        writer.put(NAME, array)
        array[:] = 0
    assert identical(writer.trace[NAME], sample("int32"))


def test_order_calls_and_meta_survive(tmp_path: Path) -> None:
    names = [f"activation/{path}#0/0" for path in ("z", "a", "层.0", "m")]
    call = Call("z", 0, "Conv2d", {"dict": {"args": {"list": [{"leaf": "args.0"}]}}}, {"leaf": "0"})
    with TraceWriter(tmp_path, {"seed": 0}) as writer:
        for name in names:
            writer.put(name, sample("float32"))
        writer.trace.calls.append(call)
        writer.trace.meta["note"] = "ä"
    trace = Trace.open(tmp_path)
    assert (list(trace), trace.calls, trace.meta) == (names, [call], {"seed": 0, "note": "ä"})


def test_names_by_phase(tmp_path: Path) -> None:
    trace = written(tmp_path, {f"{phase}/a#0/0": sample("bool") for phase in PHASES})
    assert [trace.names(phase) for phase in PHASES] == [[f"{phase}/a#0/0"] for phase in PHASES]


# Aliases


def test_an_alias_is_stored_once(tmp_path: Path) -> None:
    array = np.ones(1_000_000, np.float32)
    with TraceWriter(tmp_path) as writer:
        writer.put("activation/a.b#0/0", array)
        writer.alias("activation/a#0/0", "activation/a.b#0/0")
        writer.alias("activation/#0/0", "activation/a#0/0")
    assert (tmp_path / ARRAYS).stat().st_size < trace_module.HEADER_ROOM + array.nbytes + 100
    trace = Trace.open(tmp_path)
    assert identical(trace["activation/#0/0"], array)
    assert trace.same("activation/#0/0", "activation/a.b#0/0")


def test_equal_arrays_are_no_aliases(tmp_path: Path) -> None:
    trace = written(tmp_path, {"activation/a#0/0": sample("int8"), "activation/b#0/0": sample("int8")})
    assert not trace.same("activation/a#0/0", "activation/b#0/0")


# What is refused

REFUSED: dict[str, tuple[str, Any, str]] = {
    "a name twice": (NAME, sample("float32"), "`name` must be new. Received twice: activation/a.b#0/0"),
    "an unknown phase": ("activations/a#0/0", sample("float32"), "must start with a phase"),
    "no phase": ("a", sample("float32"), "must start with a phase"),
    "complex": ("activation/c#0/0", np.ones(2, np.complex64), "Received: complex64"),
    "objects": ("activation/c#0/0", np.array([None]), "Received: object"),
    "text": ("activation/c#0/0", np.array(["a"]), "Received: <U1"),
    "other byte order": ("activation/c#0/0", np.ones(2, ">f4"), "Received: >f4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_array_leaves_the_others_whole(case: str, tmp_path: Path) -> None:
    name, array, reason = REFUSED[case]
    with TraceWriter(tmp_path) as writer:
        writer.put(NAME, sample("float32"))
        with pytest.raises(ValueError, match=reason):
            writer.put(name, array)
        writer.put("activation/d#0/0", sample("int64"))
    trace = Trace.open(tmp_path)
    assert list(trace) == [NAME, "activation/d#0/0"]
    assert identical(trace["activation/d#0/0"], sample("int64"))


def test_an_alias_must_be_new_too(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer:
        writer.put(NAME, sample("float32"))
        with pytest.raises(ValueError, match="Received twice"):
            writer.alias(NAME, NAME)


def test_an_unknown_name_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no array 'loss/total' in the trace"):
        written(tmp_path, {})["loss/total"]


def test_an_exception_leaves_no_half_trace(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TraceWriter(tmp_path) as writer:
            writer.put(NAME, sample("float32"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_trace_before_whole(tmp_path: Path) -> None:
    written(tmp_path, {NAME: sample("float32")})
    with pytest.raises(ZeroDivisionError), TraceWriter(tmp_path):
        raise ZeroDivisionError
    assert identical(Trace.open(tmp_path)[NAME], sample("float32"))


def test_meta_that_is_no_json_leaves_no_half_trace(tmp_path: Path) -> None:
    with pytest.raises(TypeError), TraceWriter(tmp_path, {"model": object()}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_too_many_names_leave_no_half_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "HEADER_ROOM", 80)
    with pytest.raises(ValueError, match="too many names for one trace"):
        written(tmp_path, {NAME: sample("float32"), f"{NAME}.1": sample("float32")})
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_replaced_whole(tmp_path: Path) -> None:
    written(tmp_path, {NAME: sample("float32")})
    trace = written(tmp_path, {"loss/total": sample("float64")})
    assert list(trace) == ["loss/total"]
    assert identical(trace["loss/total"], sample("float64"))


# Opening what is no trace

MANIFESTS = {
    "other format": ('{"format": 2, "entries": {}}', "must be of format 1. Received: 2"),
    "no format": ("{}", "must be of format 1. Received: None"),
    "no entries": ('{"format": 1}', "must be of format 1"),
    "a list": ("[]", "must be of format 1"),
    "half a file": ('{"format": 1, "ent', "is not JSON"),
    "empty": ("", "is not JSON"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_another_manifest_is_refused(case: str, tmp_path: Path) -> None:
    text, reason = MANIFESTS[case]
    written(tmp_path, {})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        Trace.open(tmp_path)


@pytest.mark.parametrize("missing", ["manifest.json", ARRAYS, "both"])
def test_a_folder_without_trace_is_refused(missing: str, tmp_path: Path) -> None:
    written(tmp_path, {})
    for name in ["manifest.json", ARRAYS] if missing == "both" else [missing]:
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match="`folder` must hold a trace"):
        Trace.open(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`folder` must hold a trace"):
        Trace.open(tmp_path / "nowhere")


def test_a_file_cut_short_is_reported(tmp_path: Path) -> None:
    written(tmp_path, {NAME: sample("float32")})
    with (tmp_path / ARRAYS).open("r+b") as file:
        file.truncate(trace_module.HEADER_ROOM + 50)
    with pytest.raises(ValueError, match="is cut short: its arrays take 96 bytes, 42 are there"):
        Trace.open(tmp_path)[NAME]


# Memory


def test_writing_and_reading_hold_no_array(tmp_path: Path) -> None:
    size, count = 4 << 20, 50
    tracemalloc.start()
    with TraceWriter(tmp_path) as writer:
        for i in range(count):
            writer.put(f"activation/a#{i}/0", np.full(size // 4, i, np.float32))
    trace = Trace.open(tmp_path)
    assert [trace[name][0] for name in trace] == list(range(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size


# Nested arguments

A, B, C = (np.full(2, i) for i in range(3))
NESTS: dict[str, tuple[Any, list[str]]] = {
    "a lone tensor": (A, ["0"]),
    "a tuple": ((A, B), ["0", "1"]),
    "a list": ([A, B], ["0", "1"]),
    "nested": ([A, (B, [C])], ["0", "1.0", "1.1.0"]),
    "a dictionary": ({"x": A, "y": {"z": B}}, ["x", "y.z"]),
    "its order": ({"y": A, "x": B}, ["y", "x"]),
    "an ordered one": (OrderedDict(b=A, a=B), ["b", "a"]),
    "keys that are numbers": ({0: A, 2: B}, ["0", "2"]),
    "keys of both kinds": ({0: A, "x": B, 1.5: C}, ["0", "x", "1.5"]),
    "keys that are None or tuples": ({None: A, (1, ("a", 2)): B}, ["None", "(1, ('a', 2))"]),
    "a key with a slash": ({"loss/box": A}, ["loss|box"]),
    "the same tensor twice": ((A, A), ["0", "1"]),
    "constants": ((None, True, 3, 0.5, "same", A), ["5"]),
    "no tensor": ((1, "a", None, [], (), {}), []),
    "None": (None, []),
}


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def same_nest(actual: Any, expected: Any) -> bool:
    if is_array(expected):
        return actual is expected
    if isinstance(expected, dict):
        return list(actual) == list(expected) and all(same_nest(actual[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return type(actual) is type(expected) and all(same_nest(x, y) for x, y in zip(actual, expected, strict=True))
    return type(actual) is type(expected) and bool(actual == expected)


@pytest.mark.parametrize("case", NESTS)
def test_nest_round_trip(case: str) -> None:
    nest, slots = NESTS[case]
    leaves, structure = flatten(nest, is_array)
    assert list(leaves) == slots
    restored = unflatten(json.loads(json.dumps(structure)), leaves.__getitem__)
    assert same_nest(restored, nest)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**30, -0.0])
def test_odd_constants_survive_the_file(value: float) -> None:
    _, structure = flatten([value], is_array)
    assert repr(unflatten(json.loads(json.dumps(structure)), lambda slot: slot)) == repr([value])


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass
class Features:
    levels: tuple[Any, ...]
    stride: int


OPAQUE: dict[str, tuple[Any, str, list[str]]] = {
    "an object": (object(), "builtins.object", []),
    "a set": ({1}, "builtins.set", []),
    "a type": (Features, "builtins.type", []),
    "deep inside": ([1, {"x": (A, slice(2))}], "builtins.slice", ["1.x.0"]),
    "a dataclass": (Features((A, B), 8), f"{__name__}.Features", ["levels.0", "levels.1"]),
    "a named tuple": (Pair(A, 1), f"{__name__}.Pair", ["0"]),
    "odd keys": ({b"a": A}, "builtins.dict", ["b'a'"]),
}


@pytest.mark.parametrize("case", OPAQUE)
def test_what_cannot_be_made_again_is_named_but_its_tensors_are_seen(case: str) -> None:
    value, kind, slots = OPAQUE[case]
    leaves, structure = flatten(value, is_array)
    assert list(leaves) == slots
    with pytest.raises(OpaqueArgumentError, match=f"of type {kind} cannot"):
        unflatten(json.loads(json.dumps(structure)), leaves.__getitem__)


@pytest.mark.parametrize("nest", [{"a.b": A, "a": {"b": B}}, {1: A, "1": B}, {"a/b": A, "a|b": B}], ids=str)
def test_two_tensors_of_one_name_are_refused(nest: Any) -> None:
    with pytest.raises(ValueError, match="two tensors of one call have the name"):
        flatten(nest, is_array)
