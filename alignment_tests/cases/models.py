"""The tables of the suites: which model, in which form and mode, on which images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from alignment_tests.cases.pairs import Pair, seeded_pair
from fixtures.images import drawn_images


@dataclass(frozen=True)
class Case:
    """One comparison. ``size`` is n, s, m or l; ``image`` is (rows, columns)."""

    size: str
    mode: str = "eval"
    form: str = "train"
    batch: int = 1
    image: tuple[int, int] = (640, 640)

    def __str__(self) -> str:
        rows, columns = self.image
        return f"{self.size}-{self.mode}-{self.form}_form-batch{self.batch}-{rows}x{columns}"

    @property
    def train(self) -> bool:
        return self.mode == "train"

    def pair(self) -> Pair:
        return seeded_pair(self.size, form=self.form)

    def images(self) -> Any:
        return drawn_images(self.batch, self.image)


# Every module of the four sizes: both modes, both forms, batch 1 and 2, square and not; M and L on smaller images in
# eval mode. Not in train mode: at 64x96 the smallest map has 4 values per channel, and a batch norm over 4 nearly equal
# values magnifies the rounding before it without bound, in one channel of L's neck 65 times as much as the reference's.
SMALL = [
    case
    for size in "nsml"
    for wide, square in [((128, 160), (128, 128)) if size in "ns" else ((64, 96), (64, 64))]
    for case in (
        Case(size, image=wide),
        Case(size, form="deploy", batch=2, image=square),
        Case(size, mode="train", batch=2, image=(128, 160)),
    )
]
# N and S at full size. M and L are compared at the small sizes above only, to keep the suite short.
FULL = [
    Case("n"),
    Case("n", form="deploy", image=(480, 640)),
    Case("n", mode="train"),
    Case("s"),
    Case("s", form="deploy", image=(480, 640)),
    Case("s", mode="train"),
]


@lru_cache(maxsize=8)
def part_inputs(case: Case, part: str) -> tuple[Any, ...]:
    """Positional arguments of a part: what the reference's earlier parts give for the case's images.

    The earlier parts run in eval mode, so that their buffers stay as they are.
    """
    model = case.pair().reference
    if part == "backbone":
        return (case.images(),)
    with torch.no_grad():
        model.eval()
        maps = model.backbone(torch.from_numpy(case.images()))
        maps = model.neck(maps) if part == "detect" else maps
    return (tuple(np.ascontiguousarray(x.numpy()) for x in maps),)
