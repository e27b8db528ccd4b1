"""Show the functions of Jittor, methods of ``Var`` and Jittor's own layers that a module's code calls to a recorder."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jittor as jt

from alignment_tests.harness.record.operators import Recorder, module_calls
from alignment_tests.harness.record.places import TOOLS, is_tool
from alignment_tests.harness.record.wide_operators_adapter import WIDE_OPS
from alignment_tests.harness.record.wide_values_adapter import OPS

# Of the methods with underscores, those that compute.
ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
METHODS = {f"__{side}{name}__" for name in ARITHMETIC for side in ("", "r", "i")}
METHODS |= {
    f"__{name}__" for name in ["neg", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem"]
}
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
# They read, or tell of the process.
SILENT = {"numpy", "sync", "sync_all", "fetch", "fetch_sync", "item", "tolist", "save", "load", "gc", "is_var", "size"}
SILENT |= {"numel", "is_stop_grad", "stop_grad", "start_grad", "set_seed", "get_seed", "seed", "set_global_seed"}


@contextmanager
def shown(recorder: Recorder, modules: list[Any], whole: Mapping[int, str]) -> Iterator[None]:
    """Inside, what is called passes through ``recorder``; afterwards everything stands as it stood, whatever happens.

    Args:
        recorder: takes the operators.
        modules: of the model, whose attributes may hold functions.
        whole: identity -> name, of modules that count as one operator. Jittor's own layers do too.
    """

    def name_of(module: Any) -> str | None:
        kind: Any = type(module)
        return whole.get(id(module)) or (kind.__name__ if _is_layer(kind) else None)

    made: dict[int, Any] = {}  # identity of a function, or of what it stands for -> what is in its place
    with ExitStack() as stack:
        for owner in (jt.Var, jt.nn, jt.linalg, jt):  # Jittor leaves names of loops behind, such as jt.v
            for name, held in list(vars(owner).items()):
                if _computes(owner, name, held):
                    through = made.get(id(held)) or _through(recorder, name, held)
                    inner = inspect.unwrap(held)
                    made |= {id(function): through for function in (held, inner)}
                    if inner is WIDE_OPS.get(name):  # a module may hold the narrow one since before
                        made.setdefault(id(OPS[name]), through)
                    stack.callback(setattr, owner, name, held)
                    setattr(owner, name, through)
        for names in (*_files(), *(vars(module) for module in modules)):
            for name, held in list(names.items()):
                if id(held) in made and not isinstance(held, type):
                    stack.callback(names.__setitem__, name, held)
                    names[name] = made[id(held)]
        stack.enter_context(module_calls(recorder, modules, name_of))
        yield


def _computes(owner: Any, name: str, held: Any) -> bool:
    if name in SILENT or (name.startswith("_") and name not in METHODS):
        return False
    if owner is jt.Var:
        return callable(held) and not isinstance(held, (type, staticmethod, classmethod))
    return isinstance(held, FUNCTIONS)


def _files() -> Iterator[dict[str, Any]]:
    """Names in the files of users' code, which may have imported functions."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] not in (*TOOLS, "numpy") and isinstance(file, str) and not is_tool(file):
            yield vars(module)


def _through(recorder: Recorder, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def through(*args: Any, **kwargs: Any) -> Any:
        return recorder.call(name, function, args, kwargs)

    return functools.update_wrapper(through, function)


@functools.cache
def _is_layer(kind: Any) -> bool:
    """Whether it is a layer of Jittor's own, and none whose children are the user's."""
    package, _, rest = kind.__module__.partition(".")
    own = package == "jittor" and rest.partition(".")[0] != "models"
    return own and not issubclass(kind, (jt.nn.Sequential, jt.nn.ParameterList))
