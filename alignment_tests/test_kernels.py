"""Kernels written by hand run as what they are, however long the process lives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jt_impl import kernels
from jt_impl.runtime import jittor as jt

CUDA = {"cuda_header": "", "cuda_src": "/* for another device */"}


def filled(value: int) -> Any:
    source = f"for (int i = 0; i < out0_shape0; ++i) out0_p[i] = {value};"
    return kernels.code([3], "float32", [jt.array(np.zeros(3, np.float32))], cpu_header="", cpu_src=source, **CUDA)


@pytest.mark.parametrize(("device", "left"), [(0, ["cpu_header", "cpu_src"]), (1, ["cuda_header", "cuda_src"])])
def test_only_the_text_of_the_device_in_force_is_given(
    device: int, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Jittor:
        class flags:
            use_cuda = device

        @staticmethod
        def code(shape: Any, dtype: Any, inputs: Any, **sources: str) -> list[str]:
            return sorted(sources)

    monkeypatch.setattr(kernels, "jt", Jittor)
    assert kernels.code([1], "float32", [], cpu_header="", cpu_src="", **CUDA) == left


def test_kernels_with_equal_text_for_cuda_stay_apart_after_a_hundred_thousand_operators() -> None:
    assert [filled(value).numpy().tolist() for value in (1, 2)] == [[1.0] * 3, [2.0] * 3]
    for _ in range(21):  # of 5000 that are not fused
        jt.sync([filled(1) for _ in range(5000)])
    assert [filled(value).numpy().tolist() for value in (1, 2)] == [[1.0] * 3, [2.0] * 3]
