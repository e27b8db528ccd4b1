"""The doctor: every broken environment gets a finding and the command that mends it, without importing Jittor."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from jt_impl import runtime
from jt_impl.doctor import __main__ as doctor
from jt_impl.doctor import checks as doctor_checks
from jt_impl.doctor import cuda as doctor_info
from jt_impl.doctor import deep
from jt_impl.doctor.checks import Check
from jt_impl.doctor.cuda import Cuda

ROOT = Path(__file__).resolve().parents[3]
GPU = Cuda(
    driver=(13, 0), devices=("NVIDIA H100",), nvcc=(13, 0), nvcc_path="/usr/bin/nvcc", cudnn="9.26.0", missing=""
)
NO_NVCC = Cuda(driver=(13, 0), devices=("NVIDIA H100",), cudnn="libcudnn.so.9", missing="`nvcc` was not found")


# The checks, one broken thing at a time


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 9, 18), "fail"), ((3, 10, 0), "ok"), ((3, 11, 7), "ok"), ((3, 12, 1), "info"), ((3, 13, 0), "fail")],
)
def test_python(version: tuple[int, ...], status: str) -> None:
    assert doctor_checks.check_python(version).status == status


@pytest.mark.parametrize(
    ("system", "machine", "status"),
    [("Linux", "x86_64", "ok"), ("Linux", "aarch64", "warn"), ("Darwin", "arm64", "fail")],
)
def test_platform(system: str, machine: str, status: str) -> None:
    assert doctor_checks.check_platform(system, machine).status == status


@pytest.mark.parametrize(
    ("package", "installed", "pinned", "status"),
    [
        ("torch", "2.15.0", "2.15.0", "ok"),
        ("torch", "2.15.0+cu130", "2.15.0", "ok"),
        ("torch", "2.14.0", "2.15.0", "warn"),
        ("torch", None, "2.15.0", "fail"),
        ("numpy", "1.26.4", "1.26.4", "ok"),
        ("numpy", "1.26.3", "1.26.4", "warn"),
        ("numpy", "2.3.5", "1.26.4", "fail"),
    ],
)
def test_package(package: str, installed: str | None, pinned: str, status: str) -> None:
    check = doctor_checks.check_package(package, installed, pinned)
    assert check.status == status
    assert check.remedy == ("" if status == "ok" else f"pip install '{package}=={pinned}'")


def test_pins_cover_the_packages() -> None:
    assert set(doctor_checks.PACKAGES) <= set(doctor_checks.pins())


def test_compiler_is_missing() -> None:
    check = doctor_checks.check_compiler("no-such-g++")
    assert check == Check("C++ compiler", "fail", "`no-such-g++` not found", "unset cc_path; apt-get install -y g++")


@pytest.mark.parametrize("command", ["clang++", "/usr/bin/clang++-14"])
def test_clang_is_refused(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert doctor_checks.check_compiler(command).remedy == "unset cc_path"


def test_compiler_that_jittor_does_not_know() -> None:
    assert doctor_checks.check_compiler("sh").status == "fail"


def test_python_headers_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("python_config_path", raising=False)
    monkeypatch.setattr(runtime, "python_config", lambda: None)
    check = doctor_checks.check_headers()
    assert (check.status, check.remedy.split("  ")[0]) == (
        "fail",
        f"apt-get install -y python3.{sys.version_info.minor}-dev",
    )


def test_python_headers_without_the_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python3-config"
    script.write_text(f"#!/bin/sh\necho -I{tmp_path}\n")
    script.chmod(0o755)
    monkeypatch.setenv("python_config_path", str(script))
    assert doctor_checks.check_headers().detail == f"no Python.h in {tmp_path}"


def test_openmp_is_missing(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'cannot find -lgomp' >&2\nexit 1\n")
    compiler.chmod(0o755)
    check = doctor_checks.check_openmp(str(compiler))
    assert (check.status, check.remedy) == ("fail", "apt-get install -y g++ libgomp1")


def test_onednn_is_missing(tmp_path: Path) -> None:
    check = doctor_checks.check_onednn(tmp_path, None)
    assert (check.status, check.remedy) == ("fail", f"pip install {runtime.ONEDNN_PACKAGES}")


def test_onednn_is_in_the_environment(tmp_path: Path) -> None:
    assert doctor_checks.check_onednn(tmp_path, (tmp_path, tmp_path)).status == "ok"


def test_onednn_is_switched_off(tmp_path: Path) -> None:
    assert doctor_checks.check_onednn(tmp_path, None, use_mkl="0").status == "warn"


def test_cache_folder_is_not_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    check = doctor_checks.check_cache_folder(tmp_path / "not" / "there")
    assert (check.status, check.remedy) == ("fail", f"sudo chown -R $USER {tmp_path}")


@pytest.mark.parametrize(("free_gib", "status"), [(0.1, "fail"), (1, "warn")])
def test_disk_is_full(free_gib: float, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": free_gib * 1024**3})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    assert doctor_checks.check_cache_folder(tmp_path).status == status


def test_damaged_configuration_of_jittor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / ".cache" / "jittor" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [(check.status, check.remedy) for check in doctor.cache_checks()] == [("fail", f"rm {file}")]


def test_redirected_home_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    check = doctor_checks.check_cache_folder(tmp_path)
    assert (check.status, "config.json sends Jittor there" in check.detail) == ("info", True)


def test_core_is_found(tmp_path: Path) -> None:
    version = f"py{platform.python_version()}"
    cache = tmp_path.joinpath("jt1.3.11", "g++12.2.0", version, "system", "processor", "install", "ours")
    assert doctor_checks.check_core(tmp_path, "ours", "g++12.2.0").remedy == "python -m jt_impl.runtime"
    cache.mkdir(parents=True)
    (cache / "jittor_core.cpython-311-x86_64-linux-gnu.so").touch()
    assert doctor_checks.check_core(tmp_path, "ours", "g++12.2.0").status == "ok"
    assert doctor_checks.check_core(tmp_path, "ours", "g++13.1.0").status == "info"


def test_core_for_cuda_is_found(tmp_path: Path) -> None:
    version = f"py{platform.python_version()}"
    cache = tmp_path.joinpath("jt1", "g++12.2.0", version, "system", "processor", "install", "ours", "cu13.0.88_sm_90")
    cache.mkdir(parents=True)
    (cache / "jittor_core.so").touch()
    assert doctor_checks.check_core(tmp_path, "ours", "g++12.2.0").status == "ok"


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), ("max 100000\n", None), ("150000 100000\n", 1.5), ("1024\n", 1024.0)]
)
def test_container_limits(text: str, limit: float | None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    assert doctor_checks.cgroup_limit("file", tmp_path) == limit
    assert doctor_checks.cgroup_limit("absent", tmp_path) is None


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({}, "ok"),
        ({"kernel_flags": " -O3 "}, "ok"),
        ({"cc_flags": " -g "}, "warn"),
        ({"kernel_flags": " -Ofast "}, "warn"),
        ({"kernel_flags": " -O3 -ffast-math "}, "warn"),
    ],
)
def test_build_flags(variables: dict[str, str], status: str) -> None:
    assert doctor_checks.check_flags(variables).status == status


@pytest.mark.parametrize(
    ("variables", "status"),
    [({"PATH": "/bin"}, "ok"), ({"cache_name": "mine"}, "info"), ({"JITTOR_HOME": "/data"}, "warn")],
)
def test_users_variables(variables: dict[str, str], status: str) -> None:
    assert doctor_checks.check_variables(variables).status == status


# CUDA and the network


@pytest.mark.parametrize(
    ("cuda", "wish", "status", "words"),
    [
        (Cuda(), "", "info", "there is no NVIDIA device; this project runs on the CPU"),
        (Cuda(nvcc=(13, 0), missing=""), "nvcc_path", "warn", "there is no NVIDIA device; the CPU is used"),
        (Cuda(nvcc=(13, 0), missing=""), "ALIGN_CUDA", "fail", "there is no NVIDIA device"),
        (NO_NVCC, "", "info", "`nvcc` was not found"),
        (NO_NVCC, "nvcc_path", "warn", "the CPU is used"),
        (NO_NVCC, "ALIGN_CUDA", "fail", "`nvcc` was not found"),
        (GPU, "", "info", "can be prepared"),
        (GPU, "nvcc_path", "warn", "was ever run on a GPU"),
        (GPU, "ALIGN_CUDA", "warn", "was ever run on a GPU"),
    ],
)
def test_cuda_verdict(cuda: Cuda, wish: str, status: str, words: str) -> None:
    check = doctor_info.cuda_verdict(cuda, wish)
    assert (check.status, words in check.detail) == (status, True)
    assert check.remedy == (f"unset {wish}" if wish else "")


@pytest.mark.parametrize(
    ("variables", "wish"),
    [
        ({}, ""),
        ({"nvcc_path": ""}, ""),
        ({"nvcc_path": "/usr/bin/nvcc"}, "nvcc_path"),
        ({"ALIGN_CUDA": "0", "nvcc_path": "/usr/bin/nvcc"}, ""),
        ({"ALIGN_CUDA": "1", "nvcc_path": "/usr/bin/nvcc"}, "ALIGN_CUDA"),
    ],
)
def test_who_asks_for_cuda(variables: dict[str, str], wish: str) -> None:
    assert doctor_info.wish_for_cuda(variables) == wish


def test_doctor_says_what_cuda_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_info, "find_driver", lambda: ((13, 0), ("NVIDIA H100",)))
    cuda = doctor_info.find_cuda({"nvcc_path": "/no/nvcc"})
    rows = {check.name: check for check in doctor_info.cuda_checks(cuda, "ALIGN_CUDA")}
    assert rows["CUDA for Jittor"].detail.startswith("cannot be prepared: the CUDA compiler `nvcc` was not found")
    assert rows["Jittor on a GPU"].status == "fail"


def test_index_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    file = tmp_path / "pip.conf"
    monkeypatch.setattr(doctor_info, "pip_config_files", lambda: [tmp_path / "absent", file])
    assert doctor_info.package_index() == doctor_info.DEFAULT_INDEX
    file.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    assert doctor_info.package_index() == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert doctor_info.package_index() == "https://other.example/simple"


class Refusal(BaseHTTPRequestHandler):
    """An index that answers, if only with 404."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_index_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        Thread(target=server.handle_request).start()
        result = doctor_info.start_index_check(f"http://127.0.0.1:{server.server_port}/simple", timeout=10)()
    assert result.detail == "package index reachable: yes"


