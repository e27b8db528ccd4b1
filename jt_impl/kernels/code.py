"""Kernels written by hand: ``jt.code`` with the source of the device in force, and of no other.

Jittor 1.3.11 computes the key of an operator that has both sources from its CUDA text first and from the CPU's only
when it asks again. From 100,000 operators without a new kernel on (``parallel_compiler.cc``) it asks once, so that two
kernels with equal CUDA text and other CPU text become one: the second silently runs as the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jt_impl.runtime import jittor as jt


def code(shape: Any, dtype: Any, inputs: Sequence[Any], **sources: str) -> Any:
    """What ``jt.code`` gives, with the device chosen now, not when the graph runs.

    Args:
        shape: of the output, or a list of shapes.
        dtype: of the output, or a list of dtypes.
        inputs: Vars.
        sources: ``cpu_src`` and ``cuda_src``, ``cpu_header`` and ``cuda_header``, as ``jt.code`` takes them.
    """
    own = "cuda_" if jt.flags.use_cuda else "cpu_"
    return jt.code(shape, dtype, inputs, **{name: text for name, text in sources.items() if name.startswith(own)})
