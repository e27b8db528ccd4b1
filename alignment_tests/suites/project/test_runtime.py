"""Jittor's preparation: the user's settings win, nothing of the process or of other programs is disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jt_impl import progress, runtime

HEADERS = ("dnnl.hpp", "mkldnn.h", "oneapi/dnnl/dnnl.hpp")
LIBRARIES = ("libdnnl.so", "libdnnl.so.2", "libmkldnn.so")


# Settings and environment


@pytest.mark.parametrize("name", ["cc_flags", "cache_name", "nvcc_path", "python_config_path"])
def test_user_variable_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "of the user")
    with runtime.environment(runtime.settings()):
        assert os.environ[name] == "of the user"
    assert os.environ[name] == "of the user"


def test_environment_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("cc_path", raising=False)
    before = dict(os.environ)
    with runtime.environment({"cache_name": "a", "cc_flags": "b"}):
        os.environ.update({"cc_path": "/usr/bin/g++"})  # as Jittor does while it is imported
    assert dict(os.environ) == before


def test_forced_variable_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nvcc_path", "of the user")
    with runtime.environment({"nvcc_path": "a"}, {"nvcc_path": "b"}):
        assert runtime.variable("nvcc_path", "") == "b"
    assert runtime.variable("nvcc_path", "") == "of the user"


def test_environment_is_given_back_after_an_error() -> None:
    before = dict(os.environ)
    with pytest.raises(KeyError), runtime.environment({"cache_name": "a"}):
        raise KeyError
    assert dict(os.environ) == before


def test_other_flags_get_another_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = runtime.default_cache_name()
    monkeypatch.setenv("kernel_flags", " -O3 ")
    assert runtime.default_cache_name() != ours


def test_python_config_belongs_to_this_python() -> None:
    script = runtime.python_config()
    assert script is not None
    assert script.name == f"python3.{sys.version_info.minor}-config"


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jittor", raising=False)
    monkeypatch.setenv("cc_path", "no-such-compiler")
    with pytest.raises(runtime.RuntimeSetupError, match="apt-get install g\\+\\+"):
        runtime.load()


def test_clang_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jittor", raising=False)
    monkeypatch.setenv("cc_path", "clang++")
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(runtime.RuntimeSetupError, match="does not compile with clang"):
        runtime.load()


# Jittor's home


def test_home_follows_jittors_own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache" / "jittor"
    assert runtime.jittor_home() == cache
    assert not cache.exists()
    cache.mkdir(parents=True)
    (cache / "config.json").write_text(json.dumps({"JITTOR_HOME": "/elsewhere"}))
    assert runtime.jittor_home() == Path("/elsewhere/.cache/jittor")


# oneDNN


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment with a small oneDNN package, and an empty Jittor home; the folder that Jittor looks into."""
    package = tmp_path / "environment"
    for name in HEADERS:
        file = package / "include" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (package / "include" / "Python.h").write_text("not ours")
    (package / "lib").mkdir()
    for name in LIBRARIES:
        (package / "lib" / name).write_bytes(b"the same bytes")
    (package / "lib" / "libmkldnn.so.2").symlink_to("libmkldnn.so")
    monkeypatch.setattr(sys, "prefix", str(package))
    monkeypatch.setattr(runtime, "jittor_home", lambda: tmp_path / "home")
    return runtime.onednn_target()


def test_onednn_is_copied_as_regular_files(target: Path) -> None:
    assert runtime.place_onednn() == target
    files = [file for file in target.rglob("*") if not file.is_dir()]
    assert sorted(str(file.relative_to(target)) for file in files) == sorted(
        [*(f"include/{name}" for name in HEADERS), *(f"lib/{name}" for name in LIBRARIES), "lib/libmkldnn.so.2"]
    )
    assert not any(file.is_symlink() for file in files)


def test_onednn_library_is_stored_once(target: Path) -> None:
    runtime.place_onednn()
    assert len({(target / "lib" / name).stat().st_ino for name in LIBRARIES}) == 1


def test_onednn_copies_where_links_are_impossible(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "hard_link", lambda existing, new: False)
    runtime.place_onednn()
    assert len({(target / "lib" / name).stat().st_ino for name in LIBRARIES}) == len(LIBRARIES)


def test_whole_onednn_is_left_alone(target: Path) -> None:
    runtime.place_onednn()
    (target / "lib" / "libmkldnn.so").write_bytes(b"of the user")
    runtime.place_onednn()
    assert (target / "lib" / "libmkldnn.so").read_bytes() == b"of the user"


def test_broken_onednn_is_replaced(target: Path) -> None:
    (target / "include").mkdir(parents=True)
    (target / "include" / "leftover.h").write_text("of a cut download")
    runtime.place_onednn()
    assert runtime.onednn_is_whole(target)
    assert not (target / "include" / "leftover.h").exists()


