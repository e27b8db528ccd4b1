"""``alignment init``: a script of about 15 lines that compares a pair, and the map of weights that the two suggest."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alignment_tests.commands.align import name_of, parser, refuse_unwritable
from alignment_tests.commands.inputs import Input
from alignment_tests.commands.pair import Target, load_pair
from fixtures.cli import fail
from fixtures.runs.command import guarded, one_line

PAIR = '''"""{candidate} beside its original, {reference}. Run me: python {file}"""

from pathlib import Path

import numpy as np

from alignment_tests.commands.pair import load_pair
from alignment_tests.harness import PortMap, align, copy_weights

HERE = Path(__file__).resolve().parent
reference, candidate = load_pair({paths}, seed={seed})
port_map = copy_weights(reference, candidate, PortMap.read(HERE / "{map}"))
random = np.random.default_rng({seed})
{inputs}
report = align(reference, candidate, {arguments}, port_map=port_map, folder=HERE / "report")
report.save(HERE / "report")
print("aligned" if report.aligned else "\\n".join(report.problems))
'''


def init_arguments() -> argparse.ArgumentParser:
    made = parser(
        "init", "Write a script of about 15 lines that compares the two, and the map of weights that they suggest."
    )
    made.add_argument("--output-dir", type=Path, default=Path(), help="folder of the two files (default: here)")
    made.add_argument("--force", action="store_true", help="replace files that are there")
    return made


def init_main(arguments: Sequence[str] | None = None) -> int:
    return guarded(partial(run_init, init_arguments().parse_args(arguments)))


def run_init(options: argparse.Namespace) -> int:
    folder: Path = options.output_dir
    refuse_unwritable(folder)
    files = [folder / "pair.py", folder / "port_map.yaml"]
    there = [str(file) for file in files if file.exists()]
    if there and not options.force:
        raise ValueError(f"`--output-dir` must not hold {' and '.join(there)}, unless with --force")

    from alignment_tests.harness import propose
    from alignment_tests.harness.record.temporary import write_text_atomically
    from jt_impl.runtime import RuntimeSetupError, progress

    try:
        with progress():
            reference, candidate = load_pair(options.reference, options.candidate, seed=options.seed)
    except RuntimeSetupError as error:
        return fail(one_line(str(error)))
    proposal = propose(reference, candidate)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(files[0], pair_script(options, files[0].name, files[1].name))
    write_text_atomically(files[1], proposal.text())
    print(f"{files[0]}   compares the two models")
    print(f"{files[1]}   says how the candidate's weights lie; read it before you trust it")
    if proposal.unmatched:
        print(
            f"{len(proposal.unmatched)} modules have no place in it yet; they stand at its end, with the nearest ones"
        )
    return 0


def pair_script(options: argparse.Namespace, file: str, map_file: str) -> str:
    names = [one.name or f"x{number}" for number, one in enumerate(options.inputs)]
    lines = [f"{name} = {source_of(one)}" for name, one in zip(names, options.inputs, strict=True)]
    plain = [name for name, one in zip(names, options.inputs, strict=True) if not one.name]
    named = [name for name, one in zip(names, options.inputs, strict=True) if one.name]
    arguments = f"[{', '.join(plain)}]"
    if named:
        arguments += f", kwargs={{{', '.join(f'{name!r}: {name}' for name in named)}}}"
    return PAIR.format(
        candidate=name_of(options.candidate),
        reference=name_of(options.reference),
        file=file,
        map=map_file,
        paths=", ".join(path_source(side, options.output_dir) for side in (options.reference, options.candidate)),
        seed=options.seed,
        inputs="\n".join(lines),
        arguments=arguments,
    )


def path_source(found: Target, folder: Path) -> str:
    """Relative to the script, so that both can be moved together."""
    if found.file is None:
        return json.dumps(found.text)
    relative = os.path.relpath(found.file.resolve(), folder.resolve())
    return f"HERE / {json.dumps(found.text.replace(str(found.file), relative, 1))}"


def source_of(one: Input) -> str:
    if one.file is not None:
        return f"np.load({json.dumps(str(one.file.resolve()))})"
    if one.dtype == "bool":
        return f"random.integers(0, 2, {one.shape}).astype(bool)"
    if one.low is None:
        cast = "" if one.dtype == "float64" else f'.astype("{one.dtype}")'
        return f"random.standard_normal({one.shape}){cast}"
    if one.dtype.startswith("float"):
        return f'random.uniform({one.low}, {one.high}, {one.shape}).astype("{one.dtype}")'
    return f'random.integers({one.low}, {one.high}, {one.shape}, endpoint=True).astype("{one.dtype}")'
