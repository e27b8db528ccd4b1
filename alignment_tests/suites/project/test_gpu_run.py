"""``make gpu`` without a GPU: its plan, its folder of wheels, and that no stage takes the others along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from alignment_tests.gpu import __main__ as gpu
from alignment_tests.gpu import plan, stages, wheels
from alignment_tests.gpu.stages import Result, Runner, Stage

PLACES = plan.Places(Path("wheels"), Path("site"), Path("out"), Path("home"))
PYTHON, ROOT = (3, 12), Path(__file__).resolve().parents[3]


def code(source: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", source)


def run(folder: Path, *given: Stage, seconds: float = 60) -> tuple[int, dict[str, Result]]:
    runner = Runner(folder, seconds, os.environ, {"gpu": "none"})
    return runner.run(given), {result.stage: result for result in runner.results}


# Stages


def test_all_that_passes_is_zero(tmp_path: Path) -> None:
    exit_code, found = run(tmp_path, Stage("a", code("print('seen')")), Stage("b", omitted="needs a GPU"))
    assert (exit_code, found["a"].status, found["b"].status) == (0, stages.PASSED, stages.SKIPPED)
    assert (tmp_path / "a.log").read_text() == "seen\n"


@pytest.mark.parametrize(
    ("command", "limit", "status"),
    [
        (code("raise SystemExit(3)"), 60, stages.FAILED),
        (("/no/such/command",), 60, stages.FAILED),
        (code("import time; time.sleep(60)"), 0.5, stages.TIMED_OUT),
    ],
)
def test_bad_stage_is_reported_and_the_next_one_runs(
    command: tuple[str, ...], limit: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(stages, "LEAST_SECONDS", 0.1)
    exit_code, found = run(tmp_path, Stage("bad", command, limit), Stage("good", code("")))
    assert (exit_code, found["bad"].status, found["good"].status) == (1, status, stages.PASSED)


def test_all_that_a_stage_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "GRACE_SECONDS", 0.3)
    child = "import os, time; os.fork(); open(f'{os.getpid()}', 'w').close(); time.sleep(60)"
    run(tmp_path, Stage("slow", code(f"import os; os.chdir({str(tmp_path)!r}); {child}"), 3))
    started = [int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()]
    assert len(started) == 2
    deadline = time.monotonic() + 10
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in started if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_deadline_leaves_time_to_later_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LEAST_SECONDS", 0.1)
    given = [Stage("first", code("import time; time.sleep(60)"), 60), Stage("kept", code(""), 60, kept=8)]
    _, found = run(tmp_path, *given, seconds=10)
    assert (found["first"].status, found["kept"].status) == (stages.TIMED_OUT, stages.PASSED)
    assert found["first"].seconds < 8


def test_what_has_no_time_left_is_reported(tmp_path: Path) -> None:
    _, found = run(tmp_path, Stage("late", code("")), seconds=1)
    assert (found["late"].status, found["late"].detail) == (stages.NOT_RUN, "no time was left")


def test_stage_without_what_it_needs_is_not_run(tmp_path: Path) -> None:
    _, found = run(tmp_path, Stage("a", code("raise SystemExit(1)")), Stage("b", code(""), needs=("a",)))
    assert (found["b"].status, found["b"].detail) == (stages.NOT_RUN, "needs: a")


# A process of its own gets the signals, and kills: Jittor, once loaded, ends a process for either.
ALONE = """
import json, os, sys, threading
from pathlib import Path
from alignment_tests.gpu import stages
stages.GRACE_SECONDS = 0.3
given = [stages.Stage(name, tuple(command), seconds) for name, command, seconds in json.loads(sys.argv[2])]
for number in map(int, sys.argv[3:]):
    threading.Timer(1, os.kill, (os.getpid(), number)).start()
