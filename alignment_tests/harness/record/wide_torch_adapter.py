"""PyTorch in float64 throughout, whatever narrower type the code that runs names.

A model's own code makes constants, casts and asks functions for a dtype. In a float64 run all of that is void: a
factory without a dtype makes float64, and what names float32, half, bfloat16 or complex64 means float64 or complex128.
Integers and bool stay as they are.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from alignment_tests.harness.record.wide import ScopedCalls, with_leaves

WIDE = torch.float64
FLOATS = ("float32", "float16", "bfloat16", *(name for name in vars(torch) if name.startswith("float8_")))
WIDER: dict[Any, Any] = {getattr(torch, name): WIDE for name in FLOATS}
WIDER |= {torch.complex32: torch.complex128, torch.complex64: torch.complex128}

# Tensor types of the days before dtypes.
WIDER_TYPES: dict[Any, Any] = {
    getattr(place, name): place.DoubleTensor
    for place in (torch, torch.cuda)
    for name in ("FloatTensor", "HalfTensor", "BFloat16Tensor")
    if hasattr(place, name)
}
TYPE_NAMES = {f"{kind.__module__}.{kind.__name__}": kind for kind in WIDER_TYPES}

CASTS = {
    torch.Tensor.float: (torch.Tensor.double, torch.float32),
    torch.Tensor.half: (torch.Tensor.double, torch.float16),
    torch.Tensor.bfloat16: (torch.Tensor.double, torch.bfloat16),
    torch.Tensor.cfloat: (torch.Tensor.cdouble, torch.complex64),
    torch.Tensor.chalf: (torch.Tensor.cdouble, torch.complex32),
    torch.Tensor.double: (torch.Tensor.double, torch.float64),
}
CONVERSIONS = {torch.Tensor.to, torch.Tensor.type}
# Random numbers are drawn in the type that the model's own run draws in, since another would give other numbers.
FACTORIES, LIKE = {torch.rand, torch.randn}, {torch.rand_like, torch.randn_like}
DRAWN_IN_PLACE = {torch.Tensor.uniform_, torch.Tensor.normal_}
# They are about the tensor itself, not what it holds: with a cast of it they would be pointless.
OF_THE_TENSOR = {"__deepcopy__", "backward", "grad", "register_hook", "register_post_accumulate_grad_hook"}
OF_THE_TENSOR |= {"retain_grad", "data_ptr"}
IN_PLACE = {"__setitem__", "__set__"}  # and whatever ends in one underscore


class Wide(TorchFunctionMode):
    """Widens what every function of PyTorch is given, and what it gives.

    Args:
        home: the type that the model is written for. A cast to it may give the tensor itself, as it does in the
            model's own run; a cast to another gives a copy.
        default: the default dtype outside.
    """

    def __init__(self, home: torch.dtype, default: torch.dtype) -> None:
        super().__init__()
        self.home, self.default = home, default

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return widened(func(*args))
        if name in OF_THE_TENSOR:
            return func(*args, **kwargs)
        if func in DRAWN_IN_PLACE and args[0].dtype == WIDE:
            return args[0].copy_(func(torch.empty_like(args[0], dtype=self.home), *args[1:], **kwargs))
        if name in IN_PLACE or (name[-1:] == "_" and name[-2:] != "__"):
            return func(*args[:1], *map(widened, args[1:]), **kwargs)
        out = kwargs.get("out")
        if (func in FACTORIES or func in LIKE) and out is None:
            return self._drawn(func, args, kwargs)
        if func in CASTS:
            func, named = CASTS[func]
            return self._converted(func, named, args, kwargs)
        if func in CONVERSIONS:
            return self._converted(func, _named(args, kwargs), args, kwargs)
        if func is torch.Tensor.view and not (args[0].is_floating_point() or args[0].is_complex()):
            return widened(func(*args, **kwargs))  # these bits, read in another type
        wide = {key: widened(value) for key, value in kwargs.items()}
        if out is not None:
            return func(*map(widened, args), **{**wide, "out": out})
        return widened(func(*map(widened, args), **wide))

    def _converted(self, func: Any, named: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        wide = {key: _type_widened(value) for key, value in kwargs.items()}
        result = widened(func(*map(_type_widened, args), **wide))
        own = named in (None, self.home, self.home.to_complex())
        return result if own or result is not args[0] else result.clone()

    def _drawn(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        dtype = kwargs.get("dtype")
        if dtype is None:
            dtype = self.default if func in FACTORIES else self.home
        return widened(func(*args, **{**kwargs, "dtype": self.home if dtype == WIDE else dtype}))


def widened(value: Any) -> Any:
    """A narrow tensor cast, a narrow type replaced, both in lists and tuples too; anything else itself."""
    kind = type(value)
    if kind is torch.dtype:
        return WIDER.get(value, value)
    if isinstance(value, torch.Tensor):
        wider = WIDER.get(value.dtype)
        return value if wider is None else value.to(wider)
    if kind is list or kind is tuple:
        made = [widened(item) for item in value]
        return value if all(new is old for new, old in zip(made, value, strict=True)) else kind(made)
    return value


def _type_widened(value: Any) -> Any:
    """Tensor types too, which only conversions take."""
    if type(value) is str and value in TYPE_NAMES:
        value = TYPE_NAMES[value]
    return WIDER_TYPES[value] if isinstance(value, type) and value in WIDER_TYPES else widened(value)


def _named(args: Any, kwargs: dict[str, Any]) -> Any:
    """The dtype that a conversion names, if it names one."""
    for value in (*args[1:], *kwargs.values()):
        if type(value) is torch.dtype:
            return value
        kind: Any = TYPE_NAMES.get(value) if type(value) is str else value
        if isinstance(kind, type) and kind in WIDER_TYPES:
            return kind.dtype  # type: ignore[attr-defined]
    return None


_state = threading.local()


@contextmanager
def wide(home: torch.dtype = torch.float32) -> Iterator[None]:
    """Inside, this thread computes in float64; within another such context it changes nothing.

    Args:
        home: the type that the code inside is written for.
    """
    if getattr(_state, "active", False):
        yield
        return
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        _state.active = True
        stack.callback(setattr, _state, "active", False)
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(WIDE)
        for owner, name, made in _out_of_reach():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, made)
        stack.enter_context(Wide(home, default))
        yield


def _out_of_reach() -> Iterator[tuple[Any, str, Any]]:
    """What makes narrow tensors, or a narrow default, without asking the mode, and what stands there meanwhile."""
    for kind, made in WIDER_TYPES.items():
        yield sys.modules[kind.__module__], kind.__name__, made
    for name in ("from_numpy", "from_dlpack", "set_default_dtype", "set_default_tensor_type"):
        yield torch, name, partial(_wide_call, getattr(torch, name))


def _wide_call(function: Any, *args: Any, **kwargs: Any) -> Any:
    made = function(*map(_type_widened, args), **kwargs)
    return made.to(made.dtype) if isinstance(made, torch.Tensor) else made  # the dtype that the mode tells


_calls = ScopedCalls()


@contextmanager
def widened_copy(model: Any) -> Iterator[Any]:
    """A copy of the model whose modules hold exact casts of their tensors; calls of these are made in ``wide``."""
    floats = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    home = next(floats, torch.get_default_dtype())
    made = copy.deepcopy(model, _detached(model))._apply(widened)
    memo: dict[int, tuple[Any, Any]] = {}
    for module in made.modules():
        for name, value in list(vars(module).items()):
            if name not in ("_parameters", "_buffers", "_modules"):
                module.__dict__[name] = with_leaves(value, widened, memo)
    with _calls.made_in(partial(wide, home), made.modules()):
        yield made


def _detached(model: Any) -> dict[int, Any]:
    """Copies, by identity, of what modules hold that was computed with gradients: PyTorch refuses to copy it."""
    found: dict[int, Any] = {}

    def note(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not value.is_leaf:
            found[id(value)] = value.detach().clone()
        return value

    for module in model.modules():
        with_leaves(list(vars(module).values()), note, {})
    return found


def wide_for(tensor: Any) -> AbstractContextManager[None]:
    """``wide`` where the tensor is in float64."""
    return wide() if tensor.dtype == WIDE else nullcontext()
