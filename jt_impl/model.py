"""Gold-YOLO as a whole: build it, initialise it, bring it to deploy form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fixtures.config import GoldYoloConfig
from jt_impl.attention import Attention
from jt_impl.backbone import Backbone
from jt_impl.fusion import PlainConvNorm
from jt_impl.head import HEADS
from jt_impl.layers import BatchNorm2d, Conv2d, Identity, RepVGGBlock, Var, nn
from jt_impl.neck import Neck
from jt_impl.runtime import jittor as jt

DTYPES = ("float32", "float64")
NORM_AFTER = {"conv": "bn", "c": "bn"}  # names under which a module keeps a convolution and the norm behind it
Array = Any


class GoldYolo(nn.Module):
    """Images (N, 3, H, W) in 0..1, H and W multiples of 32, to what the head of the config's kind returns."""

    def __init__(self, config: GoldYoloConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.detect = HEADS[config.head.kind](config)

    def execute(self, images: Var) -> Var | tuple[Any, ...]:
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
    model.train()  # a Jittor module has no mode until it is told one
    initialise(model)
    if dtype == "float64":
        for module in model.modules():
            for name, value in list(module.__dict__.items()):
                if isinstance(value, jt.Var):
                    setattr(module, name, replaced(value, value.numpy().astype(np.float64)))
    return model


def replaced(var: Var, array: Array) -> Var:
    """A Var with these values, trainable exactly if ``var`` is."""
    new = jt.array64(array) if array.dtype == np.float64 else jt.array(array)
    return new.stop_grad() if var.is_stop_grad() else new.start_grad()


def initialise(model: GoldYolo) -> None:
    """Values that the public constructor sets beyond the framework's defaults."""
    for module in model.modules():
        if isinstance(module, PlainConvNorm):
            weight = module.conv.weight
            std = math.sqrt(2.0 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
            module.conv.weight = jt.init.gauss(weight.shape, "float32", 0.0, std)
        if isinstance(module, Attention):
            module.proj[1].bn.weight = jt.zeros_like(module.proj[1].bn.weight)
    head, prior = model.detect, model.config.head.prior_probability
    for name, group in head.named_children():
        if name.startswith(("cls_preds", "reg_preds")):
            bias = -math.log((1 - prior) / prior) if name.startswith("cls") else 1.0
            for prediction in group:
                prediction.weight = jt.zeros_like(prediction.weight)
                prediction.bias = jt.full_like(prediction.bias, bias)
    head.proj_conv.weight = head.proj.reshape(head.proj_conv.weight.shape).stop_grad()


def fuse(model: GoldYolo, fold_norms: bool = True) -> GoldYolo:
    """The deploy form: same outputs in eval mode, fewer operations. The model given is left as it is.

    Args:
        model: in train form, either mode.
        fold_norms: also fold every norm that stands behind a convolution. False leaves the keys of the public
            "deploy" form, in which only the RepVGG blocks are re-parameterised.

    Returns:
        A copy in eval mode; its re-parameterised convolutions are frozen.
    """
    fused = clone(model)
    fused.eval()
    for module in fused.modules():
        if isinstance(module, RepVGGBlock) and not hasattr(module, "rbr_reparam"):
            _reparameterise(module)
    for module in fused.modules():
        if fold_norms:
            _fold_norms(module)
    return fused


def clone(model: GoldYolo) -> GoldYolo:
    """A model of the same values; ``copy.deepcopy`` of a Jittor module makes buffers trainable."""
    made = build_model(model.config)
    for module, source in zip(made.modules(), model.modules(), strict=True):
        for name, value in list(source.__dict__.items()):
            if isinstance(value, jt.Var):
                setattr(module, name, replaced(value, value.numpy()))
    return made


def folded(conv: Conv2d, norm: BatchNorm2d) -> tuple[Array, Array]:
    """Kernel and bias of the convolution that does what ``conv`` and then ``norm`` do in eval mode."""
    scale = norm_scale(norm)
    bias = norm.bias.numpy() - norm.running_mean.numpy() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.numpy() * scale
    return conv.weight.numpy() * scale.reshape(-1, 1, 1, 1), bias


def norm_scale(norm: BatchNorm2d) -> Array:
    variance = norm.running_var.numpy()
    return norm.weight.numpy() / np.sqrt(variance + variance.dtype.type(norm.eps))


def identity_kernel(norm: BatchNorm2d) -> tuple[Array, Array]:
    """The norm alone as a 3x3 convolution: its scale in the centre of each channel's own kernel."""
    scale = norm_scale(norm)
    kernel = np.zeros((norm.num_features, norm.num_features, 3, 3), scale.dtype)
    index = np.arange(norm.num_features)
    kernel[index, index, 1, 1] = scale
    return kernel, norm.bias.numpy() - norm.running_mean.numpy() * scale


def _reparameterise(block: RepVGGBlock) -> None:
    kernel, bias = folded(block.rbr_dense.conv, block.rbr_dense.bn)
    pointwise, pointwise_bias = folded(block.rbr_1x1.conv, block.rbr_1x1.bn)
    kernel, bias = kernel + np.pad(pointwise, [(0, 0), (0, 0), (1, 1), (1, 1)]), bias + pointwise_bias
    if block.rbr_identity is not None:
        kept, kept_bias = identity_kernel(block.rbr_identity)
        kernel, bias = kernel + kept, bias + kept_bias
    block.rbr_reparam = with_values(block.rbr_dense.conv, kernel, bias)
    for name in ("rbr_dense", "rbr_1x1", "rbr_identity"):
        delattr(block, name)


def _fold_norms(module: Any) -> None:
    for conv_name, norm_name in NORM_AFTER.items():
        conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
        if isinstance(conv, Conv2d) and isinstance(norm, BatchNorm2d):
            setattr(module, conv_name, with_values(conv, *folded(conv, norm)))
            setattr(module, norm_name, Identity())


def with_values(like: Conv2d, weight: Array, bias: Array) -> Conv2d:
    """A frozen convolution of the same geometry with this weight and bias."""
    conv = Conv2d(like.in_channels, like.out_channels, like.kernel, like.stride, like.padding, groups=like.groups)
    conv.weight, conv.bias = replaced(conv.weight, weight).stop_grad(), replaced(conv.bias, bias).stop_grad()
    conv.eval()
    return conv
