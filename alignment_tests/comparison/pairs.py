"""Which runs belong together: trainings by seed, tests by the training whose weights they tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from alignment_tests.comparison.records import JITTOR, TORCH, Run, Side, Test, Training
from fixtures.data.dataset import file_digest

T = TypeVar("T", bound=Run)


@dataclass(frozen=True)
class Pair(Generic[T]):
    """A run of each side. ``seed`` is that of the training; None for tests that belong to no known training."""

    seed: int | None
    jittor: T
    torch: T

    @property
    def sides(self) -> dict[str, T]:
        return {JITTOR: self.jittor, TORCH: self.torch}


class Origin(NamedTuple):
    """The training that tested weights come from, and whether the bytes of the file prove it."""

    training: Training | None
    proven: bool

    @property
    def seed(self) -> int | None:
        return None if self.training is None else self.training.seed


def pair_trainings(jittor: Side, torch: Side) -> tuple[Pair[Training], ...]:
    """By seed; seeds that only one side has are left out."""
    others = {training.seed: training for training in torch.trainings}
    return tuple(Pair(one.seed, one, others[one.seed]) for one in jittor.trainings if one.seed in others)


def pair_tests(jittor: Side, torch: Side, origins: tuple[Sequence[Origin], Sequence[Origin]]) -> tuple[Pair[Test], ...]:
    """By the seed of the training behind them; in the order given, if that of any test is unknown.

    Raises:
        ValueError: two tests of one side are of the same training.
    """
    seeds = [[origin.seed for origin in side] for side in origins]
    for side, known in zip((jittor, torch), seeds, strict=True):
        twice = [seed for seed in known if seed is not None and known.count(seed) > 1]
        if twice:
            raise ValueError(f"`--{side.name}` must have one test per training. Received: two of seed {twice[0]}")
    if None in seeds[0] or None in seeds[1]:
        in_order = zip(*seeds, jittor.tests, torch.tests, strict=False)
        return tuple(Pair(a if a == b else None, one, other) for a, b, one, other in in_order)
    others = dict(zip(seeds[1], torch.tests, strict=True))
    own = dict(zip(seeds[0], jittor.tests, strict=True))
    return tuple(Pair(seed, own[seed], others[seed]) for seed in sorted(own.keys() & others.keys(), key=str))


def origin_of(test: Test, trainings: Sequence[Training]) -> Origin:
    """By the sha256 of the weights beside the training records; by the folder's name where that file is gone."""
    path = Path(test.weights["path"])
    for training in trainings:
        if test.weights["sha256"] in _digests(training.folder, path.suffix):
            return Origin(training, True)
    for training in trainings:
        if path.parent.name == training.folder.resolve().name and not (training.folder / path.name).exists():
            return Origin(training, False)
    return Origin(None, False)


def _digests(folder: Path, suffix: str) -> set[str]:
    """Of the weights in a folder whose names end like those that were tested."""
    files = folder.glob(f"*{suffix}") if suffix else ()
    return {file_digest(file) for file in files if not file.stem.endswith(".state")}
