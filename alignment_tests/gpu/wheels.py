"""The packages that a bare machine lacks, from a folder of wheels: ``python -m alignment_tests.gpu.wheels ACTION``.

``fetch`` makes the folder where there is a network, ``install`` puts what is missing here on a path of its own, in
front of the installed packages, which stay as they are, and ``probe`` imports everything. Only Python itself is needed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fixtures.cli import Parser, fail

ROOT = Path(__file__).resolve().parents[2]
# pip matches each of these by its exact number.
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in (35, 34, 31, 28, 27, 24, 17)), "manylinux2014_x86_64")
PYTHON = sys.version_info[:2]


@dataclass(frozen=True)
class Need:
    """A package. ``exact``: no other version will do; else any that is installed will."""

    package: str
    module: str
    exact: bool = False
    carried: bool = True  # False: too large for the folder, or sure to be there with PyTorch


NEEDS = (
    Need("jittor", "jittor", exact=True),
    Need("numpy", "numpy", exact=True),
    Need("pycocotools", "pycocotools.mask"),
    Need("safetensors", "safetensors"),
    Need("astunparse", "astunparse"),
    Need("six", "six"),
    Need("tqdm", "tqdm"),
    Need("pyyaml", "yaml"),
    Need("rich", "rich"),
    Need("markdown-it-py", "markdown_it"),
    Need("mdurl", "mdurl"),
    Need("pygments", "pygments"),
    Need("jinja2", "jinja2"),
    Need("markupsafe", "markupsafe"),
    Need("pytest", "pytest"),
    Need("pluggy", "pluggy"),
    Need("iniconfig", "iniconfig"),
    Need("packaging", "packaging"),
    Need("pytest-benchmark", "pytest_benchmark"),
    Need("py-cpuinfo", "cpuinfo"),
    Need("torch", "torch", carried=False),
    Need("torchvision", "torchvision", carried=False),
    Need("pillow", "PIL", carried=False),
    Need("matplotlib", "matplotlib", carried=False),
    Need("opencv-python-headless", "cv2", carried=False),
)
CURAND = Need("nvidia-curand", "nvidia.cu13")


class MissingWheelsError(RuntimeError):
    """Packages that are neither installed nor in the folder; the message holds the command that fetches them."""


def pinned() -> dict[str, str]:
    """The versions of pyproject.toml, by package."""
    rows = re.findall(r'^\s*"([\w.-]+)==([\w.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return {name.lower(): version for name, version in rows}


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def found_version(package: str) -> str | None:
    """Of the package, or "?" where another one brings its module, as several do for OpenCV."""
    module = next(need.module for need in NEEDS if need.package == package).split(".")[0]
    return installed_version(package) or ("?" if importlib.util.find_spec(module) else None)


def is_met(need: Need, version: str | None) -> bool:
    """Whether what is installed will do."""
    return version is not None and (not need.exact or version == pinned()[need.package])


def wheel_of(need: Need, files: Iterable[Path], python: tuple[int, int]) -> Path | None:
    """The file in the folder for this package and this Python; of an exact need the pinned version only."""
    found = [file for file in files if fits(need, file.name, python)]
    return max(found, default=None)


def fits(need: Need, file: str, python: tuple[int, int]) -> bool:
    """Whether that file is a wheel of the package for this Python, or its source archive."""
    match = re.fullmatch(r"([\w.]+)-([\w.+!]+)-(?:\d\w*-)?([\w.]+)-([\w.]+)-[\w.]+\.whl", file)
    source = re.fullmatch(r"([\w.-]+)-([\d.]+)\.tar\.gz", file)
    if match is None and source is None:
        return False
    name, version = (match or source)[1], (match or source)[2]  # type: ignore[index]
    if normal(name) != normal(need.package) or (need.exact and version != pinned()[need.package]):
        return False
    return match is None or suits_python(match[3].split("."), match[4].split("."), python)


def suits_python(tags: Sequence[str], abis: Sequence[str], python: tuple[int, int]) -> bool:
    if "py3" in tags or f"cp{python[0]}{python[1]}" in tags:
        return True
    oldest = [int(match[1]) for tag in tags if (match := re.fullmatch(r"cp3(\d+)", tag))]
    return "abi3" in abis and any(minor <= python[1] for minor in oldest)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(need: Need) -> str:
    version = pinned().get(need.package)
    return f"{need.package}=={version}" if version else need.package


def plan(
    folder: Path,
    lookup: Callable[[str], str | None] = found_version,
    python: tuple[int, int] = PYTHON,
) -> list[Path]:
    """The files to install: those of packages that are not there, or not in the version that is needed.

    Raises:
        MissingWheelsError: one has no file.
    """
    wanted = [need for need in NEEDS if not is_met(need, lookup(need.package))]
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    chosen = {need: wheel_of(need, files, python) for need in wanted}
    missing = [need for need, file in chosen.items() if file is None]
    if missing:
        raise MissingWheelsError(missing_text(folder, missing, python))
    curand = wheel_of(CURAND, files, python)
    return [file for file in chosen.values() if file is not None] + ([curand] if curand else [])


def missing_text(folder: Path, missing: Sequence[Need], python: tuple[int, int]) -> str:
    absent = [need.package for need in missing if not need.carried]
    if absent:
        return f"this Python lacks {', '.join(absent)}, which the folder does not carry: install them with PyTorch"
    names = ", ".join(requirement(need) for need in missing)
    text = f"{folder} lacks files for Python {python[0]}.{python[1]}: {names}. Where there is a network, fetch them:"
    commands = [" ".join(command) for command in fetch_commands(folder, missing, python)]
    return "\n  ".join([text, *commands])


def fetch_commands(folder: Path, needs: Sequence[Need], python: tuple[int, int]) -> list[list[str]]:
    """Jittor has no wheel on the index and is made one; the others come as they are, for that Python."""
    pip = ["python3", "-m", "pip"]
    binary = [requirement(need) for need in needs if need.package != "jittor"]
    commands = []
    if binary:
        words = [*pip, "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
        words += ["--python-version", f"{python[0]}.{python[1]}"]
        words += [word for platform in PLATFORMS for word in ("--platform", platform)]
        commands.append([*words, "-d", str(folder), *binary])
    if any(need.package == "jittor" for need in needs):
        jittor = next(need for need in NEEDS if need.package == "jittor")
        commands.append([*pip, "wheel", "--no-deps", "-w", str(folder), requirement(jittor)])
    return commands


def fetch(folder: Path, python: tuple[int, int], curand: bool) -> int:
    """Download what NEEDS says into the folder."""
    needs = [need for need in NEEDS if need.carried] + ([CURAND] if curand else [])
    folder.mkdir(parents=True, exist_ok=True)
    for command in fetch_commands(folder, needs, python):
        code = subprocess.run([sys.executable, *command[1:]], check=False).returncode
        if code:
            return code
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {len(list(folder.iterdir()))} files, {size / 1e6:.0f} MB, for Python {python[0]}.{python[1]}")
    return 0


def install(folder: Path, target: Path) -> int:
    """Unpack the planned files below ``target``, which others see whole or not at all."""
    # What an earlier run put there is planned anew: it would count as installed, and go with the old folder.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != target.resolve()]
    files = plan(folder)
    listing, mark = "\n".join(file.name for file in files), target / ".installed"
    if not files or (mark.is_file() and mark.read_text() == listing):
        print(f"nothing to install: {'all of it is there' if files else 'no package is missing'}")
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".installing-") as temporary:
        made = Path(temporary) / target.name
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
        command += [
            "--no-compile",
            "--quiet",
            "--root-user-action=ignore",
            "--disable-pip-version-check",
            "--target",
            str(made),
        ]
        subprocess.run([*command, *map(str, files)], check=True)
        (made / ".installed").write_text(listing)
        if target.exists():
            shutil.rmtree(target)
        os.replace(made, target)
    print(f"{target}: {len(files)} packages in front of the installed ones: {', '.join(f.name for f in files)}")
    return 0


def probe() -> int:
    """Import every module; one line for each that fails."""
    import importlib

    failed = []
    for need in NEEDS:
        try:
            if need.module != "jittor":  # it compiles at import: a stage of its own
                importlib.import_module(need.module)
            print(f"{need.package} {installed_version(need.package)}")
        except Exception as error:  # a package built for another numpy may raise anything
            failed.append(f"{need.package}: {type(error).__name__}: {error}")
    for line in failed:
        print(f"cannot be imported: {line}", file=sys.stderr)
    return int(bool(failed))


def python_version(text: str) -> tuple[int, int]:
    """Argument type: ``3.12``."""
    match = re.fullmatch(r"(3)\.(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a version such as 3.12. Received: {text}")
    return int(match[1]), int(match[2])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m alignment_tests.gpu.wheels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("fetch", "install", "probe"))
    parser.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="the folder (default: %(default)s)")
    parser.add_argument("--target", type=Path, default=Path("build/gpu/site"), help="where `install` puts them")
    parser.add_argument("--python", type=python_version, default=(3, 12), help="`fetch`: of the GPU machine")
    parser.add_argument("--curand", action="store_true", help="`fetch`: cuRAND too, where the toolkit lacks it")
    options = parser.parse_args(arguments)
    if options.action == "fetch":
        return fetch(options.wheels, options.python, options.curand)
    if options.action == "probe":
        return probe()
    try:
        return install(options.wheels, options.target)
    except (MissingWheelsError, subprocess.CalledProcessError) as error:
        return fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
