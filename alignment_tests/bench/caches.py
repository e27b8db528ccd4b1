"""A Jittor cache of one's own, for what a first start costs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from jt_impl.runtime import jittor_home


@contextlib.contextmanager
def empty_cache() -> Iterator[str]:
    """Name of a Jittor cache that is empty; the slash in it gives it a lock of its own too. Removed afterwards."""
    name = f"bench-cold-{os.getpid()}"
    try:
        yield f"{name}/x"
    finally:
        for path in jittor_home().glob(f"*/*/*/*/*/*/{name}"):
            shutil.rmtree(path)
