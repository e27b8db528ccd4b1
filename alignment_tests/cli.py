"""The console script ``alignment``: every tool of this project behind one name.

alignment align --reference original/model.py:Net --candidate port/model.py:Net --input 2x3x224x224
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fixtures.cli import fail, with_dashes


class Command(NamedTuple):
    """Where a command is, what it gets in front of its arguments, and what it does."""

    module: str
    function: str
    first: tuple[str, ...]
    help: str


HARNESS = "alignment_tests.harness.__main__"
COMMANDS = {
    "align": Command("alignment_tests.commands.align", "align_main", (), "compare a port with its original"),
    "init": Command(
        "alignment_tests.commands.init", "init_main", (), "write a script for a pair, and a map of weights"
    ),
    "dump": Command(HARNESS, "main", ("dump",), "run one side and keep what it computed, for another environment"),
    "compare": Command(HARNESS, "main", ("compare",), "judge a candidate's dump against the reference's"),
    "bisect": Command(HARNESS, "main", ("bisect",), "shrink what a report blames to a script of its own"),
    "merge": Command(HARNESS, "main", ("merge",), "one page of the reports of several runs of pytest"),
    "steps": Command("alignment_tests.steps", "main", (), "compare the first training steps of Gold-YOLO"),
    "convert": Command("converters.__main__", "main", (), "convert a checkpoint between the frameworks"),
    "doctor": Command("jt_impl.doctor.__main__", "main", (), "say what this machine lacks, and what mends it"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: alignment COMMAND ...", "", "commands:", *lines, "", "alignment COMMAND --help tells more."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 aligned, 1 not aligned, 2 bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    command = COMMANDS.get(given[0])
    if command is None:
        return fail(f"`COMMAND` must be one of {', '.join(COMMANDS)}. Received: {given[0]}")
    run = getattr(importlib.import_module(command.module), command.function)
    found: int = run([*command.first, *(with_dashes(argument) for argument in given[1:])])
    return found


if __name__ == "__main__":
    sys.exit(main())
