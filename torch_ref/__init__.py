"""The PyTorch reference of Gold-YOLO."""

from torch_ref.losses import build_loss
from torch_ref.model import GoldYolo, build_model, fuse
from torch_ref.optim import build_optimizer
from torch_ref.trainer import Trainer

__all__ = ["GoldYolo", "Trainer", "build_loss", "build_model", "build_optimizer", "fuse"]
