"""Faults of single layers: their arguments, their weights, their mode, their precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import converters
from alignment_tests.meta_tests.fault import Patch, fault
from alignment_tests.meta_tests.forward import narrow_pair
from alignment_tests.meta_tests.helpers import at, during, instead, norms, set_values, with_other
from jt_impl import attention, convolution, fusion, layers
from jt_impl import model as models
from jt_impl.layers import matmul, nn, to_var
from jt_impl.runtime import jittor as jt

Module = Any
ARGUMENTS, POOLS, NORMS, WEIGHTS, ACTIVATIONS, DROP_PATH, PRECISION, ALIASES, DEPLOY = (
    "layer arguments",
    "pooling and interpolation",
    "batch norm",
    "weights",
    "activations",
    "DropPath",
    "precision",
    "aliasing",
    "re-parameterisation",
)

# Arguments of convolutions and norms


@fault("backbone", "ERBlock_3.0.rbr_1x1.bn", NORMS)
def eps_of_one_norm(patch: Patch, model: Module) -> None:
    """One norm keeps the default eps of 1e-5 in place of 1e-3."""
    patch.set(at(model, "ERBlock_3.0.rbr_1x1.bn"), "eps", 1e-5)


@fault("backbone", "stem.rbr_dense.bn", NORMS)
def eps_of_every_norm(patch: Patch, model: Module) -> None:
    """Every norm has the default eps of 1e-5 in place of 1e-3."""
    for norm in norms(model):
        patch.set(norm, "eps", 1e-5)


@fault("backbone, training", "buffer/stem.rbr_dense.bn.running_mean", NORMS)
def momentum_of_the_other_convention(patch: Patch, model: Module) -> None:
    """Momentum is the share of the old running value, 0.97, where PyTorch's is that of the new one, 0.03."""
    for norm in norms(model):
        patch.set(norm, "momentum", 1.0 - norm.momentum)


@fault("backbone, training", "buffer/ERBlock_4.0.rbr_dense.bn.running_mean", NORMS)
def momentum_of_one_norm(patch: Patch, model: Module) -> None:
    """One norm keeps the default momentum of 0.1 in place of 0.03."""
    patch.set(at(model, "ERBlock_4.0.rbr_dense.bn"), "momentum", 0.1)


@fault("backbone", "ERBlock_2.0.rbr_dense.conv", ARGUMENTS)
def padding_on_one_side(patch: Patch, model: Module) -> None:
    """A convolution with stride 2 pads right and bottom only, as "same" does in TensorFlow."""
    conv = at(model, "ERBlock_2.0.rbr_dense.conv")
    patch.set(conv, "padding", 0)
    instead(patch, conv, lambda right: lambda x: right(nn.pad(x, [0, 1, 0, 1])))


@fault("head", "reg_convs.1.conv", ARGUMENTS)
def padding_by_repetition(patch: Patch, model: Module) -> None:
    """A convolution repeats the border in place of padding with zeros."""
    conv = at(model, "reg_convs.1.conv")
    patch.set(conv, "padding", 0)
    instead(patch, conv, lambda right: lambda x: right(nn.pad(x, [1, 1, 1, 1], mode="replicate")))


@fault("backbone", "ERBlock_4.1.conv1.rbr_dense.conv", ARGUMENTS)
def dilation_of_two(patch: Patch, model: Module) -> None:
    """A 3x3 convolution has dilation 2 and padding 2, which keep the size of its output."""
    conv = at(model, "ERBlock_4.1.conv1.rbr_dense.conv")

    def wrapped(right: Any) -> Any:
        def run(x: Any) -> Any:
            kernel = conv.weight.numpy()
            wide = np.zeros((*kernel.shape[:2], 5, 5), kernel.dtype)
            wide[:, :, ::2, ::2] = kernel
            held, conv.weight, conv.padding = conv.weight, to_var(wide, conv.weight), 2
            try:
                return right(x)
            finally:
                conv.weight, conv.padding = held, 1

        return run

    instead(patch, conv, wrapped)


