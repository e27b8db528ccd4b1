"""Where Jittor computes, and what a record says about it."""

from __future__ import annotations

import os
from typing import Any

from jt_impl import runtime
from jt_impl.runtime import jittor as jt

# How Jittor, CUDA and the C++ library say that memory ran out.
SIGNS = ("out of memory", "cudaerrormemoryallocation", "bad_alloc", "unable to alloc", "can't allocate memory")


def choose_device(name: str) -> str:
    """ "auto" is the GPU where Jittor was built for one.

    Raises:
        ValueError: "cuda" is asked for and Jittor was built without.
    """
    if name == "cuda" and not jt.has_cuda:
        raise ValueError(
            "`--device cuda` needs a Jittor built for CUDA. Received: one for the CPU; "
            "export ALIGN_CUDA=1 asks for the other, and python -m jt_impl.doctor says what is missing"
        )
    jt.flags.use_cuda = int(name != "cpu" and bool(jt.has_cuda))
    return "cuda" if jt.flags.use_cuda else "cpu"


def use_tf32(wanted: bool) -> None:
    """Let convolutions and matrix products of float32 numbers use TF32 on a GPU, or keep them from it."""
    jt.flags.use_tensorcore = int(wanted)


def describe() -> dict[str, Any]:
    """For the record of a run."""
    threads = os.environ.get("OMP_NUM_THREADS")
    found = {**runtime.describe(), "threads": int(threads) if threads and threads.isdigit() else os.cpu_count()}
    return found | ({"tf32": bool(jt.flags.use_tensorcore)} if jt.flags.use_cuda else {})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed for lack of memory; Jittor raises a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in SIGNS)
