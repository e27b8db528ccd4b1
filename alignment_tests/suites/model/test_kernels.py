"""Kernels written by hand run as what they are, however long the process lives."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jt_impl
from jt_impl.kernels import code as kernels
from jt_impl.kernels.functional import is_finite
from jt_impl.runtime import jittor as jt
from jt_impl.runtime import kernel_files

CUDA = {"cuda_header": "", "cuda_src": "/* for another device */"}


# Python writes a part of their kernels: docs/jittor.md, "Kernels that Python writes".
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


@pytest.mark.parametrize("file", sorted(Path(jt_impl.__file__).parent.rglob("*.py")), ids=lambda file: file.name)
def test_no_kernel_of_the_port_is_written_by_python(file: Path) -> None:
    """An attribute of these names, of Jittor or of a Var; numpy's are of numpy."""
    used = [
        node.attr
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("np", "math"))
    ]
    assert not set(used) & set(WRITTEN_BY_PYTHON)


def exponents(kind: str) -> Any:
    """Numbers of every kind, the finite ones first: seven."""
    info = np.finfo(kind)
    finite = [0.0, -0.0, 1.5, info.max, -info.max, info.tiny, -info.smallest_subnormal]
    return np.array([*finite, np.inf, -np.inf, np.nan, -np.nan, np.inf], kind)


def to_jittor(values: Any) -> Any:
    return (jt.array64 if values.dtype == np.float64 else jt.array)(values)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_what_is_finite(kind: str) -> None:
    found = is_finite(to_jittor(exponents(kind).reshape(3, 4)))
    assert found.numpy().ravel().tolist() == [True] * 7 + [False] * 5
    assert (tuple(found.shape), str(found.dtype)) == ((3, 4), "bool")
    assert not bool(found.all().item())
    assert bool(found[0].all().item())


def test_what_is_finite_in_bfloat16() -> None:
    found = is_finite(jt.array(np.array([1.5, 3e38, -np.inf, np.nan], np.float32)).bfloat16())
    assert found.numpy().tolist() == [True, True, False, False]


def test_integers_and_nothing_are_finite() -> None:
    assert is_finite(jt.array(np.arange(-1, 5).reshape(2, 3))).numpy().tolist() == [[True] * 3] * 2
    nothing = is_finite(jt.array(np.zeros((2, 0, 3), np.float32)))
    assert tuple(nothing.shape) == (2, 0, 3)
    assert bool(nothing.all().item())


def test_what_is_finite_takes_one_kernel_for_all_shapes() -> None:
    is_finite(jt.ones([3])).sync()
    before = {file for file in kernel_files() if "/code__" in file}
    jt.sync([is_finite(jt.ones(shape)) for shape in ([5], [2, 3], [1, 2, 3, 4], [40_000])])
    assert {file for file in kernel_files() if "/code__" in file} == before


# In a process of its own: what g++ 12 links with -Ofast drops the subnormals of the thread that loads it.
UNDER_OFAST = """
import json
import numpy as np
from alignment_tests.suites.model.test_kernels import exponents, to_jittor
from jt_impl.kernels import code as kernels, functional
from jt_impl.runtime import jittor as jt

# Jittor names a kernel without its flags: with the text as it is, this build would lie in everyone's cache.
functional.FINITE += "/* compiled with -Ofast */"
FOLDED = "for (int64 i = 0; i < in0->num; ++i) out0_p[i] = in0_p[i] - in0_p[i] == 0;"
found = {}
for kind in ("float16", "float32", "float64"):
    x = to_jittor(exponents(kind))
    x.sync()
    with jt.flag_scope(compile_options={"FLAGS: -Ofast ": 1}):
        subtracted = kernels.code(x.shape, "bool", [x], cpu_header="", cpu_src=FOLDED)
        found[kind] = subtracted.numpy().tolist(), functional.is_finite(x).numpy().tolist()
print(json.dumps(found))
"""


def test_what_is_finite_under_flags_that_know_no_nan() -> None:
    """Those of a Jittor that was imported before ``runtime.load``, or that the user has chosen."""
    command = [sys.executable, "-c", UNDER_OFAST]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["float32"][0] == found["float64"][0] == [True] * 12, "the flags did not arrive"
    assert [found[kind][1] for kind in found] == [[True] * 7 + [False] * 5] * 3
