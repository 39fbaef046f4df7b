"""Optimisers and schedules are those of the literature, and resume to the same bits."""

import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn, optim

from exact import kernels
from tests.lab.trainings import settings, train, without
from tracking.repository import ROOT

Memory = defaultdict[str, float]  # what an optimiser keeps from step to step, 0 at first


def sgd(s: Any, m: Memory, t: int, lr: float, w: float, g: float) -> Any:
    g += s.weight_decay * w
    m["v"] = s.momentum * m["v"] + g
    return w - lr * (g + s.momentum * m["v"])  # Nesterov's form


def adam(s: Any, m: Memory, t: int, lr: float, w: float, g: float) -> Any:
    return adamw(s.model_copy(update={"weight_decay": 0}), m, t, lr, w, g + s.weight_decay * w)


def adamw(s: Any, m: Memory, t: int, lr: float, w: float, g: float) -> Any:
    first, second = s.betas
    m["m"] = first * m["m"] + (1 - first) * g
    m["v"] = second * m["v"] + (1 - second) * g**2
    mean, square = m["m"] / (1 - first**t), m["v"] / (1 - second**t)
    return w - lr * s.weight_decay * w - lr * mean / (math.sqrt(square) + s.eps)


def rmsprop(s: Any, m: Memory, t: int, lr: float, w: float, g: float) -> Any:
    g += s.weight_decay * w
    m["mean"] = s.alpha * m["mean"] + (1 - s.alpha) * g
    m["square"] = s.alpha * m["square"] + (1 - s.alpha) * g**2
    deviation = math.sqrt(m["square"] - m["mean"] ** 2)  # the centred form
    m["v"] = s.momentum * m["v"] + g / (deviation + s.eps)
    return w - lr * m["v"]


def adagrad(s: Any, m: Memory, t: int, lr: float, w: float, g: float) -> Any:
    g += s.weight_decay * w
    m["sum"] += g**2
    root = math.sqrt(s.initial_accumulator_value + m["sum"])
    return w - lr / (1 + (t - 1) * s.lr_decay) * g / (root + s.eps)


# Each setting of each optimiser, other than its default.
OPTIMIZERS: dict[Callable[..., float], dict[str, Any]] = {
    sgd: {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
    adam: {"betas": [0.7, 0.9], "eps": 0.01, "weight_decay": 0.1},
    adamw: {"betas": [0.7, 0.9], "eps": 0.01, "weight_decay": 0.1},
    rmsprop: {"alpha": 0.9, "eps": 0.01, "weight_decay": 0.1, "momentum": 0.8, "centered": True},
    adagrad: {"lr_decay": 0.1, "weight_decay": 0.1, "eps": 0.01, "initial_accumulator_value": 0.5},
}
SCHEDULES: list[tuple[dict[str, Any], Callable[[int], float]]] = [
    ({"name": "constant"}, lambda step: 1.0),
    ({"name": "linear"}, lambda step: 1 - step / 18),
    ({"name": "cosine"}, lambda step: (1 + math.cos(math.pi * step / 18)) / 2),
    ({"name": "step", "epochs": 2, "factor": 0.5}, lambda step: 0.5 ** (step // 12)),
]


@pytest.mark.parametrize("rule", OPTIMIZERS, ids=lambda rule: rule.__name__)
def test_an_optimizer_is_that_of_the_literature_with_pytorchs_defaults(
    rule: Callable[..., float],
) -> None:
    section = {"name": rule.__name__} | OPTIMIZERS[rule]
    chosen = settings(optimizer=section).optimizer
    assert section.keys() == type(chosen).model_fields.keys()
    weight = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    optimizer = chosen.create([weight], 0.1)
    memory: Memory = defaultdict(float)
    expected = 1.5
    for t in range(1, 11):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        expected = rule(chosen, memory, t, 0.1, expected, 2 * expected)
        assert weight.item() == pytest.approx(expected, rel=1e-12), t
    default = settings(optimizer=rule.__name__).optimizer.create([weight], 0.1)
    pytorch: Any = type(optimizer)
    assert default.defaults == pytorch([weight], lr=0.1).defaults | {"foreach": True}


def test_an_exact_training_does_not_load_pytorchs_compiler() -> None:
    program = """if True:
        import sys
        import torch
        from tests.lab.trainings import train
        for name in sys.argv[1:]:
            train("exact", optimizer=name)
        print("torch._dynamo" in sys.modules)
        torch.optim.SGD([torch.ones(1)], 0.1)
        print("torch._dynamo" in sys.modules)"""
    command = [sys.executable, "-c", program, *(rule.__name__ for rule in OPTIMIZERS)]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    assert printed.split() == ["False", "True"]  # the second is the control


def test_steps_of_sgd_are_those_of_the_kernel() -> None:
    if kernels.library() is None:
        pytest.skip("no C compiler")
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    assert kernels.update(settings().optimizer.create([weight], 0.5))
    assert weight.tolist() == [0.5] * 3


@pytest.mark.parametrize(("section", "factor"), SCHEDULES, ids=lambda value: str(value)[:20])
def test_a_schedule_is_its_formula(section: dict[str, Any], factor: Callable[[int], float]) -> None:
    optimizer = optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    schedule = settings(lr_schedule=section).schedule(optimizer, 6)
    for step in range(19):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factor(step), abs=1e-15)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("key", "section", "change"),
    [
        ("optimizer", {"momentum": 0.9}, {"name": "sgd"}),
        ("optimizer", {"name": "lbfgs"}, {"name": "adagrad"}),
        ("optimizer", {"name": "sgd", "momentum": 1.0}, {"momentum": 0.999}),
        ("optimizer", {"name": "sgd", "nesterov": True}, {"momentum": 0.1}),
        ("optimizer", {"name": "sgd", "weight_decay": -0.1}, {"weight_decay": 0.0}),
        ("optimizer", {"name": "sgd", "eps": 0.1}, {"name": "adam"}),
        ("optimizer", {"name": "adam", "betas": [0.9]}, {"betas": [0.9, 0.0]}),
        ("optimizer", {"name": "adam", "eps": 0.0}, {"eps": 1e-30}),
        ("optimizer", {"name": "adagrad", "lr_decay": 1.1}, {"lr_decay": 1.0}),
        ("lr_schedule", {"name": "exponential"}, {"name": "cosine"}),
        ("lr_schedule", {"name": "linear", "factor": 0.5}, {"name": "step"}),
        ("lr_schedule", {"name": "step", "factor": 0.0}, {"factor": 1.0}),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(
    key: str, section: dict[str, Any], change: dict[str, Any]
) -> None:
    settings(**{key: section | change})  # the control
    with pytest.raises(ValidationError, match=key):
        settings(**{key: section})


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        *(("optimizer", {"optimizer": {"name": r.__name__} | s}) for r, s in OPTIMIZERS.items()),
        *(("schedule", {"lr_schedule": section}) for section, _ in SCHEDULES[1:]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_training_resumes_to_the_same_bits(part: str, changes: dict[str, Any]) -> None:
    result, steps = train("exact", **changes)
    for saved in (steps[0], steps[5], steps[7]):
        assert train("exact", saved, **changes).result == result
    assert train("exact", without(part, steps), **changes).result != result  # the control
