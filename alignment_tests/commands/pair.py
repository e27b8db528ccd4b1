"""Two models named on a command line: ``original/model.py:Net`` beside ``port/model.py:Net(depth=3)``.

Each side is imported as a script of its own would import it, its folder in front, and apart from the other one: both
may have a ``model.py`` and a ``utils.py``.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import importlib.util
import os
import random
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

INSTALLED = ("site-packages", "dist-packages", "importlib")  # where code that is not the user's lies
FORM = "must be FILE.py:NAME or MODULE:NAME, where NAME may have arguments: model.py:Net(depth=3)"


class PairError(ValueError):
    """A model cannot be had from what was named; the message names the option."""


@dataclass(frozen=True)
class Target:
    """What a text names: where it is, the name there, and the arguments of a call if there is one."""

    text: str
    file: Path | None
    module: str
    names: tuple[str, ...]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """What stands first where modules are looked for."""
        if self.file is None:
            return Path.cwd()
        return self.file.resolve().parents[self.module.count(".")]


def target(text: str) -> Target:
    """Argument type. Arguments in the text are literals; nothing of it is run.

    Raises:
        argparse.ArgumentTypeError: the text has another form, or there is no such file.
    """
    place, colon, expression = text.partition(":")
    if not (place and colon and expression):
        raise argparse.ArgumentTypeError(f"{FORM}. Received: {text}")
    names, args, kwargs = parsed(expression, text)
    if not place.endswith(".py"):
        return Target(text, None, place, names, args, kwargs)
    file = Path(place).expanduser()
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"must name a file that is there. Received: {place}")
    return Target(text, file, dotted(file.resolve()), names, args, kwargs)


def parsed(expression: str, text: str) -> tuple[tuple[str, ...], tuple[Any, ...], dict[str, Any] | None]:
    """Names and arguments of ``Net``, ``models.Net`` or ``Net(3, wide=True)``; None where nothing is called."""
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise argparse.ArgumentTypeError(f"{FORM}. Received: {text}") from None
    call = node if isinstance(node, ast.Call) else None
    names: list[str] = []
    part = node.func if isinstance(node, ast.Call) else node
    while isinstance(part, ast.Attribute):
        names.append(part.attr)
        part = part.value
    if not isinstance(part, ast.Name):
        raise argparse.ArgumentTypeError(f"{FORM}. Received: {text}")
    if call is None:
        return (part.id, *reversed(names)), (), None
    try:
        args = tuple(ast.literal_eval(argument) for argument in call.args)
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except ValueError:
        raise argparse.ArgumentTypeError(f"must have plain values as arguments. Received: {text}") from None
    return (part.id, *reversed(names)), args, kwargs


def dotted(file: Path) -> str:
    """The module's name: a file in a package is imported as a part of it."""
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        names.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(names))


@contextmanager
def apart(folder: Path, beside: Path) -> Iterator[dict[str, ModuleType]]:
    """Import from this folder first, and take what was imported from it out of ``sys.modules`` again.

    ``beside``: where the file itself is. Files of a package may import each other as scripts do.

    What is called like something in the folder, and was loaded from elsewhere, is out of the way meanwhile.

    Yields:
        The modules of the folder by name; filled in the end.
    """
    found: dict[str, ModuleType] = {}
    before = dict(sys.modules)
    own = {path.stem for place in (folder, beside) for path in place.iterdir()} - set(sys.stdlib_module_names)
    strange = {name for name in own if name in before and not is_below(before[name], folder)}
    hidden = [name for name in before if name.partition(".")[0] in strange]
    for name in hidden:
        del sys.modules[name]
    sys.path[:0] = [str(folder), str(beside)]
    importlib.invalidate_caches()
    try:
        yield found
    finally:
        for place in (folder, beside):
            sys.path.remove(str(place))
        for name, module in list(sys.modules.items()):
            known = name.partition(".")[0] in before and name.partition(".")[0] not in strange
            if before.get(name) is not module and not known and is_below(module, folder):
                found[name] = sys.modules.pop(name)
        sys.modules.update({name: before[name] for name in hidden})


def is_below(module: ModuleType, folder: Path) -> bool:
    """Whether the module's file, or the folder of a package without one, lies below."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(
        place is not None
        and Path(place).resolve().is_relative_to(folder)
        and not any(part in INSTALLED for part in Path(place).parts)
        for place in places
    )


def load_model(found: Target, option: str) -> tuple[Any, dict[str, ModuleType]]:
    """The model, and the modules that came with it.

    Raises:
        PairError: it cannot be imported or made, or is no model.
    """
    folder = found.folder.resolve()
    beside = folder if found.file is None else found.file.resolve().parent
    with apart(folder, beside) as modules, alone_on_command_line(found):
        try:
            made: Any = imported(found)
            for name in found.names:
                made = attribute(made, name, found, option)
            if found.kwargs is not None or not is_model(made):
                made = made(*found.args, **(found.kwargs or {}))
        except PairError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            raise PairError(f"`{option}` {found.text} raises {reason(error)}") from error
    if not is_model(made):
        kind = type(made).__name__
        raise PairError(f"`{option}` {found.text} must give a torch.nn.Module or a jittor.Module. Received: {kind}")
    return made, modules


@contextmanager
def alone_on_command_line(found: Target) -> Iterator[None]:
    """A file that reads the command line when it is imported finds no arguments there."""
    before = sys.argv
    sys.argv = [str(found.file or found.module)]
    try:
        yield
    finally:
        sys.argv = before


def reason(error: BaseException) -> str:
    """Exception and message, and the deepest line of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and not any(part in f.filename for part in INSTALLED)]
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {error}{where}"


def imported(found: Target) -> ModuleType:
    if found.file is None or "." in found.module:
        return importlib.import_module(found.module)
    spec = importlib.util.spec_from_file_location(found.module, found.file.resolve())
    assert spec is not None
    assert spec.loader is not None
    sys.modules[found.module] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attribute(owner: Any, name: str, found: Target, option: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        near = difflib.get_close_matches(name, dir(owner), 3, 0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise PairError(f"`{option}` {found.text}: there is no {name}{hint}") from None


def is_model(made: Any) -> bool:
    """By its classes alone, so that nothing is imported among the user's modules."""
    bases = [(base.__module__.partition(".")[0], base.__name__) for base in type(made).__mro__]
    return any((framework, "Module") in bases for framework in ("torch", "jittor"))


def load_pair(
    reference: str | os.PathLike[str] | Target, candidate: str | os.PathLike[str] | Target, *, seed: int = 0
) -> tuple[Any, Any]:
    """Both models, the reference with the weights that its constructor draws from this seed. Jittor is prepared.

    Raises:
        PairError: see ``load_model``.
        RuntimeSetupError: Jittor cannot be made ready.
    """
    import numpy as np
    import torch

    from jt_impl.runtime import load

    sides = [side if isinstance(side, Target) else checked(os.fspath(side)) for side in (reference, candidate)]
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    first, theirs = load_model(sides[0], "--reference")
    load()
    second, ours = load_model(sides[1], "--candidate")
    # For what the code imports when it is called; a name that both have would be the wrong one for one of them.
    for name, module in {**theirs, **ours}.items():
        if not (name in theirs and name in ours):
            sys.modules.setdefault(name, module)
    return first, second


def checked(text: str) -> Target:
    try:
        return target(text)
    except argparse.ArgumentTypeError as error:
        raise PairError(f"a model {error}") from None
