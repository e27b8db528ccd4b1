"""Hooks the harness's plugin into pytest, and holds the fixtures of more than one suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jt_impl.runtime import progress

pytest_plugins = [
    "alignment_tests.harness.plugin",
    "alignment_tests.harness.sharding",
    "alignment_tests.bench.plugin",
    "alignment_tests.suites.check",
    "alignment_tests.suites.dead_workers",
]
# The files that take minutes, longest first. pytest-xdist would begin with those that have most tests, and one worker
# would be alone with the long ones at the end; ``--no-loadscope-reorder`` keeps it from doing so.
LONG_FILES = (
    *("test_training.py", "test_train_cli.py", "test_model.py", "test_optimizer.py", "test_sabotage.py"),
    *("test_mixed_precision.py", "test_variants.py", "test_training_faults.py", "test_assigners.py"),
)


def share_cores() -> None:
    """Workers of pytest-xdist get a share of the cores each, unless the user says otherwise: threads that wait for one
    another spin, so that twice as many as there are cores take longer than half of them."""
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if workers:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


share_cores()  # before anything loads OpenMP
# What a shell runs behind (``make test &``) has Ctrl-C ignored, and the programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist
        places = {name: place for place, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def compile_progress(request: pytest.FixtureRequest) -> Iterator[None]:
    """What Jittor compiles, on the real stderr: a first run compiles for minutes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    worker = getattr(request.config, "workerinput", {"workerid": "gw0"})["workerid"]
    context = progress(silent=worker != "gw0")  # the workers share one cache
    with capture.global_and_fixture_disabled():
        context.__enter__()
    yield
    context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def official_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of N that the public implementation wrote."""
    from alignment_tests.cases.recordings import restore_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "official_like_n.pt"
    restore_checkpoint(path)
    return path
