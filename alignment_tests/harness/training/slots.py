"""What an optimizer keeps for each weight, under names that both frameworks share where it means the same."""

from __future__ import annotations

from collections.abc import Mapping

from alignment_tests.harness.record.adapter import Array


class Slots:
    """Between the optimizer's own keys and the names of a training state.

    What has the shape of its weight is ``momentum/NAME`` or ``momentum/SLOT/NAME`` and compared; the rest, such as
    counters, is ``position/SLOT/NAME`` and only carried on.

    Args:
        known: key of the optimizer -> slot, "" for the one that needs no name. Other keys are slots themselves.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        self._slots = dict(known)
        self._keys = {slot: key for key, slot in known.items()}

    def named(self, key: str, name: str, *, of_weight: bool) -> str:
        """The name in a training state."""
        slot = self._slots.get(key, key)
        return "/".join(part for part in ("momentum" if of_weight else "position", slot, name) if part)

    def by_weight(self, state: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
        """Name of the weight -> key of the optimizer -> array."""
        found: dict[str, dict[str, Array]] = {}
        for full, array in state.items():
            phase, _, rest = full.partition("/")
            slot, _, name = rest.rpartition("/")
            if phase == "momentum" or (phase == "position" and slot):
                found.setdefault(name, {})[self._keys.get(slot, slot)] = array
        return found
