"""Faults of what layers hold and hand on: weights, precision, aliasing, fused kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

import converters
from alignment_tests.meta_tests.experiments.forward import narrow_pair
from alignment_tests.meta_tests.faults.fault import Patch, fault
from alignment_tests.meta_tests.faults.helpers import at, during, instead, set_values, with_other
from jt_impl import attention
from jt_impl import model as models
from jt_impl.kernels import convolution
from jt_impl.layers import matmul, to_var
from jt_impl.runtime import jittor as jt

Module = Any
WEIGHTS, PRECISION, ALIASES, DEPLOY = ("weights", "precision", "aliasing", "re-parameterisation")

# Weights


@fault("backbone", "ERBlock_5.2.cv4.conv", WEIGHTS)
def square_weight_transposed(patch: Patch, model: Module) -> None:
    """A 1x1 kernel of as many inputs as outputs is transposed, which no shape tells."""
    set_values(patch, at(model, "ERBlock_5.2.cv4.conv"), "weight", lambda w: w.transpose(1, 0, 2, 3))


@fault("backbone", "ERBlock_3.1.conv1.rbr_dense.conv", WEIGHTS)
def kernels_flipped(patch: Patch, model: Module) -> None:
    """Kernels are turned by 180 degrees, as a true convolution would want them."""
    set_values(patch, at(model, "ERBlock_3.1.conv1.rbr_dense.conv"), "weight", lambda w: w[:, :, ::-1, ::-1])


@fault("backbone", "stem.rbr_dense.conv", WEIGHTS)
def colours_reversed(patch: Patch, model: Module) -> None:
    """The first kernel was written for BGR images."""
    set_values(patch, at(model, "stem.rbr_dense.conv"), "weight", lambda w: w[:, ::-1])


@fault("head", "reg_convs.0.conv", WEIGHTS)
def weights_shared(patch: Patch, model: Module) -> None:
    """The box branch of a level uses the kernel of its class branch."""
    patch.set(at(model, "reg_convs.0.conv"), "weight", at(model, "cls_convs.0.conv").weight)


@fault("head", "cls_preds.0", WEIGHTS)
def initial_weight_kept(patch: Patch, model: Module) -> None:
    """A prediction keeps the weight 0 of its constructor: its key was never loaded."""
    set_values(patch, at(model, "cls_preds.0"), "weight", np.zeros_like)


@fault("backbone", "ERBlock_5.0.rbr_dense.bn", WEIGHTS)
def running_statistics_never_loaded(patch: Patch, model: Module) -> None:
    """A norm has mean 0 and variance 1, as built."""
    set_values(patch, at(model, "ERBlock_5.0.rbr_dense.bn"), "running_mean", np.zeros_like)
    set_values(patch, at(model, "ERBlock_5.0.rbr_dense.bn"), "running_var", np.ones_like)


@fault("backbone", "ERBlock_4.0.rbr_1x1.bn", WEIGHTS)
def weight_and_bias_of_a_norm_swapped(patch: Patch, model: Module) -> None:
    """Weight and bias of a norm, of one shape, are swapped."""
    norm = at(model, "ERBlock_4.0.rbr_1x1.bn")
    weight, bias = norm.weight, norm.bias
    patch.set(norm, "weight", bias)
    patch.set(norm, "bias", weight)


@fault("neck", "conv_1x1_n", WEIGHTS)
def bias_dropped(patch: Patch, model: Module) -> None:
    """A convolution with bias was built without."""
    patch.set(at(model, "conv_1x1_n"), "bias", None)


@fault("head", "reg_preds.1", PRECISION)
def weight_rounded_to_half(patch: Patch, model: Module) -> None:
    """One weight went through float16."""
    set_values(patch, at(model, "reg_preds.1"), "weight", lambda w: w.astype(np.float16).astype(w.dtype))


@fault("blocks of M and L", "0.m.conv1", WEIGHTS)
def learnt_scale_ignored(patch: Patch, model: Module) -> None:
    """The learnt scale of a residual is taken for 1."""
    set_values(patch, at(model, "0.m.conv1"), "alpha", np.ones_like)


@fault("backbone", "ERBlock_2.1.conv1.rbr_dense.conv", WEIGHTS)
def reordered_weights_stale(patch: Patch, model: Module) -> None:
    """Inference keeps reordered weights of a convolution though its weights were loaded anew since."""
    conv, check = at(model, "ERBlock_2.1.conv1.rbr_dense.conv"), "now != *(uint64_t*)in2_p"
    if check not in convolution.RUN:
        raise ValueError(f"`convolution.RUN` must hold {check!r}: the kernel changed, and this fault with it")
    patch.set(convolution, "RUN", convolution.RUN.replace(check, "*(uint64_t*)in2_p == 0"))
    patch.set(conv, "kept", convolution.Kept())
    weight, older = conv.weight, to_var(conv.weight.numpy()[::-1].copy(), conv.weight)
    conv.weight = older
    with jt.no_grad():
        conv(jt.zeros((1, weight.shape[1], 16, 16))).sync()
    conv.weight = weight


# Precision


@fault("neck", "high_IFM.transformer_blocks.0.attn", PRECISION)
def attention_in_half(patch: Patch, model: Module) -> None:
    """The attention weights of a block are rounded to float16."""
    attn = at(model, "high_IFM.transformer_blocks.0.attn")
    during(patch, attn, attention, "softmax", lambda right: lambda x, dim: rounded(right(x, dim), "float16"))


@fault("backbone", "ERBlock_4.1.conv1", PRECISION)
def block_returns_half(patch: Patch, model: Module) -> None:
    """A block computes in float32 and hands its map on in float16, which the next convolution widens again."""
    instead(patch, at(model, "ERBlock_4.1.conv1"), lambda right: lambda x: rounded(right(x), "float16"))


@fault("neck", "reduce_layer_p4.conv", PRECISION)
def convolution_in_bfloat16(patch: Patch, model: Module) -> None:
    """The factors of a convolution are rounded to eight bits of mantissa, as bfloat16 and TF32's cousins do."""
    conv = at(model, "reduce_layer_p4.conv")
    instead(patch, conv, lambda right: lambda x: right(rounded(x, "bfloat16")))


