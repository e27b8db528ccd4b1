"""Real differences of Jittor, found in small networks and bisected: python -m alignment_tests.conformity.repros

Each network is aligned, the report blames a layer, and ``bisect`` makes the script in docs/repros of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from alignment_tests.harness import align, copy_weights
from alignment_tests.harness.bisect import Bisected, bisect
from alignment_tests.harness.record.adapter import Array
from jt_impl.runtime import load

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "repros"


@dataclass(frozen=True)
class Network:
    """A convolution, and behind it the layer that ``layer`` makes of either ``nn``."""

    layer: Callable[[Any], Any]
    size: tuple[int, int]
    offset: float = 0.0  # mean of the images

    def build(self, nn: Any) -> Any:
        return nn.Sequential(nn.Conv2d(3, 4, 1), self.layer(nn))

    def images(self) -> Array:
        drawn = np.random.default_rng(0).normal(self.offset, 1.0, (2, 3, *self.size))
        return drawn.astype(np.float32)


NETWORKS = {
    "adaptive_average_pool": Network(lambda nn: nn.AdaptiveAvgPool2d((5, 5)), (13, 13)),
    "average_pool_padding": Network(lambda nn: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), (8, 8)),
    "layer_norm_cancellation": Network(lambda nn: nn.LayerNorm(6), (6, 6), offset=1000.0),
}


def make(name: str, folder: Path = FOLDER, notify: Callable[[str], None] = lambda text: None) -> Bisected:
    """Align one network and bisect what its report blames into ``folder``/``name``.

    Raises:
        ValueError: the network aligns: this Jittor has the difference no more.
    """
    jt, network = load(), NETWORKS[name]
    torch.manual_seed(0)
    reference, candidate = network.build(torch.nn), network.build(jt.nn)
    copy_weights(reference, candidate)
    with TemporaryDirectory() as place:
        report = align(reference, candidate, network.images(), strict=True, title=name, folder=place)
        report.save(place)
        return bisect(Path(place), folder / name, notify)


def main() -> int:
    for name in NETWORKS:
        found = make(name, notify=lambda text: print(text, file=sys.stderr, flush=True))
        print(f"{found.script}: {found.call}, {found.reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