@fault("backbone", "ERBlock_4.0.rbr_1x1.conv", ARGUMENTS)
def stride_begins_at_the_second_pixel(patch: Patch, model: Module) -> None:
    """A 1x1 convolution with stride 2 takes every second pixel, beginning with the second."""
    conv = at(model, "ERBlock_4.0.rbr_1x1.conv")
    instead(patch, conv, lambda right: lambda x: right(nn.pad(x, [0, 1, 0, 1])[:, :, 1:, 1:]))


@fault("neck", "high_IFM.transformer_blocks.0.mlp.dwconv", ARGUMENTS)
def groups_lost(patch: Patch, model: Module) -> None:
    """A depth-wise convolution runs with one group: every kernel sees the sum of all channels."""
    conv = at(model, "high_IFM.transformer_blocks.0.mlp.dwconv")
    instead(patch, conv, lambda right: lambda x: right(x.sum(1, keepdims=True).broadcast(x.shape)))


# Pooling and interpolation


@fault("neck", "high_FAM", POOLS)
def windows_end_rounded_down(patch: Patch, model: Module) -> None:
    """The windows of adaptive pooling end at the floor of their bound in place of the ceiling."""

    def matrix(size: int, out: int) -> Any:
        found = np.zeros((out, size))
        for i in range(out):
            start, end = i * size // out, max((i + 1) * size // out, i * size // out + 1)
            found[i, start:end] = 1.0 / (end - start)
        return found

    patch.set(layers, "pooling_matrix", matrix)


@fault("neck", "high_FAM", POOLS)
def windows_of_one_size(patch: Patch, model: Module) -> None:
    """Adaptive pooling takes one fixed window, as Jittor's own layer and the ONNX export do."""
    patch.set(at(model, "high_FAM"), "pool_mode", "onnx")


@fault("neck", "high_FAM", POOLS)
def padding_counted_in_averages(patch: Patch, model: Module) -> None:
    """Averages are divided by the largest window, as if smaller ones were padded and the padding counted."""
    right = layers.pooling_matrix

    def matrix(size: int, out: int) -> Any:
        windows = right(size, out)
        largest = (windows > 0).sum(1).max()
        return np.where(windows > 0, 1.0 / largest, 0.0)

    patch.set(layers, "pooling_matrix", matrix)


@fault("neck", "low_FAM", POOLS)
def corners_aligned(patch: Patch, model: Module) -> None:
    """Bilinear interpolation aligns the corners."""
    patch.set(layers, "bilinear_matrix", interpolation(lambda i, size, out: i * (size - 1) / max(out - 1, 1)))


@fault("neck", "Inject_n5", POOLS)
def half_pixel_forgotten(patch: Patch, model: Module) -> None:
    """Bilinear interpolation measures from the cells' corners in place of their centres, in one module."""
    wrong = interpolation(lambda i, size, out: i * (size / out))
    during(patch, at(model, "Inject_n5"), layers, "bilinear_matrix", lambda right: wrong)


@fault("neck", "LAF_p3", POOLS)
def nearest_for_bilinear(patch: Patch, model: Module) -> None:
    """One module enlarges its coarse map by repeating pixels in place of interpolating."""
    nearest = interpolation(lambda i, size, out: np.floor(i * (size / out)))
    during(patch, at(model, "LAF_p3"), layers, "bilinear_matrix", lambda right: nearest)


def interpolation(place: Any) -> Any:
    """``bilinear_matrix`` with another formula for the position in the small map."""

    def matrix(size: int, out: int) -> Any:
        position = np.clip(place(np.arange(out, dtype=np.float64), size, out), 0.0, size - 1)
        low = position.astype(int)
        high = np.minimum(low + 1, size - 1)
        found = np.zeros((out, size))
        np.add.at(found, (np.arange(out), low), 1.0 - (position - low))
        np.add.at(found, (np.arange(out), high), position - low)
        return found

    return matrix


