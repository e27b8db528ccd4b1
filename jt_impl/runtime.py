"""Prepare and import Jittor: the one place of this project that does so.

Jittor 1.3.11 reads its settings from environment variables at import. ``load()`` chooses them (a variable that
the user has set is left alone), puts oneDNN where Jittor looks for it, imports Jittor while showing progress, and
gives the random generators of Python and numpy back as they were (``import jittor`` reseeds both).

Every other module writes ``from jt_impl.runtime import jittor as jt``; the import happens on that first access.
"""

from __future__ import annotations

import contextlib
import ctypes
import filecmp
import hashlib
import importlib.util
import json
import os
import platform
import random
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jt_impl import on_import
from jt_impl.cuda import home as cuda_home
from jt_impl.cuda.choice import Choice, choose
from jt_impl.cuda.toolkit import MissingPartError
from jt_impl.kernels import precompiled

# numpy is imported where it is used: the doctor reads this module on machines where numpy is missing or broken.

if TYPE_CHECKING:
    jittor: Any

ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
ONEDNN_PACKAGES = "onednn-cpu-gomp==2021.2.0 onednn-devel-cpu-gomp==2021.2.0"

# Jittor's own default is -Ofast. Its start-up code sets flush-to-zero for the thread that loads the first kernel
# (numpy and PyTorch lose subnormals), kernels may not test for NaN, and sums and products are regrouped and contracted
# by what happens to be fused into one kernel, so that reading an intermediate value (a hook) changes the result.
# These flags keep IEEE arithmetic and drop only errno and traps, which nothing here reads. -ffp-contract=off is needed
# beside them: g++ contracts a multiply and an add by default. What they cost is in docs/performance.md; exp, the one
# function that lost much, has a kernel of our own (jt_impl/kernels/exponential.py).
CC_FLAGS = " -O2 "
KERNEL_FLAGS = " -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off "


# Tried with clang 14: Jittor's data.cc casts pointers to member functions to plain ones, an extension of g++ alone.
CLANG_FAILS = "Jittor 1.3.11 does not compile with clang"


def variable(name: str, default: str) -> str:
    """A setting of Jittor's: the user's environment variable (they are lower case), else the default."""
    return os.environ.get(name, default)


class RuntimeSetupError(RuntimeError):
    """Jittor cannot be made ready on this machine; the message says what to do."""


def jittor_home() -> Path:
    """Jittor's cache root, as Jittor itself finds it, without writing its configuration."""
    base = os.environ.get("JITTOR_HOME")
    if base is None:
        config = Path.home() / ".cache" / "jittor" / "config.json"
        base = str(Path.home())
        if config.is_file():
            base = json.loads(config.read_text()).get("JITTOR_HOME", base)
    return Path(base).absolute() / ".cache" / "jittor"