def rounded(x: Any, dtype: str) -> Any:
    """Through another precision and back."""
    kind = str(x.dtype)
    return x.cast(dtype).cast(kind)


@fault("neck", "high_IFM.transformer_blocks.1.attn", PRECISION)
def products_in_bfloat16(patch: Patch, model: Module) -> None:
    """The factors of attention's products of matrices are rounded to bfloat16."""

    def narrow(a: Any, b: Any) -> Any:
        return matmul(rounded(a, "bfloat16"), rounded(b, "bfloat16"))

    during(patch, at(model, "high_IFM.transformer_blocks.1.attn"), attention, "matmul", lambda right: narrow)


# Aliasing


@fault("head", "cls_convs.0", ALIASES)
def branch_writes_into_its_input(patch: Patch, model: Module) -> None:
    """The class branch applies its activation to the stem's map in place; the box branch then reads that."""

    def wrapped(right: Any) -> Any:
        def run(x: Any) -> Any:
            result = right(x)
            result.sync()
            x.assign(jt.ternary(x <= 0.0, jt.zeros_like(x), x))
            return result

        return run

    instead(patch, at(model, "cls_convs.0"), wrapped)


@fault("neck", "high_IFM.transformer_blocks.0", ALIASES)
def residual_added_in_place(patch: Patch, model: Module) -> None:
    """A block adds its branch to its input in place: the output is right, the map before it is spoilt."""

    def wrapped(right: Any) -> Any:
        def run(x: Any) -> Any:
            result = right(x)
            result.sync()
            x.assign(result.copy())
            return result

        return run

    instead(patch, at(model, "high_IFM.transformer_blocks.0"), wrapped)


@fault("backbone, training", "buffer/ERBlock_2.0.rbr_*.bn.running_mean", ALIASES)
def two_norms_share_a_running_mean(patch: Patch, model: Module) -> None:
    """Two norms were given one array for their running means, so each step moves it twice."""
    shared = at(model, "ERBlock_2.0.rbr_dense.bn").running_mean
    patch.set(at(model, "ERBlock_2.0.rbr_1x1.bn"), "running_mean", shared)


# Re-parameterisation


@fault("backbone, deploy form", "stem.rbr_reparam", DEPLOY)
def eps_forgotten_in_fusing(patch: Patch, model: Module) -> None:
    """Norms are folded into convolutions without their eps."""
    fuse_wrongly(patch, model, "norm_scale", lambda norm: norm.weight.numpy() / np.sqrt(norm.running_var.numpy()))


@fault("backbone, deploy form", "ERBlock_2.1.conv1.rbr_reparam", DEPLOY)
def identity_forgotten_in_fusing(patch: Patch, model: Module) -> None:
    """The identity branch is left out of the fused kernel."""
    right = models.identity_kernel
    fuse_wrongly(patch, model, "identity_kernel", lambda norm: tuple(0 * array for array in right(norm)))


@fault("backbone, deploy form", "stem.rbr_reparam", DEPLOY)
def pointwise_kernel_in_the_corner(patch: Patch, model: Module) -> None:
    """The 1x1 kernel is put into the first place of the 3x3 kernel in place of its centre."""

    class Wrong:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def pad(self, array: Any, widths: Any) -> Any:
            return np.pad(array, [(0, 0), (0, 0), (0, 2), (0, 2)])

    fuse_wrongly(patch, model, "np", Wrong())


def fuse_wrongly(patch: Patch, backbone: Module, name: str, value: Any) -> None:
    """The weights that ``fuse`` makes otherwise while another ``name`` stands in its module."""
    source, wrongly = narrow_pair().candidate, with_other(models.fuse, models, name, lambda right: value)
    right, wrong = (converters.read_state(fuse(source).backbone) for fuse in (models.fuse, wrongly))
    for key, array in wrong.items():
        path, _, leaf = key.rpartition(".")
        if not np.array_equal(array, right[key]):
            set_values(patch, at(backbone, path), leaf, constant(array))


def constant(array: Any) -> Any:
    return lambda _: array
