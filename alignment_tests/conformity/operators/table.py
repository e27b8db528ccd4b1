"""Which operator of Jittor answers to which of PyTorch, and the grid of arguments that each one is run over."""

from __future__ import annotations

from typing import Any

from alignment_tests.conformity.operators.cases import At, Call, Input, Operator


def normal(*shape: int) -> Input:
    return Input("normal", shape)


def below(bound: int, *shape: int) -> Input:
    return Input("below", shape, bound)


def call(*args: Any, theirs: tuple[tuple[Any, ...], dict[str, Any]] | None = None, **kwargs: Any) -> Call:
    return Call(args, kwargs, theirs)


UNARY = (
    *("abs", "exp", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "atan", "arctan", "arcsinh", "sigmoid"),
    *("erf", "expm1", "floor", "ceil", "round", "negative", "deg2rad", "rad2deg"),
)
INSIDE = ("asin", "acos", "arcsin", "arccos", "atanh", "arctanh", "erfinv")  # of -1..1
POSITIVE = ("log", "log2", "sqrt", "rsqrt", "acosh", "arccosh")
FLAT = ("floor", "ceil", "round")  # without gradient anywhere
TESTS = ("isfinite", "isinf", "isnan", "isneginf", "isposinf", "logical_not")
BINARY = (
    "add",
    "sub",
    "subtract",
    "mul",
    "multiply",
    "div",
    "divide",
    "maximum",
    "minimum",
    "hypot",
    "atan2",
    "arctan2",
)
COMPARISONS = ("greater", "greater_equal", "less", "less_equal", "not_equal", "ne")
BOOLEAN = ("logical_and", "logical_or", "logical_xor")
INTEGER = ("bitwise_and", "bitwise_or", "bitwise_xor")

