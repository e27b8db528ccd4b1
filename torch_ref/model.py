"""Gold-YOLO as a whole: build it, initialise it, bring it to deploy form."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from fixtures.config import GoldYoloConfig
from torch_ref.attention import Attention
from torch_ref.backbone import Backbone
from torch_ref.fusion import PlainConvNorm
from torch_ref.head import HEADS
from torch_ref.layers import RepVGGBlock
from torch_ref.neck import Neck

DTYPES = {"float32": torch.float32, "float64": torch.float64}
NORM_AFTER = {"conv": "bn", "c": "bn"}  # names under which a module keeps a convolution and the norm behind it


class GoldYolo(nn.Module):
    """Images (N, 3, H, W) in 0..1, H and W multiples of 32, to what the head of the config's kind returns."""

    def __init__(self, config: GoldYoloConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.detect = HEADS[config.head.kind](config)

    def forward(self, images: Tensor) -> Tensor | tuple[Any, ...]:
        return self.detect(self.neck(self.backbone(images)))


def build_model(config: GoldYoloConfig, dtype: str = "float32") -> GoldYolo:
    """A freshly initialised Gold-YOLO in train mode.

    Args:
        config: from ``fixtures.config.load_config``.
        dtype: "float32" or "float64".

    Raises:
        ValueError: ``dtype`` is neither.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {sorted(DTYPES)}. Received: {dtype!r}")
    model = GoldYolo(config)
    initialise(model)
    return model.to(DTYPES[dtype])


def initialise(model: GoldYolo) -> None:
    """Values that the public constructor sets beyond the framework's defaults."""
    for module in model.modules():
        if isinstance(module, PlainConvNorm):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Attention):
            nn.init.zeros_(module.proj[1].bn.weight)
    head, prior = model.detect, model.config.head.prior_probability
    for name, group in head.named_children():
        if name.startswith(("cls_preds", "reg_preds")):
            bias = -math.log((1 - prior) / prior) if name.startswith("cls") else 1.0
            for prediction in group:
                nn.init.zeros_(prediction.weight)
                nn.init.constant_(prediction.bias, bias)
    with torch.no_grad():
        head.proj_conv.weight.copy_(head.proj.reshape(head.proj_conv.weight.shape))
    head.proj_conv.weight.requires_grad_(False)


def fuse(model: GoldYolo, fold_norms: bool = True) -> GoldYolo:
    """The deploy form: same outputs in eval mode, fewer operations. The model given is left as it is.

    Args:
        model: in train form, either mode.
        fold_norms: also fold every norm that stands behind a convolution. False leaves the keys of the public
            "deploy" form, in which only the RepVGG blocks are re-parameterised.

    Returns:
        A copy in eval mode; its re-parameterised convolutions are frozen.
    """
    fused = copy.deepcopy(model).eval()
    with torch.no_grad():
        for module in fused.modules():
            if isinstance(module, RepVGGBlock) and not hasattr(module, "rbr_reparam"):
                _reparameterise(module)
        for module in fused.modules():
            if fold_norms:
                _fold_norms(module)
    return fused


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that does what ``conv`` and then ``norm`` do in eval mode."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return conv.weight * scale.reshape(-1, 1, 1, 1), bias


def identity_kernel(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The norm alone as a 3x3 convolution: its scale in the centre of each channel's own kernel."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    kernel = torch.zeros(norm.num_features, norm.num_features, 3, 3).to(scale)
    index = torch.arange(norm.num_features)
    kernel[index, index, 1, 1] = scale
    return kernel, norm.bias - norm.running_mean * scale


def _reparameterise(block: RepVGGBlock) -> None:
    kernel, bias = folded(block.rbr_dense.conv, block.rbr_dense.bn)
    pointwise, pointwise_bias = folded(block.rbr_1x1.conv, block.rbr_1x1.bn)
    kernel, bias = kernel + nn.functional.pad(pointwise, [1, 1, 1, 1]), bias + pointwise_bias
    if block.rbr_identity is not None:
        kept, kept_bias = identity_kernel(block.rbr_identity)
        kernel, bias = kernel + kept, bias + kept_bias
    block.rbr_reparam = with_values(block.rbr_dense.conv, kernel, bias)
    for name in ("rbr_dense", "rbr_1x1", "rbr_identity"):
        delattr(block, name)


def _fold_norms(module: nn.Module) -> None:
    for conv_name, norm_name in NORM_AFTER.items():
        conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, conv_name, with_values(conv, *folded(conv, norm)))
            setattr(module, norm_name, nn.Identity())


def with_values(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A frozen convolution of the same geometry with this weight and bias."""
    conv = nn.Conv2d(
        like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, groups=like.groups
    )
    conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return conv
