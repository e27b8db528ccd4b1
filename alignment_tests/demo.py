"""The whole reproduction on drawn shapes, in minutes: data, training and testing in both frameworks, comparison.

python -m alignment_tests.demo --output-dir experiments/demo
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fixtures.cli import Parser, fail, positive

CONFIG, CLASSES, SIDE = "gold_yolo_n", 3, 128
WEIGHTS, REPORT = "best.safetensors", "report.json"
SIDES = {"torch": "torch_ref", "jittor": "jt_impl"}
# Three seeds of the reference: how far its own curves lie apart is what the candidate's are measured by.
RUNS = (("torch", 0), ("torch", 1), ("torch", 2), ("jittor", 0))


def commands(folder: Path, images: int, epochs: int | None, language: str) -> list[list[str]]:
    """Every command of the demo, as a user would type it."""
    data, yaml = folder / "data", str(folder / "data" / "dataset.yaml")
    trained = {run: folder / "{}_train_{}".format(*run) for run in RUNS}
    tested = {run: folder / "{}_test_{}".format(*run) for run in RUNS}
    training = ["--data", yaml, "--config", CONFIG, "--recipe", "demo"]
    training += ["--epochs", str(epochs)] if epochs else []

    made = [["fixtures.prepare_data", "--demo", "--target", str(data), "--num-images", str(images)]]
    made[0] += ["--seed", "1", "--split"]
    for (name, seed), place in trained.items():
        made.append([f"{SIDES[name]}.train", *training, "--seed", str(seed), "--output-dir", str(place)])
    for (name, seed), place in tested.items():
        weights = str(trained[name, seed] / WEIGHTS)
        # Speed and memory do not depend on the seed.
        sizes = ["--memory-batches", "1,2,4"] if seed == 0 else ["--memory-batches", "1", "--speed-batches", "1"]
        made.append([f"{SIDES[name]}.test", "--weights", weights, "--data", yaml, *sizes, "--output-dir", str(place)])

    layers = folder / "layers"
    what = ["--config", CONFIG, "--num-classes", str(CLASSES), "--image-size", str(SIDE)]
    what += ["--weights", str(trained["torch", 0] / WEIGHTS), "--images", str(data / "images" / "val")]
    made.append(["alignment_tests", *what, "--output-dir", str(layers)])
    made.append(["alignment_tests.compare"])
    for name in SIDES:
        made[-1] += [f"--{name}", *(str(places[run]) for places in (trained, tested) for run in RUNS if run[0] == name)]
    made[-1] += ["--layers", str(layers / REPORT), "--lang", language, "--output-dir", str(folder / "comparison")]
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m alignment_tests.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("experiments/demo"), help="(default: %(default)s)")
    parser.add_argument("--num-images", type=positive, default=128, help="images to draw (default: %(default)s)")
    parser.add_argument("--epochs", type=positive, help="default: those of the recipe `demo`")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="of the comparison")
    options = parser.parse_args(arguments)
    folder = options.output_dir
    if (folder / "comparison").exists() or (folder / "torch_train_0").exists():
        return fail(f"`--output-dir` holds a demo already: {folder}. Remove it, or name another folder")
    code = 0
    for words in commands(folder, options.num_images, options.epochs, options.lang):
        start = time.perf_counter()
        print(f"\n$ python -m {' '.join(words)}", flush=True)
        code = subprocess.run([sys.executable, "-m", *words], check=False).returncode
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
        # Only the comparison may say "not proven": its page is what the demo is for.
        if code and words[0] != "alignment_tests.compare":
            return code
    print(f"\nOpen {folder / 'comparison' / 'alignment_summary.html'}")
    return 0 if code in (0, 1) else code


if __name__ == "__main__":
    sys.exit(main())
