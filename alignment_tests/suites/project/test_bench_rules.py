"""The rules of the performance suite, on numbers and on workers that are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from alignment_tests.bench import interleaved, rounds
from alignment_tests.bench.cases import COMPILE, EAGER, JITTOR, PRECISIONS, Case, cases_of, contenders_of
from alignment_tests.bench.workers import WorkerError

CASE = Case("inference", side=64)


# ---- warm-up, statistics, budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "kernels", "warm"),
    [
        ([1.0, 1.0, 1.0], [0, 0, 0], False),  # too few
        ([1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0], True),
        ([9.0, 1.0, 1.0, 1.0], [0, 0, 0, 0], True),  # the best of the first window is settled already
        ([4.0, 3.0, 2.0, 1.0], [0, 0, 0, 0], False),  # still falling
        ([1.0, 1.0, 0.96, 2.0], [0, 0, 0, 0], True),  # within 5 %
        ([1.0, 1.0, 0.94, 2.0], [0, 0, 0, 0], False),
        ([1.0, 1.0, 1.0, 1.0], [5, 5, 5, 6], False),  # still loading kernels
        ([1.0, 1.0, 1.0, 1.0], [5, 6, 6, 6], True),
        ([1.0, 1.0, 1.0, 1.0], [5, 5, 6, 6], False),
    ],
)
def test_warm_up_ends_when_times_have_settled(times: list[float], kernels: list[int], warm: bool) -> None:
    assert rounds.is_warm(times, kernels) is warm


@pytest.mark.parametrize(("fastest", "steps"), [(0.0, 50), (0.001, 50), (0.1, 3), (0.25, 1), (7.0, 1)])
def test_short_steps_share_a_round(fastest: float, steps: int) -> None:
    assert rounds.steps_per_round(fastest) == steps


@pytest.mark.parametrize(
    ("times", "kernels", "warm", "reason"),
    [
        ([1.0], (7, 7), True, None),
        ([1.0], (7, 8), True, "1 kernels were loaded in the timed rounds"),
        ([1.0], (7, 7), False, "after 20 rounds of warm-up"),
        ([], (7, 7), True, "no round was timed"),
    ],
)
def test_what_makes_times_void(times: list[float], kernels: tuple[int, int], warm: bool, reason: str | None) -> None:
    found = rounds.void_reason(times, *kernels, warm)
    assert found == reason if reason is None else reason in str(found)


def test_quartiles() -> None:
    assert rounds.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert rounds.quartiles([2.0]) == (2.0, 2.0, 2.0)


def test_ratios_are_taken_round_by_round() -> None:
    """A slow phase of the machine falls on both; the ratio of the medians would be 2."""
    assert rounds.ratios([1.0, 10.0, 2.0], [1.0, 10.0, 1.0]) == [1.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="longer"):
        rounds.ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("left", "earlier", "starts"),
    [
        (10, [], True),
        (0, [], False),
        (-5, [], False),
        (10, [3, 9], True),
        (10, [3, 11], False),
        (float("inf"), [9], True),
    ],
)
def test_a_case_starts_only_where_the_budget_reaches(left: float, earlier: list[float], starts: bool) -> None:
    assert rounds.may_start(left, earlier) is starts


@pytest.mark.parametrize(("left", "done", "goes"), [(1, 99, True), (-1, 2, True), (-1, 3, False)])
def test_a_duel_past_the_budget_has_three_rounds(left: float, done: int, goes: bool) -> None:
    assert rounds.may_go_on(left, done) is goes


@pytest.mark.parametrize(
    ("room", "expected"), [(31, (0, 32)), (32, (32, 36)), (100, (96, 104)), (127, (120, 128)), (256, (256, None))]
)
def test_the_largest_batch_is_found_by_trying(room: int, expected: tuple[int, int | None]) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= room

    assert rounds.largest_that_fits(fits, 32, 256) == expected
    assert len(tried) == len(set(tried))


# ---- the grid ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_full_grid_holds_the_small_one_first(device: str) -> None:
    small, full = (cases_of(device, grid) for grid in ("small", "full"))
    assert full[: len(small)] == small
    assert len({case.name for case in full}) == len(full)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_full_grid_has_every_batch_form_size_and_precision(device: str) -> None:
    found = {(c.form, c.side, c.precision, c.batch) for c in cases_of(device, "full") if c.what == "inference"}
    assert len(found) == 2 * 2 * len(PRECISIONS[device]) * 7


def test_a_cpu_has_no_tf32_and_no_half() -> None:
    assert {case.precision for case in cases_of("cpu", "full")} == {"float32"}
    assert {case.precision for case in cases_of("cuda", "small")} == {"float32", "tf32", "half"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_has_jittor_and_what_it_is_compared_with(device: str) -> None:
    for case in cases_of(device, "full"):
        names = [one.name for one in contenders_of(case, "full")]
        assert JITTOR.name in names
        assert EAGER.name in names or case.what == "cold-start"


# ---- duels of workers that only say numbers ----------------------------------------------------------------------


class Scripted:
    """Says these seconds, one per call, the last for ever; loads a kernel in each call listed; fails in ``fails``."""

    pid = 0
    log: list[str] = []  # noqa: RUF012 - one for all workers of a duel

    def __init__(
        self, name: str, seconds: Sequence[float], loads: Sequence[int] = (), fails: int | None = None
    ) -> None:
        self.name, self.seconds, self.loads, self.fails = name, seconds, loads, fails
        self.calls = self.kernels = 0

    def ready(self) -> dict[str, Any]:
        return {"seconds": 1.0, "kernels": 0, "memory": {}, "facts": {"framework": self.name}}

    def take(self, steps: int) -> dict[str, Any]:
        if self.calls == self.fails:
            raise WorkerError("planted", out_of_memory=True)
        self.log.append(self.name)
        self.kernels += self.calls in self.loads
        seconds = self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        return {"seconds": seconds * steps, "kernels": self.kernels, "memory": {"resident": 9}}

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def fought(deadline: float = float("inf"), **workers: Scripted) -> interleaved.Measurement:
    Scripted.log.clear()
    contenders = {"eager": EAGER, "jittor": JITTOR, "compiled": COMPILE}
    by_name = {contenders[name].name: worker for name, worker in workers.items()}
    chosen = [contenders[name] for name in workers]
    return interleaved.interleave(
        CASE, chosen, deadline=deadline, start=lambda case, one, environment, end: by_name[one.name]
    )


def test_rounds_are_taken_in_turn() -> None:
    made = fought(eager=Scripted("A", [1.0]), jittor=Scripted("B", [2.0]), compiled=Scripted("C", [3.0]))
    assert Scripted.log[12:] == ["A", "B", "C"] * CASE.rounds
    assert made.ratios(made.outcomes["jittor"]) == [2.0] * CASE.rounds


def test_times_are_those_of_a_step() -> None:
    made = fought(eager=Scripted("A", [0.1]), jittor=Scripted("B", [0.2]))
    assert made.outcomes["jittor"].steps == 3
    assert made.outcomes["jittor"].times == pytest.approx([0.2] * CASE.rounds)


def test_a_kernel_in_a_timed_round_makes_the_times_void() -> None:
    made = fought(eager=Scripted("A", [1.0]), jittor=Scripted("B", [1.0], loads=[0, 6]))
    assert made.outcomes["jittor"].void_reason() == "1 kernels were loaded in the timed rounds"
    assert made.outcomes["pytorch-eager"].void_reason() is None


def test_ratios_to_void_times_are_not_given() -> None:
    made = fought(eager=Scripted("A", [1.0], loads=[6]), jittor=Scripted("B", [1.0]))
    assert made.ratios(made.outcomes["jittor"]) == []


def test_warm_up_that_never_settles_makes_the_times_void() -> None:
    falling = [0.5**n for n in range(99)]
    made = fought(eager=Scripted("A", falling), jittor=Scripted("B", [1.0]))
    assert "still falling" in str(made.outcomes["pytorch-eager"].void_reason())


@pytest.mark.parametrize("call", [0, 5])
def test_who_fails_drops_out_with_the_reason_and_the_others_go_on(call: int) -> None:
    made = fought(eager=Scripted("A", [1.0]), jittor=Scripted("B", [1.0]), compiled=Scripted("C", [1.0], fails=call))
    failed = made.outcomes["pytorch-compile"]
    assert (failed.failed, failed.out_of_memory, failed.times) == ("planted", True, [])
    assert len(made.outcomes["jittor"].times) == CASE.rounds


def test_past_the_deadline_there_are_three_rounds() -> None:
    made = fought(deadline=0.0, eager=Scripted("A", [1.0]), jittor=Scripted("B", [1.0]))
    assert len(made.outcomes["jittor"].times) == rounds.LEAST_ROUNDS


def roomy(room: int) -> Callable[..., Scripted]:
    """Workers whose memory holds a batch of ``room``."""
    return lambda case, *_: Scripted("L", [1.0], fails=0 if case.batch > room else None)


def test_the_limit_is_reported_for_each_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaved, "Worker", roomy(100))
    made = interleaved.find_limit(Case("limit", batch=32, device="cuda"), (EAGER, JITTOR))
    jittor = made.outcomes["jittor"]
    assert jittor.more == {"largest_batch": 96, "first_that_fails": 104}
    assert (jittor.times, jittor.void_reason()) == ([1.0], None)
    assert made.ratios(jittor) == []  # steps of other batches are not compared


def test_a_limit_below_the_first_batch_is_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaved, "Worker", roomy(31))
    outcome = interleaved.find_limit(Case("limit", batch=32, device="cuda"), (EAGER,)).outcomes["pytorch-eager"]
    assert (outcome.out_of_memory, outcome.times) == (True, [])
    assert "not even a batch of 32" in str(outcome.failed)


def test_the_drivers_figures_are_read_by_process() -> None:
    assert interleaved.parse_driver_memory("12, 512\n13, [N/A]\n\n14, 1\n") == {12: 512 * 2**20, 14: 2**20}


def test_windows_of_the_warm_up_rule_meet() -> None:
    """Times that fall by a quarter each round are never warm, however many there are."""
    times = [0.75**n for n in range(rounds.MOST_WARM_UP)]
    assert not any(rounds.is_warm(times[:end], [0] * end) for end in range(len(times)))
    assert all(later < earlier for earlier, later in pairwise(times))
