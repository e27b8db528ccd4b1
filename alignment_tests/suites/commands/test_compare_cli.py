"""The command that compares runs, as a user types it: its files, its page, and one clear line for bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image

from alignment_tests.cases.run_records import (
    IMAGES,
    clean,
    command,
    draw_images,
    edit,
    evidence_of,
    harness_report,
    reported,
    write,
)
from alignment_tests.compare import main
from alignment_tests.comparison import accuracy, judge, page
from alignment_tests.comparison.evidence import gather
from alignment_tests.comparison.findings import THRESHOLDS
from alignment_tests.comparison.gallery import exhibits
from alignment_tests.suites.commands.test_compare_runs import PLANTED, SPEED

FILES = {
    "comparison_report.json",
    "training_curves_comparison.png",
    "performance_comparison.png",
    "alignment_summary.html",
}
SECTIONS = ["verdict", "environment", "model", "training", "accuracy", "speed", "memory", "gallery", "proofs"]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bootstrap: its thousand take most of the time and are tested with it."""
    monkeypatch.setattr(accuracy, "SAMPLES", 100)


# ---- the files ---------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags with attributes, headings and what stays open."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole comparison in each language, as a user makes it, with images and both reports of the harness."""
    root = tmp_path_factory.mktemp("made")
    draw_images(root)
    folders = write(clean(), root)
    proofs = [str(harness_report(root, steps=steps)) for steps in (False, True)]
    found = {}
    for lang in page.languages():
        found[lang] = root / lang
        more = ["--lang", lang, "--layers", proofs[0], "--steps", proofs[1], "--output_dir", str(found[lang])]
        assert main(command(folders, root, *more)) == 0
    return found


def text_of(folder: Path) -> str:
    return (folder / "alignment_summary.html").read_text(encoding="utf-8")


LANGUAGES = pytest.mark.parametrize("lang", ["en", "zh"])


@LANGUAGES
def test_the_four_files_are_written(lang: str, made: dict[str, Path]) -> None:
    assert {path.name for path in made[lang].iterdir()} == FILES


@LANGUAGES
def test_the_page_has_every_section(lang: str, made: dict[str, Path]) -> None:
    identifiers = [attrs["id"] for tag, attrs in Reader(text_of(made[lang])).tags if tag == "section"]
    assert identifiers == [*SECTIONS, "thresholds"]


@LANGUAGES
def test_the_page_closes_what_it_opens(lang: str, made: dict[str, Path]) -> None:
    assert Reader(text_of(made[lang])).open == []


def test_the_chinese_page_has_chinese_headings(made: dict[str, Path]) -> None:
    assert all(re.search("[\u4e00-\u9fff]", heading) for heading in Reader(text_of(made["zh"])).headings)


@LANGUAGES
def test_the_page_needs_nothing_from_outside(lang: str, made: dict[str, Path]) -> None:
    tags = Reader(text_of(made[lang])).tags
    sources = [str(attrs["src"]) for _, attrs in tags if "src" in attrs]
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in sources)
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe"}
    assert not re.search(r"@import|url\(|https?://", text_of(made[lang]))


@LANGUAGES
def test_the_page_shows_both_pictures_and_the_gallery(lang: str, made: dict[str, Path]) -> None:
    tags = [tag for tag, _ in Reader(text_of(made[lang])).tags]
    assert tags.count("img") == 2 + 2 * IMAGES


@LANGUAGES
def test_links_of_the_page_lead_somewhere(lang: str, made: dict[str, Path]) -> None:
    tags = Reader(text_of(made[lang])).tags
    links = {str(attrs["href"]) for tag, attrs in tags if tag == "a"}
    places = {f"#{attrs['id']}" for _, attrs in tags if "id" in attrs}
    assert {link for link in links if link.startswith("#")} <= places
    assert {link for link in links if not link.startswith("#")} == {"../layers.json", "../steps.json"}
    assert all((made[lang] / link).is_file() for link in links - places)


@LANGUAGES
def test_every_threshold_stands_once_with_its_reason(lang: str, made: dict[str, Path]) -> None:
    words = page.language(lang)
    for name, value in THRESHOLDS.items():
        reason = words[f"why_{name}"].format(value=f"{value:g}")
        assert text_of(made[lang]).count(reason) == 1


def test_a_verdict_without_reports_of_the_harness_says_so(tmp_path: Path) -> None:
    text = page.summary_page(reported(evidence_of(clean(), tmp_path)), {"training_curves": b"", "performance": b""}, [])
    assert "Not given: --layers, --steps." in text


def test_a_verdict_with_reports_of_the_harness_has_no_caveat(made: dict[str, Path]) -> None:
    assert "Not given" not in text_of(made["en"])


