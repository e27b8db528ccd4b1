"""Convolutions of inference: as exact as Jittor's, never with stale weights, and only where they may be used."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch

from fixtures.seeded import uniform
from jt_impl import mixed
from jt_impl.kernels import convolution
from jt_impl.layers import Conv2d, Identity, ReLU, chained
from jt_impl.runtime import jittor as jt

# images, channels, rows, columns, outputs, kernel, stride
SHAPES = [
    (1, 3, 33, 65, 16, 3, 2),
    (2, 16, 20, 24, 32, 3, 1),
    (2, 32, 7, 5, 64, 3, 2),
    (1, 512, 7, 7, 512, 3, 1),
    (3, 24, 9, 11, 40, 1, 1),
    (1, 704, 10, 10, 704, 1, 1),
    (2, 17, 12, 8, 5, 1, 2),
    (1, 8, 6, 6, 8, 5, 1),
]


def arrays(*sizes: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    return [uniform(i, int(np.prod(size))).reshape(size).astype(np.float32) - 0.5 for i, size in enumerate(sizes)]


def layer(channels: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> Conv2d:
    made = Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=bias)
    weight, offset = arrays((outputs, channels, kernel, kernel), (outputs,))
    made.weight.update(jt.array(weight))
    if made.bias is not None:
        made.bias.update(jt.array(offset))
    return made


def run(made: Conv2d, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with jt.no_grad():
        result: np.ndarray[Any, Any] = made(jt.array(x)).numpy()
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_result_is_as_exact_as_jittors(shape: tuple[int, ...], bias: bool) -> None:
    images, channels, rows, columns, outputs, kernel, stride = shape
    made = layer(channels, outputs, kernel, stride, bias)
    (x,) = arrays((images, channels, rows, columns))
    offset = None if made.bias is None else torch.from_numpy(made.bias.numpy()).double()
    exact = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(made.weight.numpy()).double(), offset, stride, kernel // 2
    ).numpy()
    theirs = made(jt.array(x)).numpy()
    mine = run(made, x)
    assert mine.shape == exact.shape
    floor = 4 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.abs(mine - exact).max() <= max(1.5 * np.abs(theirs - exact).max(), floor)
    assert np.array_equal(run(made, x), mine)


@pytest.mark.parametrize("kernel", [1, 3])
def test_changed_weights_count_at_once(kernel: int) -> None:
    made = layer(16, 16, kernel, bias=False)
    (x,) = arrays((1, 16, 8, 8))
    before = run(made, x)
    made.weight.update(made.weight * 2)
    assert np.array_equal(run(made, x), 2 * before)
    made.weight.assign(made.weight / 2)
    assert np.array_equal(run(made, x), before)
    made.weight.data[...] *= 2  # numpy's view of the same memory
    assert np.array_equal(run(made, x), 2 * before)
    made.weight = jt.zeros_like(made.weight)
    assert not run(made, x).any()


def test_inputs_of_several_shapes_take_turns() -> None:
    made = layer(16, 32, 3)
    inputs = arrays((1, 16, 8, 8), (2, 16, 8, 8), (1, 16, 40, 24))
    first = [run(made, x) for x in inputs]
    assert all(np.array_equal(run(made, x), y) for x, y in zip(inputs, first, strict=True))


def test_layers_of_one_shape_keep_their_own_weights() -> None:
    first, second = layer(16, 16, 3, bias=False), layer(16, 16, 3, bias=False)
    second.weight.update(-second.weight)
    (x,) = arrays((1, 16, 8, 8))
    assert np.array_equal(run(first, x), -run(second, x))
    assert np.array_equal(run(first, x), -run(second, x))


def test_weights_that_take_up_more_than_expected_still_count() -> None:
    made = layer(16, 32, 3)
    (x,) = arrays((1, 16, 8, 8))
    wanted = run(made, x)
    made.kept.weights = jt.zeros((17,))
    assert np.array_equal(run(made, x), wanted)
    assert np.array_equal(run(made, x), wanted)


def test_kept_weights_are_neither_parameters_nor_copied_nor_pickled() -> None:
    made = layer(16, 16, 3)
    (x,) = arrays((1, 16, 8, 8))
    wanted = run(made, x)
    assert made.kept.weights is not None
    assert set(made.state_dict()) == {"weight", "bias"}
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.kept.weights is None
        assert np.array_equal(run(other, x), wanted)


def test_it_is_left_where_gradients_precision_or_device_ask_for_it() -> None:
    x = jt.array(arrays((1, 16, 8, 8))[0])
    assert not convolution.applies(x)
    with jt.no_grad():
        assert convolution.applies(x)
        assert not convolution.applies(x.float64())
        with mixed.autocast():
            assert not convolution.applies(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_relu_in_the_same_pass_gives_the_same_bits(shape: tuple[int, ...], bias: bool) -> None:
    images, channels, rows, columns, outputs, kernel, stride = shape
    made = layer(channels, outputs, kernel, stride, bias)
    (x,) = arrays((images, channels, rows, columns))
    with jt.no_grad():
        apart = ReLU()(made(jt.array(x))).numpy()
        joined = chained(jt.array(x), made, Identity(), ReLU()).numpy()
    assert np.array_equal(joined, apart)
    assert (apart == 0).any()


@pytest.mark.parametrize("kernel", [1, 3])
def test_nan_survives_relu_in_the_same_pass(kernel: int) -> None:
    made = layer(16, 16, kernel)
    (x,) = arrays((1, 16, 8, 8))
    x[0, 3, 4, 4] = np.nan
    with jt.no_grad():
        apart = ReLU()(made(jt.array(x))).numpy()
        joined = chained(jt.array(x), made, ReLU()).numpy()
    assert np.isnan(joined).any()
    assert np.array_equal(joined, apart, equal_nan=True)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_hook_in_the_chain_is_called(where: int) -> None:
    made: list[Any] = [layer(16, 16, 3), Identity(), ReLU()]
    (x,) = arrays((1, 16, 8, 8))
    seen: list[Any] = []
    with jt.no_grad():
        wanted = chained(jt.array(x), *made).numpy()
        made[where].register_forward_hook(lambda module, inputs, output: seen.append(output.numpy()))
        assert np.array_equal(chained(jt.array(x), *made).numpy(), wanted)
    assert len(seen) == 1


def test_images_of_more_sizes_than_are_kept_give_the_same() -> None:
    """Primitives are made anew then: those of an earlier size, in memory that was given back, must not be used."""
    made, most = layer(1, 16, 3), int(re.findall(r"MOST = (\d+)", convolution.HEADER)[0])
    sizes = [(1, 1, 4 + number // 40, 4 + number % 40) for number in range(most + 3)]
    first = {size: run(made, *arrays(size)) for size in sizes[:3]}
    for size in sizes[3:]:
        run(made, *arrays(size))
    for size, expected in first.items():
        assert np.array_equal(run(made, *arrays(size)), expected)
