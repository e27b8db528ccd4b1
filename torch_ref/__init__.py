"""The PyTorch reference of Gold-YOLO."""

from torch_ref.model import GoldYolo, build_model, fuse

__all__ = ["GoldYolo", "build_model", "fuse"]
