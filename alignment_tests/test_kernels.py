"""Kernels written by hand run as what they are, however long the process lives."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jt_impl import kernels
from jt_impl.functional import is_finite
from jt_impl.runtime import jittor as jt

CUDA = {"cuda_header": "", "cuda_src": "/* for another device */"}


# Python writes a part of their kernels: docs/jittor_build.md, "Kernels that Python writes".
WRITTEN_BY_PYTHON = ("isfinite", "isnan", "isinf", "isneginf", "isposinf", "searchsorted", "knn", "auto_parallel")


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


@pytest.mark.parametrize("file", sorted(Path(kernels.__file__).parent.rglob("*.py")), ids=lambda file: file.name)
def test_no_kernel_of_the_port_is_written_by_python(file: Path) -> None:
    """An attribute of these names, of Jittor or of a Var; numpy's are of numpy."""
    used = [
        node.attr
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("np", "math"))
    ]
    assert not set(used) & set(WRITTEN_BY_PYTHON)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_what_is_finite(kind: str) -> None:
    most = np.finfo(kind).max
    values = np.array([0.0, -0.0, 1.5, most, -most, np.finfo(kind).tiny, np.inf, -np.inf, np.nan], kind)
    make = jt.array64 if kind == "float64" else jt.array
    found = is_finite(make(values))
    assert found.numpy().tolist() == np.isfinite(values).tolist()
    assert not bool(found.all().item())
