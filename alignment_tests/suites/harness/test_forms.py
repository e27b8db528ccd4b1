"""Nests of any classes: their tensors are found, and they are made again as what they were."""

from __future__ import annotations

import json
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from alignment_tests.harness.record.forms import Mark, arguments_again, fill, form_of
from alignment_tests.harness.record.nested import (
    OpaqueArgumentError,
    flatten,
    is_exact,
    is_plain,
    items_of,
    paired_slots,
    slots_of,
    unflatten,
)

A, B = np.zeros(2), np.ones(2)
Mode = Enum("Mode", "NEAREST LINEAR")
Old = namedtuple("Old", "x y")


class Pair(NamedTuple):
    hidden: Any
    pooled: Any = None


@dataclass
class Data:
    hidden: Any
    pooled: Any = None
    count: int = field(default=0, init=False)


@dataclass(frozen=True, slots=True)
class Frozen:
    hidden: Any
    pooled: Any


class Bag:
    """As DETR's NestedTensor."""

    def __init__(self, hidden: Any, pooled: Any) -> None:
        self.hidden, self.pooled, self.mode = hidden, pooled, Mode.LINEAR


class Slotted:
    __slots__ = ("__secret", "hidden")

    def __init__(self, hidden: Any, secret: Any) -> None:
        self.hidden, self.__secret = hidden, secret


class Output(OrderedDict):  # type: ignore[type-arg]
    """As an output of the transformers library: each item is an attribute too, and the constructor is particular."""

    def __init__(self, hidden: Any, pooled: Any) -> None:
        super().__init__(hidden=hidden, pooled=pooled)
        self.hidden, self.pooled, self.note = hidden, pooled, "kept"


class Named(OrderedDict):  # type: ignore[type-arg]
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Stack(list):  # type: ignore[type-arg]
    note = "kept"


class Ported(Bag):
    pass


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def annotated(stack: Stack) -> Stack:
    stack.note = "changed"
    return stack


# nest, slots, the way to its tensors
NESTS: dict[str, tuple[Any, list[str], Callable[[Any], tuple[Any, ...]]]] = {
    "a named tuple": (Pair(A, B), ["0", "1"], lambda n: (n.hidden, n.pooled)),
    "one of collections": (Old(A, 3), ["0"], lambda n: (n.x, n.y)),
    "a dataclass": (Data(A, [B]), ["hidden", "pooled.0"], lambda n: (n.hidden, n.pooled[0], n.count)),
    "a frozen one with slots": (Frozen(A, B), ["hidden", "pooled"], lambda n: (n.hidden, n.pooled)),
    "an object": (Bag(A, {"x": B}), ["hidden", "pooled.x"], lambda n: (n.hidden, n.pooled["x"], n.mode)),
    "an object with slots": (Slotted(A, B), ["_Slotted__secret", "hidden"], lambda n: (n._Slotted__secret, n.hidden)),
    "a namespace": (SimpleNamespace(x=A, y=(B,)), ["x", "y.0"], lambda n: (n.x, n.y[0])),
    "an ordered dictionary": (OrderedDict(b=A, a=B), ["b", "a"], lambda n: tuple(n.values())),
    "a mapping with attributes": (
        Output(A, B),
        ["hidden", "pooled"],
        lambda n: (n.hidden, n.pooled, n["hidden"], n["pooled"], n.note),
    ),
    "a mapping that is read like one": (Named(x=A, y=B), ["x", "y"], lambda n: (n.x, n["y"])),
    "a dictionary with a default": (defaultdict(list, x=A), ["x"], lambda n: (n["x"], n["absent"] == [])),
    "a mapping that is no dict": (UserDict(x=A), ["x"], lambda n: (n["x"],)),
    "a read-only mapping": (MappingProxyType({"x": A}), ["x"], lambda n: (n["x"],)),
    "a list of a class of its own": (annotated(Stack([A, B])), ["0", "1"], lambda n: (n[0], n[1], n.note)),
    "a deque": (deque([A, B], maxlen=2), ["0", "1"], lambda n: (n[0], n[1], n.maxlen)),
    "one in another": (Pair(Data(Bag(A, [Pair(B)]))), ["0.hidden.hidden", "0.hidden.pooled.0.0"], lambda n: (
        n.hidden.hidden.hidden, n.hidden.hidden.pooled[0].hidden,
    )),
    "beside what is constant": ((A, slice(2), Mode.LINEAR, {1, 2}, torch.float32), ["0"], lambda n: tuple(n)),
}  # fmt: skip