def test_cut_copy_leaves_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(source: Any, copy: Any) -> None:
        Path(copy).write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(OSError, match="no space left"):
        runtime.place_onednn()
    assert list(target.parent.iterdir()) == []


def test_another_process_may_be_first(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = runtime.copy_onednn_files

    def copy_while_another_finishes(source: Path, folder: Path) -> None:
        copy(source, folder)
        for name in ("include/dnnl.hpp", "include/oneapi/dnnl/dnnl.hpp", "lib/libmkldnn.so"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text("of the other process")

    monkeypatch.setattr(runtime, "copy_onednn_files", copy_while_another_finishes)
    assert runtime.onednn_is_whole(runtime.place_onednn())


def test_missing_onednn_is_named(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_onednn", lambda: None)
    with pytest.raises(runtime.RuntimeSetupError, match="pip install onednn-cpu-gomp"):
        runtime.place_onednn()


# The process around Jittor


def test_random_state_is_kept() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = (random.random(), np.random.random())
    random.seed(3)
    np.random.seed(3)
    with runtime.random_state_kept():
        random.seed(0)
        np.random.seed(0)
    assert (random.random(), np.random.random()) == expected


def test_interpreter_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = sys.getrecursionlimit()
    with runtime.interpreter_kept():
        sys.setrecursionlimit(limit + 7)
        monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    assert sys.getrecursionlimit() == limit
    assert ssl._create_default_https_context is ssl.create_default_context


def test_loading_jittor_leaves_no_trace_in_the_environment() -> None:
    before = dict(os.environ)
    runtime.load()
    assert dict(os.environ) == before
    assert ssl._create_default_https_context is ssl.create_default_context


def test_jittor_loads_where_warnings_are_errors(tmp_path: Path) -> None:
    # With no byte code at hand Python compiles Jittor's sources anew, and warns of their escape sequences.
    command = [sys.executable, "-W", "error", "-X", f"pycache_prefix={tmp_path}", "-m", "jt_impl.runtime"]
    result = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "is ready" in result.stdout


def test_subnormals_survive_a_kernel() -> None:
    jt = runtime.load()
    (jt.array(np.ones(64, np.float32)) * 3).sync()
    assert runtime.subnormals_survive()


def test_nan_differs_from_itself_in_a_kernel() -> None:
    jt = runtime.load()
    values = jt.array(np.full(64, np.nan, np.float32))
    assert (values != values).numpy().all()
    assert not (values == values).numpy().any()


def test_build_is_described() -> None:
    facts = runtime.describe()
    assert facts["framework"] == "jittor"
    assert "-Ofast" not in facts["kernel_flags"]


# Progress


def start_watcher(home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(progress.__file__)), str(home), str(os.getpid()), "ours"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def make_cache(home: Path) -> Path:
    cache = home.joinpath("jt1", "g++1", "py3", "system", "processor", "install", "ours")
    for folder in ("obj_files", "jit"):
        (cache / folder).mkdir(parents=True)
    (cache / "jittor_core.so").touch()
    return cache


def test_watcher_says_what_is_compiled(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    (cache / "obj_files" / "old.o").touch()
    os.utime(cache / "obj_files" / "old.o", (0, 0))
    with start_watcher(tmp_path) as watcher:
        assert watcher.stdin is not None
        assert watcher.stderr is not None
        for number in range(3):
            (cache / "obj_files" / f"{number}.o").touch()
        os.utime(cache / "obj_files" / "0.o", (2**31, 2**31))
        first = watcher.stderr.readline()
        (cache / "jit" / "kernel.so").touch()
        watcher.stdin.close()
        rest = watcher.stderr.read()
        assert watcher.wait(timeout=10) == 0
    assert "core" in first
    assert f"of about {progress.CORE_OBJECTS} files" in first
    assert "1 new kernels" in rest


def test_watcher_announces_the_core(tmp_path: Path) -> None:
    with start_watcher(tmp_path) as watcher:
        assert watcher.stdin is not None
        assert watcher.stderr is not None
        assert "compiles its core" in watcher.stderr.readline()
        watcher.stdin.close()
        assert watcher.wait(timeout=10) == 0


def test_watcher_is_silent_when_nothing_is_compiled(tmp_path: Path) -> None:
    make_cache(tmp_path)
    with start_watcher(tmp_path) as watcher:
        _, text = watcher.communicate("", timeout=10)
    assert (watcher.returncode, text) == (0, "")


def test_progress_ends_while_another_process_holds_its_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    # Jittor forks its compiler workers inside the body, and they inherit the watcher's pipe.
    start: Any = subprocess.Popen
    held: list[int] = []

    def start_and_hold(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        held.append(os.dup(process.stdin.fileno()))
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_hold)
    begin = time.perf_counter()
    with runtime.progress():
        pass
    assert time.perf_counter() - begin < 5
    os.close(held[0])


def test_progress_can_be_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_PROGRESS", "0")
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: started.append(words))
    with runtime.progress():
        pass
    assert started == []
