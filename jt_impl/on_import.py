"""Makes every ``import jittor`` of this process the prepared one, whoever writes it; see ``jt_impl.runtime.load``.

Set up by ``jt_impl``, which ``alignment_tests`` imports. Nothing of Jittor is touched before somebody imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Its helper reads the same settings, so whoever imports that first needs them too.
PREPARED = ("jittor", "jittor_utils")


_bypassed = False


@contextmanager
def bypassed() -> Iterator[None]:
    """While ``load`` itself imports Jittor, and its settings are in force."""
    global _bypassed
    before, _bypassed = _bypassed, True
    try:
        yield
    finally:
        _bypassed = before


class Preparing:
    """A finder that lets others find Jittor, and has ``load`` import it."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in PREPARED or _bypassed or "jittor" in sys.modules:
            return None
        finders = [finder for finder in sys.meta_path if not isinstance(finder, Preparing)]
        specs = (finder.find_spec(name, path, target) for finder in finders if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = LoadedByRuntime(spec.loader, self._load)  # type: ignore[assignment]
        return spec


class LoadedByRuntime:
    """A loader that calls ``load``, which puts the module where the import statement looks for it."""

    def __init__(self, loader: Any, load: Callable[[], Any]) -> None:
        self._loader, self._load = loader, load

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """``module`` is the empty one that the import statement made."""
        del sys.modules[module.__name__]
        self._load()

    def __getattr__(self, name: str) -> Any:
        """Whoever asks for code, data or the file of the package gets what the own loader of it says."""
        return getattr(self._loader, name)


def prepare(load: Callable[[], Any]) -> None:
    """Put the finder first, once; ``load`` is called when somebody imports Jittor."""
    if not any(isinstance(finder, Preparing) for finder in sys.meta_path):
        sys.meta_path.insert(0, Preparing(load))
