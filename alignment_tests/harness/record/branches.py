"""Operators that choose: clamps, masks, maxima. What such a one does shows only where an input makes it choose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.operators import plain_name, tensors_in
from alignment_tests.harness.record.places import Place, is_tool, place_of

# What an operator may stand for: a ReLU may be written as a maximum, and anything as a choice by condition.
BOUND, SIGN = ("bound",), ("bound", "sign")
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("clamp", "clampmax", "hardtanh", "relu6"), BOUND),
    **dict.fromkeys(("minimum", "maximum", "clampmin"), SIGN),
    "where": ("bound", "mask", "sign"),
    "maskedfill": ("mask",),
}
# They are reached by nearly every input, or bound their values inside.
PARTNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("relu", "leakyrelu", "elu"), ("sign",)),
    **dict.fromkeys(("normalize", "cosinesimilarity", "hardsigmoid", "hardswish"), BOUND),
}


@dataclass(frozen=True)
class Branch:
    """Where such an operator is called, and in which module, by its path; in a stock layer, the one around it too."""

    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    place: Place
    partner: bool  # it is only what the other side's may stand beside


class BranchRecorder:
    """Takes the operators that choose, as a framework's adapter shows them; to be used like ``operators.Recorder``.

    Args:
        adapter: of the framework.
        paths: identity of a module -> its path.
        watched: branches whose effect is to be looked at.

    Attributes:
        found: each branch once.
        reached: of the watched ones, those that changed something.
    """

    def __init__(self, adapter: Adapter, paths: dict[int, str], watched: Collection[Branch] = ()) -> None:
        self.adapter, self.paths, self.watched = adapter, paths, watched
        self.found: dict[Branch, None] = {}
        self.reached: set[Branch] = set()
        self._busy = False

    def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._busy:
            return function(*args, **kwargs)
        self._busy = True
        try:
            plain = plain_name(name)
            kinds = KINDS.get(plain) or PARTNERS.get(plain)
            branch = self._branch(kinds, plain not in KINDS) if kinds is not None else None
            if branch is None:
                return function(*args, **kwargs)
            self.found[branch] = None
            if branch not in self.watched:
                return function(*args, **kwargs)
            before = [np.array(self.adapter.to_numpy(tensor)) for tensor in tensors_in(self.adapter, (args, kwargs))]
            result = function(*args, **kwargs)
            if _chosen(before, [self.adapter.to_numpy(tensor) for tensor in tensors_in(self.adapter, result)]):
                self.reached.add(branch)
            return result
        finally:
            self._busy = False

    def _branch(self, kinds: tuple[str, ...], partner: bool) -> Branch | None:
        frame: FrameType | None = sys._getframe(2)
        place = place_of(frame, None)
        modules: list[str] = []
        while place is not None and frame is not None:
            code = frame.f_code
            tool = is_tool(code.co_filename)
            path = self.paths.get(id(frame.f_locals.get(code.co_varnames[0]))) if code.co_argcount else None
            if path is not None and (not modules or not tool):
                modules.append(path)
                if not tool:
                    return Branch(kinds, tuple(modules), place, partner)
            frame = frame.f_back
        return None


def _chosen(given: list[Array], made: list[Array]) -> bool:
    """Whether the result is not simply one of the inputs."""
    return not any(
        array.shape == result.shape and np.array_equal(array, result, equal_nan=array.dtype.kind == "f")
        for result in made
        for array in given
    )
