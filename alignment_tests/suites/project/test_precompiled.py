"""The header that Jittor's kernels share: g++ takes it, kernels are the same with it, and nothing hangs on it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jt_impl import runtime
from jt_impl.kernels import precompiled


@pytest.fixture
def module() -> Any:
    return runtime.load()


def header_of(module: Any) -> Path:
    found = re.search(r'-include "([^"]+)"', module.flags.cc_flags)
    assert found is not None
    return Path(found[1])


def fake(module: Any, cache: Path, compiler: str | None = None) -> Any:
    """Of Jittor what ``prepare`` looks at, with a cache of its own."""
    flags = module.flags.cc_flags.replace(f'-include "{header_of(module)}"', "")
    place = SimpleNamespace(
        cache_path=str(cache), jittor_path=module.compiler.jittor_path, cc_path=compiler or module.compiler.cc_path
    )
    return SimpleNamespace(flags=SimpleNamespace(cc_flags=flags), compiler=place)


def kernels(module: Any) -> list[Path]:
    """Sources of a few kernels of the cache, the largest of each kind; those with oneDNN are given further flags."""
    found: dict[str, Path] = {}
    for path in sorted(
        (Path(module.compiler.cache_path) / "jit").glob("*_op.cc"), key=lambda path: path.stat().st_size
    ):
        if "dnnl.hpp" not in path.read_text(encoding="utf-8"):
            found[path.name.removeprefix("__").split("_")[0]] = path
    return list(found.values())


def test_gcc_takes_the_compiled_form(module: Any, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cc"
    source.write_text("#define JIT 1\n#define JIT_cpu 1\n")
    flags = [*precompiled.compiler_flags(module.flags.cc_flags), "-g", "-H", "-S", "-o", str(tmp_path / "kernel.s")]
    done = subprocess.run([module.compiler.cc_path, str(source), *flags], capture_output=True, text=True, check=True)
    read = [line for line in done.stderr.splitlines() if line.startswith(("!", "x", "."))]
    assert read == [f"! {header_of(module)}.gch"]


def test_kernels_are_the_same_with_and_without(module: Any, tmp_path: Path) -> None:
    (module.array([1.0, 2.0]) * 2.0 + 1.0).sum().sync()
    flags = precompiled.compiler_flags(module.flags.cc_flags)
    place, made = flags.index("-include"), tmp_path / "kernel.o"
    for source in kernels(module):
        code = []
        for used in (flags, [*flags[:place], *flags[place + 2 :]]):
            # -g as in Jittor's own commands: without it g++ would not take the compiled form.
            subprocess.run([module.compiler.cc_path, "-c", "-g", "-w", str(source), *used, "-o", str(made)], check=True)
            code.append(subprocess.run(["objdump", "-d", "-r", str(made)], check=True, capture_output=True).stdout)
        assert code[0] == code[1], source


def test_another_header_gets_another_place(module: Any, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "op.h").write_text("// a")
    before = precompiled.identity(source, ["-O2"])
    assert precompiled.identity(source, ["-O3"]) != before
    (source / "op.h").write_text("// a, and more")
    assert precompiled.identity(source, ["-O2"]) != before


def test_it_is_compiled_once(module: Any, tmp_path: Path) -> None:
    first, second = fake(module, tmp_path), fake(module, tmp_path)
    precompiled.prepare(first)
    made = header_of(first).with_suffix(".h.gch").stat().st_mtime_ns
    precompiled.prepare(second)
    assert header_of(second).with_suffix(".h.gch").stat().st_mtime_ns == made
    assert sorted(path.name for path in header_of(first).parent.iterdir()) == ["kernel.h", "kernel.h.gch"]


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails_leaves_the_flags_alone(compiler: str, module: Any, tmp_path: Path) -> None:
    one = fake(module, tmp_path, shutil.which(compiler) or compiler)
    before = one.flags.cc_flags
    precompiled.prepare(one)
    assert one.flags.cc_flags == before
    assert not list(tmp_path.rglob("*.gch")) + list(tmp_path.rglob("*.tmp"))


def test_it_can_be_switched_off(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, one = runtime.default_cache_name(), fake(module, tmp_path)
    before = one.flags.cc_flags
    monkeypatch.setenv("ALIGN_PRECOMPILED", "0")
    precompiled.prepare(one)
    assert one.flags.cc_flags == before
    assert not list(tmp_path.iterdir())
    assert runtime.default_cache_name() != name
