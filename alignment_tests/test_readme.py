"""What the documents say can be typed: commands exist, the example runs, links lead somewhere, both languages agree."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from alignment_tests.harness import Budget, Report, align, compare, dump

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCUMENTS = [ENGLISH, CHINESE, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FUNCTIONS: dict[str, Callable[..., object]] = {"align": align, "compare": compare, "dump": dump, "save": Report.save}


def blocks(document: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(document.read_text(encoding="utf-8")) if kind == language]


def commands(document: Path) -> list[list[str]]:
    """Every line of the shell blocks, split into words, without comments."""
    lines = "\n".join(blocks(document, "sh")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def started(document: Path, *start: str) -> list[list[str]]:
    """The words after ``start`` of every command that begins so."""
    return [words[len(start) :] for words in commands(document) if tuple(words[: len(start)]) == start]


def code(document: Path) -> list[str]:
    """The Python blocks without comments and layout."""
    return [ast.unparse(ast.parse(block)) for block in blocks(document, "python")]


@lru_cache(maxsize=32)
def help_of(*words: str) -> tuple[int, str]:
    """Exit code and output of the command with ``--help`` behind it; the words before are parsed on the way."""
    command = [sys.executable, "-m", *words, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return result.returncode, result.stdout + result.stderr


def option_is_known(option: str, text: str) -> bool:
    """Whether the help text has it; pytest writes ``--junit-xml`` for ``--junitxml``."""
    return option.replace("-", "") in re.sub(r"-", "", text)


def test_make_targets_and_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in started(ENGLISH, "make"):
        for word in words:
            name, is_variable, _ = word.partition("=")
            pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
            assert re.search(pattern, makefile, re.MULTILINE), f"make {shlex.join(words)}: no {name} in the Makefile"


def test_commands_of_modules_parse() -> None:
    found = started(ENGLISH, "python", "-m")
    assert found
    for words in found:
        status, text = help_of(*words)
        assert status == 0, f"python -m {shlex.join(words)}: {text}"
        unknown = [word for word in words if word.startswith("--") and not option_is_known(word, text)]
        assert not unknown, f"python -m {shlex.join(words)}: unknown options {unknown}"


def test_pytest_selections_name_a_suite() -> None:
    """Or tests: gradients have no file of their own."""
    files = list((ROOT / "alignment_tests").rglob("test_*.py"))
    suites = {path.stem for path in files}
    suites |= {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    for words in [*started(ENGLISH, "python", "-m", "pytest"), *started(ENGLISH, "pytest")]:
        for word in words[words.index("-k") + 1].split(" or ") if "-k" in words else []:
            assert any(word in suite for suite in suites), f"-k {word} selects nothing"


def test_example_runs(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(code(ENGLISH)[0], encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,  # some seconds; minutes where Jittor's kernels are yet to compile
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "reports" / "resnet18" / "report.html").is_file()


def test_snippets_pass_arguments_that_exist() -> None:
    calls = [node for block in code(ENGLISH) for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in FUNCTIONS:
            unknown = {keyword.arg for keyword in call.keywords} - set(inspect.signature(FUNCTIONS[name]).parameters)
            assert not unknown, f"{name} has no {unknown}"


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=lambda document: document.name)
def test_table_of_sizes_is_that_of_the_suites(document: Path) -> None:
    from alignment_tests.cases import FULL, SMALL

    for size in "nsml":
        images = sorted({case.image for case in [*SMALL, *FULL] if case.size == size})
        row = re.search(rf"^\| Gold-YOLO-{size.upper()} \|.*$", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert row is not None
        assert re.findall(r"\d+x\d+", row[0]) == [f"{rows}x{columns}" for rows, columns in images]


def test_both_languages_have_the_same_sections() -> None:
    levels = [
        re.findall(r"^#+(?= )", FENCE.sub("", d.read_text(encoding="utf-8")), re.MULTILINE) for d in (ENGLISH, CHINESE)
    ]
    assert levels[0] == levels[1]


def test_both_languages_show_the_same_commands_and_code() -> None:
    assert commands(ENGLISH) == commands(CHINESE)
    assert code(ENGLISH) == code(CHINESE)
    assert blocks(ENGLISH, "text") == blocks(CHINESE, "text")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text(encoding="utf-8")))
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_method_states_the_constants_of_the_budget() -> None:
    budget, text = Budget(), (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert f"k = {budget.k:g}, c = {budget.c:g}" in text
    assert f"<= {budget.float64_bar:g} * scale".replace("e-0", "e-") in text
