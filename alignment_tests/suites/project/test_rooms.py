"""The rooms of this project: who may import whom. Read from the source, so that a lazy import counts too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("alignment_tests", "converters", "fixtures", "jt_impl", "torch_ref")
FRAMEWORKS = ("torch", "torchvision", "jittor", "jittor_utils")
NO_CODE = ("docs", "reports", "build", "data", "experiments")  # folders that may lie there and hold no package
IMPORTERS = ("import_module", "__import__", "importorskip")


@dataclass(frozen=True)
class Room:
    """What a folder must not import, and files in it that may import some of it nevertheless."""

    forbidden: tuple[str, ...]
    excused: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (file name pattern, modules)

    def forbids(self, module: str, file: Path) -> bool:
        allowed = (name for pattern, names in self.excused if file.match(pattern) for name in names)
        return within(module, self.forbidden) and not within(module, tuple(allowed))


HARNESS = "alignment_tests/harness"
PARENTS = {
    "fixtures": Room(("alignment_tests", "converters", "jt_impl", "torch_ref", *FRAMEWORKS)),
    "torch_ref": Room(("alignment_tests", "jt_impl", "jittor", "jittor_utils")),
    # Jittor is prepared and imported in one place.
    "jt_impl": Room(("alignment_tests", "torch_ref", *FRAMEWORKS), (("runtime.py", ("jittor",)),)),
    "converters": Room(
        ("alignment_tests", "jt_impl", "torch_ref", *FRAMEWORKS),
        (("torch_io.py", ("torch",)), ("jittor_io.py", ("jittor", "jt_impl.runtime"))),
    ),
    # The reusable core knows no model and nothing of the suites around it.
    HARNESS: Room(
        ("alignment_tests", "converters", "fixtures", "jt_impl", "torch_ref", *FRAMEWORKS),
        (("*.py", ("alignment_tests.harness",)), ("*_adapter.py", FRAMEWORKS)),
    ),
    # An activation's way: recorded, judged, reported.
    f"{HARNESS}/record": Room(("alignment_tests.harness",), (("*.py", ("alignment_tests.harness.record",)),)),
    f"{HARNESS}/judge": Room(
        ("alignment_tests.harness",),
        (("*.py", ("alignment_tests.harness.record", "alignment_tests.harness.judge")),),
    ),
    f"{HARNESS}/training": Room(("alignment_tests.harness.report",)),
}


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names of all modules that a file imports, by statement or by name. ``package`` is the file's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called_name(node) in IMPORTERS and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value


def called_name(call: ast.Call) -> str:
    """``f`` of ``f(x)``, ``g`` of ``module.g(x)``."""
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def bad_code(tree: ast.AST) -> Iterator[str]:
    """``eval`` and ``exec``, the builtins (a model's ``.eval()`` is another thing), and star imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield f"calls {node.func.id}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("builtins.eval", "builtins.exec"):
            yield f"calls {ast.unparse(node.func)}"
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"star import of {node.module}"


def python_files(root: Path) -> list[Path]:
    """This project's own source files, without what tools put into the tree."""
    top = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".") and f.name != "build"]
    return sorted([*root.glob("*.py"), *(file for folder in top for file in folder.rglob("*.py"))])


def violations(root: Path) -> list[str]:
    """Every breach of the rules below ``root``, as ``file: what``."""
    found = []
    for file in python_files(root):
        place = file.relative_to(root)
        top = place.parts[0]
        if top not in (*ROOMS, *NO_CODE, "conftest.py"):
            found.append(f"{place}: is in no room")
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        found += [f"{place}: {text}" for text in bad_code(tree)]
        rules = [room for folder, room in PARENTS.items() if place.is_relative_to(folder)]
        for module in dict.fromkeys(imports(tree, ".".join(place.parent.parts))):
            found += [f"{place}: imports {module}" for room in rules if room.forbids(module, place)]
    return found


def test_rooms_are_kept() -> None:
    assert violations(ROOT) == []


def modules(root: Path) -> dict[str, set[str]]:
    """Every module of the rooms below ``root``, and the modules of the rooms that it imports anywhere."""
    files = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in python_files(root)
        if file.relative_to(root).parts[0] in ROOMS
    }
    found: dict[str, set[str]] = {}
    for module, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        named = imports(tree, ".".join(file.relative_to(root).parent.parts))
        # ``from package import name`` may name a module or what is in the package.
        places = (name if name in files else name.rpartition(".")[0] for name in named)
        found[module] = {place for place in places if place in files and place != module}
    return found


def folders(graph: dict[str, set[str]], root: Path) -> dict[str, set[str]]:
    """The same between folders; a folder and one that lies in it are of one house."""

    def folder(module: str) -> str:
        return module if (root / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]

    found: dict[str, set[str]] = {}
    for module, imported in graph.items():
        here = folder(module)
        there = {folder(name) for name in imported}
        found.setdefault(here, set()).update(
            name for name in there if not within(name, (here,)) and not within(here, (name,))
        )
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_leads_back() -> None:
    graph = modules(ROOT)
    assert circle(graph) == []
    assert circle(folders(graph, ROOT)) == []


