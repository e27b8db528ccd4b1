"""The renderings of a report: page, terminal table, Markdown, JUnit, drift. All reports here are synthetic."""

from __future__ import annotations

import io
import json
import math
import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, Budget
from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.judge.report import Coverage, Detail, Divergence, Report, Row
from alignment_tests.harness.report import figures, html, junit, terminal
from alignment_tests.harness.report.markdown import summary_markdown
from alignment_tests.harness.report.plots import depth, ratios, steps

HOSTILE = """neck.<b>&"x'</script><script>alert(1)</script>|`$a_b$`.卷积层"""
CONTROL = "detect.\x00\x1b\ud800stem"


def comparison(error: float | None, precision: str, scale: float = 2.0, own: float = 2e-7, **fields: Any) -> Comparison:
    """What the comparator would say of this error, judged by the default budget."""
    single = precision == "float32"
    allowed = DEFAULT_BUDGET.allowed(precision, own, scale)
    passed = error is not None and error <= allowed
    numbers: dict[str, Any] = {}
    if error is not None:
        tolerance = error / scale if scale else None
        numbers = {"max_abs_error": error, "smallest_tolerance": tolerance, "rmse": error / 4, "cosine": 1.0}
        numbers |= {"worst_index": (0, 3, 1, 2), "worst_actual": 0.1, "worst_expected": 0.2, "max_ulp": 3.0}
        numbers |= {"reference_error": own, "ratio": error / own} if single else {}
    reason = "within budget" if passed else "NaN in the candidate" if error is None else "beyond budget"
    shape = (1, 8, 4, 4)
    return Comparison(passed, reason, shape, precision, 128, **{"scale": scale, "budget": allowed, **numbers, **fields})


def rows_of(module: str, index: int, errors: dict[str, float | None], **fields: Any) -> list[Row]:
    """Rows of one activation, isolated error as accumulated."""
    found = []
    for precision, error in errors.items():
        c = comparison(error, precision)
        name, verdict = f"activation/{module}#0/0", "pass" if c.passed else "fail"
        row = Row(name, index, "activation", module, "Conv2d", precision, verdict, c.reason, c, c)
        found.append(replace(row, **fields))
    return found


GOOD: dict[str, float | None] = {"float64": 3e-16, "float32": 1.5e-7}
BAD: dict[str, float | None] = {"float64": 1e-3, "float32": 1e-3}


def report_of(rows: list[Row], **fields: Any) -> Report:
    coverage = Coverage({"activation": len(rows)}, {"buffer/bn.num_batches_tracked": "Jittor keeps none"}, (), ())
    settings = {"batch_size": 2, "phases": ("activation",), "nested": {"seed": 0}}
    environment = {"reference": {"torch": "2.15.0"}, "candidate": {"jittor": "1.3.11.0"}}
    checks = {"hooks change nothing": "bitwise equal"}
    defaults: dict[str, Any] = {"first_divergence": None, "budget": DEFAULT_BUDGET, "checks": checks}
    defaults |= {"coverage": coverage, "settings": settings, "environment": environment}
    return Report(fields.pop("title", "two small models"), tuple(rows), **{**defaults, **fields})


def detail(name: str) -> Detail:
    return Detail(
        name, "float32", (0.0, 0.1, 1.0), (0.0, 2e-8, 1e-7), (1e-9, 1e-8, 9e-8), ((0.0, 1e-7), (math.nan, 2e-8))
    )


def modules(count: int, errors: dict[str, float | None]) -> list[Row]:
    parts = ("backbone", "neck", "detect")
    return [row for i in range(count) for row in rows_of(f"{parts[3 * i // count]}.block.{i}.conv", i, errors)]