@fault("neck", "high_FAM", POOLS)
def stride_of_the_pool_lost(patch: Patch, model: Module) -> None:
    """The transformer's map is not halved: later resizing hides it."""
    patch.set(at(model, "high_FAM"), "stride", 1)


@fault("blocks of M and L", "1.m", POOLS)
def maxima_over_padding_of_zero(patch: Patch, model: Module) -> None:
    """Max pooling pads with 0 in place of minus infinity, which shows where all neighbours are negative."""
    during(patch, at(model, "1.m"), nn, "pad", lambda right: lambda x, sides, value: right(x, sides, value=0.0))


# Not in the backbone at 64x64: there the 5x5 windows see the whole 2x2 map, and shifted ones do too.
@fault("blocks of M and L", "1.m", POOLS)
def pooled_map_shifted(patch: Patch, model: Module) -> None:
    """The padded map is cut one pixel late after max pooling."""
    wrong = lambda right: lambda x: right(nn.pad(x, [0, 1, 0, 1], value=-3e38))[:, :, 1:, 1:]  # noqa: E731
    instead(patch, at(model, "1.m"), wrong)


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


# Activations


@fault("head", "stems.0.act", ACTIVATIONS)
def relu_for_silu(patch: Patch, model: Module) -> None:
    """A stem of the head has ReLU in place of SiLU."""
    patch.set(at(model, "stems.0"), "act", layers.relu())


@fault("neck", "low_IFM.0.act", ACTIVATIONS)
def hard_swish_for_silu(patch: Patch, model: Module) -> None:
    """SiLU is approximated by x * relu6(x + 3) / 6."""
    act = at(model, "low_IFM.0.act")
    instead(patch, act, lambda right: lambda x: x * layers.ReLU6()(x + 3) / 6)


@fault("backbone", "ERBlock_2.0.nonlinearity", ACTIVATIONS)
def leaky_relu_for_relu(patch: Patch, model: Module) -> None:
    """A ReLU lets a hundredth of what is negative through."""
    act = at(model, "ERBlock_2.0.nonlinearity")
    instead(patch, act, lambda right: lambda x: jt.ternary(x > 0.0, x, x * 0.01))


# Not in the neck: with seeded weights no value there reaches the cap, so the function that is computed is the same.
@fault("activations", "1", ACTIVATIONS)
def cap_of_relu6_lost(patch: Patch, model: Module) -> None:
    """A ReLU6 has no upper bound."""
    instead(patch, at(model, "1"), lambda right: layers.ReLU().execute)


@fault("neck", "Inject_p4.act", ACTIVATIONS)
def hard_sigmoid_of_keras(patch: Patch, model: Module) -> None:
    """The hard sigmoid is clip(0.2 x + 0.5), as in Keras, in place of clip(x / 6 + 0.5)."""
    patch.set(fusion.HardSigmoid, "execute", lambda self, x: self.relu(x * 1.2 + 3) / 6)


# Mode and statistics of norms


@fault("backbone", "ERBlock_3.1.conv1.rbr_dense.bn", NORMS)
def norm_trains_in_evaluation(patch: Patch, model: Module) -> None:
    """One norm uses the statistics of the batch in evaluation."""
    patch.set(at(model, "ERBlock_3.1.conv1.rbr_dense.bn"), "is_training", lambda: True)


@fault("backbone, training", "ERBlock_3.1.conv1.rbr_dense.bn", NORMS)
def norm_frozen_in_training(patch: Patch, model: Module) -> None:
    """One norm uses its running statistics in training."""
    patch.set(at(model, "ERBlock_3.1.conv1.rbr_dense.bn"), "is_training", lambda: False)


