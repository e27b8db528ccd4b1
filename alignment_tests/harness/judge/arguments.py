"""What a module was made with: the arguments of stock layers and attributes of users' modules, beside one another."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

MISSING = object()
HOMES = {"torch": "torch.nn", "jittor": "jt.nn"}
NOT_HELD = ("device", "dtype", "is_train", "sync")
# They tell where a layer lives and how it computes, not what.
TECHNICAL = (*NOT_HELD, "inplace", "training", "track_running_stats", "args", "kw")
# Of stock layers and functions; in users' code they may mean anything.
SAME_ARGUMENTS = {"scale": "negative_slope", "init_": "init", "dims": "dim", "axis": "dim", "keepdims": "keepdim"}


def home_of(module: Any) -> str | None:
    """ "torch.nn" or "jt.nn" where the module is a stock layer of that framework; Jittor's model zoo is users' code."""
    package, _, rest = type(module).__module__.partition(".")
    if rest.partition(".")[0] == "models" or type(module).__name__ == "Sequential":
        return None
    return HOMES.get(package)


def constructor(module: Any) -> str | None:
    """The call that makes a stock layer of either framework anew, read from its attributes; None for other modules."""
    if home_of(module) is None:
        return None
    message = constructor_arguments(module)
    if message is None:
        return None
    try:
        again = constructor_arguments(type(module)(**message))
    except Exception:  # such as of Jittor's Conv1d, which keeps its arguments in another form than it takes
        return None
    return described(module, message, type(module).__name__) if again == message else None


def constructor_arguments(module: Any) -> dict[str, Any] | None:
    """Those that are not the defaults, as the module holds them; None where it does not hold one."""
    held = held_arguments(module)
    if held is None or MISSING in held.values():
        return None
    defaults = {parameter.name: parameter.default for parameter in parameters_of(module)}
    return {name: value for name, value in held.items() if value != defaults[name]}


def described(module: Any, message: Mapping[str, Any], wanted: str) -> str:
    """The constructor in words, by the name ``wanted`` where the framework has its class by that name too."""
    words = ", ".join(f"{name}={value!r}" for name, value in message.items())
    return f"{home_of(module)}.{_public_name(type(module), wanted)}({words})"


def _public_name(kind: type, wanted: str) -> str:
    """Jittor's ``BatchNorm2d`` is ``BatchNorm``, and its ``GELU`` of a class that is called ``gelu``."""
    names = [name for name, held in vars(sys.modules.get("jittor.nn", object)).items() if held is kind]
    return next((name for name in (wanted, kind.__name__, *names) if name in names), kind.__name__)


def parameters_of(module: Any) -> list[inspect.Parameter]:
    """Of the constructor; of the function, where the layer only calls one with its arguments."""
    function = _function_of(module)
    if function is not None:
        try:
            return list(inspect.signature(function).parameters.values())[1:]
        except ValueError:  # of C++
            return []
    for kind in type(module).__mro__:
        found = list(inspect.signature(vars(kind).get("__init__", object.__init__)).parameters.values())[1:]
        if not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in found):
            return [p for p in found if p.name not in NOT_HELD and p.kind is not p.VAR_KEYWORD]
    return []


def held_arguments(module: Any) -> dict[str, Any] | None:
    """Arguments of a layer by name; ``MISSING`` for those that it does not hold as plain values."""
    parameters = parameters_of(module)
    function = _function_of(module)
    if function is not None:
        try:
            bound = inspect.signature(function).bind(None, *module.args, **module.kw)
        except (TypeError, ValueError):
            return None if module.args or module.kw else {}
        given = dict(list(bound.arguments.items())[1:])
        taken = {p.name: given.get(p.name, p.default) for p in parameters}
        return {name: value if plain(value) else MISSING for name, value in taken.items()}
    inner = next((module.__dict__[n] for n in ("layer", "_layer") if n in module.__dict__), module)  # Jittor's pools
    found = {}
    for name in (parameter.name for parameter in parameters):
        held = _flag(module, name)
        if held is MISSING:
            held = next((vars(m)[name] for m in (module, inner) if name in vars(m)), MISSING)
        if name == "mode" and held == type(module).__name__:
            continue  # of a recurrent network, its own kind
        found[name] = held if plain(held) else MISSING
    return found


