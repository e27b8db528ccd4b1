"""Faults of single layers: their arguments, their activations, the mode and statistics of norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from alignment_tests.meta_tests.faults.fault import Patch, fault
from alignment_tests.meta_tests.faults.helpers import at, during, instead, norms
from jt_impl import fusion, layers
from jt_impl.layers import nn, to_var
from jt_impl.runtime import jittor as jt

Module = Any
ARGUMENTS, POOLS, NORMS, ACTIVATIONS, DROP_PATH = (
    "layer arguments",
    "pooling and interpolation",
    "batch norm",
    "activations",
    "DropPath",
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