def test_a_stranger_can_look_over_a_folder() -> None:
    """At most fifteen files at the top of each: what there is more of has a folder of its own."""
    for room in ("alignment_tests", "fixtures"):
        assert len(list((ROOT / room).glob("*.py"))) <= 15


def test_every_room_was_read() -> None:
    read = {file.relative_to(ROOT).parts[0] for file in python_files(ROOT)}
    assert set(ROOMS) <= read


BAD = [
    ("fixtures/a.py", "import torch"),
    ("fixtures/a.py", "def f():\n    from jittor import nn"),
    ("fixtures/a.py", "import importlib\nimportlib.import_module('torchvision.ops')"),
    ("fixtures/a.py", "from converters import state"),
    ("torch_ref/a.py", "from jt_impl.layers import ConvBlock"),
    ("torch_ref/a.py", "import jittor as jt"),
    ("torch_ref/tools/a.py", "from ...jt_impl import layers"),
    ("jt_impl/a.py", "from torch_ref import layers"),
    ("jt_impl/a.py", "import torch.nn.functional as F"),
    ("jt_impl/a.py", "import jittor"),
    ("converters/state.py", "import torch"),
    ("converters/torch_io.py", "import jittor"),
    ("converters/jittor_io.py", "from jt_impl import model"),
    ("alignment_tests/harness/judge/compare.py", "import torch"),
    ("alignment_tests/harness/record/torch_adapter.py", "from torch_ref import model"),
    ("alignment_tests/harness/judge/report.py", "from alignment_tests import cases"),
    ("alignment_tests/harness/judge/report.py", "from .. import cases"),
    ("alignment_tests/harness/offline.py", "from jt_impl.runtime import jittor"),
    ("alignment_tests/harness/record/trace.py", "from alignment_tests.harness.judge import budget"),
    ("alignment_tests/harness/judge/rows.py", "from alignment_tests.harness.report import html"),
    ("alignment_tests/harness/judge/rows.py", "from alignment_tests.harness import align"),
    ("alignment_tests/harness/training/steps.py", "from alignment_tests.harness.report.html import report_page"),
    ("tools/a.py", "import os"),
    ("setup.py", "import os"),
    ("fixtures/a.py", "eval('1')"),
    ("jt_impl/a.py", "import builtins\nbuiltins.exec('1')"),
    ("torch_ref/a.py", "from numpy import *"),
]
GOOD = [
    ("fixtures/a.py", "import numpy as np\nfrom pycocotools import mask\nfrom fixtures.config import load_config"),
    ("fixtures/a.py", "import torchlike\nfrom jittor_free import x"),
    ("torch_ref/a.py", "import torch, torchvision\nfrom fixtures import seeded\nfrom converters import load_into"),
    ("jt_impl/a.py", "from jt_impl.runtime import jittor as jt\nfrom converters import load_into"),
    ("jt_impl/runtime.py", "import jittor as module"),
    ("converters/torch_io.py", "import torch"),
    ("converters/jittor_io.py", "from jt_impl.runtime import jittor as jt"),
    (
        "alignment_tests/harness/judge/compare.py",
        "from alignment_tests.harness.judge.budget import Budget\nfrom . import trace",
    ),
    ("alignment_tests/harness/record/jittor_adapter.py", "import jittor as jt"),
    ("alignment_tests/test_a.py", "import torch\nfrom jt_impl import model\nmodel.build().eval()"),
    ("conftest.py", "import pytest"),
    (".venv/lib/a.py", "import torch\nfrom os import *"),
]


def plant(root: Path, place: str, source: str) -> None:
    file = root / place
    file.parent.mkdir(parents=True)
    file.write_text(source + "\n")


@pytest.mark.parametrize(("place", "source"), BAD)
def test_planted_fault_is_caught(place: str, source: str, tmp_path: Path) -> None:
    plant(tmp_path / "tree", place, source)
    assert len(violations(tmp_path / "tree")) == 1


@pytest.mark.parametrize(("place", "source"), GOOD)
def test_right_import_passes(place: str, source: str, tmp_path: Path) -> None:
    plant(tmp_path / "tree", place, source)
    assert violations(tmp_path / "tree") == []


CIRCLES = {
    "of modules": {"fixtures/a.py": "from fixtures import b", "fixtures/b.py": "def f():\n    import fixtures.a"},
    "of folders": {
        "fixtures/x/a.py": "from fixtures.y.b import c",
        "fixtures/y/b.py": "c = 1",
        "fixtures/y/d.py": "from fixtures.x import a",
    },
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_planted_circle_is_caught(kind: str, tmp_path: Path) -> None:
    for place, source in CIRCLES[kind].items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(source + "\n")
    graph = modules(tmp_path)
    assert bool(circle(graph)) == (kind == "of modules")
    assert bool(circle(graph) or circle(folders(graph, tmp_path)))
