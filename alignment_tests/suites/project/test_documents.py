"""What the documents say can be typed: commands exist, the example runs, links lead somewhere, both languages agree."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_tests.harness import Budget, Report, align, compare, dump

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
README, README_ZH = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAIRS = {  # English -> Chinese
    README: README_ZH,
    **{
        DOCS / f"{name}.md": DOCS / f"{name}.zh-CN.md"
        for name in ("align_your_model", "reproduce_a_training", "read_a_report")
    },
}
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
ENGLISH = [document for document in DOCUMENTS if document not in PAIRS.values()]
LONGEST_README = 180  # lines: it leads a reader on, and docs/ holds the rest
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


# Runs each command of a JSON list as ``python -m`` does, all in one process: most of a command's time is its imports.
# pytest wants a process of its own, in which nothing is imported yet that it would rewrite.
HELP = """
import contextlib, io, json, os, runpy, subprocess, sys
found = []
for words in json.load(sys.stdin):
    if words[0] == "pytest":
        done = subprocess.run([sys.executable, "-m", *words, "--help"], capture_output=True, text=True)
        found.append([done.returncode, done.stdout + done.stderr])
        continue
    sys.argv, output, status = [words[0], *words[1:], "--help"], io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
    found.append([status, output.getvalue()])
json.dump(found, sys.__stdout__)
"""


def helps_of(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and output of each command with ``--help`` behind it; the words before are parsed on the way."""
    result = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=ROOT,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return [(status, text) for status, text in json.loads(result.stdout)]


def option_is_known(option: str, text: str) -> bool:
    """Whether the help text has it; pytest writes ``--junit-xml`` for ``--junitxml``."""
    return option.replace("-", "") in re.sub(r"-", "", text)


@pytest.mark.parametrize("document", ENGLISH, ids=lambda document: document.name)
def test_make_targets_and_variables_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in started(document, "make"):
        for word in words:
            name, is_variable, _ = word.partition("=")
            pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
            assert re.search(pattern, makefile, re.MULTILINE), f"make {shlex.join(words)}: no {name} in the Makefile"


def test_commands_of_modules_parse() -> None:
    found = {tuple(words): document for document in ENGLISH for words in started(document, "python", "-m")}
    assert len(found) > 30
    for (words, document), (status, text) in zip(found.items(), helps_of([list(w) for w in found]), strict=True):
        command = f"{document.name}: python -m {shlex.join(words)}"
        assert status == 0, f"{command}: {text}"
        unknown = [word for word in words if word.startswith("--") and not option_is_known(word, text)]
        assert not unknown, f"{command}: unknown options {unknown}"


@pytest.mark.parametrize("document", ENGLISH, ids=lambda document: document.name)
def test_other_commands_are_known(document: Path) -> None:
    """What is neither of these two is a step of the shell."""
    starts = {words[0] for words in commands(document)} - {"make", "python"}
    assert starts <= {".", "cd", "git", "pip", "pre-commit"}


def test_pytest_selections_name_a_suite() -> None:
    """Or tests: gradients have no file of their own."""
    files = list((ROOT / "alignment_tests").rglob("test_*.py"))
    suites = {path.stem for path in files}
    suites |= {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    for words in [words for document in ENGLISH for words in started(document, "python", "-m", "pytest")]:
        for word in words[words.index("-k") + 1].split(" or ") if "-k" in words else []:
            assert any(word in suite for suite in suites), f"-k {word} selects nothing"


def test_example_runs(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(code(README)[0], encoding="utf-8")
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


@pytest.mark.parametrize("document", ENGLISH, ids=lambda document: document.name)
def test_snippets_pass_arguments_that_exist(document: Path) -> None:
    calls = [node for block in code(document) for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in FUNCTIONS:
            unknown = {keyword.arg for keyword in call.keywords} - set(inspect.signature(FUNCTIONS[name]).parameters)
            assert not unknown, f"{name} has no {unknown}"


@pytest.mark.parametrize("document", [README, README_ZH], ids=lambda document: document.name)
def test_table_of_sizes_is_that_of_the_suites(document: Path) -> None:
    from alignment_tests.cases.models import FULL, SMALL

    for size in "nsml":
        images = sorted({case.image for case in [*SMALL, *FULL] if case.size == size})
        row = re.search(rf"^\| Gold-YOLO-{size.upper()} \|.*$", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert row is not None
        assert re.findall(r"\d+x\d+", row[0]) == [f"{rows}x{columns}" for rows, columns in images]


@pytest.mark.parametrize("english", PAIRS, ids=lambda document: document.name)
def test_both_languages_have_the_same_sections(english: Path) -> None:
    levels = [
        re.findall(r"^#+(?= )", FENCE.sub("", d.read_text(encoding="utf-8")), re.MULTILINE)
        for d in (english, PAIRS[english])
    ]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("english", PAIRS, ids=lambda document: document.name)
def test_both_languages_show_the_same_commands_and_code(english: Path) -> None:
    chinese = PAIRS[english]
    assert commands(english) == commands(chinese)
    assert code(english) == code(chinese)
    assert blocks(english, "text") == blocks(chinese, "text")


def test_the_readme_is_short_and_shows_a_report() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_README
    assert re.search(r"^!\[[^\]]+\]\(docs/images/\S+\)$", text, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text(encoding="utf-8")))
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_method_states_the_constants_of_the_budget() -> None:
    budget, text = Budget(), (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert f"k = {budget.k:g}, c = {budget.c:g}" in text
    assert f"<= {budget.float64_bar:g} * scale".replace("e-0", "e-") in text
