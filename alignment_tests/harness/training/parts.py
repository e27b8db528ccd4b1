"""The parts of a recorded step alone: the loss, and each module forward or backward, on what the reference recorded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from alignment_tests.harness.judge.isolated import output_names, run_alone
from alignment_tests.harness.judge.nudged_runs import RUNS, Nudge, largest_error, nudges, unmoved
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.nested import OpaqueArgumentError
from alignment_tests.harness.record.trace import Call
from alignment_tests.harness.training.backward import leaf_calls, loss_alone, pulled_back, upstream_of
from alignment_tests.harness.training.recording import Recording
from alignment_tests.harness.training.steps import StepJudge
from alignment_tests.harness.training.trainee import Trainee, modules_of


@dataclass(frozen=True)
class TakenStep:
    """A step that the reference has made, and the oracle from the same state; ``before`` is that state."""

    number: int
    precision: str
    batch: Any
    before: Mapping[str, Array]
    recording: Recording
    exact: Recording
    deep: bool


class Alone(Protocol):
    """Runs a part of one side ("reference", "oracle") alone, on its recorded numbers, or on these moved."""

    def __call__(self, name: str, nudge: Nudge = ...) -> dict[str, Array]: ...


class PartsAlone:
    """Judges the parts of one step that was recorded.

    Args:
        judge: of the training.
        taken: the step.
        sides: "candidate", "reference", and "oracle" where the step is in float32; their states move.
    """

    def __init__(self, judge: StepJudge, taken: TakenStep, sides: Mapping[str, Trainee]) -> None:
        self.judge, self.taken, self.sides = judge, taken, sides
        self.trace = taken.recording.trace
        self.modules = {name: dict(modules_of(side)) for name, side in sides.items()}

    def run(self) -> None:
        """The loss, and each module, on what the reference recorded."""
        for side in self.sides.values():
            side.load(self.taken.before)
        self.loss()
        if self.judge.is_blind:  # where the whole pass proves nothing, its parts may
            candidate = self.sides["candidate"].model
            with adapter_for(candidate).settled(candidate):
                for call in self.calls():
                    self.forward(call)
        # A container's own code has kinks that its recorded inputs do not settle, so float32 looks at leaves only.
        leaves = leaf_calls(self.trace.calls) if "oracle" in self.sides else None
        for call in self.calls():
            upstream = upstream_of(self.trace, call) if leaves is None or call.name in leaves else {}
            if upstream:
                self.backward(call, upstream)

    def calls(self) -> list[Call]:
        """Those that can be repeated, of a module that the candidate has."""
        known = self.modules["candidate"]
        return [call for call in self.trace.calls if call.module and call.module in known and call.repeatable]

    def made(self, name: str, call: Call) -> Call | None:
        """The call as that side made it."""
        return self.judge.own_calls.get(call.name) if name == "candidate" else call

    def backward(self, call: Call, upstream: Mapping[str, Array]) -> None:
        """Gradients by the inputs and the parameters of one call."""

        def alone(name: str, nudge: Nudge = unmoved) -> dict[str, Array]:
            side, kind = self.sides[name], "float64" if name == "oracle" else None
            module, made = self.modules[name][call.module], self.made(name, call)
            return pulled_back(side, module, self.trace, call, upstream, kind, nudge, made)

        try:
            found = alone("candidate")
        except OpaqueArgumentError:  # it is called in another way, which the whole step judges
            return
        except Exception as error:  # of the user's module: a finding of the report, not of the harness
            reason = f"the candidate's module raises {type(error).__name__}: {error}"[:500]
            self.judge.fail_isolated(f"grad_activation/{call.name}/{next(iter(upstream))}", reason)
            return
        self.judge_alone(found, alone)

    def forward(self, call: Call) -> None:
        """Outputs of one call."""
        slots = {name: name.rsplit("/", 1)[1] for name in output_names(self.trace, call)}

        def alone(name: str, nudge: Nudge = unmoved) -> dict[str, Array]:
            side, kind = self.sides[name], "float64" if name == "oracle" else "float32"
            with side.scope():
                module = self.modules[name][call.module]
                made = self.made(name, call)
                found = run_alone(adapter_for(side.model), module, self.trace, call, kind, nudge=nudge, own=made)
            return {name: found[slot] for name, slot in slots.items() if slot in found}

        with suppress(OpaqueArgumentError):  # it is called in another way, which the whole step judges
            self.judge_alone(alone("candidate"), alone)

    def loss(self) -> None:
        """The loss on the recorded outputs and assignment: its terms, and its gradients by the outputs."""

        def alone(name: str, nudge: Nudge = unmoved) -> dict[str, Array]:
            kind = "float64" if name == "oracle" else None
            taken, taught, made = self.taken, "oracle" in self.sides, self.made(name, root)
            return loss_alone(
                self.sides[name], taken.batch, taken.recording, kind, taught=taught, nudge=nudge, made=made
            )

        root = next(call for call in self.trace.calls if call.module == "")
        with suppress(OpaqueArgumentError):  # outputs that only its own code makes; the whole step judges its loss
            self.judge_alone(alone("candidate"), alone)

    def judge_alone(self, found: Mapping[str, Array], alone: Alone) -> None:
        """What the candidate gave alone; ``alone`` runs the other sides."""
        expected = alone("reference")
        exact = alone("oracle") if "oracle" in self.sides else expected

        @cache
        def further() -> dict[str, float]:
            """In float32 the oracle has the same numbers, moved alike; in float64 moving them is what is measured."""
            errors = dict.fromkeys(expected, 0.0)
            for number in range(RUNS):
                # Two of a kind, since a nudge draws anew each time.
                pair = [nudges(self.judge.budget)[number] for _ in range(2)]
                theirs = alone("reference", pair[0])
                true = alone("oracle", pair[1]) if "oracle" in self.sides else expected
                for key, array in theirs.items():
                    errors[key] = max(errors[key], largest_error(array, true[key]))
            return errors

        for key, array in expected.items():
            if key in found:
                self.judge.put_isolated(key, found[key], array, exact[key], further)
            else:
                self.judge.fail_isolated(key, "the candidate's module has no such gradient")
