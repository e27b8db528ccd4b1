"""Lays a toolkit out as Jittor expects it: one folder with `bin/nvcc`, `include` and `lib64`, made of links.

Jittor takes everything from the folder above `nvcc`. Toolkits in Python packages are spread out, cuDNN 9 calls its
libraries by other names, and four headers need something of ours in front.
"""

from __future__ import annotations

import ctypes
import hashlib
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from jt_impl.cuda.toolkit import LIBRARIES, Toolkit, find_library

OURS = Path(__file__).with_name("include")
# Jittor asks for these four by name since CUDA 11; cuDNN 9 has two libraries in their place.
NAMES_OF_CUDNN_8 = {
    "cudnn_ops_infer": "cudnn_ops",
    "cudnn_ops_train": "cudnn_ops",
    "cudnn_cnn_infer": "cudnn_cnn",
    "cudnn_cnn_train": "cudnn_cnn",
}
# Wanted by the libraries themselves, or by nvcc's linker; not in every layout, so they are taken where they are.
COMPANIONS = ("libnvJitLink.so.*", "libnvrtc*.so.*", "libcudadevrt.a", "libcudart_static.a")
# C++17 is what CUDA 13's headers need, and Jittor asks for C++14. Products and sums are not contracted,
# for the reason given in runtime.KERNEL_FLAGS.
FLAGS = "-std=c++17 --fmad=false"
# Flags after --use_fast_math undo its flush to zero and its inexact division and square root, but not that expf, logf,
# sinf, cosf, powf become intrinsics of a few bits less: that ends only where the flag does not arrive.
SCRIPT = """#!/bin/sh
# Jittor's arguments without --use_fast_math and -std=c++14, and with what this CUDA needs instead.
for argument do
    shift
    case $argument in
    --use_fast_math | -use_fast_math | -std=c++14) ;;
    *) set -- "$@" "$argument" ;;
    esac
done
exec {nvcc} "$@" {flags}
"""

Entry = Path | str  # what a link points to, or the text of a file


def script(nvcc: Path) -> str:
    """The compiler that Jittor is given."""
    return SCRIPT.format(nvcc=shlex.quote(str(nvcc)), flags=FLAGS)


def plan(toolkit: Toolkit) -> dict[str, Entry]:
    """Every file and link of the home, by its path in it."""
    libraries = {f"lib64/{name}": target for name, target in library_links(toolkit).items()}
    return {"bin/nvcc": script(toolkit.nvcc), **header_entries(toolkit), **libraries}


def header_entries(toolkit: Toolkit) -> dict[str, Entry]:
    """Links to all headers; where a header of ours has its name, the vendor's is below `vendor/`."""
    vendor: dict[str, Path] = {}
    for folder in toolkit.includes:
        for entry in sorted(folder.iterdir()):
            vendor.setdefault(entry.name, entry)
    for header in sorted(toolkit.cudnn.include.glob("cudnn*.h")):
        vendor[header.name] = header
    entries: dict[str, Entry] = {f"include/{name}": target for name, target in vendor.items()}
    for name, text in our_headers().items():
        top = name.split("/")[0]
        if top in vendor:
            entries[f"include/vendor/{top}"] = vendor[top]
        if entries.pop(f"include/{top}", None) is not None and top != name:
            entries.update({f"include/{top}/{child.name}": child for child in sorted(vendor[top].iterdir())})
        entries[f"include/{name}"] = text
    return entries


def our_headers() -> dict[str, str]:
    """The texts of the headers in front, by their names."""
    files = sorted(file for file in OURS.rglob("*") if file.is_file())
    return {str(file.relative_to(OURS)): file.read_text(encoding="utf-8") for file in files}


def library_links(toolkit: Toolkit) -> dict[str, Path]:
    """Each library under its own name and under the one without a number, which the linker and Jittor look for."""
    links: dict[str, Path] = {}
    for name, number in LIBRARIES[toolkit.version[0]].items():
        file = find_library(toolkit.libraries, name, number)
        assert file is not None, name  # toolkit.find has looked
        links |= {file.name: file, f"lib{name}.so": file}
    main = find_library(toolkit.libraries, "cudnn", toolkit.cudnn.major)
    assert main is not None
    for folder in (main.parent, *toolkit.libraries):  # all of cuDNN from one folder, as far as it goes
        for file in sorted(folder.glob(f"libcudnn*.so.{toolkit.cudnn.major}")):
            links.setdefault(file.name, file)
            links.setdefault(file.name.removesuffix(f".{toolkit.cudnn.major}"), file)
    if toolkit.cudnn.major >= 9:
        links |= {f"lib{old}.so": links[f"lib{new}.so"] for old, new in NAMES_OF_CUDNN_8.items()}
    for folder in toolkit.libraries:
        for file in (file for pattern in COMPANIONS for file in sorted(folder.glob(pattern))):
            if suits(file, toolkit.version[0]):
                links.setdefault(file.name, file)
    return links


def suits(file: Path, cuda: int) -> bool:
    """Whether a companion is for this CUDA; an archive has no number."""
    return file.suffix == ".a" or file.name.split(".so.")[1].split(".")[0] == str(cuda)


def name_of(entries: Mapping[str, Entry]) -> str:
    """Changes with everything that the home consists of."""
    lines = [f"{name} {'=' if isinstance(entry, str) else '>'} {entry}" for name, entry in sorted(entries.items())]
    text = "\n".join(lines)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_whole(folder: Path, entries: Mapping[str, Entry]) -> bool:
    """Whether nothing is missing; a link to what is gone counts as missing."""
    return all((folder / name).exists() for name in entries)


def write(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Make the files and links in a new folder."""
    for name, entry in entries.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, str):
            place.write_text(entry, encoding="utf-8")
        else:
            place.symlink_to(entry)
    (folder / "bin" / "nvcc").chmod(0o755)


def make(toolkit: Toolkit, parent: Path) -> Path:
    """The home below ``parent``, made unless it is there. Other processes see the whole of it or nothing."""
    entries = plan(toolkit)
    home = parent / name_of(entries)
    if is_whole(home, entries):
        return home
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".making-") as temporary:
        whole = Path(temporary) / home.name
        write(whole, entries)
        if home.exists():  # its files were taken away by hand
            home.rename(Path(temporary) / "broken")
        with suppress(OSError):  # another process was first: its folder is as good
            whole.rename(home)
    if not is_whole(home, entries):
        raise OSError(f"could not make the CUDA home {home}: check that the folder is writable")
    return home


def preload_order(home: Path) -> Iterator[Path]:
    """Each library after those that it needs. cuDNN loads its parts itself, from its own folder."""
    for name in ("cudart", "nvJitLink", "nvrtc", "cublasLt", "cublas", "curand", "cufft", "cusparse", "cudnn"):
        yield from sorted((home / "lib64").glob(f"lib{name}.so.*"))


def preload(home: Path) -> None:
    """Load the libraries: Jittor's operators name them without a folder, and the loader does not look into ours."""
    for library in preload_order(home):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