ELEMENTWISE = (
    *(Operator(n, n, (normal(3, 4),), special=True, gradient=n not in FLAT) for n in UNARY),
    *(Operator(n, n, (Input("unit", (3, 4)),), special=True) for n in INSIDE),
    *(Operator(n, n, (Input("positive", (3, 4)),), special=True) for n in POSITIVE if "cosh" not in n),
    *(Operator(n, n, (Input("positive", (2, 3)),), calls=(call(),), gradient=False) for n in ("acosh", "arccosh")),
    *(Operator(f"{n}.apply", n, (Input("positive", (3, 4)),), special=True) for n in ("lgamma", "digamma")),
    *(Operator(n, n, (normal(3, 4),), special=True, gradient=False) for n in TESTS),
    *(Operator(n, n, (normal(3, 4), normal(3, 4)), special=True) for n in BINARY),
    *(Operator(n, n, (normal(3, 4), normal(3, 4)), special=True, gradient=False) for n in COMPARISONS),
    *(Operator(n, n, (Input("bool", (3, 4)), Input("bool", (3, 4))), gradient=False, double=False) for n in BOOLEAN),
    *(Operator(n, n, (below(9, 3, 4), below(9, 3, 4)), gradient=False, double=False) for n in INTEGER),
    Operator("bitwise_not", "bitwise_not", (below(9, 3, 4),), gradient=False, double=False),
    Operator("pow", "pow", (Input("positive", (3, 4)), normal(3, 4)), special=True),
    Operator("floor_divide", "floor_divide", (normal(3, 4), Input("positive", (3, 4))), gradient=False),
    Operator(
        "clamp",
        "clamp",
        (normal(3, 4),),
        (call(-0.5, 0.5), call(min_v=0.0, theirs=((), {"min": 0.0}))),
        special=True,
    ),
    Operator("igamma", "igamma", (Input("positive", (3, 4)), Input("positive", (3, 4))), gradient=False),
    Operator("equal", "eq", (normal(3, 4), normal(3, 4)), gradient=False, special=True),
)
ACTIVATIONS = (
    *(
        Operator(f"nn.{ours}", f"nn.functional.{theirs}", (normal(3, 4),), special=True)
        for ours, theirs in {
            "relu": "relu",
            "relu6": "relu6",
            "silu": "silu",
            "mish": "mish",
            "log_sigmoid": "logsigmoid",
        }.items()
    ),
    Operator("nn.sign", "sign", (normal(3, 4),), special=True, gradient=False),
    Operator("nn.identity", "clone", (normal(3, 4),)),
    Operator("nn.leaky_relu", "nn.functional.leaky_relu", (normal(3, 4),), (call(), call(0.25)), special=True),
    Operator("nn.elu", "nn.functional.elu", (normal(3, 4),), (call(), call(0.5)), special=True),
    Operator("nn.gelu", "nn.functional.gelu", (normal(3, 4),), special=True),
    Operator("nn.softplus", "nn.functional.softplus", (normal(3, 4),), (call(), call(2.0, 1.0)), special=True),
    Operator("nn.hardtanh", "nn.functional.hardtanh", (normal(3, 4),), (call(), call(-0.25, 0.5)), special=True),
    *(
        Operator(f"nn.{name}", f"nn.functional.{name}", (normal(3, 4),), (call(1), call(0)), special=False)
        for name in ("softmax", "log_softmax")
    ),
    Operator("nn.logsumexp", "logsumexp", (normal(3, 4),), (call(1), call(0, keepdim=True))),
    *(
        Operator(f"nn.{ours}", f"nn.{theirs}", (normal(3, 4),), layer=True)
        for ours, theirs in {
            **{n: n for n in ("ReLU", "ReLU6", "SiLU", "GELU", "Mish", "Sigmoid", "Tanh", "Identity", "Softplus")},
            "Relu": "ReLU",
            "Leaky_relu": "LeakyReLU",
            "LeakyReLU": "LeakyReLU",
        }.items()
    ),
    Operator("nn.ELU", "nn.ELU", (normal(3, 4),), (call(0.5),), layer=True),
    Operator("nn.PReLU", "nn.PReLU", (normal(2, 3, 4),), (call(), call(3)), layer=True),
    Operator("nn.Softmax", "nn.Softmax", (normal(3, 4),), (call(1),), layer=True),
)
REDUCTIONS = (
    *(Operator(n, n, (normal(3, 4),), (call(), call(1), call(0, True))) for n in ("sum", "mean", "prod")),
    *(
        Operator(
            n,
            f"a{n}",
            (Input("distinct", (3, 4)),),
            (call(), call(1), call(0, True)),
        )
        for n in ("max", "min")
    ),
    *(
        Operator(n, n, (Input("bool", (3, 4)),), (call(), call(1)), gradient=False, double=False)
        for n in ("all", "any")
    ),
    *(
        Operator(n, n, (Input("distinct", (3, 4)),), (call(1), call(0)), gradient=False, output=(0, None))
        for n in ("argmax", "argmin")
    ),
    Operator("std", "std", (normal(3, 4),)),
    Operator("var", "var", (normal(3, 4),), (call(1), call(1, unbiased=True), call())),
    Operator("norm", "norm", (normal(3, 4),), (call(2, 1), call(1, 0), call())),
    Operator("median", "median", (Input("distinct", (3, 5)),), (call(), call(1)), gradient=False, output=(None, 0)),
    *(Operator(n, n, (normal(3, 4),), (call(1), call(0))) for n in ("cumsum", "cumprod")),
    Operator("histc", "histc", (normal(12),), (call(4, -1.0, 1.0),), gradient=False),
)
SHAPES = (
    Operator("reshape", "reshape", (normal(3, 4),), (call((2, 6)), call((-1,)))),
    Operator("transpose", "transpose", (normal(2, 3, 4),), (call(0, 1), call(1, 2))),
    Operator("permute", "permute", (normal(2, 3, 4),), (call((2, 0, 1)),)),
    Operator("flatten", "flatten", (normal(2, 3, 4),), (call(1), call())),
    Operator("squeeze", "squeeze", (normal(2, 1, 4),), (call(1), call(0), call())),
    Operator("unsqueeze", "unsqueeze", (normal(2, 4),), (call(1), call(-1))),
    Operator("flip", "flip", (normal(3, 4),), (call(0, theirs=(((0,),), {})), call([0, 1]))),
    Operator("roll", "roll", (normal(3, 4),), (call(1, 0), call(-1, 1))),
    Operator("t", "t", (normal(3, 4),)),
    Operator("diag", "diag", (normal(4),), (call(), call(1))),
    Operator("diagonal", "diagonal", (normal(3, 4),), (call(), call(1))),
    *(Operator(n, n, (normal(3, 4),), (call(), call(1), call(-1))) for n in ("tril", "triu")),
    *(
        Operator(n, n, (normal(2, 3), normal(2, 3)), (call(0), call(1)), packed=True)
        for n in ("concat", "cat", "stack")
    ),
    Operator("split", "split", (normal(4, 3),), (call(2), call((1, 3)), call(1, 1)), output=(0, 0)),
    Operator("chunk", "chunk", (normal(4, 3),), (call(2), call(1)), output=(0, 0)),
    Operator("unbind", "unbind", (normal(2, 3),), (call(0), call(1)), output=(1, 1)),
    Operator("repeat_interleave", "repeat_interleave", (normal(2, 3),), (call(2, 0), call(3, 1))),
    Operator("meshgrid", "meshgrid", (normal(2), normal(3)), output=(0, 0)),
    Operator("clone", "clone", (normal(3, 4),)),
    Operator("nn.flatten", "flatten", (normal(2, 3, 4),), (call(1),)),
    Operator("nn.Flatten", "nn.Flatten", (normal(2, 3, 4),), (call(), call(0, 1)), layer=True),
)
INDEXING = (
    Operator("where", "where", (Input("bool", (3, 4)), normal(3, 4), normal(3, 4))),
    Operator("masked_fill", "masked_fill", (normal(3, 4), Input("bool", (3, 4))), (call(0.5),)),
    Operator("nonzero", "nonzero", (Input("bool", (3, 4)),), gradient=False, double=False),
    Operator("searchsorted", "searchsorted", (Input("positive", (1,)), Input("positive", (3,))), gradient=False),
    Operator("isin", "isin", (below(5, 6), below(3, 2)), gradient=False, double=False),
    Operator("unique", "unique", (below(4, 8),), gradient=False, double=False),
    Operator("sort", "sort", (Input("distinct", (3, 4)),), (call(1), call(0)), output=(1, 1), gradient=False),
    Operator("argsort", "argsort", (Input("distinct", (3, 4)),), (call(1), call(0)), gradient=False, output=(0, None)),
    Operator("topk", "topk", (Input("distinct", (3, 4)),), (call(2, 1), call(2, 1, False)), output=(0, 0)),
    Operator("gather", "gather", (normal(3, 4), below(3, 2, 4)), (call(At(0), 0, At(1)),)),
    Operator("scatter", "scatter", (normal(3, 4), below(3, 1, 4), normal(1, 4)), (call(At(0), 0, At(1), At(2)),)),
    Operator(
        "index_select", "index_select", (normal(3, 4), below(3, 2)), (call(At(0), 0, At(1)), call(At(0), 1, At(1)))
    ),
    Operator("kthvalue", "kthvalue", (Input("distinct", (3, 4)),), (call(2, 1),), output=(0, 0)),
    Operator(
        "nn.one_hot", "nn.functional.one_hot", (Input("below", (5,), 4),), (call(4),), gradient=False, double=False
    ),
)
PRODUCTS = (
    *(Operator(n, "matmul", (normal(3, 4), normal(4, 5))) for n in ("matmul", "nn.matmul")),
    *(Operator(n, "bmm", (normal(2, 3, 4), normal(2, 4, 5))) for n in ("bmm", "nn.bmm")),
    *(
        Operator(n, "baddbmm", (normal(2, 3, 5), normal(2, 3, 4), normal(2, 4, 5)), (call(), call(beta=0.5, alpha=2.0)))
        for n in ("baddbmm", "nn.baddbmm")
    ),
    Operator(
        "einsum",
        "einsum",
        (normal(3, 4), normal(4, 2)),
        (call("ij,jk->ik", At(0), At(1)), call("ij,jk->k", At(0), At(1))),
    ),
    Operator("outer", "outer", (normal(3), normal(4))),
    Operator("cross", "cross", (normal(4, 3), normal(4, 3)), (call(1),)),
    Operator("nn.tensordot", "tensordot", (normal(2, 3, 4), normal(3, 4, 2)), (call(2),)),
    Operator("nn.kron", "kron", (normal(2, 3), normal(2, 2))),
    Operator("nn.linear", "nn.functional.linear", (normal(3, 4), normal(5, 4), normal(5))),
    Operator("nn.bilinear", "nn.functional.bilinear", (normal(3, 4), normal(3, 2), normal(5, 4, 2), normal(5))),
    Operator("nn.Linear", "nn.Linear", (normal(3, 4),), (call(4, 5), call(4, 5, bias=False)), layer=True),
    Operator("nn.Bilinear", "nn.Bilinear", (normal(3, 4), normal(3, 2)), (call(4, 2, 5),), layer=True),
    Operator("nn.Embedding", "nn.Embedding", (below(6, 2, 3),), (call(6, 4), call(6, 4, padding_idx=1)), layer=True),
    Operator("nn.embedding", "nn.functional.embedding", (below(6, 2, 3), normal(6, 4))),
)
CONVOLUTION_GRID = (
    call(4, 6, 3),
    call(4, 6, 3, stride=2, padding=1),
    call(4, 6, 3, dilation=2, bias=False),
    call(4, 6, 3, groups=2, padding=1),
)
FUNCTION_GRID = (call(stride=2, padding=1), call(dilation=2), call())
CONVOLUTIONS = (
    *(
        Operator(f"nn.{name}", "nn.Conv2d", (normal(2, 4, 7, 6),), CONVOLUTION_GRID, layer=True)
        for name in ("Conv2d", "Conv")
    ),
    Operator("nn.Conv1d", "nn.Conv1d", (normal(2, 4, 9),), CONVOLUTION_GRID, layer=True, double=False),
    Operator("nn.Conv3d", "nn.Conv3d", (normal(1, 4, 5, 5, 5),), CONVOLUTION_GRID, layer=True),
    *(
        Operator(
            f"nn.{name}",
            "nn.ConvTranspose2d",
            (normal(2, 4, 5, 4),),
            (call(4, 6, 3), call(4, 6, 3, stride=2, padding=1, output_padding=1), call(4, 6, 3, groups=2)),
            layer=True,
        )
        for name in ("ConvTranspose", "ConvTranspose2d")
    ),
    Operator(
        "nn.ConvTranspose3d", "nn.ConvTranspose3d", (normal(1, 2, 3, 3, 3),), (call(2, 4, 3, stride=2),), layer=True
    ),
    *(
        Operator(f"nn.{n}", "nn.functional.conv2d", (normal(2, 4, 7, 6), normal(6, 4, 3, 3), normal(6)), FUNCTION_GRID)
        for n in ("conv2d", "conv")
    ),
    Operator(
        "nn.conv3d",
        "nn.functional.conv3d",
        (normal(1, 2, 5, 5, 5), normal(3, 2, 3, 3, 3), normal(3)),
        (call(padding=1),),
    ),
    *(
        Operator(
            f"nn.{n}",
            "nn.functional.conv_transpose2d",
            (normal(2, 4, 5, 4), normal(4, 6, 3, 3), normal(6)),
            (call(), call(stride=2, padding=1)),
        )
        for n in ("conv_transpose", "conv_transpose2d")
    ),
    Operator(
        "nn.conv_transpose3d",
        "nn.functional.conv_transpose3d",
        (normal(1, 2, 3, 3, 3), normal(2, 4, 3, 3, 3), normal(4)),
        (call(stride=2),),
    ),
    Operator("nn.unfold", "nn.functional.unfold", (normal(2, 3, 5, 6),), (call(3), call(2, padding=1, stride=2))),
    Operator("nn.fold", "nn.functional.fold", (normal(2, 12, 20),), (call((5, 6), 2),)),
    Operator("nn.PixelShuffle", "nn.PixelShuffle", (normal(2, 8, 3, 4),), (call(2),), layer=True),
)
POOLS = (
    *(
        Operator(
            f"nn.{name}",
            f"nn.{name}",
            (Input("distinct", (2, 2, 7, 6)),),
            (call(2), call(3, 2, 1), call(3, 2, ceil_mode=True), call(3, 2, 1, ceil_mode=True)),
            layer=True,
        )
        for name in ("MaxPool2d", "AvgPool2d")
    ),
    Operator(
        "nn.AvgPool2d",
        "nn.AvgPool2d",
        (normal(1, 1, 4, 4),),
        (call(3, 1, 1, count_include_pad=False),),
        layer=True,
    ),
    Operator("nn.MaxPool2d", "nn.MaxPool2d", (normal(1, 1, 3, 3),), (call(3, 1, 1), call(3)), layer=True),
    *(
        Operator(f"nn.{n}", f"nn.{n}", (Input("distinct", (1, 2, 4, 5, 4)),), (call(2), call(3, 2, 1)), layer=True)
        for n in ("MaxPool3d", "AvgPool3d")
    ),
    *(
        Operator(f"nn.{n}", f"nn.functional.{n}", (Input("distinct", (2, 2, 7, 6)),), (call(2), call(3, 2, 1)))
        for n in ("max_pool2d", "avg_pool2d")
    ),
    Operator("nn.max_pool3d", "nn.functional.max_pool3d", (Input("distinct", (1, 2, 4, 5, 4)),), (call(2),)),
    *(
        Operator(
            f"nn.{n}2d", f"nn.{n}2d", (Input("distinct", (1, 2, 7, 6)),), (call(1), call((7, 3)), call(4)), layer=True
        )
        for n in ("AdaptiveAvgPool", "AdaptiveMaxPool")
    ),
    Operator("nn.AdaptiveAvgPool2d", "nn.AdaptiveAvgPool2d", (normal(1, 1, 2, 2),), (call(3),), layer=True),
    *(
        Operator(
            f"nn.{n}3d", f"nn.{n}3d", (Input("distinct", (1, 2, 4, 5, 4)),), (call(1), call((2, 5, 2))), layer=True
        )
        for n in ("AdaptiveAvgPool", "AdaptiveMaxPool")
    ),
)
NORMS = (
    *(
        Operator(
            f"nn.{ours}", f"nn.{theirs}", (normal(*shape),), (call(4), call(4, eps=0.125, momentum=0.25)), layer=True
        )
        for ours, theirs, shape in (
            ("BatchNorm", "BatchNorm2d", (3, 4, 2, 3)),
            ("BatchNorm1d", "BatchNorm1d", (3, 4, 5)),
            ("BatchNorm2d", "BatchNorm2d", (3, 4, 2, 3)),
            ("BatchNorm3d", "BatchNorm3d", (2, 4, 2, 3, 2)),
        )
    ),
    *(
        Operator(
            f"nn.{ours}",
            f"nn.{theirs}",
            (normal(*shape),),
            (call(4, theirs=((4,), {"affine": True})), call(4, affine=False)),
            layer=True,
        )
        for ours, theirs, shape in (
            ("InstanceNorm", "InstanceNorm2d", (2, 4, 3, 3)),
            ("InstanceNorm1d", "InstanceNorm1d", (2, 4, 5)),
            ("InstanceNorm2d", "InstanceNorm2d", (2, 4, 3, 3)),
            ("InstanceNorm3d", "InstanceNorm3d", (2, 4, 2, 3, 2)),
        )
    ),
    *(
        Operator(f"nn.{n}", "nn.LayerNorm", (normal(2, 3, 4),), (call(4), call((3, 4), eps=0.125)), layer=True)
        for n in ("LayerNorm", "LayerNorm1d", "LayerNorm2d", "LayerNorm3d")
    ),
    Operator("nn.GroupNorm", "nn.GroupNorm", (normal(2, 4, 3, 3),), (call(2, 4), call(4, 4, affine=False)), layer=True),
    Operator("nn.layer_norm", "nn.functional.layer_norm", (normal(2, 3, 4),), (call((4,)),)),
    Operator("nn.group_norm", "nn.functional.group_norm", (normal(2, 4, 3, 3),), (call(2),)),
    Operator("nn.group_norm", "nn.functional.group_norm", (normal(2, 4, 3),), (call(2),)),
    Operator("nn.instance_norm", "nn.functional.instance_norm", (normal(2, 4, 3, 3),)),
    Operator(
        "nn.batch_norm",
        "nn.functional.batch_norm",
        (normal(3, 4, 2, 3), normal(4), Input("positive", (4,)), normal(4), normal(4)),
        gradient=False,  # PyTorch takes no running statistics that have one
    ),
)
PADDING = (
    *(
        Operator(f"nn.{n}", f"nn.{n}", (normal(1, 2, 4, 5),), (call(2), call((1, 2, 0, 3))), layer=True)
        for n in ("ReflectionPad2d", "ReplicationPad2d", "ZeroPad2d")
    ),
    Operator("nn.ConstantPad2d", "nn.ConstantPad2d", (normal(1, 2, 4, 5),), (call((1, 2, 0, 3), 0.5),), layer=True),
    Operator(
        "nn.pad",
        "nn.functional.pad",
        (normal(1, 2, 4, 5),),
        (call((1, 2, 0, 3)), *(call((1, 2, 1, 3), mode) for mode in ("reflect", "replicate", "circular"))),
    ),
)
RESIZE = (
    *(
        Operator(
            f"nn.{n}",
            "nn.functional.interpolate",
            (normal(1, 2, 4, 5),),
            (
                *(call(size=(7, 3), mode="bilinear", align_corners=corners) for corners in (False, True)),
                call(size=(7, 3), mode="nearest", theirs=((), {"size": (7, 3), "mode": "nearest"})),
                call(size=(7, 3), mode="bicubic"),
                *((call(scale_factor=1.5, mode="bilinear"),) if n == "interpolate" else ()),
                *((call(size=(2, 2), mode="area"),) if n == "interpolate" else ()),
            ),
        )
        for n in ("interpolate", "resize", "upsample")
    ),
    Operator(
        "nn.Upsample",
        "nn.Upsample",
        (normal(1, 2, 4, 5),),
        (call(2, theirs=((), {"scale_factor": 2})), call((2.0, 1.0), theirs=((), {"scale_factor": (2.0, 1.0)}))),
        layer=True,
    ),
    *(
        Operator(f"nn.{n}", f"nn.{n}", (normal(1, 2, 4, 5),), (call(2, theirs=((), {"scale_factor": 2})),), layer=True)
        for n in ("UpsamplingBilinear2d", "UpsamplingNearest2d")
    ),
    Operator(
        "nn.grid_sample",
        "nn.functional.grid_sample",
        (normal(1, 2, 4, 5), normal(1, 3, 3, 2)),
        tuple(
            call(mode, padding, corners)
            for mode, padding, corners in (
                ("bilinear", "zeros", False),
                ("bilinear", "border", True),
                ("nearest", "zeros", False),
                ("bilinear", "reflection", False),
            )
        ),
    ),
    Operator(
        "nn.affine_grid", "nn.functional.affine_grid", (normal(1, 2, 3),), (call((1, 2, 3, 4), align_corners=False),)
    ),
)
SCORES, LABELS = normal(4, 5), below(5, 4)
UNITS = Input("unit", (4, 3))
LOSSES = (
    *(
        Operator(
            f"nn.{ours}",
            f"nn.functional.{theirs}",
            (normal(4, 3), normal(4, 3)),
            (call(), *(call(reduction=r) for r in reductions)),
        )
        for ours, theirs, reductions in (
            ("mse_loss", "mse_loss", ("sum", "none")),
            ("l1_loss", "l1_loss", ("sum",)),
            ("smooth_l1_loss", "smooth_l1_loss", ("sum", "none")),
        )
    ),
    *(Operator(f"nn.{n}", f"nn.{n}", (normal(4, 3), normal(4, 3)), layer=True) for n in ("MSELoss", "L1Loss")),
    Operator(
        "nn.cross_entropy_loss",
        "nn.functional.cross_entropy",
        (SCORES, LABELS),
        (call(), call(reduction="sum"), call(reduction="none"), call(ignore_index=2), call(label_smoothing=0.125)),
    ),
    Operator(
        "nn.CrossEntropyLoss", "nn.CrossEntropyLoss", (SCORES, LABELS), (call(), call(ignore_index=2)), layer=True
    ),
    Operator(
        "nn.nll_loss",
        "nn.functional.nll_loss",
        (SCORES, LABELS),
        (call(), call(reduction="sum"), call(ignore_index=2), call(ignore_index=0)),
    ),
    Operator("nn.bce_loss", "nn.functional.binary_cross_entropy", (UNITS, UNITS)),
    Operator("nn.BCELoss", "nn.BCELoss", (UNITS, UNITS), layer=True),
    Operator(
        "nn.binary_cross_entropy_with_logits",
        "nn.functional.binary_cross_entropy_with_logits",
        (normal(4, 3), UNITS),
    ),
    Operator("nn.BCEWithLogitsLoss", "nn.BCEWithLogitsLoss", (normal(4, 3), UNITS), layer=True),
    Operator(
        "nn.KLDivLoss",
        "nn.KLDivLoss",
        (normal(4, 3), UNITS),
        (call(reduction="batchmean"), call(reduction="sum"), call(reduction="sum", log_target=True)),
        layer=True,
    ),
)
ATTENTION = (
    Operator(
        "attention.scaled_dot_product_attention",
        "nn.functional.scaled_dot_product_attention",
        (normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)),
        (call(), call(scale=0.25)),
    ),
    Operator(
        "attention.MultiheadAttention",
        "nn.MultiheadAttention",
        (normal(3, 2, 4), normal(3, 2, 4), normal(3, 2, 4)),
        (call(4, 2),),
        layer=True,
        output=(0, 0),
    ),
)
RECURRENT = (
    *(Operator(f"nn.{n}", f"nn.{n}", (normal(2, 3),), (call(3, 4),), layer=True) for n in ("GRUCell", "RNNCell")),
    Operator("nn.LSTMCell", "nn.LSTMCell", (normal(2, 3),), (call(3, 4),), layer=True, output=(0, 0)),
    *(
        Operator(
            f"nn.{n}",
            f"nn.{n}",
            (normal(4, 2, 3),),
            (call(3, 4), call(3, 4, 2, bidirectional=True)),
            layer=True,
            output=(0, 0),
        )
        for n in ("RNN", "LSTM", "GRU")
    ),
)
LINEAR_ALGEBRA = (
    *(
        Operator(f"linalg.{n}", f"linalg.{n}", (Input("spd", (3, 3)),), double=n != "slogdet")
        for n in ("inv", "det", "cholesky")
    ),
    Operator("linalg.solve", "linalg.solve", (Input("spd", (3, 3)), normal(3, 2))),
    Operator("linalg.pinv", "linalg.pinv", (normal(4, 3),)),
)

