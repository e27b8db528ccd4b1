"""A report as plain data: every row in execution order, the first divergence, the ledger, both environments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.compare import Comparison

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One named array in one precision.

    ``accumulated``: the whole network ran. ``isolated``: this module alone, fed with the reference's recorded inputs
    (None for arrays that no module call makes: inputs, parameters, buffers). ``verdict`` is "pass", "fail",
    "excused" or "known"; ``reason`` says why in words.
    """

    name: str  # phase/module.path#call/slot
    index: int  # execution order of the reference
    phase: str
    module: str  # module path, "" for the root
    kind: str  # the reference's class name
    precision: str  # float32 or float64
    verdict: str
    reason: str
    accumulated: Comparison | None = None
    isolated: Comparison | None = None
    step: int | None = None  # of a training run: the step whose figures these are, the worst one


@dataclass(frozen=True)
class Divergence:
    """The module to blame: the deepest one whose isolated error is over budget, see ``judge.localise``."""

    name: str
    module: str
    kind: str
    precision: str
    reason: str
    repro: str | None = None  # folder with inputs, weights, both outputs and repro.py
    reference_line: str | None = None  # model.py:83  F.gelu(x, approximate="tanh")
    candidate_line: str | None = None
    arguments: tuple[str, ...] = ()  # the constructors of both, where one of them is a stock layer
    differences: tuple[str, ...] = ()  # in words: "eps: 1e-05 | 0.001", the reference's on the left

    @property
    def details(self) -> list[tuple[str, str]]:
        """What is known beyond the module: a label, and what stands there."""
        words = ("reference's line", self.reference_line), ("candidate's line", self.candidate_line)
        found = [(label, line) for label, line in words if line is not None]
        if self.arguments:
            found.append(("arguments", " | ".join(self.arguments)))
        return found + [("differs", text) for text in self.differences]


@dataclass(frozen=True)
class Known:
    """A layer or function of Jittor's own that differs from PyTorch's, as this very run has shown."""

    operator: str  # jittor.nn.BatchNorm
    places: tuple[str, ...]  # module paths, or file and line of the calls
    size: float  # the largest difference, in units of the scale
    precision: str  # in which it was found


@dataclass(frozen=True)
class Coverage:
    """The ledger: every name of either side is compared, or excused by name with a reason, or missing (a failure)."""

    compared: dict[str, int]  # phase -> names compared
    excused: dict[str, str]  # name -> reason
    missing: tuple[str, ...]  # in the reference only
    unexpected: tuple[str, ...]  # in the candidate only


@dataclass(frozen=True)
class Detail:
    """What plots of one row need: error by magnitude, and where in the image the error lies."""

    name: str
    precision: str
    magnitudes: tuple[float, ...]  # bin centres of |oracle|
    candidate_errors: tuple[float, ...]  # largest |candidate - oracle| in each bin
    reference_errors: tuple[float, ...]
    error_map: tuple[tuple[float, ...], ...]  # (rows, columns), largest error over batch and channels; empty if not 4-d


@dataclass(frozen=True)
class Report:
    """Outcome of one comparison. ``rows`` are in execution order, float64 and float32 rows of a name side by side."""

    title: str
    rows: tuple[Row, ...]
    coverage: Coverage
    first_divergence: Divergence | None
    budget: Budget
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, dict[str, Any]] = field(default_factory=dict)  # "reference", "candidate", "harness"
    details: tuple[Detail, ...] = ()
    checks: dict[str, str] = field(default_factory=dict)  # other facts that were proven, and failures: "FAIL: ..."
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)  # of a training run: name -> a value per step
    known: tuple[Known, ...] = ()  # Jittor's own operators behind the rows that are known
    strict: bool = False  # whether these count as faults

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == "fail"]

    @property
    def compared(self) -> bool:
        """Whether anything was; arrays that are empty on both sides are equal and no evidence."""
        return any(c is not None and (c.elements or not c.passed) for c in (row.accumulated for row in self.rows))

    @property
    def problems(self) -> list[str]:
        """Every reason, in words, why this report is not aligned; empty if it is."""
        found = []
        if not self.compared:
            found.append("nothing was compared")
        if self.first_divergence is not None:
            where = self.first_divergence
            known = ", ".join(word for word in (where.kind, where.precision) if word)  # a loss has no class
            found.append(f"first divergence at {where.name}{f' ({known})' if known else ''}: {where.reason}")
        if self.failures:
            found.append(f"{len(self.failures)} of {len(self.rows)} rows fail")
        if self.strict:
            found += [f"Jittor's own {known.operator} differs (strict)" for known in self.known]
        found += [f"missing in the candidate: {name}" for name in self.coverage.missing]
        found += [f"unexpected in the candidate: {name}" for name in self.coverage.unexpected]
        found += [f"{name}: {fact}" for name, fact in self.checks.items() if fact.startswith("FAIL")]
        return found

    @property
    def aligned(self) -> bool:
        """True only if something was compared and nothing failed, is missing or unexpected."""
        return not self.problems

    def raise_if_diverged(self) -> None:
        """Raise AssertionError with the first problems, first divergence on top."""
        problems = self.problems
        if problems:
            shown = problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])
            blamed = self.first_divergence
            known = [] if blamed is None else [f"  {label}: {text}" for label, text in blamed.details]
            worst = [f"  {row.name} [{row.precision}]: {row.reason}" for row in self.failures[:5]]
            raise AssertionError("\n".join([f"{self.title}: not aligned", shown[0], *known, *shown[1:], *worst]))

    def to_json(self) -> dict[str, Any]:
        data = asdict(replace(self, rows=()))
        data["rows"] = [asdict(row) for row in self.rows]
        return {"format": FORMAT, "aligned": self.aligned, "problems": self.problems, **data}

    def save(self, folder: str | os.PathLike[str], *, baseline: str | os.PathLike[str] | None = None) -> Path:
        """Write report.json, report.html, summary.md and junit.xml to ``folder``; return the folder.

        Each file is written under a temporary name and renamed. ``baseline`` is an older report.json; the page and the
        summary then show the drift against it.

        Raises:
            ValueError: ``baseline`` is no report.json.
        """
        older = None if baseline is None else load_report_json(Path(baseline))
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for write in WRITERS:
            write(self, target, older)
        return target


# What `Report.save` calls. harness.report.write puts itself here, so that judging need not know how a report is shown.
WRITERS: list[Callable[[Report, Path, dict[str, Any] | None], None]] = []


def load_report_json(path: Path) -> dict[str, Any]:
    """Read a report.json and check that it is one.

    Raises:
        ValueError: the file is no report of this format.
    """
    if not path.is_file():
        raise ValueError(f"`baseline` must be a report.json. Received: {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`baseline` must be a report.json. Received: {path}, which is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or "rows" not in data:
        raise ValueError(f"`baseline` must be a report.json of format {FORMAT}. Received: {path}")
    return data
