"""Every layer of ``jt_impl`` against PyTorch, alone: forward, gradients, and where Jittor's own would be wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional as F

from alignment_tests.cases.layers import CONVOLUTIONS, LAYERS
from alignment_tests.cases.modules import Unit, jittor_var, seed_weights, signed, to_double, unit_arrays
from alignment_tests.harness.judge.compare import Comparison, compare_arrays
from fixtures.seeded import uniform
from jt_impl import layers
from jt_impl.attention import DropPath
from jt_impl.kernels import exponential, float64
from jt_impl.runtime import jittor as jt

Array = npt.NDArray[Any]


def passed(comparison: Comparison) -> None:
    assert comparison.passed, comparison.reason


def to_torch(array: Array, dtype: str = "float64") -> torch.Tensor:
    return torch.from_numpy(array.astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_of_a_bias_is_summed_in_double(dtype: str) -> None:
    """Jittor's own sum adds in float32, one after the other where there is one thread."""
    conv = layers.conv2d(3, 5, 1, bias=True)
    if dtype == "float64":
        to_double(conv)
    x, upstream = signed(1, 2, 3, 60, 50), signed(2, 2, 5, 60, 50) + 1.0
    y = conv(jittor_var(x, dtype))
    by_bias = jt.grad((y * jittor_var(upstream, dtype)).sum(), conv.bias).numpy()
    exact = upstream.astype(dtype).astype(np.float64).sum((0, 2, 3))
    assert by_bias.dtype == dtype
    assert np.abs(by_bias / exact - 1.0).max() <= np.finfo(dtype).eps


# ---- forward


@pytest.mark.parametrize("name", LAYERS)
def test_forward_in_float64(name: str) -> None:
    actual, expected = unit_arrays("jt_impl", LAYERS[name]), unit_arrays("torch_ref", LAYERS[name])
    assert sorted(actual) == sorted(expected)
    for key in expected:
        passed(compare_arrays(actual[key], expected[key]))


@pytest.mark.parametrize("name", LAYERS)
def test_forward_in_float32(name: str) -> None:
    actual = unit_arrays("jt_impl", LAYERS[name], "float32")
    expected, oracle = unit_arrays("torch_ref", LAYERS[name], "float32"), unit_arrays("torch_ref", LAYERS[name])
    assert sorted(actual) == sorted(expected)
    for key in expected:
        passed(compare_arrays(actual[key], expected[key], oracle=oracle[key]))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_float64_convolution_equals_jittors_own(name: str) -> None:
    """Ties the float64 path to the operator that Jittor itself would run."""
    unit: Unit = CONVOLUTIONS[name]
    module = unit.build(layers)
    to_double(module)
    seed_weights(module)
    x = jittor_var(unit.inputs[0])
    own = jt.nn.conv2d(x, module.weight, module.bias, module.stride, module.padding, 1, module.groups)
    actual, expected = module(x).numpy(), own.numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-14 * np.abs(expected).max() * module.weight[0].numel()


# K = 300 is more than one block of the kernel's inner loop, 37 columns more than two of its panels.
PRODUCTS = [((7, 300), (300, 37)), ((1, 1), (1, 1)), ((2, 3, 6, 5), (2, 3, 5, 16)), ((4, 13, 1), (4, 1, 9))]


@pytest.mark.parametrize(("left", "right"), PRODUCTS)
def test_float64_product(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = signed(40, *left), signed(41, *right)
    passed(compare_arrays(float64.matmul(jittor_var(a), jittor_var(b)).numpy(), a @ b))


@pytest.mark.parametrize("batches", [(1, 3), (3, 1)])
def test_float64_product_repeats_a_lone_factor(batches: tuple[int, int]) -> None:
    a, b = signed(40, batches[0], 4, 5), signed(41, batches[1], 5, 6)
    passed(compare_arrays(float64.BatchedProduct.apply(jittor_var(a), jittor_var(b)).numpy(), a @ b))


# ---- exponentials

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38], np.float32)
GRID = np.concatenate([np.linspace(-110, 95, 200_001), 200 * signed(42, 50_000)]).astype(np.float32)


