"""A candidate that keeps its weights in another layout, seen as the reference would keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.layout import Layout
from alignment_tests.harness.training.trainee import Make, Share, Trainee

STATE = ("parameter", "buffer")
Way = Callable[[Mapping[str, Array]], dict[str, Array]]


class MappedTrainee:
    """See ``Trainee``: state and gradients go by the reference's names and shapes, in and out.

    Args:
        own: the candidate's trainee.
        layout: of its model.
    """

    def __init__(self, own: Trainee, layout: Layout) -> None:
        self.own, self.layout, self.model = own, layout, own.model
        places = (full.partition("/") for full in own.state())
        self._phases = {name: phase for phase, _, name in places if phase in STATE}

    def scope(self) -> AbstractContextManager[None]:
        return self.own.scope()

    def forward(self, batch: Any) -> Any:
        return self.own.forward(batch)

    def assign(self, outputs: Any, batch: Any) -> dict[str, Any]:
        return self.own.assign(outputs, batch)

    def losses(self, outputs: Any, batch: Any, assignment: Mapping[str, Any]) -> dict[str, Any]:
        return self.own.losses(outputs, batch, assignment)

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        found, others = self.own.backward(total, extra)
        plain = {name: tensor for name, tensor in found.items() if self.layout.is_plain(name)}
        named = {other: tensor for name, tensor in plain.items() for other in self.layout.partners(name)}
        rest = {name: tensor for name, tensor in found.items() if name not in plain}
        if rest:
            adapter = adapter_for(self.model)
            adapter.compute([*found.values(), *others])  # one after the other they may run by other kernels
            arrays = self.layout.back({name: adapter.to_numpy(tensor) for name, tensor in rest.items()})
            named |= {name: adapter.from_numpy(array) for name, array in arrays.items()}
        return named, others

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        self.own.update(None if gradients is None else self.layout.forward(gradients))

    def state(self) -> dict[str, Array]:
        return regrouped(self.own.state(), self.layout.back, self.layout.phases)

    def load(self, state: Mapping[str, Array]) -> None:
        mapped = regrouped(state, self.layout.forward, self._phases)
        # What is left out of the map stays as it is; a trainee may ask for all that it has.
        self.own.load(self.own.state() | mapped if self.layout.dropped else mapped)

    def margins(self, exact: Any, outputs: Any, batch: Any, share: Share) -> dict[str, Array]:
        return self.own.margins(exact, outputs, batch, share)

    def alike(self, name: str, sides: Sequence[Mapping[str, Array]]) -> Array:
        return self.own.alike(name, sides)


def regrouped(state: Mapping[str, Array], way: Way, phases: Mapping[str, str]) -> dict[str, Array]:
    """A training state in the other layout, each kind of array by itself: weights, momenta, averages.

    Args:
        state: ``phase/name`` or ``phase/slot/name`` -> array; positions stay as they are.
        way: turns arrays by name into those of the other side.
        phases: the other side's names -> "parameter" or "buffer", on which frameworks differ.
    """
    groups: dict[str, dict[str, Array]] = {}
    found: dict[str, Array] = {}
    for full, array in state.items():
        place, _, name = full.rpartition("/")
        if full.startswith("position/"):
            found[full] = array
        else:
            groups.setdefault("parameter" if place in STATE else place, {})[name] = array
    for place, arrays in groups.items():
        for name, array in way(arrays).items():
            found[f"{phases.get(name, place) if place in STATE else place}/{name}"] = array
    return found


def mapped(make: Make, layout: Layout) -> Make:
    """Makes trainees in the reference's layout."""

    def made(precision: str) -> Trainee:
        return MappedTrainee(make(precision), layout)

    return made
