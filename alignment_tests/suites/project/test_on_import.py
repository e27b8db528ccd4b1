"""Whoever imports this project gets the prepared Jittor, without asking for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TELL = """
import json, jittor, sys
assert sys.modules["jittor"] is jittor
print(json.dumps([jittor.compiler.cache_path, jittor.compiler.cc_flags, jittor.compiler.kernel_opt_flags,
                  jittor.flags.log_silent, jittor.has_cuda, sys.getrecursionlimit()]))
"""


def child(*lines: str) -> str:
    """What a program prints."""
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def loaded() -> str:
    """Of a program that calls ``load``."""
    return child("from jt_impl.runtime import load", "load()", TELL)


WAYS = {
    "the harness": "import alignment_tests.harness",
    "a part of Jittor first": "import jt_impl\nfrom jittor.nn import Linear",
    "its helper first": "import jt_impl\nimport jittor_utils",
    "loaded later": "import jt_impl\nimport jittor\nfrom jt_impl.runtime import load\nassert load() is jittor",
}


@pytest.mark.parametrize("lines", WAYS.values(), ids=WAYS)
def test_a_later_import_is_the_prepared_one(lines: str, loaded: str) -> None:
    assert json.loads(child(lines, TELL)) == json.loads(loaded)


def test_nothing_is_loaded_before_somebody_asks() -> None:
    lines = (
        "import sys, importlib.util, alignment_tests.harness.plugin, jt_impl",
        "spec = importlib.util.find_spec('jittor')",
        "print('jittor' in sys.modules, 'jittor_utils' in sys.modules, spec.origin.endswith('jittor/__init__.py'))",
    )
    assert child(*lines) == "False False True"


def test_random_numbers_stay_where_they_are() -> None:
    lines = "import random, jt_impl", "random.seed(3)", "first = random.random()", "random.seed(3)", "import jittor"
    assert child(*lines, "print(random.random() == first)") == "True"


def test_what_is_missing_is_told_as_load_tells_it() -> None:
    lines = "import os, jt_impl", "os.environ['cc_path'] = 'no-such-compiler'", "try:", "    import jittor"
    found = child(*lines, "except RuntimeError as error:", "    print(type(error).__name__, str(error)[:80])")
    assert found.startswith("RuntimeSetupError")


def test_a_machine_without_jittor_says_so() -> None:
    hidden = "import sys, jt_impl", "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]", "try:"
    assert child(*hidden, "    import jittor", "except ImportError as error:", "    print(error.name)") == "jittor"