def again(nest: Any) -> tuple[Any, dict[str, Any]]:
    """The nest made again of its form, and the new tensors by slot."""
    leaves, structure = flatten(nest, is_array)
    new = {slot: array + 1 for slot, array in leaves.items()}
    return fill(form_of(nest, is_array), structure, new.__getitem__), new


@pytest.mark.parametrize("case", NESTS)
def test_tensors_are_found(case: str) -> None:
    nest, slots, _ = NESTS[case]
    leaves, structure = flatten(nest, is_array)
    assert list(leaves) == slots
    assert slots_of(json.loads(json.dumps(structure)))[: len(slots)] == slots


@pytest.mark.parametrize("case", NESTS)
def test_a_nest_is_made_again_as_what_it_was(case: str) -> None:
    nest, slots, read = NESTS[case]
    made, new = again(nest)
    assert type(made) is type(nest)
    assert made is not nest
    found = [next(slot for slot, array in new.items() if array is value) for value in read(made) if is_array(value)]
    assert found == [*slots, *slots][: len(found)]
    assert [v for v in read(made) if not is_array(v)] == [v for v in read(nest) if not is_array(v)]


@pytest.mark.parametrize("case", NESTS)
def test_the_nest_itself_is_left_as_it_was(case: str) -> None:
    nest, _, read = NESTS[case]
    before = [id(value) for value in read(nest) if is_array(value)]
    again(nest)
    assert [id(value) for value in read(nest) if is_array(value)] == before


def test_a_form_holds_no_tensor() -> None:
    form = form_of({"args": [Pair(A, Bag(A, B))]}, is_array)
    pair = form["args"][0]
    marks = [pair.hidden, pair.pooled.hidden, pair.pooled.pooled]
    assert {type(mark) for mark in marks} == {Mark}
    assert (marks[0] is marks[1], marks[1] is marks[2]) == (True, False)


def test_what_pytorch_functions_return_is_made_again() -> None:
    nest = torch.max(torch.ones(2, 3), 1)
    leaves, structure = flatten(nest, torch.is_tensor)
    made = fill(form_of(nest, torch.is_tensor), structure, leaves.__getitem__)
    assert type(made) is type(nest)
    assert (made.values is nest.values, made.indices is nest.indices) == (True, True)
    assert structure["fields"] == ["values", "indices"]


def test_packed_sequences_are_made_again() -> None:
    nest = pack_padded_sequence(torch.ones(2, 3, 4), torch.tensor([3, 2]), batch_first=True)
    leaves, structure = flatten(nest, torch.is_tensor)
    made = fill(form_of(nest, torch.is_tensor), structure, leaves.__getitem__)
    assert type(made) is PackedSequence
    assert (made.data is nest.data, made.batch_sizes is nest.batch_sizes, made.sorted_indices) == (True, True, None)


def test_sizes_are_plain_and_are_made_again() -> None:
    nest = torch.ones(2, 3).shape
    _, structure = flatten(nest, torch.is_tensor)
    assert unflatten(json.loads(json.dumps(structure)), str) == (2, 3)
    assert type(fill(form_of(nest, torch.is_tensor), structure, str)) is torch.Size


@pytest.mark.parametrize("case", ["an ordered dictionary", "a dictionary with tuples for keys"])
def test_what_needs_no_form(case: str) -> None:
    nest: Any = OrderedDict(b=A, a=[B]) if "ordered" in case else {("x", 1): A, None: (B,)}
    leaves, structure = flatten(nest, is_array)
    assert (is_plain(structure), is_exact(structure)) == (True, True)
    made = unflatten(json.loads(json.dumps(structure)), leaves.__getitem__)
    assert type(made) is type(nest)
    assert list(made) == list(nest)


