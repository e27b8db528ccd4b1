"""The errors of this package. All are ``ValueError``: the caller gave a file or a state that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class CheckpointError(ValueError):
    """A checkpoint file is damaged, of another format than its name says, or holds no weights."""


class UnsafePickleError(CheckpointError):
    """A pickle names a function or class that is not on the allow list. Nothing of it was run."""


class StateMismatchError(ValueError):
    """A state does not fit a model. ``problems`` maps the kind of problem to its sorted lines."""

    def __init__(self, problems: Mapping[str, Sequence[str]]) -> None:
        self.problems = {kind: sorted(lines) for kind, lines in problems.items() if lines}
        counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in self.problems.items())
        listed = [f"  {kind}: {line}" for kind, lines in self.problems.items() for line in lines]
        super().__init__("\n".join([f"`state` does not fit the model ({counts}); nothing was written", *listed]))