def test_pictures_can_be_opened(made: dict[str, Path]) -> None:
    for name in ("training_curves_comparison.png", "performance_comparison.png"):
        with Image.open(made["en"] / name) as picture:
            assert min(picture.size) > 1000


def test_the_report_is_strict_json(made: dict[str, Path]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads((made["en"] / "comparison_report.json").read_text(), parse_constant=refuse)
    assert report["verdict"] == "aligned"
    assert [finding["outcome"] for finding in report["findings"]] == ["holds"] * len(judge.CHECKS)


def test_both_languages_hold_the_same_strings() -> None:
    english, chinese = (page.language(lang) for lang in ("en", "zh"))
    fields = [
        {key: sorted(set(re.findall("{.*?}", text))) for key, text in words.items()} for words in (english, chinese)
    ]
    assert fields[0] == fields[1]


def test_every_finding_has_its_words() -> None:
    folder = Path(page.__file__).parent
    source = "\n".join((folder / name).read_text() for name in ("conditions.py", "results.py", "judge.py"))
    pairs = re.findall(r'(?:holds|against|unproven|note)\(\s*"(\w+)", "(\w+)"', source)
    assert len(pairs) > 40
    assert {f"{check}_{fact}" for check, fact in pairs} <= page.language("en").keys()
    assert {f"check_{check.__name__}" for check in judge.CHECKS} <= page.language("en").keys()


@pytest.mark.parametrize("name", [*PLANTED, *SPEED])
def test_every_planted_reason_has_a_sentence_in_both_languages(name: str, tmp_path: Path) -> None:
    lab = clean()
    (PLANTED | SPEED)[name][0](lab)
    evidence = evidence_of(lab, tmp_path)
    for lang in page.languages():
        report = reported(evidence, lang)
        text = page.summary_page(report, {"training_curves": b"", "performance": b""}, [], lang=lang)
        sentences = report["reasons"] or report["speed"]["findings"]
        assert sentences
        assert all(str(escape(one["text"])) in text for one in sentences)


def test_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="en, zh"):
        page.language("fr")


def test_names_are_escaped(tmp_path: Path) -> None:
    lab = clean()
    edit("test.environment.compiler", "<script>alert(1)</script>")(lab)
    text = page.summary_page(reported(evidence_of(lab, tmp_path)), {"training_curves": b"", "performance": b""}, [])
    assert "<script>" not in text


# ---- the command -------------------------------------------------------------------------------------------------


def test_a_refused_verdict_is_exit_code_1_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = clean()
    edit("training.steps.batch.7", "x")(lab)
    assert main(command(write(lab, tmp_path), tmp_path)) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("NOT ALIGNED\n")
    assert "step 7" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_detectors_that_found_nothing_still_give_a_page(tmp_path: Path) -> None:
    lab = clean()
    PLANTED["AP near zero on both"][0](lab)
    for side in lab.values():
        side["training"]["epochs"] = [{**epoch, "ap": 0.0, "ap50": 0.0} for epoch in side["training"]["epochs"]]
    assert main(command(write(lab, tmp_path), tmp_path)) == 1
    assert "near zero" in text_of(tmp_path / "out")