def package_folder(name: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeSetupError(f"the package `{name}` is not installed. Install everything with: make setup")
    return Path(spec.origin).parent


def default_cache_name(cuda: str = "") -> str:
    """A name of this environment's own, since two that share one recompile each other's core.

    It depends on where Jittor is installed and on the flags in force, so a change of flags never meets old kernels.
    ``cuda`` is the identity of the CUDA build (``Choice.identity``), empty for the CPU.
    """
    flags = f"{variable('cc_flags', CC_FLAGS)}|{variable('kernel_flags', KERNEL_FLAGS)}|{precompiled.text()}"
    identity = f"{package_folder('jittor')}|{flags}" + (f"|{cuda}" if cuda else "")
    return ("align-cuda-" if cuda else "align-") + hashlib.sha256(identity.encode()).hexdigest()[:10]


def cuda_choice() -> Choice:
    """The CPU, or what CUDA to build for; see ``jt_impl.cuda.choice``.

    Raises:
        RuntimeSetupError: the environment demands CUDA and something is missing.
    """
    try:
        return choose(os.environ, has_nvidia_driver)
    except (MissingPartError, ValueError) as error:
        raise RuntimeSetupError(str(error)) from None


def cache_name() -> str:
    """The user's, else the one that ``load()`` chooses."""
    return variable("cache_name", "") or default_cache_name(cuda_choice().identity(os.environ))


def has_nvidia_driver() -> bool:
    """Whether the CUDA driver library loads and reports a device. It is asked in C, without creating a context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def python_config() -> Path | None:
    """The script that tells Jittor where Python's headers are, or None.

    The first three places are Jittor's own. It does not look at the Python that a virtual environment was made from.
    """
    name = f"python3.{sys.version_info.minor}-config"
    beside = Path(sys.executable).parent
    places = [
        beside / name,
        Path("/usr/bin") / name,
        Path("/usr/local/bin") / name,
        Path(sys.base_prefix) / "bin" / name,
    ]
    return next((place for place in places if place.is_file()), None)


def settings() -> dict[str, str]:
    """The environment variables that ``load()`` gives Jittor, where the user has not set them."""
    chosen = {
        "cache_name": default_cache_name(),
        "cc_flags": CC_FLAGS,
        "kernel_flags": KERNEL_FLAGS,
        "log_silent": "1",
        # Each of these downloads at import; none is needed here.
        "use_mpi": "0",
        "use_nccl": "0",
        "use_cutlass": "0",
        "use_cutt": "0",
        # Without a device Jittor's core aborts in a static initialiser; with a driver but no toolkit Jittor downloads
        # one; on CUDA 13 or cuDNN 9 it does not build as it comes. A GPU must be asked for: see cuda_settings.
        "nvcc_path": "",
    }
    config = python_config()
    if config is not None:
        chosen["python_config_path"] = str(config)
    return chosen


def cuda_settings(choice: Choice) -> dict[str, str]:
    """The variables that replace even the user's: ``nvcc_path`` names a toolkit, and Jittor gets the one prepared.

    Where there is no CUDA to be used, Jittor is kept from looking for it.
    """
    if choice.toolkit is None:
        return {"nvcc_path": ""} if variable("nvcc_path", "") else {}
    try:
        home = cuda_home.make(choice.toolkit, jittor_home() / "align_cuda")
        cuda_home.preload(home)
    except OSError as error:
        raise RuntimeSetupError(f"CUDA could not be prepared: {error}") from error
    name = default_cache_name(choice.identity(os.environ))
    return {"nvcc_path": str(home / "bin" / "nvcc"), **({} if "cache_name" in os.environ else {"cache_name": name})}


def find_onednn() -> tuple[Path, Path] | None:
    """``(include, lib)`` of the oneDNN 2.2 packages in this Python environment, or None."""
    for prefix in (Path(sys.prefix), Path(sys.base_prefix)):
        if onednn_is_whole(prefix):
            return prefix / "include", prefix / "lib"
    return None


def onednn_target() -> Path:
    """Where Jittor looks for oneDNN."""
    return jittor_home() / "mkl" / ONEDNN_FOLDER


def onednn_is_whole(folder: Path) -> bool:
    """Whether Jittor can build with the ``include`` and ``lib`` in that folder."""
    headers = ("dnnl.hpp", "oneapi/dnnl/dnnl.hpp")  # the first only includes the second
    return (folder / "lib" / "libmkldnn.so").is_file() and all((folder / "include" / h).is_file() for h in headers)


def copy_onednn_files(source: Path, target: Path) -> None:
    """Copy oneDNN's files of one folder; a file that the package holds under several names (50 MB each) only once."""
    target.mkdir(parents=True)
    libraries: list[Path] = []
    for file in sorted(source.iterdir()):
        if not file.is_file() or not file.name.startswith(("dnnl", "mkldnn", "libdnnl", "libmkldnn")):
            continue
        copy = target / file.name
        twin = next((library for library in libraries if filecmp.cmp(file, library, shallow=False)), None)
        if twin is None or not hard_link(twin, copy):
            shutil.copyfile(file, copy)
            libraries += [copy] if copy.name.startswith("lib") else []


def hard_link(existing: Path, new: Path) -> bool:
    """Give a file a second name; False where the file system cannot."""
    try:
        os.link(existing, new)
    except OSError:
        return False
    return True


def place_onednn() -> Path:
    """Copy oneDNN to where Jittor looks for it, so that Jittor does not try to download it.

    The folder belongs to the user: a whole one is left alone, links are followed (they would break with the
    environment), and the copy is made under a temporary name and renamed, so that a cut copy is never found.
    """
    target = onednn_target()
    if onednn_is_whole(target):
        return target
    source = find_onednn()
    if source is None:
        raise RuntimeSetupError(f"oneDNN 2.2 was not found. Install it with: pip install {ONEDNN_PACKAGES}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".placing-") as temporary:
        whole = Path(temporary) / ONEDNN_FOLDER
        for kind, folder in zip(("include", "lib"), source, strict=True):
            copy_onednn_files(folder, whole / kind)
        shutil.copytree(source[0] / "oneapi", whole / "include" / "oneapi", copy_function=shutil.copyfile)
        if target.exists():  # broken leftovers of an interrupted download
            target.rename(Path(temporary) / "broken")
        with contextlib.suppress(OSError):  # another process was first: its folder is as good
            whole.rename(target)
    if not onednn_is_whole(target):
        raise RuntimeSetupError(f"could not write oneDNN to {target}: check that the folder is writable")
    return target


@contextlib.contextmanager
def environment(variables: dict[str, str], forced: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Set the variables that are not set yet, and those that are forced, and give all back afterwards.

    So are the three that Jittor sets itself: child processes would take them for the user's choice.
    """
    names = {*variables, *forced, "cache_name", "cc_path", "cuda_arch"}
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update({**variables, **before, **forced})
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Give Python's and numpy's global generators back as they were."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def interpreter_kept() -> Iterator[None]:
    """Give back what ``import jittor`` changes for the whole process.

    It switches the verification of TLS certificates off and raises the recursion limit to a million, which turns an
    endless recursion into a crash.
    """
    context, limit = ssl._create_default_https_context, sys.getrecursionlimit()
    try:
        yield
    finally:
        ssl._create_default_https_context = context
        sys.setrecursionlimit(limit)


@contextlib.contextmanager
def progress(silent: bool = False) -> Iterator[None]:
    """Show on stderr what Jittor compiles while the body runs.

    A child process watches the cache folder: Jittor compiles kernels while it holds Python's global lock, so a thread
    would stand still exactly when there is something to show.
    """
    if silent or os.environ.get("ALIGN_PROGRESS") == "0":
        yield
        return
    command = [sys.executable, str(Path(__file__).with_name("progress.py")), str(jittor_home()), str(os.getpid())]
    name = cache_name()
    watcher = subprocess.Popen([*command, name], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        assert watcher.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # A byte, not only the end of file: Jittor's compiler workers inherit the pipe and keep it open.
            watcher.stdin.write(b"q")
            watcher.stdin.close()
        try:
            watcher.wait(timeout=10)
        except subprocess.TimeoutExpired:  # only a display: it may not fail the work
            watcher.kill()
            watcher.wait()


def subnormals_survive() -> bool:
    """Probe: does this thread still compute with subnormal numbers (no flush-to-zero, no denormals-are-zero)?"""
    import numpy as np

    tiny = np.full(4, 1e-40, dtype=np.float32)
    return bool(np.all(tiny * np.float32(1.0) == tiny) and np.all(tiny > 0))


def load() -> Any:
    """Import Jittor, ready for use, and return it. The first time on a machine compiles its core (minutes).

    Raises:
        RuntimeSetupError: the platform, the compiler or a package is missing; the message holds the remedy.
    """
    if "jittor" in sys.modules:
        return sys.modules["jittor"]
    if platform.system() != "Linux":
        raise RuntimeSetupError(f"this project prepares Jittor on Linux only. Received: {platform.system()}")
    compiler = variable("cc_path", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeSetupError("no C++ compiler was found. Install one with: apt-get install g++")
    if "clang" in Path(compiler).name:
        raise RuntimeSetupError(f"{CLANG_FAILS}. Received: cc_path={compiler}. Use g++: unset cc_path")
    if variable("use_mkl", "1") == "1":
        place_onednn()
    choice = cuda_choice()
    if choice.reason:
        print(f"{choice.reason}. Jittor uses the CPU.", file=sys.stderr)
    chosen = environment(settings(), cuda_settings(choice))
    silent, own = warnings.catch_warnings(), on_import.bypassed()
    with random_state_kept(), interpreter_kept(), chosen, own, progress(), silent:
        # Jittor's sources hold invalid escape sequences: where warnings are errors, they would not even compile.
        warnings.simplefilter("ignore")
        import jittor as module

        precompiled.prepare(module)
    module.flags.log_silent = 1
    return module


def kernel_files() -> set[str]:
    """Compiled kernels that this process has loaded, whether it or an earlier one compiled them."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {line.split()[-1] for line in lines if "/jit/" in line and line.endswith(".so")}


def loaded_kernels() -> int:
    """How many."""
    return len(kernel_files())


def describe() -> dict[str, Any]:
    """What a report must hold about this Jittor: version, build flags, device."""
    module = load()
    toolkit = cuda_choice().toolkit if module.has_cuda else None
    return {
        "framework": "jittor",
        "version": module.__version__,
        "device": "cuda" if module.flags.use_cuda else "cpu",
        "compiler": f"{module.compiler.cc_path} {module.compiler.jit_utils.get_version(module.compiler.cc_path)}",
        "kernel_flags": " ".join(module.compiler.kernel_opt_flags.split()),
        "cache": module.compiler.cache_path,
        **({"cuda": f"{toolkit.description}, {cuda_home.FLAGS}"} if toolkit else {}),
    }


def __getattr__(name: str) -> Any:
    if name == "jittor":
        return load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Compile what can be compiled now, so that later commands start at once."""
    start = time.perf_counter()
    module = load()
    seconds = time.perf_counter() - start
    print(f"Jittor {module.__version__} is ready ({seconds:.0f} s), cache {module.compiler.cache_path}")


if __name__ == "__main__":
    main()
