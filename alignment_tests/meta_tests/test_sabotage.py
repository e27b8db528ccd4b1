"""The register of faults, a sample of them planted, and the page that tells of all."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alignment_tests.meta_tests.catalogue import EXPERIMENTS, FAULTS, make
from alignment_tests.meta_tests.clean import clean_runs
from alignment_tests.meta_tests.clean_training import KINDS, MODELS, boxes_of, training_runs
from alignment_tests.meta_tests.experiments.outcome import PLAIN, plain_outcomes
from alignment_tests.meta_tests.faults.fault import Fault, Patch, fault
from alignment_tests.meta_tests.partition import partition, run_all
from alignment_tests.meta_tests.proof_page import FORMAT, ROOT, Data, json_of, merged, render
from alignment_tests.meta_tests.runner import check_clean, chosen, examine

PAGE = ROOT / "docs" / "proof.md"
# One or two of every way to compare. Whole steps in depth: see test_training_faults.py.
SAMPLE = {
    "backbone": ["eps of one norm", "square weight transposed"],
    "backbone, training": ["running variance biased"],
    "backbone, deploy form": ["eps forgotten in fusing"],
    "neck": ["softmax over queries"],
    "neck, training": ["kept paths not rescaled"],
    "head": ["branch writes into its input", "bins before sides"],
    "head, training": ["levels of training concatenated backwards"],
    "blocks of M and L": ["learnt scale ignored"],
    "training step": ["eps of the metric", "sum over sides"],
    "training step with a teacher": ["norms of the teacher in evaluation mode", "temperature not squared"],
    "updates": ["nesterov missing", "average one update late"],
    "updates by Adam": ["eps outside the correction"],
    "post-processing": ["classes not moved apart"],
    "data": ["boxes not padded"],
    "evaluation": ["confidence of the demo"],
    "conversion": ["key dropped", "two keys swapped"],
    "conversion of a training": ["count of updates lost"],
    "measuring": ["no synchronisation"],
}


@pytest.mark.parametrize("experiment", SAMPLE)
def test_a_sample_of_faults_is_found_and_named_and_leaves_nothing_behind(experiment: str) -> None:
    comparison = make(experiment)
    clean = check_clean(comparison, "before")
    for name in SAMPLE[experiment]:
        assert FAULTS[name].experiment == experiment
        finding = examine(FAULTS[name], comparison, clean)
        assert finding.exact, f"{name}: {finding.named}: {finding.reason}"
    check_clean(comparison, "after")


# The register


def test_there_are_enough_faults_and_no_two_plant_the_same() -> None:
    assert len(FAULTS) >= 80
    assert len({entry.plants for entry in FAULTS.values()}) == len(FAULTS)
    assert len({entry.plant for entry in FAULTS.values()}) == len(FAULTS)


def test_every_fault_has_an_experiment_and_every_experiment_a_fault() -> None:
    assert {entry.experiment for entry in FAULTS.values()} == set(EXPERIMENTS)


def test_a_name_is_entered_once() -> None:
    def eps_of_one_norm(patch: Patch, subject: Any) -> None:
        """The same again."""

    with pytest.raises(ValueError, match=r"`plant` must have a new name .* Received: 'eps of one norm'"):
        fault("backbone", "stem", "batch norm")(eps_of_one_norm)


def test_an_unknown_experiment_is_refused() -> None:
    with pytest.raises(ValueError, match="`experiment` must be one of"):
        make("backbone of XL")


PLACES = [
    ("a.b", "a.b", "activation/a.b#0/0", True),
    ("a.b", "a", "activation/a#0/0", False),
    ("a", "a.b", "activation/a.b#0/0", False),
    ("", "", "activation/#0/0", True),
    ("buffer/a.running_mean", "a", "buffer/a.running_mean", True),
    ("buffer/a.running_mean", "a", "buffer/a.running_var", False),
    ("loss/*", None, "loss/iou", True),
    ("loss/iou", None, "loss/total", False),
]


@pytest.mark.parametrize(("where", "module", "name", "exact"), PLACES)
def test_a_place_is_named_exactly_or_not(where: str, module: str | None, name: str, exact: bool) -> None:
    entry = Fault("name", "family", "plants", "experiment", where, lambda patch, subject: None)
    assert entry.blames(module, name) is exact


# Planting


class Base:
    inherited: Any = 1
    own: Any = staticmethod(lambda: 1)


def test_what_was_set_is_put_back() -> None:
    held, one, mapping = vars(Base)["own"], Base(), {"key": 1}
    one.own = 2
    with ExitStack() as stack:
        patch = Patch(stack)
        patch.set(Base, "own", staticmethod(lambda: 2))
        patch.set(one, "own", 3)
        patch.set(one, "own", 4)
        patch.set(one, "inherited", 5)
        patch.item(mapping, "key", 6)
        assert (Base.own(), one.own, one.inherited, mapping) == (2, 4, 5, {"key": 6})
    assert vars(Base)["own"] is held
    assert (vars(one), mapping) == ({"own": 2}, {"key": 1})


def test_a_fault_is_taken_out_where_the_run_fails() -> None:
    subject = SimpleNamespace(value=1)
    entry = Fault("n", "f", "p", "e", "w", lambda patch, subject: patch.set(subject, "value", 2))
    with pytest.raises(ZeroDivisionError), entry.planted(subject):
        subject.value = 1 // (subject.value - 2)
    assert subject.value == 1


# allclose


def test_allclose_names_the_first_array_and_knows_final_ones() -> None:
    expected = {"activation/a#0/0": np.ones(3), "activation/#0/0": np.ones(3)}
    found = {"activation/a#0/0": np.full(3, 1 + 1e-4), "activation/#0/0": np.full(3, 1 + 5e-5)}
    outcomes = plain_outcomes(found, expected, lambda name: name == "activation/#0/0")
    named = {title: blame and blame.module for title, blame in outcomes.items()}
    assert named == dict(zip(PLAIN, (None, "", "a"), strict=True))


# Runs without a fault


def test_two_hundred_clean_runs_differ_in_seed_size_and_threads() -> None:
    runs = list(clean_runs(200))
    assert len(runs) == len({run.seed for run in runs}) == 200
    assert len({run.size for run in runs}) >= 10
    assert {run.threads for run in runs} == {1, 2, 3, 4}


# Shares of processes


def test_every_fault_and_every_clean_run_is_in_one_share() -> None:
    dealt = partition(chosen(), 60, training_runs(60))
    assert sorted(name for share in dealt for name in share.faults) == sorted(FAULTS)
    runs = [run for share in dealt for run in share.clean]
    assert sorted(runs, key=lambda run: run.seed) == list(clean_runs(60))
    trainings = [run for share in dealt for run in share.training]
    assert sorted(trainings, key=lambda run: run.seed) == list(training_runs(60))
    assert all(len({FAULTS[name].experiment for name in share.faults}) <= 1 for share in dealt)


def test_two_processes_find_what_one_finds_in_the_same_order() -> None:
    faults = [fault for fault in chosen() if fault.experiment in ("post-processing", "assigner")]

    def text(jobs: int) -> list[tuple[str, str, bool]]:
        return [(one["name"], one["named"], one["exact"]) for one in run_all(faults, 0, jobs)[0]]

    assert text(2) == text(1) == [(fault.name, told_of(fault.name), True) for fault in faults]


def told_of(name: str) -> str:
    entry = FAULTS[name]
    comparison = make(entry.experiment)
    return examine(entry, comparison, check_clean(comparison, "before")).named


# The page


@lru_cache(maxsize=1)
def recorded() -> Data:
    data: Data = json.loads(json_of(PAGE).read_text(encoding="utf-8"))
    return data


def test_the_page_is_that_of_the_recorded_runs() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(recorded())


def test_every_fault_is_on_record_as_it_is_now() -> None:
    found = {one["name"]: (one["plants"], one["experiment"], one["where"], one["miss"]) for one in recorded()["faults"]}
    assert found == {entry.name: (entry.plants, entry.experiment, entry.where, entry.miss) for entry in FAULTS.values()}


def test_every_miss_is_explained() -> None:
    assert [one["name"] for one in recorded()["faults"] if not one["exact"] and not one["miss"]] == []


def test_there_are_two_hundred_clean_runs_on_record_and_no_false_alarm() -> None:
    runs = recorded()["clean"]
    assert len(runs) >= 200
    assert [run for run in runs if not run["aligned"]] == []


def test_there_are_sixty_clean_trainings_on_record_and_no_false_alarm() -> None:
    """Both models at full size, every kind, drawn scenes and photographs, one to thirty boxes an image."""
    runs = recorded()["training"]
    assert len(runs) >= 60
    assert [run for run in runs if not run["aligned"]] == []
    assert {run["kind"] for run in runs} == set(KINDS)
    assert {run["model"] for run in runs} == set(MODELS)
    assert {run["threads"] for run in runs} == {1, 2, 3, 4}
    assert len({run["images"] for run in runs}) >= 2
    assert min(run["boxes"][0] for run in runs) == 1
    assert max(run["boxes"][1] for run in runs) == 30


def test_boxes_of_a_clean_training_are_inside_the_image_and_as_many_as_said() -> None:
    for run in training_runs(14):
        batches = run.batches()
        assert len(batches) == run.steps
        for batch in batches:
            assert batch.images.shape == (run.batch, 3, *run.size)
            centre, half = batch.targets[:, 2:4], batch.targets[:, 4:] / 2
            assert (centre - half >= -1e-9).all()
            assert (centre + half <= 1 + 1e-9).all()
        if run.boxes is not None:
            assert boxes_of(batches) == (run.boxes, run.boxes)


def test_faults_that_were_not_asked_for_keep_what_they_have() -> None:
    older = {
        "format": FORMAT,
        "seconds": 5,
        "faults": entries(a=1, b=1, gone=1),
        "clean": [1],
        "training": [{"seed": 3, "images": "drawn"}],
    }
    newer = {"format": FORMAT, "seconds": 2, "faults": entries(b=2, c=2), "clean": [], "training": []}
    whole = merged(older, newer, ["a", "b", "c"])
    assert whole == older | {"seconds": 2, "faults": entries(a=1, b=2, c=2)}
    assert merged(older | {"format": FORMAT - 1}, newer, ["a", "b", "c"]) == newer


def entries(**values: int) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def test_faults_are_chosen_by_name_kind_and_experiment() -> None:
    assert {entry.family for entry in chosen(["DropPath"])} == {"DropPath"}
    assert [entry.name for entry in chosen(["nesterov missing"])] == ["nesterov missing"]
    assert chosen() == list(FAULTS.values())
