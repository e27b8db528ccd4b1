"""The shortest script that shows one difference in both frameworks, from the case that found it."""

from __future__ import annotations

from typing import Any

import numpy as np

from alignment_tests.conformity.operators.cases import At, Case, Input

DRAWN = {
    "normal": "random.normal(size={shape})",
    "unit": "random.uniform(0.05, 0.95, {shape})",
    "positive": "random.uniform(0.5, 3.0, {shape})",
    "distinct": "(random.permutation({count}) / 3.0 - 1.0).reshape({shape})",
    "spd": "random.normal(size={shape}); x{number} = x{number} @ np.swapaxes(x{number}, -1, -2) + 2.0 * np.eye({last})",
}


def script(case: Case, direction: str, where: str | None) -> str:
    """Python that prints what PyTorch and Jittor make of the case. It needs nothing but the two and numpy.

    ``where`` is None where Jittor raises or ends, in the forward or the backward pass: the script asks for both.
    """
    if where is None:
        floating = [number for number, given in enumerate(case.operator.inputs) if given.floating]
        both = case.operator.gradient and floating
        direction, where = ("backward", f"input {floating[0]}") if both else (direction, "0")
    lines = ["import numpy as np, torch, jittor as jt"]
    if any("random" in drawn(given, number, case) for number, given in enumerate(case.operator.inputs)):
        lines.append("random = np.random.default_rng(7)")
    lines += [drawn(given, number, case) for number, given in enumerate(case.operator.inputs)]
    lines += torch_inputs(case) + jittor_inputs(case)
    lines += layer_lines(case) if case.operator.layer else function_lines(case)
    lines += shown(case, direction, where)
    return "\n".join(lines)


def drawn(given: Input, number: int, case: Case) -> str:
    name = f"x{number}"
    if case.variant != "ordinary" and given.floating:
        values = ", ".join(repr(v) if np.isfinite(v) else f"float('{v}')" for v in case.special(number))
        return f"{name} = np.array([{values}], np.{case.dtype})"
    if given.kind == "below":
        return f"{name} = random.integers(0, {given.bound}, {given.shape}).astype(np.int32)"
    if given.kind == "bool":
        return f"{name} = random.random({given.shape}) < 0.5"
    text = DRAWN[given.kind].format(
        shape=given.shape, count=int(np.prod(given.shape)), number=number, last=given.shape[-1] if given.shape else 1
    )
    wide = ".astype(np.float64)" if case.dtype == "float64" else ""
    if given.kind == "spd":
        return f"{name} = {text}; {name} = {name}.astype(np.float32){wide}"
    return f"{name} = {text}.astype(np.float32){wide}"


def torch_inputs(case: Case) -> list[str]:
    made = []
    for number, given in enumerate(case.operator.inputs):
        if given.floating:
            end = ".requires_grad_()" if case.operator.gradient else ""
        else:
            end = ".long()" if given.kind == "below" and not case.operator.name.startswith("bitwise") else ""
        made.append(f"torch.tensor(x{number}){end}")
    return [f"a = [{', '.join(made)}]"]


def jittor_inputs(case: Case) -> list[str]:
    wide = "array64" if case.dtype == "float64" else "array"
    made = [f"jt.{wide if given.floating else 'array'}(x{number})" for number, given in enumerate(case.operator.inputs)]
    return [f"b = [{', '.join(made)}]"]


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any], arrays: str = "x") -> str:
    """As in a call; ``arrays`` is the name of the list that holds the side's tensors."""
    placed = [f"{arrays}[{value.number}]" if isinstance(value, At) else repr(value) for value in args]
    return ", ".join([*placed, *(f"{key}={value!r}" for key, value in kwargs.items())])


def layer_lines(case: Case) -> list[str]:
    theirs, ours = arguments(*case.call.reference), arguments(case.call.args, case.call.kwargs)
    wide = case.dtype == "float64"
    lines = [
        "torch.manual_seed(0)",
        f"f, g = torch.{case.operator.counterpart}({theirs}), jt.{case.operator.name}({ours})",
        "g.load_state_dict({k: v.numpy() for k, v in f.state_dict().items() if 'num_batches' not in k})",
    ]
    lines += ["f.double(), g.float64()"] if wide else []
    return [*lines, "f.train(), g.train()", "p, q = f(*a), g(*b)"]


def function_lines(case: Case) -> list[str]:
    sides = (
        ("p", "torch", case.operator.counterpart, "a", case.call.reference),
        ("q", "jt", case.operator.name, "b", (case.call.args, case.call.kwargs)),
    )
    lines = []
    for result, framework, name, arrays, (args, kwargs) in sides:
        first = (
            [] if any(isinstance(value, At) for value in args) else [arrays if case.operator.packed else f"*{arrays}"]
        )
        message = arguments(args, kwargs, arrays)
        lines.append(f"{result} = {framework}.{name}({', '.join([*first, *([message] if message else [])])})")
    return lines


def shown(case: Case, direction: str, where: str) -> list[str]:
    parts = [f"[{index}]" if index is not None else "" for index in reversed(case.operator.output)]
    picks = [f"p = p{parts[0]}"] * bool(parts[0]) + [f"q = q{parts[1]}"] * bool(parts[1])
    if direction == "backward" and where.startswith("input "):
        number = where.removeprefix("input ")
        return [
            *picks,
            "q.sync()  # computed before the gradient is asked for, as the table's runs do",
            "w = lambda y: np.random.default_rng(13).uniform(0.5, 1.5, tuple(y.shape)).astype(np.float32)",
            f"print('PyTorch', torch.autograd.grad((p * torch.tensor(w(p))).sum(), a[{number}])[0])",
            f"print('Jittor', jt.grad((q * jt.array(w(q))).sum(), b[{number}]))",
        ]
    if direction == "backward":
        return [
            *picks,
            "q.sync()",
            f"print('PyTorch', torch.autograd.grad(p.sum(), f.{where})[0])",
            f"print('Jittor', jt.grad(q.sum(), g.{where}))",
        ]
    if direction == "state":
        return [f"q.sync(); print('PyTorch', f.{where}); print('Jittor', g.{where})"]
    return [*picks, "print('PyTorch', p)", "print('Jittor', q)"]
