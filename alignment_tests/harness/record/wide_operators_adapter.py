"""Jittor's operators as a float64 run needs them: what is given to them, and what they give, is float64 throughout.

``WIDE_OPS``, ``WIDE_FUNCTIONS`` and ``WIDE_METHODS`` hold, by name, what stands in the place of the functions of
``jittor_core.ops``, of ``jt.array`` and of the methods of ``Var``. Outside of ``wide`` they do what those do.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import jittor as jt

from alignment_tests.harness.record.wide_values_adapter import (
    FUNCTIONS,
    METHODS,
    NARROW,
    OPS,
    WIDE,
    active,
    as_float64,
    is_narrow,
    widened,
)

Operator = Callable[..., Any]

ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
# Operators that compute with numbers, and the place of the first operand.
OPERANDS = dict.fromkeys(
    ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "mod", "pow", "binary", "unary"), 0
)
OPERANDS |= dict.fromkeys((f"__{side}{name}__" for name in ARITHMETIC for side in ("", "r")), 0)
OPERANDS |= dict.fromkeys(("maximum", "minimum", "exp", "log", "sqrt", "sigmoid", "erf", "erfinv"), 0)
OPERANDS |= {f"{arc}{name}{h}": 0 for arc in ("", "a", "arc") for name in ("sin", "cos", "tan") for h in ("", "h")}
OPERANDS |= dict.fromkeys(("ternary", "ternary_out_hint", "where"), 1)
WITH_NUMBERS = ("reindex", "reindex_var", "safe_clip")  # they take floats as numbers of C++, in double precision
ALIASES = ("astype", "expand_as", "ne", "half", "float")  # methods that are no operators by that name
COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__neg__", "__abs__")


def _operator(name: str, original: Operator) -> Operator:
    given = _given_with_numbers if name in WITH_NUMBERS else widened
    first = OPERANDS.get(name)

    def operator(*args: Any, **kwargs: Any) -> Any:
        if not active():
            return original(*args, **kwargs)
        args = tuple([given(value) for value in args])
        kwargs = {key: given(value) for key, value in kwargs.items()}
        if first is not None and not jt.flags.no_grad:  # Jittor's gradients infer their types from the operands
            args = _alike(args, first)
        result = original(*args, **kwargs)
        if type(result) is jt.Var:
            return _again(original, args, kwargs, first) if is_narrow(result.dtype) else result
        return widened(result) if type(result) is list or type(result) is tuple else result

    return operator


def _given_with_numbers(value: Any) -> Any:
    return value if type(value) is float else widened(value)


def _alike(args: tuple[Any, ...], first: int) -> tuple[Any, ...]:
    """Operands in float64 where one of them is."""
    if not any(type(value) is jt.Var and value.dtype.is_float() for value in args[first:]):
        return args
    return (*args[:first], *map(_floating, args[first:]))


def _again(original: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], first: int | None) -> Any:
    """The result is to be narrow all the same; nothing is computed yet.

    It is of integers alone, or mixed precision makes it so, or Jittor lets the type of a number decide, as it does
    beside what it takes for another number: a sum, or any Var whose gradient was asked for.
    """
    before, jt.flags.amp_reg = jt.flags.amp_reg, 0
    try:
        if first is not None:
            args = (*args[:first], *map(_floating, args[first:]))
            kwargs = {key: _floating(value) for key, value in kwargs.items()}
        return widened(original(*args, **kwargs))
    finally:
        jt.flags.amp_reg = before


def _floating(value: Any) -> Any:
    """A number or a Var of integers in float64."""
    if type(value) is jt.Var:
        return value if value.dtype.is_float() else OPS["float64"](value)
    return as_float64(value) if isinstance(value, (int, float)) else value


def _to_wide(name: str, original: Operator) -> Operator:
    def operator(var: Any) -> Any:
        return OPS["float64"](widened(var)) if active() else original(var)

    return operator


def _array(name: str, original: Operator) -> Operator:
    def operator(data: Any) -> Any:
        made = widened(data) if active() else data
        if made is not data:
            return made
        return widened(original(data)) if active() else original(data)

    return operator


def _random(name: str, original: Operator) -> Operator:
    """Drawn as ever, since another type would give other numbers."""

    def operator(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        return widened(made) if active() else made

    return operator


def _mean(name: str, original: Operator) -> Operator:
    """The gradient of Jittor's own is multiplied by a float32 number."""
    plain = _operator(name, original)

    def operator(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not active() or jt.flags.no_grad or type(x) is not jt.Var or not x.dtype.is_float() or not x.numel():
            return plain(x, *args, **kwargs)
        x = widened(x)
        total = OPS["sum"](x, *args, **kwargs)
        return OPS["divide"](total, as_float64(x.numel() // total.numel()))

    return operator


def _reduce(name: str, original: Operator) -> Operator:
    plain, mean = _operator(name, original), _mean("mean", OPS["mean"])

    def operator(x: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        return mean(x, *args, **kwargs) if str(op) == "mean" else plain(x, op, *args, **kwargs)

    return operator


def _error_function(name: str, original: Operator) -> Operator:
    """The gradient of Jittor's own is multiplied by a float32 number."""
    plain = _operator(name, original)

    def operator(x: Any) -> Any:
        return ErrorFunction(name)(_floating(widened(x))) if active() and not jt.flags.no_grad else plain(x)

    return operator


class ErrorFunction(jt.Function):
    """``erf`` or ``erfinv`` of a float64 Var."""

    def __init__(self, name: str) -> None:
        self.name = name

    def execute(self, x: Any) -> Any:
        y = OPS[self.name](x)
        self.square = OPS["multiply"](x, x) if self.name == "erf" else OPS["multiply"](y, y)
        return y

    def grad(self, gradient: Any) -> Any:
        inverse = self.name == "erfinv"
        slope = OPS["exp"](self.square if inverse else OPS["negative"](self.square))
        factor = as_float64(math.sqrt(math.pi) / 2 if inverse else 2 / math.sqrt(math.pi))
        return OPS["multiply"](gradient, OPS["multiply"](slope, factor))


def _in_place(name: str, original: Operator) -> Operator:
    """Integers stay no integers when a float is added: the sum is assigned."""
    plain = WIDE_METHODS.get(f"__{name[3:]}") or METHODS[f"__{name[3:]}"]

    def operator(var: Any, other: Any) -> Any:
        if not active():
            return original(var, other)
        other = widened(other)
        if str(var.dtype) == WIDE:
            return original(var, other if jt.flags.no_grad else _floating(other))
        made = plain(var, other)
        return METHODS["assign"](var, made) if str(made.dtype) == WIDE else original(var, other)

    return operator


def _stateful(name: str, original: Operator) -> Operator:
    """The Var itself is no operand."""

    def operator(var: Any, *args: Any, **kwargs: Any) -> Any:
        return original(var, *map(widened, args), **kwargs) if active() else original(var, *args, **kwargs)

    return operator


def _assigned(name: str, original: Operator) -> Operator:
    """``mul_`` and ``sub_``, which hold the method that they call."""
    plain = WIDE_METHODS[name[:-1]]

    def operator(var: Any, *args: Any, **kwargs: Any) -> Any:
        return METHODS["assign"](var, plain(var, *args, **kwargs)) if active() else original(var, *args, **kwargs)

    return operator


def _from_numpy(name: str, original: Operator) -> Operator:
    """``jt.array`` lets numpy make the array in the dtype that is named."""

    def operator(data: Any, dtype: Any = None) -> Any:
        return original(data, widened(dtype) if active() else dtype)

    return operator


def _constructor(name: str, original: Operator) -> Operator:
    """Of a Var, which copies what it is given."""

    def operator(self: Any, *args: Any, **kwargs: Any) -> None:
        if not active():
            original(self, *args, **kwargs)
            return
        made = WIDE_FUNCTIONS["array"](*args, **kwargs)
        with jt.flag_scope(auto_convert_64_to_32=0):
            original(self, made.numpy())

    return operator


KINDS: dict[str, Callable[[str, Operator], Operator]] = {
    **dict.fromkeys(NARROW, _to_wide),
    **dict.fromkeys(("array", "array_"), _array),
    "random": _random,
    "mean": _mean,
    "reduce": _reduce,
    "erf": _error_function,
    "erfinv": _error_function,
}


def _wrapped(name: str, original: Any, kind: Callable[[str, Operator], Operator] = _operator) -> Operator:
    made = KINDS.get(name, kind)(name, original)
    made.__name__ = name  # Jittor takes functions as dtypes, by their names
    return made


WIDE_OPS = {name: _wrapped(name, original) for name, original in OPS.items() if name != "fetch"}
_NAMES = [*OPS, *ALIASES, *COMPARISONS, *(f"__{side}{name}__" for name in ARITHMETIC for side in ("", "r"))]
WIDE_METHODS: dict[str, Operator] = {
    name: _wrapped(name, METHODS[name])
    for name in _NAMES
    if isinstance(METHODS.get(name), (types.MethodDescriptorType, types.WrapperDescriptorType))
}
WIDE_METHODS |= {f"__i{name}__": _wrapped(f"__i{name}__", METHODS[f"__i{name}__"], _in_place) for name in ARITHMETIC}
WIDE_METHODS |= {name: _wrapped(name, METHODS[name], _assigned) for name in ("mul_", "sub_")}
WIDE_METHODS |= {name: _wrapped(name, METHODS[name], _stateful) for name in ("assign", "update", "_update")}
WIDE_METHODS["__init__"] = _wrapped("__init__", METHODS["__init__"], _constructor)
WIDE_FUNCTIONS = {"array": _from_numpy("array", FUNCTIONS["array"])}