def ulps(actual: Array, truth: Array) -> float:
    """Largest error in units of the spacing of float32 at the true value; infinities must agree."""
    rounded = truth.astype(np.float32)
    finite = np.isfinite(rounded)
    assert np.array_equal(actual[~finite], rounded[~finite])
    return float((np.abs(actual[finite] - truth[finite]) / np.spacing(np.abs(rounded[finite]))).max())


def test_exp_is_within_an_ulp_and_a_half() -> None:
    with np.errstate(over="ignore"):
        assert ulps(exponential.exp(jt.array(GRID)).numpy().astype(np.float64), np.exp(GRID.astype(np.float64))) <= 1.5


def test_exp_of_results_below_the_smallest_normal_number() -> None:
    x = np.linspace(-103.9, -87.4, 10_001).astype(np.float32)
    actual = exponential.exp(jt.array(x)).numpy()
    assert np.abs(actual - np.exp(x.astype(np.float64))).max() <= 1.5 * np.float32(1e-45)
    assert (actual > 0).all()


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "exp": (exponential.exp, torch.exp),
    "sigmoid": (exponential.sigmoid, torch.sigmoid),
    "silu": (exponential.silu, F.silu),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values(name: str, dtype: str) -> None:
    ours, theirs = FUNCTIONS[name]
    actual, expected = ours(jittor_var(SPECIAL, dtype)).numpy(), theirs(to_torch(SPECIAL, dtype)).numpy()
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert np.allclose(actual, expected, rtol=1e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "limit"), [("sigmoid", 2.5), ("silu", 3.0)])
def test_sigmoid_and_silu_are_accurate_where_exp_is_finite(name: str, limit: float) -> None:
    x = GRID[np.abs(GRID) < 87]
    true = 1 / (1 + np.exp(-x.astype(np.float64)))
    truth = true if name == "sigmoid" else x * true
    assert ulps(FUNCTIONS[name][0](jt.array(x)).numpy().astype(np.float64), truth) <= limit


@pytest.mark.parametrize("name", ["sigmoid", "silu"])
def test_sigmoid_and_silu_vanish_beyond(name: str) -> None:
    """exp(-x) is infinite below -88.7: the result is zero, and the truth is no more than 88 times a subnormal."""
    actual = FUNCTIONS[name][0](jt.array(GRID[GRID < -87])).numpy()
    assert np.abs(actual).max() <= 88 * np.exp(-87.0)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("count", [1, 3, 17, 1000, 30_001])
def test_an_element_does_not_depend_on_its_place(name: str, count: int) -> None:
    """Vector and scalar code, one thread and several, give the same bits."""
    x = (20 * signed(43, count)).astype(np.float32)
    whole = FUNCTIONS[name][0](jt.array(x)).numpy()
    shifted = FUNCTIONS[name][0](jt.array(np.concatenate([x[-1:], x[:-1]]))).numpy()
    assert np.array_equal(np.roll(whole, 1), shifted)


LOGITS = {
    "ordinary": signed(44, 2, 17, 3, 4),
    "large": 1e4 * signed(45, 2, 17, 3, 4),
    "far apart": np.where(signed(46, 2, 17, 3, 4) > 0, 3e37, -3e37),
    "equal": np.full((2, 17, 3, 4), 1e30),
}


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("name", LOGITS)
def test_softmax(name: str, dim: int) -> None:
    logits = LOGITS[name].astype(np.float32).astype(np.float64)
    oracle = torch.softmax(to_torch(logits), dim).numpy()
    expected = torch.softmax(to_torch(logits, "float32"), dim).numpy()
    passed(compare_arrays(layers.softmax(jittor_var(logits), dim).numpy(), oracle))
    passed(compare_arrays(layers.softmax(jittor_var(logits, "float32"), dim).numpy(), expected, oracle=oracle))


# ---- DropPath