def test_images_without_names_are_found_in_sorted_order(tmp_path: Path) -> None:
    folders = write(clean(), tmp_path)
    draw_images(tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    content["images"] = [{key: entry[key] for key in ("id", "height", "width")} for entry in content["images"]]
    path.write_text(json.dumps(content))
    shown = exhibits(gather(folders["jittor"], folders["torch"]))
    assert {(one.image.image_id, one.name) for one in shown} == {(i, f"{i:03d}.png") for i in range(IMAGES)}


def test_almost_nothing_given_still_gives_a_page(tmp_path: Path) -> None:
    lab = clean()
    lab["jittor"].update(training=None)
    lab["torch"].update(test=None, detections=None)
    assert main(command(write(lab, tmp_path), tmp_path)) == 1
    assert "training_log.json" in text_of(tmp_path / "out")


def test_annotations_that_have_moved_can_be_given(tmp_path: Path) -> None:
    folders = write(clean(), tmp_path)
    moved = (tmp_path / "annotations.json").rename(tmp_path / "moved.json")
    evidence = gather(folders["jittor"], folders["torch"], annotations=moved)
    assert judge.judge(evidence).verdict == judge.ALIGNED


def test_no_framework_is_imported(tmp_path: Path) -> None:
    folders = write(clean(), tmp_path)
    code = (
        "import sys; from alignment_tests.compare import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'jittor', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command(folders, tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def damaged(name: str, change: Callable[[dict[str, Any]], None] | str) -> Callable[[Path], None]:
    """Change the content of one of Jittor's files, or replace its text."""

    def damage(root: Path) -> None:
        path = root / "jittor_0" / name
        if isinstance(change, str):
            path.write_text(change)
            return
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


LOG, RESULTS = "training_log.json", "test_results.json"
UNKNOWN_IMAGE = [{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]
BAD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no JSON": (damaged(LOG, "{"), "must be JSON"),
    "a list": (damaged(LOG, "[]"), "must hold an object"),
    "another format": (damaged(LOG, lambda r: r.update(format=2)), "`format` in"),
    "another kind": (damaged(RESULTS, lambda r: r.update(kind="training")), "`kind` in"),
    "the other framework": (damaged(LOG, lambda r: r.update(framework="pytorch")), "`framework` in"),
    "no steps": (damaged(LOG, lambda r: r.pop("steps")), "must have `steps`"),
    "steps of another type": (damaged(LOG, lambda r: r.update(steps=[])), "`steps` in"),
    "columns of unequal length": (damaged(LOG, lambda r: r["steps"]["total"].pop()), "columns of equal length"),
    "no batch column": (damaged(LOG, lambda r: r["steps"].pop("batch")), "must have `batch`"),
    "no seed": (damaged(LOG, lambda r: r["options"].pop("seed")), "must have `seed`"),
    "an epoch without losses": (damaged(LOG, lambda r: r["epochs"][2].pop("losses")), "epochs[2]"),
    "no parameters": (damaged(RESULTS, lambda r: r["model"].update(parameters=None)), "`parameters` in model"),
    "no weights": (damaged(RESULTS, lambda r: r.pop("weights")), "must have `weights`"),
    "speed without batch size": (damaged(RESULTS, lambda r: r["speed"][0].pop("batch_size")), "speed[0]"),
    "a loss that is text": (damaged(LOG, lambda r: r["steps"]["iou"].__setitem__(3, "low")), "`iou` in steps"),
    "an epoch's loss that is text": (damaged(LOG, lambda r: r["epochs"][0]["losses"].update(cls="x")), "`cls` in"),
    "AP that is text": (damaged(RESULTS, lambda r: r["accuracy"].update(ap="high")), "`ap` in accuracy"),
    "a latency that is text": (damaged(RESULTS, lambda r: r["speed"][1].update(latency_ms="x")), "`latency_ms` in"),
    "classes that are a list": (damaged(RESULTS, lambda r: r["accuracy"].update(per_class=[])), "`per_class` in"),
    "detections damaged": (damaged("detections.json", "{"), "must be a JSON file"),
    "detections of no image": (damaged("detections.json", json.dumps(UNKNOWN_IMAGE)), "image_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_and_exit_code_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = BAD_FILES[name]
    folders = write(clean(), tmp_path)
    damage(tmp_path)
    assert main(command(folders, tmp_path)) == 2
    check_one_line(capsys, message)
    assert not (tmp_path / "out").exists()


def check_one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "no such folder": (["--jittor", "nowhere"], "must name folders of runs"),
    "an empty folder": (["--torch", "empty"], "training_log.json or test_results.json"),
    "a folder twice": (["--jittor", "jittor_0", "jittor_0"], "each folder once"),
    "a seed twice": (["--torch", "torch_0", "copy"], "one training per seed"),
    "two tests of a training": (["--jittor", "jittor_0", "retest"], "one test per training"),
    "the sides swapped": (["--jittor", "torch_0"], "must be 'jittor'"),
    "no such annotations": (["--annotations", "nowhere.json"], "must be a COCO JSON"),
    "annotations of another kind": (["--annotations", "layers.json"], "must hold the lists"),
    "no such report": (["--layers", "nowhere.json"], "`--layers` must be a report.json"),
    "no report": (["--steps", "annotations.json"], "`--steps` must be a report.json"),
    "steps for layers": (["--layers", "steps.json"], "a report on training steps"),
    "layers for steps": (["--steps", "layers.json"], "a report on layers"),
    "output is a file": (["--output-dir", "annotations.json"], "must be a folder"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, message = BAD_OPTIONS[name]
    folders = write(clean(), tmp_path)
    for name_of_folder in ("empty", "copy", "retest"):
        (tmp_path / name_of_folder).mkdir()
    (tmp_path / "retest" / RESULTS).write_text((folders["jittor"][0] / RESULTS).read_text())
    (tmp_path / "copy" / LOG).write_text((folders["torch"][0] / LOG).read_text())
    for steps in (False, True):
        harness_report(tmp_path, steps=steps)
    monkeypatch.chdir(tmp_path)
    assert main([*command(folders, tmp_path), *options]) == 2
    check_one_line(capsys, message)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write(clean(), tmp_path)
    (tmp_path / "file").write_text("")
    assert main([*command(folders, tmp_path), "--output-dir", str(tmp_path / "file" / "out")]) == 2
    check_one_line(capsys, "file")