INFORMS = "informs only, since float32 gradients pass kinks: 3 of 128 elements beyond 1e-06 (step 2)"
CURVES = {
    "loss, reference float64": (4.0, 3.0, 2.5),
    "loss, reference float32": (4.0, 3.0, 2.5),
    "drift, reference float32": (1e-6, 3e-6, 2e-6),
    "loss, candidate float64": (4.0, 3.0, 2.5),
    "drift, candidate float64": (0.0, 1e-14, 1e-13),
    "loss, candidate float32": (4.0, 3.0, 2.5),
    "drift, candidate float32": (2e-6, 4e-6, 1e-5),
}


def training_rows() -> list[Row]:
    """A row of each phase in each precision. Gradients by inputs and by the loss's inputs come from modules alone."""
    names = {
        "activation/backbone.stem#0/0": "backbone.stem",
        "buffer/neck.bn.running_mean": "neck.bn",
        "assignment/anchored.foreground": "anchored",
        "loss/total": "",
        "grad_activation/loss#0/0": "loss",
        "grad_activation/backbone.stem#0/args.0": "backbone.stem",
        "grad_parameter/backbone.stem.weight": "backbone.stem",
        "momentum/first/detect.conv.weight": "detect.conv",
        "parameter/backbone.stem.weight": "backbone.stem",
        "parameter/detect.proj": "detect",
        "ema/neck.bn.weight": "neck.bn",
    }
    found = []
    for index, (name, module) in enumerate(names.items()):
        for precision, error in GOOD.items():
            c, phase = comparison(error, precision), name.split("/")[0]
            alone = phase == "grad_activation"
            row = Row(name, index, phase, module, "", precision, "pass", f"{c.reason} (step 2)", c, None, 2)
            found.append(replace(row, accumulated=None, isolated=c) if alone else row)
    kink = comparison(1e-3, "float32")
    return [
        replace(row, accumulated=kink, reason=INFORMS)
        if row.phase == "grad_parameter" and row.precision == "float32"
        else row
        for row in found
    ]


def training_report(**fields: Any) -> Report:
    compared = {"grad_parameter": 1, "parameter": 2, "activation": 1, "ema": 1, "loss": 1}
    facts = {"free-running (float32)": "drift 1e-05 of the way after 3 steps"}
    defaults = {"coverage": Coverage(compared, {}, (), ()), "curves": CURVES, "checks": facts}
    return report_of(fields.pop("rows", training_rows()), **{**defaults, **fields})


def wrong_backward() -> Report:
    """The gradient by a module's input fails, alone."""
    rows = training_rows()
    wrong = comparison(1e-3, "float64")
    place = next(i for i, row in enumerate(rows) if row.name.endswith("args.0"))
    rows[place] = replace(
        rows[place], verdict="fail", isolated=wrong, reason="isolated: beyond budget (step 1)", step=1
    )
    blamed = Divergence(rows[place].name, "backbone.stem", "", "float64", "isolated: beyond budget")
    drift = {"drift, candidate float32": (2e-6, 4e-4, math.inf)}
    return training_report(rows=rows, first_divergence=blamed, curves={**CURVES, **drift})


