"""pytest plugin: spread a suite over the cores of one machine, or over several machines.

pytest -n 2 --dist loadfile        two worker processes (pytest-xdist) that share the cores and one Jittor cache
pytest --shard 2/8                 the second of eight parts; a CI matrix runs one part on each machine

A file is never divided: its tests share fixtures that are expensive to make.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from alignment_tests.harness.report import suite


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" is the second of eight: (2, 8).

    Raises:
        argparse.ArgumentTypeError: the text has another form, or there is no such part.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be PART/PARTS, for example 2/8. Received: {text}")
    return int(number), int(count)


def assign(tests: Mapping[str, int], shards: int) -> dict[str, int]:
    """The shard (from 1) of each file: the files with most tests first, each to the shard that has fewest so far.

    Args:
        tests: how many tests each file has.
    """
    loads = dict.fromkeys(range(1, shards + 1), 0)
    chosen = {}
    for file in sorted(tests, key=lambda file: (-tests[file], file)):
        chosen[file] = min(loads, key=lambda shard: (loads[shard], shard))
        loads[chosen[file]] += tests[file]
    return chosen


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("alignment")
    group.addoption("--shard", type=parse_shard, metavar="PART/PARTS", help="run only this part of the suite, e.g. 2/8")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of pytest-xdist's workers."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """A pytest that a test of a worker starts is no worker: it must not inherit what says so."""
    if is_worker(config):
        for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
            del os.environ[name]


@pytest.hookimpl(tryfirst=True)  # before -k and the like, so that a file's shard does not depend on them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shard = config.getoption("--shard")
    if shard is None:
        return
    number, count = shard
    files = [str(item.path.relative_to(config.rootpath)) for item in items]
    chosen = assign(Counter(files), count)
    dropped = [item for item, file in zip(items, files, strict=True) if chosen[file] != number]
    items[:] = [item for item, file in zip(items, files, strict=True) if chosen[file] == number]
    config.hook.pytest_deselected(items=dropped)


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder: Path | None = session.config.getoption("--alignment-reports")
    if folder is not None and folder.is_dir() and not is_worker(session.config):
        suite.write(folder)