CLASSES = [case for case in NESTS if case not in ("an ordered dictionary",)]


@pytest.mark.parametrize("case", CLASSES)
def test_classes_are_not_made_of_their_names(case: str) -> None:
    leaves, structure = flatten(NESTS[case][0], is_array)
    assert (is_plain(structure), is_exact(structure)) == (False, False)
    with pytest.raises(OpaqueArgumentError, match="cannot be given to the other framework"):
        unflatten(json.loads(json.dumps(structure)), leaves.__getitem__)


# What is not the same thing the next time


def counted() -> Iterator[int]:
    yield 1


def closure(value: Any) -> Callable[[], Any]:
    return lambda: value


def loop() -> Any:
    nest: list[Any] = [A]
    nest.append(nest)
    return nest


UNREPEATABLE: dict[str, Any] = {
    "an iterator": iter([1]),
    "a generator": counted(),
    "a function that carries a value": closure(A),
    "a method": Bag(A, B).__init__,  # type: ignore[misc]
    "a module": torch.nn.ReLU(),
    "itself": loop(),
}


@pytest.mark.parametrize("case", UNREPEATABLE)
def test_what_cannot_be_given_again_is_told(case: str) -> None:
    nest = {"args": [A, UNREPEATABLE[case]]}
    leaves, structure = flatten(nest, is_array)
    assert (next(iter(leaves)), is_plain(structure)) == ("args.0", False)
    with pytest.raises(OpaqueArgumentError, match=r"of type .* (cannot be made again|holds itself)"):
        form_of(nest, is_array)


@pytest.mark.parametrize("value", [torch.nn.ReLU(), print, int, Mode.LINEAR, np, iter([1]), object(), 3, "a", None])
def test_what_holds_nothing(value: Any) -> None:
    assert items_of(value) is None


# One side's arrays in the other side's form


def structure_of(nest: Any) -> Any:
    return json.loads(json.dumps(flatten(nest, is_array)[1]))


# recorded, own, slots in the order of hidden and pooled
TRANSLATED: dict[str, tuple[Any, Any, list[str]]] = {
    "a named tuple by a class of one's own": (Pair(A, B), Bag(A, B), ["0", "1"]),
    "a class by another": (Data(A, B), Ported(A, B), ["hidden", "pooled"]),
    "a mapping by a class": (Output(A, B), Data(A, B), ["hidden", "pooled"]),
    "a class by a plain tuple": (Data(A, B), (A, B), ["hidden", "pooled"]),
    "a plain tuple by a named one": ((A, B), Pair(A, B), ["0", "1"]),
    "a dictionary by a named tuple in another order": ({"pooled": A, "hidden": B}, Pair(A, B), ["hidden", "pooled"]),
    "a list by a tuple": ([A, B], (A, B), ["0", "1"]),
    "attributes that only one side has": (
        SimpleNamespace(hidden=A, pooled=B, time=1.5),
        Data(A, B),
        ["hidden", "pooled"],
    ),
}


@pytest.mark.parametrize("case", TRANSLATED)
def test_one_sides_tensors_in_the_others_containers(case: str) -> None:
    recorded, own, slots = TRANSLATED[case]
    made = fill(form_of(own, is_array), structure_of(recorded), lambda slot: slot)
    assert type(made) is type(own)
    assert list(made if isinstance(made, tuple) else (made.hidden, made.pooled)) == slots


def test_numbers_are_those_of_the_record() -> None:
    """What the parent got wrong is not the child's fault."""
    recorded = {"args": [Bag(A, None), 0.1, {"size": (2, 3)}], "kwargs": {"mode": "exact", "n": None}}
    own = {"args": [Ported(A, None), 0.2, {"size": (4, 5)}], "kwargs": {"mode": "fast", "n": 3}}
    made = fill(form_of(own, is_array), structure_of(recorded), lambda slot: slot)
    assert made["args"][1:] == [0.1, {"size": (2, 3)}]
    assert made["kwargs"] == {"mode": "exact", "n": None}