@cache
def sample(kind: str) -> Report:
    good = modules(6, GOOD)
    bad = rows_of("neck.bad.bn", 6, BAD)
    blamed = Divergence(bad[0].name, "neck.bad.bn", "BatchNorm2d", "float64", "beyond budget", "reports/repro")
    lost = rows_of("neck.lost", 7, {"float64": None, "float32": None})
    odd = rows_of(HOSTILE, 6, GOOD) + rows_of(CONTROL, 7, GOOD)
    nothing = rows_of("gone", 0, {"float32": 0.0}, accumulated=None, isolated=None, verdict="excused", reason="no pair")
    infinite = replace(good[0], accumulated=comparison(math.inf, "float32", ratio=math.inf), verdict="fail")
    zero = replace(good[0], accumulated=comparison(0.0, "float64", scale=0.0), isolated=None)
    unmatched = Coverage({"activation": 12}, {}, ("activation/a#0/0",), ("activation/b#0/0",))
    details = tuple(detail(row.name) for row in (good[1], odd[1], odd[3]))
    made = {
        "aligned": lambda: report_of(good),
        "diverged": lambda: report_of(good + bad, first_divergence=blamed),
        "nan": lambda: report_of([*good, *lost, infinite, zero]),
        "odd names": lambda: report_of(good + odd, title=HOSTILE, checks={HOSTILE: CONTROL}, details=details),
        "empty": lambda: report_of([], coverage=Coverage({}, {}, (), ()), settings={}, environment={}, checks={}),
        "not compared": lambda: report_of(nothing),
        "unmatched": lambda: report_of(good, coverage=unmatched),
        "failed check": lambda: report_of(good, checks={"hooks": "FAIL: outputs differ"}),
        "single": lambda: report_of(rows_of("only", 0, {"float32": 1e-7})),
        "long": lambda: report_of(modules(1250, GOOD)),
        "training": training_report,
        "wrong backward": wrong_backward,
    }
    return made[kind]()


KINDS = [
    "aligned", "diverged", "nan", "odd names", "empty", "not compared", "unmatched", "failed check", "single", "long",
    "training", "wrong backward",
]  # fmt: skip
ALIGNED = ["aligned", "odd names", "single", "long", "training"]
DRAWN = ["odd names", "nan", "wrong backward"]
FAILING = [kind for kind in KINDS if kind not in ALIGNED]


def stored(report: Report) -> dict[str, Any]:
    return json.loads(json.dumps(report.to_json()))


@cache
def page(kind: str, lang: str = "en") -> str:
    baseline = stored(sample("aligned")) if kind == "diverged" else None
    drawn = ratios.all_plots(sample(kind)) if kind in DRAWN else []  # drawing takes a second; the rest of the page none
    with mock.patch.object(html, "all_plots", return_value=drawn):
        return html.report_page(sample(kind), baseline, lang=lang)


