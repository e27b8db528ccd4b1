"""pytest plugin: a worker of pytest-xdist that dies costs the test it died in, not the run.

pytest-xdist 3.8.0 gives a dead worker's files to its replacement, the finished ones too. Of a finished file no test is
left to run, the replacement waits for more, and the run never ends. It also runs the deadly test again, until eight
workers are dead, and exits with 0 where a worker died outside of a test.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

DEAD = pytest.StashKey[dict[str, str]]()


class FileScheduling(LoadFileScheduling):
    """``--dist loadfile`` that survives the death of a worker."""

    def remove_node(self, node: Any) -> str | None:
        """Give the tests that the worker has not begun to the others; the one it died in, which fails, or None."""
        if self.collection is None:  # it died while the tests were collected: its replacement's collection counts
            self.registered_collections.pop(node, None)
        files = self.assigned_work.pop(node)
        left = {file: [test for test, finished in tests.items() if not finished] for file, tests in files.items()}
        waiting = [(file, test) for file, tests in left.items() for test in tests]
        if not waiting:
            return None
        (_, deadly), *rest = waiting
        for file, test in rest:
            self.workqueue.setdefault(file, {})[test] = False
        for other in self.nodes:
            self._reschedule(other)
        return deadly

    def _reschedule(self, node: Any) -> None:
        if node in self.registered_collections:  # a replacement may not have collected the tests yet
            super()._reschedule(node)

    def schedule(self) -> None:
        """A worker begins a test when it knows the next one, so a replacement needs two files as well."""
        super().schedule()
        if self.collection:
            super().schedule()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling | None:
    return FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    if error is not None:
        node.config.stash.setdefault(DEAD, {})[node.gateway.id] = str(error)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Not all is well where a worker died, even if no test was running in it."""
    if session.config.stash.get(DEAD, {}) and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for worker, error in config.stash.get(DEAD, {}).items():
        terminalreporter.write_line(f"worker {worker} died: {error}", red=True)