stages.LEAST_SECONDS = 0.1
sys.exit(stages.Runner(Path(sys.argv[1]), 60, os.environ, {}).run(given))
"""
SLEEP = code("import time; time.sleep(60)")


def statuses_alone(folder: Path, command: tuple[str, ...], seconds: float, *numbers: int) -> list[tuple[str, str]]:
    """Status and detail of a stage with that command, and of one behind it, as they stand on disk."""
    rows = json.dumps([("first", command, seconds), ("next", code(""), 60)])
    words = [sys.executable, "-c", ALONE, str(folder), rows, *map(str, numbers)]
    subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60, check=False)
    saved = json.loads((folder / "summary.json").read_text())
    return [(row["status"], row["detail"]) for row in saved["stages"]]


def test_stage_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = ("sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60")
    assert statuses_alone(tmp_path, deaf, 0.5) == [(stages.TIMED_OUT, ""), (stages.PASSED, "")]


def test_interrupt_ends_one_stage(tmp_path: Path) -> None:
    assert statuses_alone(tmp_path, SLEEP, 60, signal.SIGINT) == [(stages.INTERRUPTED, ""), (stages.PASSED, "")]


def test_a_run_that_is_told_to_end_writes_what_it_has(tmp_path: Path) -> None:
    found = statuses_alone(tmp_path, SLEEP, 60, signal.SIGTERM)
    assert found == [(stages.INTERRUPTED, ""), (stages.NOT_RUN, "the run was told to end")]


def test_figures_of_a_cut_stage_are_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LEAST_SECONDS", 0.1)
    (tmp_path / "convolution.json").write_text(
        json.dumps({"jittor_ms": 2, "torch_ms": 1, "candidate_error": 1e-6, "allowed": 1e-5})
    )
    slow = Stage("c", SLEEP, 0.5, headline=plan.convolution_line)
    _, found = run(tmp_path, slow)
    text = stages.table(list(found.values()), 2.0, tmp_path)
    assert "c  out of time" in text
    assert "Jittor 2 ms, PyTorch 1 ms, error 1e-06 of 1e-05 allowed" in text


# The plan


def test_dry_run_names_what_it_leaves_out() -> None:
    wet, dry = plan.on_a_gpu(PLACES), plan.dry(PLACES)
    left_out = [stage.name for stage in dry if stage.omitted]
    assert {stage.name for stage in wet} - {stage.name for stage in dry if stage.command} == {"core", *left_out}
    assert len(left_out) == 7


def test_what_is_kept_fits_into_the_whole() -> None:
    given = plan.on_a_gpu(PLACES)
    assert sum(stage.kept for stage in given) < gpu.MINUTES * 60 - gpu.RESERVED_SECONDS
    assert all(stage.kept < stage.seconds for stage in given)


def test_wheels_come_first_and_tf32_has_one_switch() -> None:
    made = plan.environment({"PYTHONPATH": "/mine", "NVIDIA_TF32_OVERRIDE": "0"}, PLACES, device=True)
    assert made["PYTHONPATH"].split(":")[0] == str(Path("site").absolute())
    assert made["PYTHONPATH"].endswith(":/mine")
    assert (made["ALIGN_CUDA"], "NVIDIA_TF32_OVERRIDE" in made) == ("1", False)
    assert "ALIGN_CUDA" not in plan.environment({}, PLACES, device=False)


def test_unknown_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--only", "nothing", "--list"]) == 2
    assert "`--only` takes stages: install, " in capsys.readouterr().err


def test_stage_comes_with_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--only", "benchmarks", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["install", "benchmarks"]


def test_table_tells_of_phases(tmp_path: Path) -> None:
    rows = [{"phase": "a", "result": "done", "kernels": 3}, {"phase": "b", "result": "Error: x", "kernels": 1}]
    (tmp_path / "core.log").write_text("\n".join(["noise", *map(json.dumps, rows)]))
    assert plan.phases_line("core")(tmp_path) == "1 of 2 phases, 4 kernels; b: Error: x"


@pytest.mark.skipif(
    not os.environ.get("ALIGN_COMPILE_CHECK"),
    reason="nvcc takes long for every kernel; ALIGN_COMPILE_CHECK=FOLDER asks for it, and make gpu DRY=1 does the same",
)
def test_every_kernel_compiles(tmp_path: Path) -> None:
    words = ["--dry", "--home", os.environ["ALIGN_COMPILE_CHECK"], "--output-dir", str(tmp_path)]
    assert gpu.main([*words, "--only", "kernels", "kernels-modules"]) == 0


# Wheels


@pytest.mark.parametrize(
    ("package", "file", "fitting"),
    [
        ("numpy", "numpy-1.26.4-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("numpy", "numpy-1.26.4-cp311-cp311-manylinux_2_17_x86_64.whl", False),
        ("numpy", "numpy-2.3.5-cp312-cp312-manylinux_2_27_x86_64.whl", False),
        ("safetensors", "safetensors-0.8.0-cp38-abi3-manylinux_2_17_x86_64.whl", True),
        ("safetensors", "safetensors-0.8.0-cp313-abi3-manylinux_2_17_x86_64.whl", False),
        ("py-cpuinfo", "py_cpuinfo-9.0.0-py3-none-any.whl", True),
        ("six", "six-1.17.0-py2.py3-none-any.whl", True),
        ("six", "sixer-1.17.0-py2.py3-none-any.whl", False),
        ("jittor", "jittor-1.3.11.0.tar.gz", True),
        ("jittor", "jittor-1.3.9.0.tar.gz", False),
        ("numpy", "README.txt", False),
    ],
)
def test_file_of_a_package(package: str, file: str, fitting: bool) -> None:
    need = next(need for need in wheels.NEEDS if need.package == package)
    assert wheels.fits(need, file, PYTHON) == fitting


def on_a_bare_machine(package: str) -> str | None:
    """numpy 2 and most others are there."""
    versions = {"numpy": "2.5.2", "jittor": None, "pycocotools": None, "astunparse": None}
    return versions.get(package, "1.0")


def test_missing_wheels_are_one_message_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "pycocotools-2.0.11-cp312-cp312-manylinux_2_28_x86_64.whl").touch()
    with pytest.raises(wheels.MissingWheelsError) as raised:
        wheels.plan(tmp_path, on_a_bare_machine, PYTHON)
    first, download, build = str(raised.value).splitlines()
    assert first.startswith(f"{tmp_path} lacks files for Python 3.12: jittor==1.3.11.0, numpy==1.26.4, astunparse.")
    assert download.endswith(f"-d {tmp_path} numpy==1.26.4 astunparse")
    assert build.endswith("jittor==1.3.11.0")


def test_what_is_not_carried_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(wheels.MissingWheelsError, match=r"this Python lacks torch, which the folder does not carry"):
        wheels.plan(tmp_path, lambda package: None if package == "torch" else wheels.pinned().get(package, "1"), PYTHON)


def test_only_what_is_missing_is_installed(tmp_path: Path) -> None:
    names = ("jittor-1.3.11.0-py3-none-any", "numpy-1.26.4-cp312-cp312-x", "pycocotools-2.0.11-cp312-cp312-x")
    for name in (*names, "astunparse-1.6.3-py2.py3-none-any", "rich-15.0.0-py3-none-any"):
        (tmp_path / f"{name}.whl").touch()
    chosen = [file.name.split("-")[0] for file in wheels.plan(tmp_path, on_a_bare_machine, PYTHON)]
    assert chosen == ["jittor", "numpy", "pycocotools", "astunparse"]


def test_curand_is_taken_where_the_folder_has_it(tmp_path: Path) -> None:
    (tmp_path / "nvidia_curand-10.4.5.25-py3-none-manylinux_2_27_x86_64.whl").touch()
    found = wheels.plan(tmp_path, lambda package: wheels.pinned().get(package, "1.0"), PYTHON)
    assert [file.name.split("-")[0] for file in found] == ["nvidia_curand"]


def test_what_an_earlier_run_installed_is_planned_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "site"
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.setattr(wheels, "plan", lambda folder: [] if str(target) not in sys.path else pytest.fail("it counts"))
    assert wheels.install(tmp_path, target) == 0


def test_wheel_is_put_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, target = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    with zipfile.ZipFile(folder / "six-9.9-py3-none-any.whl", "w") as file:
        file.writestr("six.py", "ours = True\n")
        file.writestr("six-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: six\nVersion: 9.9\n")
        file.writestr("six-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("six-9.9.dist-info/RECORD", "")
    monkeypatch.setattr(wheels, "plan", lambda given: sorted(given.iterdir()))
    assert wheels.install(folder, target) == 0
    assert (target / "six.py").read_text() == "ours = True\n"
    (target / "six.py").write_text("kept")
    assert wheels.install(folder, target) == 0  # the same files: nothing is done again
    assert (target / "six.py").read_text() == "kept"