def _function_of(module: Any) -> Any:
    """What a layer that Jittor made of a function calls."""
    execute: Any = getattr(type(module), "execute", None)
    if not {"args", "kw"} <= vars(module).keys() or getattr(execute, "__closure__", None) is None:
        return None
    return inspect.getclosurevars(execute).nonlocals.get("func")


def _flag(module: Any, name: str) -> Any:
    """``bias=True`` is held as the bias itself."""
    return getattr(module, name) is not None if name == "bias" and hasattr(module, name) else MISSING


def plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def compared(reference: Any, candidate: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two modules that should be the same: their constructors in words, and what differs by name.

    The words are there if one of them is a stock layer at least. Of stock layers the arguments are compared, of users'
    modules all plain attributes that both have.
    """
    modules = reference, candidate
    stock = [home_of(module) is not None for module in modules]
    names = [type(module).__name__ for module in modules]
    words = tuple(
        described(module, _given(module), wanted) if own else f"{type(module).__module__}.{type(module).__name__}"
        for module, own, wanted in zip(modules, stock, reversed(names), strict=True)
    )
    held = [_comparable(module) for module in modules]
    defaults = [_defaults(module) for module in modules]
    found = []
    for name in {**held[0], **held[1]}:
        values = [side.get(name, MISSING) for side in held]
        if any(stock) and not any(name in known for known in defaults):
            continue
        if MISSING in values:
            index = values.index(MISSING)
            differs = all(stock) and _matters(values[1 - index], defaults[1 - index].get(name, MISSING))
        else:
            differs = not (equal(*values) or _left_out(values, [known.get(name, MISSING) for known in defaults]))
        if differs:
            found.append(f"{name}: {' | '.join('none' if value is MISSING else repr(value) for value in values)}")
    return words if any(stock) else (), tuple(found)


def _given(module: Any) -> dict[str, Any]:
    """Arguments, as far as they are known, that are not what they are by default."""
    defaults = {parameter.name: parameter.default for parameter in parameters_of(module)}
    held = held_arguments(module) or {}
    return {name: value for name, value in held.items() if value is not MISSING and not equal(value, defaults[name])}


def _defaults(module: Any) -> dict[str, Any]:
    """Defaults of a stock layer's arguments; ``MISSING`` where there is none."""
    if home_of(module) is None:
        return {}
    parameters = parameters_of(module)
    return {SAME_ARGUMENTS.get(p.name, p.name): MISSING if p.default is p.empty else p.default for p in parameters}


def _comparable(module: Any) -> dict[str, Any]:
    """Plain values by name: arguments of a stock layer, attributes of another module."""
    held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    if home_of(module) is not None:
        held = {SAME_ARGUMENTS.get(k, k): v for k, v in {**held, **(held_arguments(module) or {})}.items()}
    shapes = {name: tuple(value) for name, value in held.items() if type(value).__name__ == "NanoVector"}  # Jittor's
    return {name: v for name, v in {**held, **shapes}.items() if plain(v) and name not in TECHNICAL}


def _matters(value: Any, default: Any) -> bool:
    """Whether a value that only one side knows makes a difference."""
    return default is not MISSING and not equal(value, default) and value is not None and value is not False


def _left_out(values: list[Any], defaults: list[Any]) -> bool:
    """Whether None on one side stands for the other's default."""
    return any(
        value is None and other is not MISSING and equal(values[1 - index], other)
        for index, (value, other) in enumerate(zip(values, reversed(defaults), strict=True))
    )


def equal(one: Any, other: Any) -> bool:
    """3 is (3, 3), and (3, 1) in one dimension; None is False: both are what is not asked for."""
    one, other = (False if value is None else value for value in (one, other))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        short, long = sorted((one, other), key=len)
        same = all(equal(a, b) for a, b in zip(short, long, strict=False))
        return same and all(value in (0, 1) for value in long[len(short) :])
    if isinstance(one, (tuple, list)) or isinstance(other, (tuple, list)):
        items, single = (one, other) if isinstance(one, (tuple, list)) else (other, one)
        return bool(items) and all(equal(item, single) for item in items)
    return bool(one == other)
