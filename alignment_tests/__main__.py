"""Compare the two Gold-YOLO implementations layer by layer on real images, and write the report.

python -m alignment_tests --config gold_yolo_s --image-size 640 --images photos/
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from alignment_tests.cases import arithmetic
from alignment_tests.harness.record.trace import NoRoomError
from fixtures.cli import Parser, fail, image_size, positive
from fixtures.config import config_names, load_config
from fixtures.images import drawn_images, load_images
from jt_impl.runtime import RuntimeSetupError, progress

EXIT_DIVERGED = 1


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m alignment_tests", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", default="gold_yolo_s", choices=config_names(), help="size of the model")
    parser.add_argument("--num-classes", type=positive, default=80)
    parser.add_argument("--image-size", type=image_size, default=(640, 640), help="640, or rows x columns: 480x640")
    parser.add_argument("--images", type=Path, help="folder of photographs; drawn scenes if not given")
    parser.add_argument("--batch-size", type=positive, default=1, help="how many images")
    parser.add_argument(
        "--mode", choices=("eval", "train"), default="eval", help="train: batch statistics, buffers too"
    )
    parser.add_argument("--form", choices=("train", "deploy"), default="train", help="deploy: re-parameterised, fused")
    parser.add_argument("--weights", type=Path, help="checkpoint of either framework; seeded weights if not given")
    parser.add_argument(
        "--precision",
        choices=arithmetic.PRECISIONS,
        default="both",
        help="both: float32 and float64; tf32 (GPU only) and half (mixed, float16) are judged by budgets of their own",
    )
    parser.add_argument("--device", choices=arithmetic.DEVICES, default="cpu", help="where both frameworks compute")
    parser.add_argument("--no-isolated", action="store_true", help="skip running each module alone")
    parser.add_argument("--output-dir", type=Path, help="folder of the report (default: reports/NAME)")
    parser.add_argument("--baseline", type=Path, help="older report.json to show the drift against")
    return parser


def read_inputs(options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Images, weights (or None) and what the report says of both; raises before any model is built."""
    rows, columns = options.image_size
    if options.images is not None:
        images, source = load_images(options.images, options.batch_size, options.image_size)
    else:
        images, source = drawn_images(options.batch_size, options.image_size), ["drawn scenes, seed 0"]
    settings = {"images": source, "image_size": f"{rows}x{columns}", "mode": options.mode, "form": options.form}
    state = None
    if options.weights is not None:
        from converters import read_checkpoint, to_single

        checkpoint = read_checkpoint(options.weights)
        if (checkpoint.config_name or options.config) != options.config:
            raise ValueError(
                f"`--config` must be {checkpoint.config_name} for these weights. Received: {options.config}"
            )
        if (checkpoint.num_classes or options.num_classes) != options.num_classes:
            raise ValueError(
                f"`--num-classes` must be {checkpoint.num_classes} for these weights. Received: {options.num_classes}"
            )
        state, _ = to_single(checkpoint.state)
    settings["weights"] = str(options.weights) if options.weights is not None else "seeded, seed 0"
    if options.baseline is not None:
        from alignment_tests.harness.judge.report import load_report_json

        load_report_json(options.baseline)
    return images, state, settings


def report_name(options: argparse.Namespace) -> str:
    """Folder of the report below `reports`; only what is not usual is named beside the model."""
    rows, columns = options.image_size
    unusual = [options.device] if options.device != "cpu" else []
    unusual += [options.precision] if options.precision in ("tf32", "half") else []
    return "-".join([options.config, f"{rows}x{columns}", options.mode, options.form, *unusual])


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    try:
        images, state, settings = read_inputs(options)
        chosen = arithmetic.choose(options.precision, options.device)
        settings |= {"precision": options.precision}
    except (ValueError, OSError) as error:
        return fail(str(error))
    try:
        return compare(options, chosen, images, state, settings)
    except (arithmetic.NoDeviceError, RuntimeSetupError, NoRoomError) as error:
        return fail(str(error))


def compare(
    options: argparse.Namespace, chosen: arithmetic.Arithmetic, images: Any, state: Any, settings: dict[str, Any]
) -> int:
    """Build both models, compare them, write the report; the exit code."""
    folder = options.output_dir or Path("reports") / report_name(options)
    console, start = Console(stderr=True), time.perf_counter()

    def notify(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - start:6.1f} s[/dim]  {text}")

    from alignment_tests.harness import align
    from alignment_tests.harness.report.terminal import print_report

    with progress():
        from alignment_tests.cases.pairs import make_pair

        notify(f"building {options.config} in both frameworks")
        settings = settings | arithmetic.switch(chosen, options.device)
        pair = make_pair(load_config(options.config, num_classes=options.num_classes), state, options.form)
        pair.reference.to(options.device)
        report = align(
            pair.reference,
            pair.candidate,
            images,
            train=options.mode == "train",
            precisions=chosen.runs,
            isolated=not options.no_isolated,
            budget=chosen.budget,
            scopes=arithmetic.scopes(chosen, options.device),
            title=f"{options.config}, {settings['image_size']}, {options.mode} mode, {options.form} form",
            settings=settings,
            build=pair.build,
            folder=folder,
            notify=notify,
        )
    report.save(folder, baseline=options.baseline)
    print_report(report, folder=str(folder))
    print(f"\nreport: {folder / 'report.html'}   ({time.perf_counter() - start:.0f} s)")
    return 0 if report.aligned else EXIT_DIVERGED


if __name__ == "__main__":
    sys.exit(main())