def drop_path(rate: float, *, train: bool, drawn: Array | None = None) -> tuple[Any, Any]:
    """The same DropPath in both frameworks."""
    from torch_ref.attention import DropPath as Reference

    pair = (DropPath(rate), Reference(rate))
    for module in pair:
        module.draw = None if drawn is None else lambda batch: drawn[:batch]
        module.train() if train else module.eval()
    return pair


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_drop_path_with_shared_draws(rate: float, dtype: str) -> None:
    """The last draws lie at the very edge, where a keep rate in another precision decides otherwise."""
    x = signed(47, 8, 3, 2, 2).astype(dtype)
    drawn = np.array([*uniform(1000, 6), rate, np.nextafter(np.float32(rate), np.float32(0))], np.float32)
    candidate, reference = drop_path(rate, train=True, drawn=drawn)
    actual, expected = candidate(jittor_var(x, dtype)).numpy(), reference(torch.from_numpy(x)).numpy()
    assert np.array_equal(actual == 0, expected == 0)
    passed(compare_arrays(actual, expected, oracle=expected.astype(np.float64)))


@pytest.mark.parametrize(("rate", "train"), [(0.5, False), (0.0, True)])
def test_drop_path_that_drops_nothing(rate: float, train: bool) -> None:
    x = signed(47, 8, 3, 2, 2).astype(np.float32)
    candidate, _ = drop_path(rate, train=train, drawn=np.zeros(8, np.float32))
    assert np.array_equal(candidate(jt.array(x)).numpy(), x)


def test_drop_path_drops_samples_at_its_rate() -> None:
    jt.set_seed(0)
    candidate, _ = drop_path(0.25, train=True)
    kept = candidate(jt.ones((4000, 1, 1, 1))).numpy().reshape(-1)
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert abs((kept == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5  # five standard errors


# ---- gradients in float64

Function = Callable[..., Any]
GRADIENTS: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "conv k3": (
        lambda x, w: float64.conv2d(x, w, 1, 1),
        lambda x, w: F.conv2d(x, w, None, 1, 1),
        [(2, 4, 5, 6), (3, 4, 3, 3)],
    ),
    "conv k3 s2": (
        lambda x, w: float64.conv2d(x, w, 2, 1),
        lambda x, w: F.conv2d(x, w, None, 2, 1),
        [(2, 4, 5, 6), (3, 4, 3, 3)],
    ),
    "conv k1": (
        lambda x, w: float64.conv2d(x, w, 1, 0),
        lambda x, w: F.conv2d(x, w),
        [(2, 4, 5, 6), (3, 4, 1, 1)],
    ),
    "depthwise": (
        lambda x, w: float64.depthwise_conv2d(x, w, 1, 1),
        lambda x, w: F.conv2d(x, w, None, 1, 1, groups=4),
        [(2, 4, 5, 6), (4, 1, 3, 3)],
    ),
    "product": (float64.matmul, torch.matmul, [(2, 3, 4, 5), (2, 3, 5, 6)]),
    "product, left alone": (float64.BatchedProduct.apply, torch.matmul, [(1, 4, 5), (3, 5, 6)]),
    "product, right alone": (float64.BatchedProduct.apply, torch.matmul, [(3, 4, 5), (1, 5, 6)]),
    "exp": (exponential.exp, torch.exp, [(3, 40)]),
    "sigmoid": (exponential.sigmoid, torch.sigmoid, [(3, 40)]),
    "silu": (exponential.silu, F.silu, [(3, 40)]),
    "softmax": (lambda x: layers.softmax(x, 1), lambda x: torch.softmax(x, 1), [(2, 17, 4)]),
    "adaptive pool": (
        lambda x: layers.adaptive_avg_pool2d(x, (3, 4)),
        lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
        [(2, 3, 7, 5)],
    ),
    "resize": (
        lambda x: layers.resize_bilinear(x, (7, 9)),
        lambda x: F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=False),
        [(2, 3, 4, 5)],
    ),
    "max pool": (lambda x: layers.MaxPool2d(5, 1, 2)(x), lambda x: F.max_pool2d(x, 5, 1, 2), [(2, 3, 4, 7)]),
}


