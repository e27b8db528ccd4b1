"""All that a comparison knows before it judges: runs, pairs, distances, evaluations, reports of the harness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment_tests.comparison import boxes, curves
from alignment_tests.comparison.accuracy import Tested, evaluated
from alignment_tests.comparison.alignment_reports import LAYERS, STEPS, Proof, read_proof
from alignment_tests.comparison.pairs import Origin, Pair, origin_of, pair_tests, pair_trainings
from alignment_tests.comparison.records import JITTOR, TORCH, Side, Training, read_side


@dataclass(frozen=True)
class Evidence:
    """``origins`` stand in the order of each side's tests; ``images`` are those of the first pair of tests."""

    sides: dict[str, Side]
    origins: dict[str, tuple[Origin, ...]]
    trainings: tuple[Pair[Training], ...]
    tests: tuple[Tested, ...]
    distances: tuple[curves.Distance, ...]
    images: tuple[boxes.Matched, ...]
    layers: Proof | None
    steps: Proof | None


def gather(
    jittor: Sequence[Path],
    torch: Sequence[Path],
    annotations: Path | None = None,
    layers: Path | None = None,
    steps: Path | None = None,
) -> Evidence:
    """Read everything, then measure.

    Raises:
        ValueError: a folder or file is not what it must be; the message names it.
    """
    if annotations is not None and not annotations.is_file():
        raise ValueError(f"`--annotations` must be a COCO JSON. Received: {annotations}")
    sides = {name: read_side(name, folders) for name, folders in ((JITTOR, jittor), (TORCH, torch))}
    proofs = [None if path is None else read_proof(path, kind) for path, kind in ((layers, LAYERS), (steps, STEPS))]
    origins = {name: tuple(origin_of(test, side.trainings) for test in side.tests) for name, side in sides.items()}
    trainings = pair_trainings(sides[JITTOR], sides[TORCH])
    pairs = pair_tests(sides[JITTOR], sides[TORCH], (origins[JITTOR], origins[TORCH]))
    tests = tuple(evaluated(pair, annotations) for pair in pairs)
    return Evidence(
        sides=sides,
        origins=origins,
        trainings=trainings,
        tests=tests,
        distances=curves.distances(trainings, sides[TORCH].trainings),
        images=boxes.matched_images(tests[0]) if tests else (),
        layers=proofs[0],
        steps=proofs[1],
    )
