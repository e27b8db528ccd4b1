"""``python -m jt_impl.doctor``: can this machine run the alignment, and if not, which command mends it?

Nothing is changed and Jittor is not imported, so that it works where Jittor does not. ``--deep`` loads Jittor (which
compiles its core on a new machine) and proves four properties. Exit code 1 if the CPU path cannot work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jt_impl import runtime
from jt_impl.doctor import checks as cpu
from jt_impl.doctor.checks import Check
from jt_impl.doctor.cuda import cuda_checks, find_cuda, start_index_check, wish_for_cuda

COLOURS = {"ok": "green", "info": "blue", "warn": "yellow", "fail": "bold red"}


def cache_checks() -> list[Check]:
    """oneDNN, the cache folder and the core in it."""
    try:
        home = runtime.jittor_home()
    except (ValueError, AttributeError):  # Jittor's own config.json
        file = Path.home() / ".cache" / "jittor" / "config.json"
        return [Check("cache folder", "fail", f"{file} is damaged: Jittor's import fails", f"rm {file}")]
    use_mkl = runtime.variable("use_mkl", "1")
    checks = [cpu.check_onednn(runtime.onednn_target(), runtime.find_onednn(), use_mkl), cpu.check_cache_folder(home)]
    try:
        name = runtime.cache_name()
    except runtime.RuntimeSetupError:  # no Jittor, or not the CUDA that is demanded: said elsewhere in the table
        return checks
    return [*checks, cpu.check_core(home, name, cpu.compiler_folder(runtime.variable("cc_path", "g++")))]


def compiler_checks(command: str) -> list[Check]:
    """The compiler, and what only a compiler that is there can show."""
    compiler = cpu.check_compiler(command)
    return [compiler, cpu.check_headers(), *([cpu.check_openmp(command)] if compiler.status == "ok" else [])]


def all_checks(deep: bool = False) -> list[Check]:
    """Every finding, in the order of the table."""
    index_check = start_index_check()
    wanted, variables = cpu.pins(), dict(os.environ)
    checks = [cpu.check_python(), cpu.check_platform()]
    checks += [cpu.check_package(name, cpu.installed_version(name), wanted.get(name)) for name in cpu.PACKAGES]
    checks += compiler_checks(runtime.variable("cc_path", "g++"))
    checks += cache_checks()
    checks += [cpu.check_flags(variables), cpu.check_variables(variables), *cpu.check_machine()]
    checks += cuda_checks(find_cuda(variables), wish_for_cuda(variables))
    checks.append(index_check())
    return checks + (deep_checks() if deep else [])


def deep_checks() -> list[Check]:
    """Prove in a child process that Jittor computes right; its progress shows on stderr."""
    command = [sys.executable, "-m", "jt_impl.doctor.deep"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    try:
        rows = json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        detail = f"Jittor ended its process with code {result.returncode}"
        return [Check("loading Jittor", "fail", detail, "see the messages above")]
    return [Check(**row) for row in rows]


def usable(checks: Sequence[Check]) -> bool:
    """Whether the CPU path can work."""
    return all(check.status != "fail" for check in checks)


def summary(checks: Sequence[Check]) -> str:
    """The last line."""
    failures = sum(check.status == "fail" for check in checks)
    if failures:
        return f"The CPU path cannot work yet: {failures} finding{'s' if failures > 1 else ''} to mend."
    warnings = sum(check.status == "warn" for check in checks)
    return f"The CPU path can work{f', with {warnings} warnings' if warnings else ''}."


def plain_table(checks: Sequence[Check]) -> str:
    """The table without rich, for an environment where nothing is installed yet."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:4}  {check.name:{width}}  {check.detail}")
        lines += [f"{'':4}  {'':{width}}  -> {check.remedy}"] if check.remedy else []
    return "\n".join([*lines, summary(checks)])


def show(checks: Sequence[Check]) -> None:
    """Print the table."""
    try:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        print(plain_table(checks))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("check", "", "what was found, and what mends it"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        colour = COLOURS[check.status]
        remedy = f"\n[bold]-> {escape(check.remedy)}[/bold]" if check.remedy else ""
        table.add_row(check.name, f"[{colour}]{check.status}[/{colour}]", escape(check.detail) + remedy)
    console = Console(soft_wrap=False, highlight=False)
    console.print(table)
    console.print(summary(checks), style=COLOURS["ok" if usable(checks) else "fail"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; the exit code is 1 if the CPU path cannot work."""
    parser = argparse.ArgumentParser(prog="python -m jt_impl.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--deep", action="store_true", help="load Jittor and prove that it computes right")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(arguments)
    checks = all_checks(options.deep)
    if options.json:
        print(json.dumps({"usable": usable(checks), "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        show(checks)
    return 0 if usable(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
