"""``alignment align``: two models from their files, without a script."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from alignment_tests.commands.inputs import drawn, input_of
from alignment_tests.commands.pair import Target, load_pair, target
from fixtures.cli import Parser, fail
from fixtures.runs.command import guarded, one_line

EXIT_DIVERGED = 1
EXAMPLE = """\
example:
  alignment align --reference original/model.py:Net --candidate port/model.py:Net --input 2x3x224x224 --train
"""
UNMAPPED = "look at the map that `alignment init` proposes, and give it as --port-map"


class OneLineParser(Parser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(one_line(message)))


def parser(command: str, description: str) -> argparse.ArgumentParser:
    made = OneLineParser(
        prog=f"alignment {command}",
        description=description,
        epilog=EXAMPLE if command == "align" else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = (
        "FILE.py:NAME or MODULE:NAME of a class or function, called without arguments or with those given: Net(depth=3)"
    )
    made.add_argument("--reference", type=target, required=True, metavar="MODEL", help=model)
    made.add_argument("--candidate", type=target, required=True, metavar="MODEL", help="the port, in the same form")
    made.add_argument(
        "--input",
        dest="inputs",
        type=input_of,
        action="append",
        required=True,
        metavar="[NAME=][TYPE[:LOW..HIGH]:]SHAPE",
        help="one for each argument, such as 2x3x224x224 (float32, normal) or int64:0..999:2x16; or [NAME=]FILE.npy",
    )
    made.add_argument("--seed", type=int, default=0, help="of the weights and the inputs (default: %(default)s)")
    return made


def align_arguments() -> argparse.ArgumentParser:
    made = parser("align", "Compare every module of a port with its original, and write the report.")
    made.add_argument("--train", action="store_true", help="train mode: batch statistics, buffers, what is trained")
    made.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint of the reference; else drawn from --seed"
    )
    made.add_argument(
        "--port-map", type=Path, metavar="FILE", help="how the candidate is laid out (YAML); else by names"
    )
    made.add_argument("--output-dir", type=Path, help="folder of the report (default: reports/NAME)")
    made.add_argument("--baseline", type=Path, help="older report.json to show the drift against")
    made.add_argument("--strict", action="store_true", help="layers of Jittor's own that differ are faults too")
    made.add_argument("--no-isolated", action="store_true", help="skip running each module alone")
    return made


def align_main(arguments: Sequence[str] | None = None) -> int:
    return guarded(partial(run_align, align_arguments().parse_args(arguments)))


def run_align(options: argparse.Namespace) -> int:
    from alignment_tests.harness.judge.report import load_report_json
    from alignment_tests.harness.port_map import PortMap, PortMapError

    folder = options.output_dir or Path("reports") / name_of(options.candidate)
    refuse_unwritable(folder)
    known = None if options.port_map is None else in_option("--port-map", PortMap.read, options.port_map)
    state = None if options.weights is None else in_option("--weights", state_of, options.weights)
    if options.baseline is not None:
        load_report_json(options.baseline)

    from alignment_tests.harness import align
    from alignment_tests.harness.record.capture import RaisedInCallError
    from alignment_tests.harness.report.terminal import print_report
    from jt_impl.runtime import RuntimeSetupError, progress

    start = time.perf_counter()
    args, kwargs = drawn(options.inputs, options.seed)
    try:
        with progress():
            notify("importing both models", start)
            reference, candidate = load_pair(options.reference, options.candidate, seed=options.seed)
            if state is not None:
                in_option("--weights", partial(load_into, reference), state)
            port_map = copied(reference, candidate, known)
            report = align(
                reference,
                candidate,
                args,
                kwargs=kwargs,
                train=options.train,
                isolated=not options.no_isolated,
                port_map=port_map,
                strict=options.strict,
                title=f"{options.candidate.text} and {options.reference.text}",
                settings=settings_of(options),
                build=builds(options),
                folder=folder,
                notify=partial(notify, start=start),
            )
    except PortMapError as error:
        return fail(one_line(f"`--port-map`: {error}" if known is not None else f"{error}; {UNMAPPED}"))
    except RaisedInCallError as error:
        return fail(one_line(f"`--reference` or `--input`: {error}"))
    except (RuntimeSetupError, TypeError) as error:
        return fail(one_line(str(error)))
    report.save(folder, baseline=options.baseline)
    print_report(report, folder=str(folder))
    print(f"\nreport: {folder / 'report.html'}   ({time.perf_counter() - start:.0f} s)")
    return 0 if report.aligned else EXIT_DIVERGED


def notify(text: str, start: float) -> None:
    print(f"{time.perf_counter() - start:6.1f} s  {text}", file=sys.stderr, flush=True)


def name_of(found: Target) -> str:
    return f"{found.module.rpartition('.')[2]}.{'.'.join(found.names)}"


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    weights = f"drawn, seed {options.seed}" if options.weights is None else str(options.weights)
    return {
        "reference": options.reference.text,
        "candidate": options.candidate.text,
        "inputs": ", ".join(one.text for one in options.inputs),
        "mode": "train" if options.train else "eval",
        "weights": weights,
    }


def builds(options: argparse.Namespace) -> tuple[str, str]:
    """Source that binds ``model`` in a repro, for either side."""
    sides = [absolute(side) for side in (options.reference, options.candidate)]
    lines = ["from alignment_tests.commands.pair import load_pair", f"pair = load_pair({sides[0]!r}, {sides[1]!r})"]
    return "\n".join([*lines, "model = pair[0]"]), "\n".join([*lines, "model = pair[1]"])


def absolute(found: Target) -> str:
    return found.text if found.file is None else found.text.replace(str(found.file), str(found.file.resolve()), 1)


def copied(reference: Any, candidate: Any, known: Any) -> Any:
    """Write the reference's weights into the candidate; the map by which that was done."""
    from alignment_tests.harness import copy_weights

    return copy_weights(reference, candidate, known)


def state_of(path: Path) -> Any:
    from converters import read_checkpoint

    return read_checkpoint(path).state


def load_into(model: Any, state: Any) -> None:
    import converters

    converters.load_into(model, state)


def in_option(option: str, do: Any, value: Any) -> Any:
    """What ``do`` gives; what it raises for bad input names the option.

    Raises:
        ValueError: see above.
    """
    try:
        return do(value)
    except OSError as error:
        raise ValueError(f"`{option}` {error.filename or value}: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{option}`: {error}") from None


def refuse_unwritable(folder: Path) -> None:
    """Before hours of work; nothing is left behind.

    Raises:
        ValueError: the folder cannot be made, or nothing can be written to it.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    problem = "it is no folder" if not nearest.is_dir() else ""
    if not problem:
        try:
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            problem = error.strerror or str(error)
    if problem:
        raise ValueError(f"`--output-dir` must be a folder that can be written: {nearest}: {problem}")