@fault("backbone, training", "buffer/stem.rbr_dense.bn.running_var", NORMS)
def running_variance_biased(patch: Patch, model: Module) -> None:
    """The running variance moves towards the biased variance, as Jittor's own norm has it."""
    right = layers.BatchNorm2d.move_running_statistics

    def moved(self: Any, mean: Any, variance: Any) -> None:
        count = self.count_of_values
        right(self, mean, variance * to_var(np.array([(count - 1) / count]), mean))

    def counting(execute: Any) -> Any:
        def run(self: Any, x: Any) -> Any:
            self.count_of_values = x.shape[0] * x.shape[2] * x.shape[3]
            return execute(self, x)

        return run

    patch.wrap(layers.BatchNorm2d, "execute", counting)
    patch.set(layers.BatchNorm2d, "move_running_statistics", moved)


@fault("backbone, training", "ERBlock_2.0.rbr_dense.bn", NORMS)
def normalised_by_the_unbiased_variance(patch: Patch, model: Module) -> None:
    """A norm divides by the unbiased variance in training."""

    def make(right: Any) -> Any:
        def normalise(x: Any, weight: Any, bias: Any, eps: float) -> Any:
            _, mean, variance = right(x, weight, bias, eps)
            count = x.shape[0] * x.shape[2] * x.shape[3]
            wider = variance * to_var(np.array([count / (count - 1)]), mean)
            return layers.normalised(x, mean, wider, weight, bias, eps), mean, variance

        return normalise

    during(patch, at(model, "ERBlock_2.0.rbr_dense.bn"), layers, "batch_normalise", make)


# DropPath


@fault("neck, training", "high_IFM.transformer_blocks.1.drop_path", DROP_PATH)
def kept_paths_not_rescaled(patch: Patch, model: Module) -> None:
    """DropPath drops samples and leaves the kept ones as they are."""
    drop = at(model, "high_IFM.transformer_blocks.1.drop_path")
    instead(patch, drop, lambda right: lambda x: right(x) * to_var(np.array([1.0 - drop.rate]), x))


@fault("neck, training", "high_IFM.transformer_blocks.1.drop_path", DROP_PATH)
def rate_taken_for_the_share_kept(patch: Patch, model: Module) -> None:
    """DropPath keeps a share of 0.1 in place of dropping it."""
    drop = at(model, "high_IFM.transformer_blocks.1.drop_path")
    patch.set(drop, "rate", 1.0 - drop.rate)


@fault("neck, training", "high_IFM.transformer_blocks.1.drop_path", DROP_PATH)
def one_draw_for_the_batch(patch: Patch, model: Module) -> None:
    """DropPath drops the whole batch or nothing."""
    drop = at(model, "high_IFM.transformer_blocks.1.drop_path")
    right = drop.draw
    patch.set(drop, "draw", lambda batch: np.repeat(right(batch)[:1], batch))


@fault("neck", "high_IFM.transformer_blocks.1.drop_path", DROP_PATH)
def paths_dropped_in_evaluation(patch: Patch, model: Module) -> None:
    """DropPath is active in evaluation."""
    patch.set(at(model, "high_IFM.transformer_blocks.1.drop_path"), "is_training", lambda: True)


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
def products_in_single(patch: Patch, model: Module) -> None:
    """A float64 run takes a product of matrices in float32; the float32 run is as it was."""

    def single(a: Any, b: Any) -> Any:
        kind = str(a.dtype)
        return matmul(a.cast("float32"), b.cast("float32")).cast(kind)

    during(patch, at(model, "high_IFM.transformer_blocks.1.attn"), attention, "matmul", lambda right: single)


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


@fault("neck", "high_IFM.transformer_blocks.0.attn", "scale")
def attention_scaled(patch: Patch, model: Module) -> None:
    """Attention divides the products by the root of the key's width, as is customary, where the original does not."""
    attn = at(model, "high_IFM.transformer_blocks.0.attn")
    factor = 1.0 / math.sqrt(attn.key_dim)
    scaled = lambda right: lambda x, dim: right(x * to_var(np.array([factor]), x), dim)  # noqa: E731
    during(patch, attn, attention, "softmax", scaled)
