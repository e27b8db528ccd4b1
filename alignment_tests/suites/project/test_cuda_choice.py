"""Whether CUDA is used: only where it is asked for and whole; the CPU build stays what it was. And its stubs."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from alignment_tests.cases.cuda_toolkits import system_layout, touch
from jt_impl import runtime
from jt_impl.cuda import choice, compile_check, home, phases, stub_libraries, toolkit
from jt_impl.kernels import precompiled

# Choosing


def no_look() -> bool:
    raise AssertionError("the CPU path looked for a driver")


@pytest.mark.parametrize(
    "variables", [{}, {"nvcc_path": ""}, {"ALIGN_CUDA": ""}, {"ALIGN_CUDA": "0", "nvcc_path": "x"}]
)
def test_cpu_unless_asked(variables: dict[str, str]) -> None:
    chosen = choice.choose(variables, no_look)
    assert (chosen, chosen.identity(variables)) == (choice.Choice(), "")


def test_cpu_build_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvcc_path", "ALIGN_CUDA", "cache_name", "cc_flags", "kernel_flags"):
        monkeypatch.delenv(name, raising=False)
    identity = f"{runtime.package_folder('jittor')}|{runtime.CC_FLAGS}|{runtime.KERNEL_FLAGS}|{precompiled.text()}"
    assert runtime.cache_name() == "align-" + hashlib.sha256(identity.encode()).hexdigest()[:10]
    assert runtime.settings()["nvcc_path"] == ""
    assert runtime.cuda_settings(runtime.cuda_choice()) == {}


def test_all_of_it_is_chosen(tmp_path: Path) -> None:
    variables = {**system_layout(tmp_path), "ALIGN_CUDA": "1"}
    chosen = choice.choose(variables, lambda: True, lambda: (13, 0))
    assert chosen.toolkit is not None
    assert chosen.identity(variables) != chosen.identity({**variables, "NVCC_APPEND_FLAGS": "-lineinfo"})


def test_old_driver_is_named(tmp_path: Path) -> None:
    variables = {**system_layout(tmp_path), "ALIGN_CUDA": "1"}
    with pytest.raises(toolkit.MissingPartError, match=r"the NVIDIA driver is for CUDA 12.8, the toolkit is 13.0"):
        choice.choose(variables, lambda: True, lambda: (12, 8))


def test_library_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "jittor_home", lambda: tmp_path / "cache")
    chosen = choice.Choice(toolkit.find(system_layout(tmp_path / "cuda"), []))
    with pytest.raises(runtime.RuntimeSetupError, match=r"could not be prepared: .*libcudart.so.13"):
        runtime.cuda_settings(chosen)  # its libraries are text files


def test_wish_without_a_device_falls_back() -> None:
    chosen = choice.choose({"nvcc_path": "/usr/bin/nvcc"}, lambda: False)
    assert chosen.toolkit is None
    assert "no NVIDIA driver" in chosen.reason


@pytest.mark.parametrize(("device", "words"), [(False, "no NVIDIA driver"), (True, "`nvcc` was not found")])
def test_demand_fails_loudly(device: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CUDA", "1")
    monkeypatch.setenv("nvcc_path", str(tmp_path / "nvcc"))
    monkeypatch.setattr(runtime, "has_nvidia_driver", lambda: device)
    with pytest.raises(runtime.RuntimeSetupError, match=f"ALIGN_CUDA=1 asks for a GPU, but .*{words}"):
        runtime.cuda_choice()


def test_strange_demand_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be 0 or 1\. Received: 'yes'"):
        choice.choose({"ALIGN_CUDA": "yes"}, no_look)


def test_cuda_gets_the_prepared_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("cache_name", raising=False)
    monkeypatch.setattr(runtime, "jittor_home", lambda: tmp_path / "cache")
    monkeypatch.setattr(home, "preload", lambda made: None)
    monkeypatch.setenv("nvcc_path", "of the user")
    forced = runtime.cuda_settings(choice.Choice(toolkit.find(system_layout(tmp_path / "cuda"), [])))
    assert Path(forced["nvcc_path"]).parent.parent.parent == tmp_path / "cache" / "align_cuda"
    assert forced["cache_name"].startswith("align-cuda-")
    with runtime.environment({}, forced):
        assert runtime.variable("nvcc_path", "") == forced["nvcc_path"]
    assert runtime.variable("nvcc_path", "") == "of the user"
    monkeypatch.setenv("cache_name", "mine")
    assert "cache_name" not in runtime.cuda_settings(choice.Choice(toolkit.find(system_layout(tmp_path / "cuda"), [])))


# The stub libraries


def test_stand_in_answers(tmp_path: Path) -> None:
    text = stub_libraries.source(["cudaMalloc", "cudnnCreate", "cublasSgemm_v2", "cudaGetErrorString"], 13000)
    assert "int cublasSgemm_v2() { return 0; }" in text
    assert "int cudnnCreate(void **handle)" in text
    assert 'const char *cudaGetErrorString(int e) { return "stand-in"; }' in text


def test_stand_in_has_the_versions_of_the_real_library(tmp_path: Path) -> None:
    """What nvcc links against the real one asks for them; without any the loader aborts."""
    found = toolkit.find(system_layout(tmp_path / "cuda"), [])
    stub_libraries.build(tmp_path / "libcufft.so.12", ["cufftCreate"], found)
    command = ["nm", "-D", "--with-symbol-versions", str(tmp_path / "libcufft.so.12")]
    assert "cufftCreate@@libcufft.so.12" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_child_leaves_the_users_jittor_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JITTOR_HOME", "/of/the/user")
    variables = compile_check.child_environment(tmp_path / "stub_libraries", tmp_path / "home")
    assert "JITTOR_HOME" not in variables  # Jittor would write it into the user's configuration
    assert variables["HOME"] == str(tmp_path / "home")


def test_kernels_are_counted(tmp_path: Path) -> None:
    for name, text in {"a": "#define JIT_cuda 1", "b": "#define JIT_cuda 1", "c": "#define JIT_cpu 1"}.items():
        touch(tmp_path / "x" / "jit" / f"{name}.cc", text)
    touch(tmp_path / "x" / "jit" / "a.so")
    assert compile_check.find_kernels(tmp_path) == compile_check.Kernels(("a",), ("b",))


# Phases


def test_failed_phase_does_not_keep_the_next_from_running() -> None:
    def fails() -> None:
        raise ValueError("why")

    results = [outcome.result for outcome in phases.run({"bad": fails, "good": lambda: None})]
    assert results == ["ValueError: why", "done"]


def test_nothing_runs_without_jittor() -> None:
    def fails() -> None:
        raise RuntimeError("no CUDA")

    assert [outcome.phase for outcome in phases.run({phases.LOAD: fails, "next": fails})] == [phases.LOAD]


def test_a_step_of_stand_ins_goes_on_to_its_update_and_a_true_one_does_not() -> None:
    from jt_impl import trainer
    from jt_impl.runtime import jittor as jt

    lost, checks = {"weight": jt.array([float("nan")])}, vars(trainer)
    with phases.taken_for_finite():
        checks["check_finite"]({"total": float("nan")}, 0)
        checks["check_outputs"]([False], 0)
        assert trainer.Trainer._all_finite(lost)
    assert not trainer.Trainer._all_finite(lost)
    with pytest.raises(FloatingPointError, match="`total` is nan"):
        checks["check_finite"]({"total": float("nan")}, 0)


def test_outcome_survives_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = phases.Outcome("a phase", "done", 1.5, 7)
    assert phases.report([outcome, phases.Outcome("b", "Error: x", 0.1, 0)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert phases.outcome_of(lines[0]) == outcome
    assert phases.outcome_of("Compiling Operators(1/2)") is None
