"""Every module of the head, alone and in place, in both frameworks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from alignment_tests.cases.models import SMALL, Case, part_inputs
from alignment_tests.harness import Report, align


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_head_is_aligned(case: Case, check_alignment: Callable[[Report], None]) -> None:
    pair = case.pair().part("detect")
    inputs = part_inputs(case, "detect")
    title = f"head {case}"
    check_alignment(
        align(pair.reference, pair.candidate, list(inputs), train=case.train, title=title, build=pair.build)
    )
