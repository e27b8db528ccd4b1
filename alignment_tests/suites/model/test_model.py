"""The whole network at full size, and its deploy form against its train form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jt_impl
import torch_ref
from alignment_tests.cases.models import FULL, Case
from alignment_tests.cases.pairs import seeded_pair
from alignment_tests.harness import Report, align, capture
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import run_plain
from fixtures.seeded import seeded_images


@pytest.mark.parametrize("case", FULL, ids=str)
def test_model_is_aligned(case: Case, check_alignment: Callable[[Report], None]) -> None:
    pair = case.pair()
    report = align(
        pair.reference, pair.candidate, case.images(), train=case.train, title=f"model {case}", build=pair.build
    )
    check_alignment(report)


@pytest.mark.parametrize("fold_norms", [True, False])
@pytest.mark.parametrize("size", "nsml")
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_fused_model_computes_what_the_train_form_does(side: str, size: str, fold_norms: bool) -> None:
    """In float64, to 1e-10 of scale."""
    fuse: Any = torch_ref.fuse if side == "reference" else jt_impl.fuse
    model = getattr(seeded_pair(size), side)
    adapter, images = adapter_for(model), seeded_images((1, 3, 64, 96))
    with adapter.in_precision(model, "float64") as wide:
        expected = run_plain(adapter, wide, images, "float64", train=False)["0"]
        actual = run_plain(adapter, fuse(wide, fold_norms=fold_norms), images, "float64", train=False)["0"]
    assert np.abs(actual - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_hooks_change_nothing(side: str, precision: str, train: bool) -> None:
    model = getattr(seeded_pair("n"), side)
    adapter, images = adapter_for(model), seeded_images((2, 3, 96, 64))
    trace = capture(model, images, train=train, precision=precision)
    with adapter.in_precision(model, precision) as made:
        plain = run_plain(adapter, made, images, precision, train=train)
    hooked = {name.rsplit("/", 1)[1]: trace[name] for name in trace if name.startswith("activation/#0/")}
    assert hooked.keys() == plain.keys()
    assert all(hooked[slot].tobytes() == plain[slot].tobytes() for slot in plain)