def printed(report: Report, width: int = 160, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.print_report(report, console=console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


class Reader(HTMLParser):
    """Collects the tags with attributes and the text of scripts and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass


def page_data(kind: str) -> dict[str, Any]:
    return json.loads(Reader(page(kind)).texts["script"][0])


# ---- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_page_refers_to_nothing_outside(kind: str) -> None:
    tags = Reader(page(kind)).tags
    links = [value or "" for _, attrs in tags for key, value in attrs.items() if key in ("src", "href", "action")]
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links)
    assert not re.search(r"@import|url\(|<link|<iframe", page(kind))
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", page(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_page_holds_every_row(kind: str) -> None:
    assert [row["name"] for row in page_data(kind)["rows"]] == [row.name for row in sample(kind).rows]


@pytest.mark.parametrize("kind", KINDS)
def test_page_has_only_its_own_scripts(kind: str) -> None:
    assert len(Reader(page(kind)).texts["script"]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_page_can_be_written_as_utf8(kind: str) -> None:
    assert "\x00" not in page(kind).encode().decode()


@pytest.mark.parametrize("kind", KINDS)
def test_page_keeps_its_structure(kind: str) -> None:
    identifiers = [attrs["id"] for tag, attrs in Reader(page(kind)).tags if tag == "section" and "id" in attrs]
    wanted = ["divergence", *["drift"] * (kind == "diverged"), "plots", "rows"]
    assert identifiers == [*wanted, "parts", "coverage", "checks", "budget", "environment"]


def test_page_escapes_names_in_its_data() -> None:
    text = html.safe_json({"name": "</script><!--&\u2028卷"})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"name": "</script><!--&\u2028卷"}


def test_page_data_has_no_bare_nan() -> None:
    assert html.safe_json([math.nan, math.inf, -math.inf, 1.0]) == '["NaN","Infinity","-Infinity",1.0]'


def test_page_shows_the_first_divergence_before_the_plots() -> None:
    text = page("diverged")
    assert text.index("neck.bad.bn") < text.index('id="plots"')


def test_page_tells_readers_without_scripts_where_to_look() -> None:
    assert "<noscript>" in page("aligned")


def test_page_warns_when_formulas_are_not_proven() -> None:
    assert "no float64 rows" in page("single")


def test_chinese_page_has_chinese_headings() -> None:
    headings = Reader(page("diverged", "zh")).texts["h2"]
    assert all(re.search("[\u4e00-\u9fff]", heading) for heading in headings)


def test_both_languages_say_the_same_things() -> None:
    english, chinese = html.language("en"), html.language("zh")
    assert list(english) == list(chinese)
    fields = [{key: re.findall("{.*?}", words[key]) for key in words} for words in (english, chinese)]
    assert {key: sorted(set(f)) for key, f in fields[0].items()} == {
        key: sorted(set(f)) for key, f in fields[1].items()
    }


def test_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="en, zh"):
        html.report_page(sample("empty"), lang="fr")


def test_a_long_page_is_made_in_seconds() -> None:
    start = time.perf_counter()
    html.report_page(sample("long"))
    assert time.perf_counter() - start < 30


# ---- the verdict -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_is_what_it_says(kind: str) -> None:
    assert sample(kind).aligned == (kind in ALIGNED)


@pytest.mark.parametrize("kind", FAILING)
def test_no_heading_calls_a_failing_report_aligned(kind: str) -> None:
    headings = [
        *Reader(page(kind)).texts["h1"],
        *Reader(page(kind)).texts["title"],
        summary_markdown(sample(kind)).splitlines()[0],
        printed(sample(kind)).splitlines()[0],
        html.language("zh")[figures.state(sample(kind))],
    ]
    assert not [text for text in headings if re.search(r"\baligned\b|已对齐", text, re.IGNORECASE)]


@pytest.mark.parametrize("kind", ALIGNED)
def test_every_rendering_calls_a_good_report_aligned(kind: str) -> None:
    assert "Aligned" in "".join(Reader(page(kind)).texts["h1"])
    assert summary_markdown(sample(kind)).splitlines()[0].endswith(": ALIGNED")
    assert "ALIGNED" in printed(sample(kind))


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("diverged", "diverged"),
        ("nan", "diverged"),
        ("empty", "empty"),
        ("not compared", "empty"),
        ("unmatched", "incomplete"),
        ("failed check", "incomplete"),
    ],
)
def test_a_failing_report_says_how_it_fails(kind: str, state: str) -> None:
    assert figures.state(sample(kind)) == state


# ---- JUnit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_junit_counts_equal_its_cases(kind: str) -> None:
    for suite in ET.fromstring(junit.junit_xml(sample(kind)).encode()):
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
        assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
        assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))


@pytest.mark.parametrize("kind", KINDS)
def test_junit_has_one_case_per_row(kind: str) -> None:
    suite = ET.fromstring(junit.junit_xml(sample(kind)).encode())[0]
    assert len(suite) == len(sample(kind).rows)
    assert len(suite.findall("testcase/failure")) == len(sample(kind).failures)


@pytest.mark.parametrize("kind", KINDS)
def test_junit_is_green_only_if_aligned(kind: str) -> None:
    root = ET.fromstring(junit.junit_xml(sample(kind)).encode())
    assert (root.attrib["failures"] == "0") == sample(kind).aligned


def test_junit_keeps_hostile_names() -> None:
    suite = ET.fromstring(junit.junit_xml(sample("odd names")).encode())[0]
    assert f"activation/{HOSTILE}#0/0 [float32]" in [case.attrib["name"] for case in suite]


def test_junit_case_carries_its_numbers() -> None:
    case = ET.fromstring(junit.junit_xml(sample("aligned"), stored(sample("aligned"))).encode())[0][1]
    found = {p.attrib["name"]: p.attrib["value"] for p in case.findall("properties/property")}
    wanted = {"max_abs_error": "1.5e-07", "scale": "2", "ratio": "0.75", "isolated": "1.5e-07", "drift": "1x"}
    assert found | wanted | {"smallest_tolerance": "7.5e-08", "verdict": "pass"} == found
    assert case.attrib["classname"] == "backbone.block.0.conv"


# ---- Markdown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_tables_have_even_rows(kind: str) -> None:
    text = summary_markdown(sample(kind), stored(sample("diverged")))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("words", ["DIVERGED", "neck.bad.bn", "reports/repro", "50 %", "above 16", "Jittor keeps none"])
def test_markdown_tells(words: str) -> None:
    assert words in summary_markdown(sample("diverged"))


def test_markdown_of_hostile_names_holds_no_markup() -> None:
    assert "<script>" not in summary_markdown(sample("odd names"))


def test_markdown_stays_below_the_limit_of_a_build_page() -> None:
    names = tuple(f"activation/backbone.block.{i}#0/0" for i in range(5000))
    report = replace(sample("long"), coverage=Coverage({}, dict.fromkeys(names, "why"), names, names))
    assert len(summary_markdown(report).encode()) < 100_000


# ---- terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [80, 160])
def test_terminal_lines_fit(kind: str, width: int) -> None:
    assert max(len(line) for line in printed(sample(kind), width).splitlines()) <= width


def test_terminal_says_how_many_rows_are_hidden() -> None:
    assert "2485 of 2500 rows hidden, 0 of them failing: out/report.html" in printed(sample("long"), folder="out")


def test_terminal_shows_short_reports_whole() -> None:
    text = printed(sample("aligned"))
    assert "hidden" not in text
    assert text.count("Conv2d") == len(sample("aligned").rows)


def test_terminal_limit_keeps_failing_rows() -> None:
    text = printed(sample("diverged"), limit=2)
    assert text.count("neck.bad.bn#0/0") == 3  # in the headline, and a row in each precision
    assert "12 of 14 rows hidden, 0 of them failing" in text


def test_terminal_gets_no_control_characters() -> None:
    assert not re.search(r"[\x00\x1b\ud800]", printed(sample("odd names")))


def test_terminal_takes_brackets_as_text() -> None:
    report = report_of(rows_of("neck[bold].x", 0, GOOD), title="[red]title[/]")
    assert "neck[bold].x" in printed(report)
    assert "[red]title[/]" in printed(report)


# ---- drift -------------------------------------------------------------------------------------------------------


def drift_from(errors: dict[str, float | None], then: dict[str, float | None] = GOOD, **fields: Any) -> figures.Drift:
    old, new = report_of(rows_of("a", 0, then)), report_of(rows_of("a", 0, errors), **fields)
    return figures.drift(new, stored(old))


def test_nothing_drifts_from_itself() -> None:
    found = figures.drift(sample("aligned"), stored(sample("aligned")))
    assert (found.worse, found.verdicts, found.added, found.removed, found.context) == ((), (), (), (), ())
    assert set(found.factors.values()) == {1.0}


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [(3e-7, 7e-7, True), (3e-7, 5e-7, False), (1e-12, 2e-7, False), (0.0, 7e-7, True), (7e-7, 1e-7, False)],
    ids=["grown", "grown a little", "below one rounding", "from zero", "shrunk"],
)
def test_drift_finds_errors_that_grew(before: float, after: float, worse: bool) -> None:
    found = drift_from({"float32": after}, {"float32": before})
    assert bool(found.worse) == worse


def test_drift_finds_an_isolated_error_that_grew() -> None:
    row = rows_of("a", 0, {"float32": 3e-7})[0]
    grown = replace(row, isolated=comparison(7e-7, "float32"))
    assert [c.measure for c in figures.drift(report_of([grown]), stored(report_of([row]))).worse] == ["isolated"]


@pytest.mark.parametrize(("before", "after"), [(GOOD, BAD), (BAD, GOOD), (GOOD, {"float64": None, "float32": None})])
def test_drift_finds_changed_verdicts(before: dict[str, float | None], after: dict[str, float | None]) -> None:
    found = drift_from(after, before)
    assert (len(found.verdicts), found.worse) == (2, ())


def test_drift_finds_rows_that_came_and_went() -> None:
    found = figures.drift(report_of(rows_of("new", 0, {"float32": 0.0})), stored(report_of(rows_of("old", 0, GOOD))))
    assert found.added == ("activation/new#0/0 [float32]",)
    assert found.removed == ("activation/old#0/0 [float64]", "activation/old#0/0 [float32]")


def test_drift_finds_a_loosened_budget() -> None:
    assert "budget.k: 16.0 -> 8.0" in drift_from(GOOD, budget=Budget(k=8.0)).context


def test_drift_finds_another_environment() -> None:
    found = drift_from(GOOD, environment={"reference": {"torch": "2.16.0"}, "candidate": {"jittor": "1.3.11.0"}})
    assert found.context == ("environment.reference.torch: 2.15.0 -> 2.16.0",)


@pytest.mark.parametrize("kind", KINDS)
def test_drift_takes_every_report_as_baseline(kind: str) -> None:
    assert figures.drift(sample("aligned"), stored(sample(kind))).shared <= len(sample("aligned").rows)


def test_drift_is_reported_in_page_and_markdown() -> None:
    report, baseline = report_of(rows_of("a.b", 0, BAD)), stored(report_of(rows_of("a.b", 0, GOOD)))
    assert "| pass -> fail |" in summary_markdown(report, baseline)
    assert 'pass → <span class="v fail">' in html.report_page(report, baseline)


# ---- numbers and plots -------------------------------------------------------------------------------------------


def test_parts_are_in_execution_order() -> None:
    assert [part.name for part in figures.parts(sample("diverged"))] == ["backbone", "neck", "detect"]


def test_ratio_distribution_counts_shares_above_each_limit() -> None:
    rows = [row for i, r in enumerate((0.5, 1.5, 2.5, 5.0)) for row in rows_of(f"m{i}", i, {"float32": r * 2e-7})]
    found = figures.ratios(report_of(rows), "accumulated")
    assert found.above == {"1": 0.75, "2": 0.5, "3": 0.25, "16": 0.0}
    assert found.quantiles["max"] == pytest.approx(5.0)


def test_rows_that_fail_without_a_number_rank_first() -> None:
    assert figures.worst_rows(sample("nan"), 1)[0].verdict == "fail"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (math.nan, "nan"), (math.inf, "inf"), (0.0, "0"), (1.23456e-7, "1.23e-07")]
)
def test_numbers_are_reported(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("odd names", ["depth", "ratios", "magnitude", "maps"]),
        ("long", ["depth", "ratios"]),
        ("single", ["depth", "ratios"]),
        ("empty", []),
        ("not compared", []),
    ],
)
def test_plots_are_drawn_where_there_are_numbers(kind: str, keys: list[str]) -> None:
    assert [plot.key for plot in ratios.all_plots(sample(kind))] == keys


def test_plots_of_hostile_names_are_valid_svg() -> None:
    for plot in ratios.all_plots(sample("odd names")):
        assert ET.fromstring(plot.svg.encode()).tag.endswith("svg")


def test_an_excused_row_is_not_called_within_budget() -> None:
    excused = rows_of("b", 1, {"float32": None}, accumulated=None, isolated=None, verdict="excused")
    report = report_of(rows_of("a", 0, GOOD) + excused)
    assert "2 rows are within their budget, 1 excused" in html.report_page(report)


@pytest.mark.parametrize("error", [0.0, 1e-320, 1e300, math.inf, math.nan])
def test_depth_plot_takes_any_number(error: float) -> None:
    rows = [row for i, e in enumerate((error, 1e-7)) for row in rows_of(f"m{i}", i, {"float32": e, "float64": e})]
    plot = depth.error_along_depth(report_of(rows))
    assert plot is not None
    ET.fromstring(plot.svg)


def test_depth_plot_says_where_zeros_are_drawn() -> None:
    plot = depth.error_along_depth(report_of(rows_of("a", 0, {"float64": 0.0, "float32": 1e-7})))
    assert plot is not None
    assert "exact zeros are drawn on the lowest line" in plot.svg


def test_depth_plot_marks_the_first_divergence() -> None:
    plot = depth.error_along_depth(sample("diverged"))
    assert plot is not None
    assert "first divergence: neck.bad.bn" in plot.svg


def test_magnitude_plot_takes_an_exact_candidate() -> None:
    exact = Detail("activation/a#0/0", "float64", (0.1, 1.0), (0.0, 0.0), (0.0, 0.0), ())
    plot = ratios.error_against_magnitude(report_of([], details=(exact,)))
    assert plot is not None
    ET.fromstring(plot.svg)


# ---- training ----------------------------------------------------------------------------------------------------


def row_named(report: Report, name: str, precision: str = "float32") -> Row:
    return next(row for row in report.rows if (row.name, row.precision) == (name, precision))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("assignment/anchored.foreground", "(assignment)"),
        ("loss/total", "(loss)"),
        ("grad_activation/loss#0/0", "(loss)"),
        ("grad_activation/backbone.stem#0/args.0", "backbone"),
        ("grad_parameter/backbone.stem.weight", "backbone"),
        ("momentum/first/detect.conv.weight", "detect"),
        ("ema/neck.bn.weight", "neck"),
    ],
)
def test_rows_of_training_fall_under_their_part(name: str, part: str) -> None:
    assert figures.part_of(row_named(sample("training"), name)) == part


def test_phases_stand_in_causal_order() -> None:
    wanted = ["activation", "loss", "grad_parameter", "parameter", "ema"]
    assert list(figures.ledger(sample("training"))) == wanted
    assert [phase for phase in page_data("training")["phases"] if phase in wanted] == wanted
    assert figures.in_order(["ema", "input", "loss", "prediction"]) == ["input", "prediction", "loss", "ema"]


def test_a_gradient_that_informs_only_is_no_part_of_the_verdict() -> None:
    row = row_named(sample("training"), "grad_parameter/backbone.stem.weight")
    assert figures.informing(sample("training")) == [row]
    assert figures.budget_used(row) is None
    assert row not in figures.worst_rows(sample("training"), 99)
    assert [part.worst_ratio for part in figures.parts(sample("training")) if part.name == "backbone"] == [0.75]


def test_gradients_of_whole_passes_have_their_own_distribution() -> None:
    spreads = {measure: figures.ratios(sample("training"), measure) for measure in figures.MEASURES}
    assert {measure: spread.count for measure, spread in spreads.items()} == {
        "accumulated": 8, "isolated": 2, "gradients": 1,
    }  # fmt: skip
    assert spreads["gradients"].quantiles["max"] == 5000.0


def test_rows_with_only_an_isolated_comparison_are_judged_and_shown() -> None:
    row = row_named(sample("wrong backward"), "grad_activation/backbone.stem#0/args.0", "float64")
    assert figures.worst_rows(sample("wrong backward"), 1) == [row]
    data = page_data("wrong backward")["rows"][sample("wrong backward").rows.index(row)]
    assert data["accumulated"] is None
    assert data["isolated"] is not None
    assert data["used"] > 1
    passing = row_named(sample("training"), row.name)
    assert passing in figures.worst_rows(sample("training"), 99)
    assert figures.parts(report_of([replace(passing, precision="float64")]))[0].worst_float64 == 7.5e-08


def test_every_rendering_tells_the_step() -> None:
    assert {row["step"] for row in page_data("training")["rows"]} == {2}
    assert "┃ bits ┃ step ┃" in printed(sample("training"))
    assert "| precision | step |" in summary_markdown(sample("training"))
    assert 'name="step" value="2"' in junit.junit_xml(sample("training"))


def test_reports_without_steps_show_no_step() -> None:
    report = sample("aligned")
    for text in (summary_markdown(report), junit.junit_xml(report), printed(report)):
        assert not re.search(r"\bstep\b", text)
    assert not page_data("aligned")["training"]


def test_the_ledger_tells_whose_gradients_were_compared() -> None:
    assert figures.gradients(sample("training")) == figures.Gradients(1, 1, ("detect.proj",))
    assert "Gradients were compared by 1 of 1 trained parameters." in page("training")
    assert "Gradients: by 1 of 1 trained parameters." in summary_markdown(sample("training"))
    assert figures.gradients(sample("aligned")) is None


def test_a_gradient_that_the_candidate_lacks_is_counted() -> None:
    rows = [row for row in training_rows() if row.phase != "grad_parameter"]
    lost = Coverage({"parameter": 2}, {}, ("grad_parameter/backbone.stem.weight",), ())
    report = training_report(rows=rows, coverage=lost)
    assert figures.gradients(report) == figures.Gradients(1, 0, ("detect.proj",))
    assert "0 of 1 trained parameters" in junit.junit_xml(report)


def test_markdown_has_a_row_per_step() -> None:
    text = summary_markdown(sample("training"))
    assert "## Per step" in text
    assert re.search(r"^\| 2 \| 2\.5 \|.*\| 1e-05 \|$", text, re.MULTILINE)


def test_the_steps_of_a_long_run_are_thinned() -> None:
    table = figures.curves(training_report(curves={"loss, reference float64": tuple(range(1000))}))
    assert table is not None
    assert (len(table.rows), table.rows[0][0], table.rows[-1][0]) == (figures.CURVE_ROWS, 0, 999)


def test_a_training_report_without_a_free_run_says_so() -> None:
    assert any("no free-running" in text for text in figures.caveats(training_report(curves={})))
    assert not any(
        "no free-running" in text for text in figures.caveats(sample("training")) + figures.caveats(sample("aligned"))
    )


def test_gradients_that_inform_only_do_not_drift() -> None:
    rows = training_rows()
    grown = [replace(row, accumulated=comparison(1e-1, "float32")) if row.reason == INFORMS else row for row in rows]
    assert figures.drift(training_report(rows=grown), stored(sample("training"))).worse == ()


def test_plots_by_step_are_drawn_only_of_training() -> None:
    assert steps.loss_by_step(sample("aligned")) is steps.drift_by_step(sample("aligned")) is None


def test_loss_plot_names_every_curve() -> None:
    plot = steps.loss_by_step(sample("training"))
    assert plot is not None
    assert all(f"{side} {kind}" in plot.svg for side in ("reference", "candidate") for kind in ("float64", "float32"))
    assert "reference float64 4 to 2.5" in plot.alt


def test_drift_plot_shows_every_run_and_what_is_no_number() -> None:
    good, bad = steps.drift_by_step(sample("training")), steps.drift_by_step(sample("wrong backward"))
    assert good is not None
    assert bad is not None
    assert all(name in good.svg for name in ("reference float32", "candidate float64", "candidate float32"))
    assert "exact zeros are drawn on the lowest line" in good.svg
    assert "0 points are not finite" in good.alt
    assert "not finite (1)" in bad.svg
    assert "1 points are not finite" in bad.alt


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_plots_by_step_take_curves_without_numbers(value: float) -> None:
    report = training_report(curves=dict.fromkeys(CURVES, (value,)))
    for plot in (steps.loss_by_step(report), steps.drift_by_step(report)):
        assert plot is not None
        ET.fromstring(plot.svg)
