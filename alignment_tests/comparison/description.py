"""What was run, in tables: runs, environment, options and configuration, and the model's counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment_tests.comparison.conditions import flat
from alignment_tests.comparison.evidence import Evidence
from alignment_tests.comparison.findings import FREE_OPTIONS
from alignment_tests.comparison.records import TORCH, Run, Side, Test, Training


def run_of(side: Side, run: Run) -> dict[str, Any]:
    return {
        "side": side.title,
        "kind": run.record["kind"],
        "folder": str(run.folder),
        "seed": run.seed if isinstance(run, Training) else None,
        "weights": run.weights if isinstance(run, Test) else None,
        "status": run.record.get("status"),
        "command": " ".join(map(str, run.record.get("command") or [])),
        "started": run.record.get("started"),
        "finished": run.record.get("finished"),
        "resumed": run.record.get("resumed") or [],
    }


def _main_runs(evidence: Evidence) -> dict[str, list[Run]]:
    """The training and the test of each side that stand for the side: those of the first pair, else the first."""
    main: dict[str, list[Run]] = {}
    for name, side in evidence.sides.items():
        training: list[Run] = [evidence.trainings[0].sides[name]] if evidence.trainings else list(side.trainings[:1])
        test: list[Run] = [evidence.tests[0].pair.sides[name]] if evidence.tests else list(side.tests[:1])
        main[name] = training + test
    return main


def subject_of(evidence: Evidence) -> dict[str, Any]:
    """What was trained and tested, in a few facts of the first PyTorch runs; None where it is not recorded."""
    runs = {str(run.record["kind"]): run for run in _main_runs(evidence)[TORCH]}
    run = runs.get("training") or runs.get("test")
    facts = {key: run and run.options.get(key) for key in ("image_size", "epochs", "batch_size")}
    images = {kind: runs[kind].data if kind in runs else {} for kind in ("training", "test")}
    return {
        "config": run and run.config.get("name"),
        **facts,
        "train_images": (images["training"].get("train") or {}).get("images"),
        "test_images": images["test"].get("images"),
    }


def environment_of(evidence: Evidence) -> list[dict[str, Any]]:
    """One row per fact of either side; the training's first, the test's where it says something else."""
    sides: dict[str, dict[str, str]] = {}
    for name, runs in _main_runs(evidence).items():
        facts = sides.setdefault(name, {})
        for run in runs:
            for key, value in flat(run.environment).items():
                if key in facts and value not in facts[key].split(" · "):
                    facts[key] += f" · {value}"
                facts.setdefault(key, value)
    return _rows(sides)


def _rows(sides: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    keys = dict.fromkeys(key for facts in sides.values() for key in facts)
    rows = [{"name": key, **{side: facts.get(key) for side, facts in sides.items()}} for key in keys]
    return [{**row, "differs": len({row[side] for side in sides}) > 1} for row in rows]


def settings_of(evidence: Evidence) -> list[dict[str, Any]]:
    """Options and configuration of the main runs, with whether a difference is free."""
    found = []
    main = _main_runs(evidence)
    for what in ("training", "test"):
        runs = {name: next((r for r in side if r.record["kind"] == what), None) for name, side in main.items()}
        for row in _rows({name: {} if run is None else flat(run.options) for name, run in runs.items()}):
            found.append({"of": what, **row, "free": row["name"].split(".")[0] in FREE_OPTIONS})
    configs = {name: flat(side[0].config) if side else {} for name, side in main.items()}
    return found + [{"of": "config", **row, "free": False} for row in _rows(configs)]


def model_of(evidence: Evidence) -> dict[str, Any]:
    """Counts of the main runs; the test's structure and form."""
    models: dict[str, dict[str, Any]] = {}
    for name, runs in _main_runs(evidence).items():
        models[name] = {}
        for run in runs:
            models[name] |= {key: value for key, value in run.model.items() if value is not None}
    parts = dict.fromkeys(part for model in models.values() for part in model.get("by_part", {}))
    rows = [
        {"name": part, **{side: model.get("by_part", {}).get(part) for side, model in models.items()}} for part in parts
    ]
    rows += [
        {"name": key, **{side: model.get(key) for side, model in models.items()}} for key in ("parameters", "trainable")
    ]
    facts = [{"name": key, **{side: model.get(key) for side, model in models.items()}} for key in ("form", "structure")]
    return {"counts": rows, "facts": facts}