def test_index_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_info, "answers", lambda url, timeout: bool(Event().wait(3)))
    begin = time.perf_counter()
    assert doctor_info.start_index_check("http://stuck.example", timeout=0.1)().detail.endswith("no")
    assert time.perf_counter() - begin < 2


# The whole


def test_no_compiler_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.main([]) == 1
    assert "apt-get install -y g++" in capsys.readouterr().out


def test_numpy_2_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = doctor_checks.installed_version
    monkeypatch.setattr(
        doctor_checks, "installed_version", lambda name: "2.3.5" if name == "numpy" else installed(name)
    )
    assert doctor.main([]) == 1
    assert "pip install 'numpy==" in capsys.readouterr().out


def test_plain_table_has_every_finding_and_remedy() -> None:
    checks = [Check("numpy", "fail", "2.3.5", "pip install numpy"), Check("torch", "ok", "2.15.0")]
    text = doctor.plain_table(checks)
    assert [word in text for word in ("2.3.5", "-> pip install numpy", "torch", "1 finding to mend")] == [True] * 4


def test_crash_of_jittor_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    assert [check.status for check in doctor.deep_checks()] == ["fail"]


def test_deep_probes_pass_here() -> None:
    jt = runtime.load()
    checks = [deep.check_convolution(jt), deep.check_nan(jt), deep.check_subnormals()]
    assert [check.status for check in checks] == ["ok"] * 3


def test_convolution_oracle_sums_a_window() -> None:
    image = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    result = deep.convolution_oracle(image, np.ones((1, 1, 3, 3), np.float32))
    assert (result[0, 0, 1, 1], result[0, 0, 0, 0]) == (36, 0 + 1 + 3 + 4)


def test_json_of_a_process() -> None:
    command = [sys.executable, "-m", "jt_impl.doctor", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["usable"]
    assert {"Python", "numpy", "C++ compiler", "oneDNN", "Jittor on a GPU"} <= {row["name"] for row in report["checks"]}


def test_doctor_needs_no_package() -> None:
    code = "import sys, jt_impl.doctor; print([m for m in ('jittor', 'torch', 'numpy', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