def gradients(function: Function, inputs: list[Array], package: str) -> list[Array]:
    """Gradients of the output's sum, weighted so that each element counts differently."""
    if package == "torch_ref":
        tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
        output = function(*tensors)
        (output * torch.from_numpy(signed(50, *output.shape))).sum().backward()
        return [tensor.grad.numpy() for tensor in tensors]
    variables = [jittor_var(x) for x in inputs]
    output = function(*variables)
    return [g.numpy() for g in jt.grad((output * jittor_var(signed(50, *output.shape))).sum(), variables)]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_in_float64(name: str) -> None:
    ours, theirs, shapes = GRADIENTS[name]
    inputs = [signed(51 + i, *shape) for i, shape in enumerate(shapes)]
    pairs = zip(gradients(ours, inputs, "jt_impl"), gradients(theirs, inputs, "torch_ref"), strict=True)
    for actual, expected in pairs:
        passed(compare_arrays(actual, expected))


@pytest.mark.parametrize("name", ["exp", "silu"])
def test_gradients_of_the_float32_kernels(name: str) -> None:
    ours, theirs = FUNCTIONS[name]
    x = (8 * signed(52, 400)).astype(np.float32)
    variable, tensors = jt.array(x), [to_torch(x, dtype).requires_grad_() for dtype in ("float32", "float64")]
    actual = jt.grad(ours(variable).sum(), variable).numpy()
    expected, oracle = (torch.autograd.grad(theirs(tensor).sum(), tensor)[0].numpy() for tensor in tensors)
    passed(compare_arrays(actual, expected, oracle=oracle))


def norm_gradients(train: bool) -> tuple[list[Array], list[Array]]:
    x, upstream = signed(53, 3, 6, 4, 5), signed(54, 3, 6, 4, 5)
    candidate, reference = layers.BatchNorm2d(6, 1e-3, 0.03), torch.nn.BatchNorm2d(6, 1e-3, 0.03).double()
    to_double(candidate)
    for module in (candidate, reference):
        seed_weights(module)
    candidate.is_train = train  # eval() would stop the gradients of weight and bias
    reference.train(train)
    variable, tensor = jittor_var(x), torch.from_numpy(x).requires_grad_()
    loss = (candidate(variable) * jittor_var(upstream)).sum()
    actual = [g.numpy() for g in jt.grad(loss, [variable, candidate.weight, candidate.bias])]
    (reference(tensor) * torch.from_numpy(upstream)).sum().backward()
    return actual, [tensor.grad.numpy(), reference.weight.grad.numpy(), reference.bias.grad.numpy()]


@pytest.mark.parametrize("train", [True, False])
def test_gradients_of_the_norm(train: bool) -> None:
    for actual, expected in zip(*norm_gradients(train), strict=True):
        passed(compare_arrays(actual, expected))


def test_a_fresh_norm_is_in_train_mode_like_pytorchs() -> None:
    x = signed(55, 2, 3, 4, 4).astype(np.float32)
    expected = torch.nn.BatchNorm2d(3)(torch.from_numpy(x)).detach().numpy()
    assert np.allclose(layers.BatchNorm2d(3)(jt.array(x)).numpy(), expected, rtol=0, atol=1e-6)


def test_running_statistics_need_no_gradient_after_a_pass() -> None:
    norm = layers.BatchNorm2d(3)
    norm.train()
    norm(jt.array(signed(55, 2, 3, 4, 4).astype(np.float32))).numpy()
    assert norm.running_mean.is_stop_grad()
    assert norm.running_var.is_stop_grad()
    assert not norm.weight.is_stop_grad()


# ---- what the layers refuse

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "groups between": (lambda: layers.Conv2d(8, 8, 3, groups=2), "`groups` must be"),
    "shrinking max pool": (lambda: layers.MaxPool2d(5, 2, 2), "must keep the size"),
    "max pool without padding": (lambda: layers.MaxPool2d(5, 1, 0), "must keep the size"),
    "unknown pool": (lambda: layers.adaptive_avg_pool2d(jt.ones((1, 1, 4, 4)), (2, 2), "max"), "`mode` must be"),
    "one value per channel": (lambda: training_norm()(jt.ones((1, 3, 1, 1))), "more than one value per channel"),
}


def training_norm() -> Any:
    norm = layers.BatchNorm2d(3)
    norm.train()
    return norm


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


# ---- why Jittor's own are not taken: each case must still differ