MISMATCHES: dict[str, tuple[Any, Any, str]] = {
    "a tensor that is not given": ([Pair(A, B)], [Pair(A, None)], "a tensor where None is given"),
    "a tensor that is not known": ([Pair(A, None)], [Pair(A, B)], "a tensor is given where the record has None"),
    "one more": ([A, B], [A], "an argument '1' that is not given here"),
    "one less": ([Bag(A, 1)], [Ported(A, 1), A], "a tensor is given that the record does not have"),
    "other names": ([Bag(A, B)], [SimpleNamespace(x=A, y=B)], "a tensor is given that the record does not have"),
    "a number too many": ({"x": A}, {"x": A, "n": 3}, "no partner of the argument 'n', 3"),
    "a number that is not given": ({"x": A, "n": 3}, {"x": A}, "an argument 'n' that is not given here"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_calls_that_do_not_correspond_are_told(case: str) -> None:
    recorded, own, reason = MISMATCHES[case]
    with pytest.raises(OpaqueArgumentError, match=reason):
        fill(form_of(own, is_array), structure_of(recorded), lambda slot: slot)


def test_plain_arguments_that_do_not_correspond_are_given_as_recorded() -> None:
    """A candidate that forgets a mask fails with it, and its parent is to blame."""
    recorded, own = structure_of({"args": [A, B]}), structure_of({"args": [A]})
    assert arguments_again(recorded, (own, None), str) == {"args": ["args.0", "args.1"]}


def test_another_kind_of_sequence_is_given_in_ones_own() -> None:
    recorded, own = structure_of({"args": [[A, B]]}), structure_of({"args": [(A, B)]})
    assert arguments_again(recorded, (own, None), str) == {"args": [("args.0.0", "args.0.1")]}


# Names of slots


@pytest.mark.parametrize(
    ("own", "other", "slots"),
    [
        (A, A, {"0": "0"}),
        ((A, B), [A, B], {"0": "0", "1": "1"}),
        (Bag(A, B), Pair(A, B), {"hidden": "0", "pooled": "1"}),
        (Pair(B, A), {"pooled": A, "hidden": B}, {"0": "hidden", "1": "pooled"}),
        ((A, [B]), Data(A, (B,)), {"0": "hidden", "1.0": "pooled.0"}),
        ({"b": A, "a": 3}, (A, 3), {"b": "0", "a": "1"}),
        ({1: A, 0: B}, {0: B, 1: A}, {"1": "1", "0": "0"}),
        ({1: A, 0: B}, (B, A), {"1": "1", "0": "0"}),
        (Pair([Pair(A)]), (({"hidden": A},),), {"0.0.0": "0.0.hidden"}),
        ({"x": A}, {"y": A}, {}),
        ((A, B), (A,), {"0": "0"}),
        ((A, None), (A, B), {"0": "0"}),
        ((A,), A, {"0": "0"}),
    ],
)
def test_slots_in_the_same_place(own: Any, other: Any, slots: dict[str, str]) -> None:
    assert paired_slots(*(flatten(nest, is_array)[1] for nest in (own, other))) == slots


# Numbers and strings


def test_values_have_slots() -> None:
    values: dict[str, Any] = {}
    nest = (torch.ones(1), 3, Pair(0.5, [None, True, "a"]), {"n": np.float32(0.25)}, A, np.int64(7))
    _, structure = flatten(nest, torch.is_tensor, values=values)
    arrays = values.pop("4")
    assert arrays is A
    assert values == {"1": 3, "2.0": 0.5, "2.1.1": True, "2.1.2": "a", "3.n": 0.25, "5": 7}
    assert slots_of(structure) == ["0", "1", "2.0", "2.1.1", "2.1.2", "3.n", "4", "5"]


def test_what_an_object_counts_is_its_own_affair() -> None:
    values: dict[str, Any] = {}
    flatten(SimpleNamespace(x=A, time=1.5, id="a"), is_array, values=values)
    assert values == {}