TABLE: tuple[Operator, ...] = (
    *ELEMENTWISE,
    *ACTIVATIONS,
    *REDUCTIONS,
    *SHAPES,
    *INDEXING,
    *PRODUCTS,
    *CONVOLUTIONS,
    *POOLS,
    *NORMS,
    *PADDING,
    *RESIZE,
    *LOSSES,
    *ATTENTION,
    *RECURRENT,
    *LINEAR_ALGEBRA,
)

# Names that no row can have, and why. What is in neither shows as "not covered".
RANDOM = "random: each framework has a generator of its own"
PART = "a part of Jittor's own code, or Jittor's alone"
COMPLEX = "complex numbers, which Jittor holds in a class of its own"
TYPE = "a type, a cast, or a setting of the process"
MAKER = "makes an array from numbers or nothing"
BASE = "a container or a base class: nothing is computed"
STEP = "an optimizer or a schedule: the steps of the zoo and of the training suites compare SGD, Adam and AdamW"
IN_PLACE = "the in-place form of a row of this table"
NO_ROW: dict[str, tuple[str, ...]] = {
    RANDOM: (
        *("bernoulli", "multinomial", "normal", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like"),
        *("random", "randperm", "seed", "nn.Dropout", "nn.Dropout2d", "nn.DropPath", "nn.dropout", "nn.dropout2d"),
        *("nn.droppath",),
    ),
    PART: (
        *("nn.ComplexNumber", "nn.Conv1d_sp", "nn.DepthwiseConv", "nn.Pool", "nn.Pool3d", "nn.pool", "nn.pool2d"),
        *("nn.pool3d", "nn.Resize", "nn.affine_grid_generator_4D", "nn.affine_grid_generator_5D", "nn.backward"),
        *("nn.bmm_transpose", "nn.clip_coordinates", "nn.fp32_guard", "nn.get_init_var_rand", "nn.grid_sample_v0"),
        *("nn.grid_sampler", "nn.grid_sampler_2d", "nn.grid_sampler_3d", "nn.grid_sampler_compute_source_index"),
        *("nn.grid_sampler_unnormalize", "nn.linspace_from_neg_one", "nn.make_base_grid_4D", "nn.make_base_grid_5D"),
        *("nn.matmul_transpose", "nn.opt_grad", "nn.reflect_coordinates", "nn.skip_init"),
    ),
    COMPLEX: ("nn.polar", "nn.view_as_complex", "nn.view_as_real"),
    TYPE: (
        *("bfloat16", "bool", "cpu", "cuda", "double", "dtype", "enable_grad", "finfo", "float", "float16", "float32"),
        *("float64", "half", "iinfo", "int", "int16", "int32", "int64", "int8", "no_grad", "uint16", "uint32"),
        *("uint64", "uint8", "load", "save", "detach"),
    ),
    MAKER: (*("arange", "empty", "full", "full_like", "linspace", "ones", "ones_like", "zeros", "zeros_like"),),
    BASE: (
        *("nn.Module", "nn.ModuleList", "nn.Parameter", "nn.ParameterDict", "nn.ParameterList", "nn.RNNBase"),
        *("nn.Sequential",),
    ),
    STEP: (
        *("nn.Adam", "nn.AdamW", "nn.Adan", "nn.LRScheduler", "nn.LambdaLR", "nn.Optimizer", "nn.RMSprop", "nn.SGD"),
    ),
    IN_PLACE: ("abs_", "clamp_", "erf_", "sigmoid_", "sqrt_"),
}