def own_pool_error() -> float:
    x = signed(60, 1, 2, 13, 13).astype(np.float32)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(x), (5, 5)).numpy()
    return float(np.abs(jt.nn.AdaptiveAvgPool2d((5, 5))(jt.array(x)).numpy() - expected).max())


def own_norm(x: Array) -> tuple[Any, Any, Array]:
    """Jittor's and PyTorch's batch norm after one pass in train mode, and the output's largest difference."""
    candidate, reference = jt.nn.BatchNorm(x.shape[1], momentum=1.0), torch.nn.BatchNorm2d(x.shape[1], momentum=1.0)
    candidate.train()
    error = np.abs(candidate(jt.array(x)).numpy() - reference(torch.from_numpy(x)).detach().numpy()).max()
    return candidate, reference, error


def own_running_variance_error() -> float:
    candidate, reference, _ = own_norm(signed(61, 2, 3, 2, 2).astype(np.float32))
    return float(np.abs(reference.running_var.numpy() / candidate.running_var.numpy() - 1).max())


def own_norm_error_at_mean_1000() -> float:
    return float(own_norm((signed(62, 2, 3, 8, 8) + 1000).astype(np.float32))[2])


def own_resize_error_in_float64() -> float:
    x = signed(63, 1, 2, 13, 20)
    expected = F.interpolate(torch.from_numpy(x), size=(7, 10), mode="bilinear", align_corners=False).numpy()
    own = jt.nn.interpolate(jittor_var(x), size=(7, 10), mode="bilinear", align_corners=False)
    return float(np.abs(own.numpy() - expected).max())


def relative(actual: float, expected: float) -> float:
    return abs(actual / expected - 1)


DIFFER: dict[str, tuple[Callable[[], float], float]] = {
    "AdaptiveAvgPool2d uses one fixed window": (own_pool_error, 0.1),
    "BatchNorm keeps a biased running variance": (own_running_variance_error, 0.1),
    "BatchNorm loses the variance beside a large mean": (own_norm_error_at_mean_1000, 1e-2),
    "interpolate takes float64 coordinates in float32": (own_resize_error_in_float64, 1e-9),
    "sigmoid clamps its argument": (
        lambda: relative(float(jt.sigmoid(jt.array([-40.0])).numpy()[0]), float(np.exp(-40.0))),
        1.0,
    ),
    "silu multiplies by the clamped sigmoid": (
        lambda: relative(float(jt.nn.silu(jt.array([-40.0])).numpy()[0]), -40 * float(np.exp(-40.0))),
        1.0,
    ),
    "array makes float32 of float64": (lambda: relative(float(jt.array(np.array([0.1])).numpy()[0]), 0.1), 1e-9),
    "a Python float enters a float64 graph as float32": (
        lambda: relative(float((jittor_var(np.ones(1)) * 0.1).numpy()[0]), 0.1),
        1e-9,
    ),
}


@pytest.mark.parametrize("trap", DIFFER)
def test_jittors_own_still_differs(trap: str) -> None:
    measure, at_least = DIFFER[trap]
    assert measure() > at_least, f"this Jittor no longer does so: {trap}. The stand-in in jt_impl may go"


FAIL: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "AdaptiveAvgPool2d cannot enlarge": (
        lambda: jt.nn.AdaptiveAvgPool2d((20, 20))(jt.ones((1, 1, 7, 7))).numpy(),
        ZeroDivisionError,
    ),
    "Pool refuses a map no larger than its window": (
        lambda: jt.nn.Pool(5, 1, 2, op="maximum")(jt.ones((1, 1, 5, 5))).numpy(),
        Exception,
    ),
}


@pytest.mark.parametrize("trap", FAIL)
def test_jittors_own_still_fails(trap: str) -> None:
    run, error = FAIL[trap]
    with pytest.raises(error):
        run()


def test_jittors_modules_still_have_no_mode_at_first() -> None:
    """``is_train`` is missing, so ours ask ``is_training()``."""
    assert not hasattr(layers.Identity(), "is_train")


def test_deepcopy_still_makes_frozen_variables_trainable() -> None:
    norm = layers.BatchNorm2d(3)
    assert not copy.deepcopy(norm).running_mean.is_stop_grad()
