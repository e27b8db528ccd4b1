"""Child processes that may crash. Jittor ends its process when a child of it is killed by a signal, so a shell, which
ends in order whatever becomes of its child, stands between."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def sheltered(command: Sequence[str]) -> list[str]:
    """The command as a shell's child; the exit code of a process that a signal ended is 128 and the signal."""
    return ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command]


def stop(shell: subprocess.Popen[bytes]) -> None:
    """Kill what the shell runs, not the shell, and wait for its end; a shell that is new may have no child yet."""
    children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
    while shell.poll() is None:
        for child in children.read_text(encoding="utf-8").split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        time.sleep(0.1)


def default_jobs() -> int:
    """Processes to run side by side: one per core, each with up to 8 GB of memory, and no more than four.

    Their kernels use all cores, but compiling and Python, which take most of the time, do not.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(4, len(os.sched_getaffinity(0)), memory >> 33))


def exit_code(shell: subprocess.Popen[bytes]) -> int:
    """As ``subprocess`` gives it for a child of its own: negative where a signal ended it."""
    code = shell.wait()
    return 128 - code if code > 128 else code
