"""Where a module's layers are made: the line of the constructor in the source of the module around them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from alignment_tests.harness.record.places import TEXT, shown_path

CONTAINERS = ("Sequential", "ModuleList", "ParameterList")


def definition(modules: list[tuple[str, Any]], module: Any) -> str | None:
    """File, line and source of what makes the module, as in ``model.py:12  nn.BatchNorm2d(64, eps=1e-3)``.

    Args:
        modules: (path, module) of the whole model.
        module: one of them.

    Returns:
        None where the source does not say: the root, one of several that a loop or a function makes elsewhere.
    """
    paths = {id(held): path for path, held in modules}
    if not paths.get(id(module)):
        return None
    known = dict(modules)
    around, keys = paths[id(module)], list[str]()
    while around:
        around, _, key = around.rpartition(".")
        keys.insert(0, key)
        parent = known.get(around)
        if parent is not None and type(parent).__name__ not in CONTAINERS:
            return next(_made_in(type(parent), keys), None)
    return None


def _made_in(kind: type, keys: list[str]) -> Iterator[str]:
    for base in kind.__mro__:
        try:
            lines, first = inspect.getsourcelines(base)
            file = inspect.getsourcefile(base)
        except (OSError, TypeError):  # built in, or typed into a prompt
            continue
        if file is None:
            continue
        source = textwrap.dedent("".join(lines))
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        found = [value for name, value in _assigned(tree) if name == keys[0]]
        if len(found) == 1:
            value = _inner(found[0], keys[1:])
            text = " ".join((ast.get_source_segment(source, value) or "").split())
            yield f"{shown_path(file)}:{first + value.lineno - 1}  {text[:TEXT]}"


def _assigned(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Attributes that methods set on their first argument, with what they are set to."""
    for method in ast.walk(tree):
        if not isinstance(method, ast.FunctionDef) or not method.args.args:
            continue
        for node in ast.walk(method):
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
                    continue
                if target.value.id == method.args.args[0].arg:
                    yield target.attr, node.value


def _inner(value: ast.expr, keys: list[str]) -> ast.expr:
    """The item of a ``Sequential(...)`` or ``ModuleList([...])``; the whole where its items are not written out."""
    for key in keys:
        items = value.args if isinstance(value, ast.Call) else []
        if len(items) == 1 and isinstance(items[0], (ast.List, ast.Tuple)):
            items = items[0].elts
        elif len(items) == 1 and isinstance(items[0], ast.ListComp):
            items = [items[0].elt] * (int(key) + 1) if key.isdigit() else []
        if not key.isdigit() or int(key) >= len(items) or any(isinstance(item, ast.Starred) for item in items):
            return value
        value = items[int(key)]
    return value
