"""What a comparison does not prove: clamps and masks of one side alone that no value of this input reaches."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product

from alignment_tests.harness.record.adapters import shown_operators
from alignment_tests.harness.record.branches import Branch, BranchRecorder
from alignment_tests.harness.record.capture import tensors_from
from alignment_tests.harness.record.side import Side

SHOWN = 8


def unproven(reference: Side, candidate: Side) -> str | None:
    """One sentence on the branches of either side that have no partner and changed nothing; None if there is none.

    Each side runs once in float32 without being recorded, a side with such branches once more.
    """
    sides = {"reference": reference, "candidate": candidate}
    found = {name: _run(side).found for name, side in sides.items()}
    words = []
    for name, other in (("reference", "candidate"), ("candidate", "reference")):
        extra = without_partner(found[name], found[other])
        reached = _run(sides[name], extra).reached if extra else set()
        words += [f"{branch.place} in the {name} changed nothing" for branch in extra if branch not in reached]
    if not words:
        return None
    more = f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"{'; '.join(words[:SHOWN])}{more}; the other side has no such operator there, so no input of this run tells"


def without_partner(own: Collection[Branch], other: Collection[Branch]) -> list[Branch]:
    """Branches in whose module the other side has none of their kind."""
    known = {place for branch in other for place in product(branch.kinds, branch.modules)}
    return [b for b in own if not b.partner and known.isdisjoint(product(b.kinds, b.modules))]


def _run(side: Side, watched: Collection[Branch] = ()) -> BranchRecorder:
    """The whole model once; what it did until it raised, if it does."""
    adapter, (show, _) = side.adapter, shown_operators(side.adapter)
    modules = side.modules(side.model)
    recorder = BranchRecorder(adapter, {id(module): path for path, module in modules.items()}, watched)
    with side.context("float32"), adapter.running(side.model, train=side.train):
        try:
            args, kwargs = tensors_from(adapter, side.model, side.inputs, "float32", side.kwargs)
            with show(recorder, list(modules.values()), {}):
                side.model(*args, **kwargs)
        except Exception:  # the run that is judged tells of it
            return recorder
    return recorder
