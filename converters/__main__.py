"""Convert a checkpoint file to another form: ``python -m converters SRC DST [--half | --float]``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters import Checkpoint, read_checkpoint, to_half, to_single, write_checkpoint

EXAMPLES = """\
The suffix names the form: .safetensors (keeps config, classes and meta), .pt or .pth (a state dict of PyTorch), .pkl (a
state dict of Jittor). A .pt source may be a public training checkpoint; it is read without running anything of it.

examples:
  python -m converters gold_yolo_n.pt gold_yolo_n.safetensors --float
  python -m converters gold_yolo_n.safetensors gold_yolo_n.pkl
  python -m converters run/last.pkl last.pt --half
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m converters",
        description="Convert a checkpoint between PyTorch, Jittor and safetensors, bit for bit.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="file to read")
    parser.add_argument("target", metavar="DST", type=Path, help="file to write; an existing one is replaced")
    width = parser.add_mutually_exclusive_group()
    width.add_argument("--half", action="store_true", help="round floating arrays to float16")
    width.add_argument(
        "--float", action="store_true", help="floating arrays as float32; refused if a value would change"
    )
    parser.add_argument("--list", action="store_true", help="print every array, not only their number")
    return parser


def convert(options: argparse.Namespace) -> str:
    """Read, convert and write; return the report."""
    if options.source.resolve() == options.target.resolve():
        raise ValueError(f"`DST` must be another file than `SRC`. Received: {options.target}")
    checkpoint = read_checkpoint(options.source)
    converted: dict[str, str] = {}
    if options.half or options.float:
        state, converted = (to_half if options.half else to_single)(checkpoint.state)
        checkpoint = dataclasses.replace(checkpoint, state=state)
    write_checkpoint(options.target, checkpoint)
    return report(options.source, options.target, checkpoint, converted, every=options.list)


def report(source: Path, target: Path, checkpoint: Checkpoint, converted: Mapping[str, str], *, every: bool) -> str:
    state = checkpoint.state
    model = f"{checkpoint.config_name}, {checkpoint.num_classes} classes" if checkpoint.config_name else "other model"
    lines = [f"{source} -> {target}", f"model      {model}"]
    lines += [f"meta       {name}: {value}" for name, value in checkpoint.meta.items()]
    lines += [f"mapped     {count} arrays {kind}" for kind, count in count_dtypes(state).items()]
    lines += [f"array      {name} {array.shape} {array.dtype}" for name, array in state.items() if every]
    if every:
        lines += [f"converted  {name}: {how}" for name, how in converted.items()]
    kinds = Counter(how.partition(",")[0] for how in converted.values())
    lines += [f"converted  {count} arrays {how}" for how, count in kinds.items()]
    lines += [f"ignored    {name}: {reason}" for name, reason in checkpoint.ignored.items()]
    if target.suffix != ".safetensors" and checkpoint.meta:
        lines.append(f"ignored    meta: a {target.suffix} file is a plain state dict; .safetensors keeps it")
    return "\n".join(lines)


def count_dtypes(state: Mapping[str, Any]) -> dict[str, int]:
    return dict(Counter(str(array.dtype) for array in state.values()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code (2: bad input, told in one line)."""
    options = build_parser().parse_args(arguments)
    try:
        print(convert(options))
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
