"""Child process of ``runtime.progress``: says on stderr how far Jittor's compiler has come.

Arguments: Jittor's home, the process to watch, the cache name. It ends when its standard input has something to read
or closes. It imports nothing but the standard library and is run by path, so that it starts at once.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

CORE_OBJECTS = 157  # object files of Jittor 1.3.11's core and its oneDNN operators on Linux without CUDA
INTERVAL = 0.5  # seconds between two looks
LINE_INTERVAL = 15.0  # seconds between two lines where the output is not a terminal, such as a log file


class Counter:
    """Counts the files written since ``since`` in a folder of the caches."""

    def __init__(self, folder: str, suffix: str, since: float) -> None:
        self.folder, self.suffix, self.since = folder, suffix, since
        self.known: dict[Path, tuple[int, int]] = {}  # time of the last change, count

    def count(self, caches: list[Path]) -> int:
        return sum(self.count_in(cache / self.folder) for cache in caches)

    def count_in(self, folder: Path) -> int:
        """Looks at the files only when the folder has changed: a cache holds thousands."""
        try:
            changed = folder.stat().st_mtime_ns
            if self.known.get(folder, (None, 0))[0] != changed:
                with os.scandir(folder) as entries:
                    count = sum(e.name.endswith(self.suffix) and e.stat().st_mtime >= self.since for e in entries)
                self.known[folder] = changed, count
        except OSError:  # not there yet, or a file moved away under us
            pass
        return self.known.get(folder, (0, 0))[1]


def find_caches(home: Path, name: str) -> list[Path]:
    """Jittor's folder is HOME/version/compiler/python/system/processor/install/NAME, with one more level for CUDA."""
    return [*home.glob(f"*/*/*/*/*/*/{name}"), *home.glob(f"*/*/*/*/*/*/{name}/cu*")]


def core_is_built(caches: list[Path]) -> bool:
    """Whether there is nothing but kernels left to compile."""
    return any(next(cache.glob("jittor_core*.so"), None) for cache in caches)


def describe(objects: int, kernels: int, seconds: float) -> str:
    """One line of progress."""
    parts = [f"core {objects} of about {max(objects, CORE_OBJECTS)} files"] if objects else []
    parts += [f"{kernels} new kernels"] if kernels else []
    return f"Jittor compiles ({seconds:.0f} s): {', '.join(parts)}; kept for the next run"


def stopped(parent: int) -> bool:
    """Wait one interval; True when told to stop or when the watched process is gone."""
    return bool(select.select([sys.stdin], [], [], INTERVAL)[0]) or os.getppid() != parent


def main() -> None:
    """Watch until told to stop."""
    home, parent, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    terminal = sys.stderr.isatty()
    start, last_line, shown = time.time(), float("-inf"), (0, 0)
    objects, kernels = Counter("obj_files", ".o", start), Counter("jit", ".so", start)
    ending = stopped(parent)
    if not ending and not core_is_built(find_caches(home, name)):
        print(
            "Jittor compiles its core for this environment: 3 to 6 minutes on 2 cores, once",
            file=sys.stderr,
            flush=True,
        )
    while not ending:
        ending = stopped(parent)
        caches = find_caches(home, name)
        now = (objects.count(caches), kernels.count(caches))
        seconds = time.time() - start
        if now == shown or not (terminal or ending or seconds - last_line >= LINE_INTERVAL):
            continue
        shown, last_line = now, seconds
        text = describe(*now, seconds)
        print(f"\r{text}   " if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal and any(shown):
        print(file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
