"""Where PyTorch computes, and what a record says about it."""

from __future__ import annotations

from typing import Any

import torch


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. float32 then means float32: PyTorch's own default is TF32 in convolutions.

    Raises:
        ValueError: "cuda" is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a GPU that this PyTorch can use. Received: none; choose --device cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        use_tf32(False)
    return device


def use_tf32(wanted: bool) -> None:
    """Let convolutions and matrix products of float32 numbers use TF32 on a GPU, or keep them from it."""
    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.allow_tf32 = wanted


def describe(device: torch.device) -> dict[str, Any]:
    """For the record of a run."""
    found: dict[str, Any] = {
        "framework": "pytorch",
        "version": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        }
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed for lack of memory; on the CPU PyTorch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
