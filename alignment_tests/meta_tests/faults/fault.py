"""What a planted fault is, and how it is put in and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

_ABSENT = object()


class Patch:
    """Changes that are undone, the last one first, when the fault is taken out."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Another value for an attribute of a module, class or instance."""
        held = vars(owner).get(name, _ABSENT)
        if held is _ABSENT:  # of the class, or of a class above
            self._stack.callback(delattr, owner, name)
        else:
            self._stack.callback(setattr, owner, name, held)
        setattr(owner, name, value)

    def item(self, mapping: Any, key: Any, value: Any) -> None:
        """Another value for an entry of a dictionary or list that has it."""
        self._stack.callback(mapping.__setitem__, key, mapping[key])
        mapping[key] = value

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """``make`` gets the function that is there and gives the one in its place."""
        self.set(owner, name, make(getattr(owner, name)))


Plant = Callable[[Patch, Any], None]


@dataclass(frozen=True)
class Fault:
    """A porting bug.

    Attributes:
        name: short and unique.
        family: the kind of bug.
        plants: in one sentence what is wrong.
        experiment: name of the comparison that must notice it.
        where: what the report must blame: the path of a module, or a pattern on the name of an array (it holds a "/").
        plant: puts it into the subject of the experiment: a Jittor module, a trainee, a package.
        miss: why it is not found or named exactly, where that is known and said.
    """

    name: str
    family: str
    plants: str
    experiment: str
    where: str
    plant: Plant
    miss: str = ""

    @contextmanager
    def planted(self, subject: Any) -> Iterator[None]:
        """The fault is in ``subject`` inside the block, and out of it behind."""
        with ExitStack() as stack:
            self.plant(Patch(stack), subject)
            yield

    def blames(self, module: str | None, name: str) -> bool:
        """Whether a first divergence at this module and array is the fault's own place."""
        return fnmatchcase(name, self.where) if "/" in self.where else module == self.where


FAULTS: dict[str, Fault] = {}


def fault(experiment: str, where: str, family: str, miss: str = "") -> Callable[[Plant], Plant]:
    """Enter a function into the register; its name names the fault, its docstring says what is planted.

    Raises:
        ValueError: the name is taken, or nothing says what is planted.
    """

    def enter(plant: Plant) -> Plant:
        name = getattr(plant, "__name__", "").replace("_", " ")
        plants = " ".join((plant.__doc__ or "").split())
        if name in FAULTS or not plants:
            raise ValueError(f"`plant` must have a new name and a docstring. Received: {name!r}, {plants!r}")
        FAULTS[name] = Fault(name, family, plants, experiment, where, plant, miss)
        return plant

    return enter
