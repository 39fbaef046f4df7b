"""Optimisers do what they do natively, to rounding, without the platform's powers."""

import contextlib
import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import exact
from exact.optimizers import Base

X = torch.linspace(-2, 2, 35).view(7, 5)
LABELS = torch.arange(7) % 5
Make = Callable[..., optim.Optimizer]


def steps(context: contextlib.AbstractContextManager[None], make: Make, **settings: Any) -> Tensor:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5))
    for i, p in enumerate(model.parameters()):
        p.data.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape) * (i + 1) / 4)
    optimizer = make(model.parameters(), **{"lr": 0.01} | copy.deepcopy(settings))
    schedule = optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
    with context:
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(X), LABELS).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (optim.SGD, {}),
        (optim.SGD, {"momentum": 0.9}),
        (optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (optim.SGD, {"weight_decay": 0.01}),
        (optim.SGD, {"momentum": 0.9, "dampening": 0.1, "maximize": True}),
        (optim.Adam, {}),
        (optim.Adam, {"weight_decay": 0.1, "amsgrad": True}),
        (optim.AdamW, {}),
        (optim.AdamW, {"amsgrad": True, "maximize": True}),
        (optim.RMSprop, {"eps": 1e-3}),
        (optim.RMSprop, {"eps": 1e-3, "momentum": 0.9, "centered": True}),
        (optim.Adagrad, {}),
        (optim.Adagrad, {"weight_decay": 0.1, "lr_decay": 0.1}),
        (optim.Adagrad, {"maximize": True, "initial_accumulator_value": 0.1}),
        (optim.Adagrad, {"lr": torch.tensor(0.01)}),
        (optim.SGD, {"lr": torch.tensor(0.01), "momentum": 0.9}),
        (optim.Adadelta, {"weight_decay": 0.1, "maximize": True}),
        (optim.Adamax, {"weight_decay": 0.1}),
        (optim.Adamax, {"lr": torch.tensor(0.01)}),
        (optim.ASGD, {"t0": 3, "lambd": 0.1}),
        (optim.NAdam, {"weight_decay": 0.1}),
        (optim.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
        (optim.Rprop, {}),
    ],
)
def test_they_do_what_they_do_natively(make: Make, settings: dict[str, Any], foreach: bool) -> None:
    settings = settings | {"foreach": foreach}
    ours = steps(exact.mode(), make, **settings)
    native = steps(contextlib.nullcontext(), make, **settings)
    torch.testing.assert_close(ours, native, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "make",
    [
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.RMSprop,
        optim.Adagrad,
        optim.Adadelta,
        optim.Adamax,
        optim.ASGD,
        optim.NAdam,
        optim.RAdam,
        optim.Rprop,
    ],
)
def test_one_tensor_or_many_at_a_time_gives_the_same_bits(make: Make) -> None:
    single, many = (steps(exact.mode(), make, foreach=foreach) for foreach in (False, True))
    assert torch.equal(single, many)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_does_what_it_does_natively(line_search: str | None) -> None:
    def minimum(context: contextlib.AbstractContextManager[None]) -> Tensor:
        weight = torch.linspace(-1, 1, 5).requires_grad_()
        optimizer = optim.LBFGS([weight], 0.5, max_iter=4, line_search_fn=line_search)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.mse_loss((X @ weight).tanh(), LABELS / 8)
            value.backward()
            return value

        with context:
            for _ in range(3):
                optimizer.step(loss)
        return weight.detach()

    ours, native = minimum(exact.mode()), minimum(contextlib.nullcontext())
    torch.testing.assert_close(ours, native, rtol=1e-3, atol=1e-4)


def test_the_optimiser_keeps_its_way_of_stepping() -> None:
    """For lists of tensors, which steps within the block do not take."""
    for foreach in (None, True, False):
        optimizer = optim.NAdam([torch.ones(2, requires_grad=True)], foreach=foreach)
        with exact.mode():
            optimizer.param_groups[0]["params"][0].sum().backward()
            optimizer.step()
        assert optimizer.param_groups[0]["foreach"] is foreach


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("order", [0.5, 1, 3, math.inf])
def test_gradients_are_clipped_by_any_norm(order: float, foreach: bool | None) -> None:
    def clipped(context: contextlib.AbstractContextManager[None]) -> Tensor:
        weight = torch.ones(7, 5, requires_grad=True)
        weight.grad = X.clone()
        with context:
            total = nn.utils.clip_grad_norm_([weight], 0.3, order, foreach=foreach)
            nn.utils.clip_grad_value_([weight], 0.01, foreach=foreach)
        return torch.cat([weight.grad.flatten(), total.view(1)])

    ours, native = clipped(exact.mode()), clipped(contextlib.nullcontext())
    torch.testing.assert_close(ours, native, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000, 123_457])
@pytest.mark.parametrize("beta", [0.9, 0.999, 0.5])
def test_powers_are_those_of_rational_numbers(beta: float, n: int) -> None:
    true = float(Fraction(beta) ** n) if n < 2000 else beta**n
    assert Base(beta) ** n == pytest.approx(true, rel=1e-11)
    assert (1 - Base(beta) ** 4) ** 0.5 == math.sqrt(1 - (Base(beta) ** 4))
    assert isinstance(1 - Base(beta), Base)


def test_powers_that_are_not_exact_are_refused() -> None:
    with pytest.raises(exact.NotExactError):
        Base(0.9) ** torch.tensor(3.0)  # as where steps are differentiable


def test_arithmetic_keeps_powers_exact() -> None:
    x, md = Base(0.9), Base(0.004)
    for value, true in (
        (0.96 ** (3.0 * md), 0.96 ** (3.0 * 0.004)),
        ((1 + x * 0.1 * 7) ** 0.75, (1 + 0.9 * 0.1 * 7) ** 0.75),
        ((2 / (1 - x) - 1) ** 0.5, (2 / (1 - 0.9) - 1) ** 0.5),
        (x**-2, 0.9**-2),
    ):
        assert isinstance(value, Base) and value == pytest.approx(true, rel=1e-14)


def test_the_optimiser_is_left_with_plain_numbers() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = optim.Adam([weight])
    with exact.mode():
        weight.sum().backward()
        optimizer.step()
    assert [type(beta) for beta in optimizer.param_groups[0]["betas"]] == [float, float]


def test_also_where_a_step_failed() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = optim.Adam([weight])

    def betas() -> list[type]:
        return [type(beta) for beta in optimizer.param_groups[0]["betas"]]

    with exact.mode():
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        assert betas() == [Base, Base]  # the control
    assert betas() == [float, float]


def test_powers_are_exact_only_under_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by an optimiser that notes the class of its betas."""
    seen = []

    class Curious(optim.Adam):
        def step(self, closure: Any = None) -> Any:
            seen.append(type(self.param_groups[0]["betas"][0]))
            return super().step(closure)

    weight = torch.ones(2, requires_grad=True)
    optimizer = Curious([weight])
    weight.sum().backward()
    optimizer.step()
    with exact.mode():
        optimizer.step()
    assert seen == [float, Base]


SCHEDULES: list[Callable[[optim.Optimizer], optim.lr_scheduler.LRScheduler]] = [
    lambda optimizer: optim.lr_scheduler.CosineAnnealingLR(optimizer, 17),
    lambda optimizer: optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7),
    lambda optimizer: optim.swa_utils.SWALR(optimizer, 0.05, anneal_epochs=7),
    lambda optimizer: optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=31),
]
POWERS: list[Callable[[optim.Optimizer], optim.lr_scheduler.LRScheduler]] = [
    lambda optimizer: optim.lr_scheduler.PolynomialLR(optimizer, 25, 0.9),
    lambda optimizer: optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 7], 0.7),
    lambda optimizer: optim.lr_scheduler.ExponentialLR(optimizer, 0.93),
    lambda optimizer: optim.lr_scheduler.CyclicLR(
        optimizer, 0.01, 0.1, 4, mode="exp_range", gamma=0.97
    ),
]


def rates(
    make: Callable[[optim.Optimizer], optim.lr_scheduler.LRScheduler],
    context: contextlib.AbstractContextManager[None],
) -> list[Any]:
    """The learning rates of 30 steps: what the optimiser uses, and what the schedule says."""
    with context:
        optimizer = optim.SGD([torch.ones(2, requires_grad=True)], 0.1)
        schedule, seen = make(optimizer), list[Any]()
        for _ in range(30):
            optimizer.step()
            schedule.step()
            seen += [optimizer.param_groups[0]["lr"], schedule.get_last_lr()[0]]
    return seen


@pytest.mark.parametrize("make", POWERS)
def test_a_schedule_takes_powers_of_ours(
    make: Callable[[optim.Optimizer], optim.lr_scheduler.LRScheduler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, native = rates(make, exact.mode()), rates(make, contextlib.nullcontext())
    assert ours == pytest.approx(native, rel=1e-12)
    assert {type(rate) for rate in (*ours, *native)} == {float}
    power = Base.__pow__
    monkeypatch.setattr(Base, "__pow__", lambda x, n: Base(power(x, n) * 1.5))
    changed = rates(make, exact.mode()) != ours  # so they do take them
    assert changed or "Exponential" in type(make(optim.SGD([X], 0.1))).__name__


@pytest.mark.parametrize("make", SCHEDULES)
def test_a_schedule_does_not_depend_on_the_cosine_of_the_platform(
    make: Callable[[optim.Optimizer], optim.lr_scheduler.LRScheduler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, native = rates(make, exact.mode()), rates(make, contextlib.nullcontext())
    assert ours == pytest.approx(native, rel=1e-12, abs=1e-15)
    cos = math.cos
    monkeypatch.setattr(math, "cos", lambda x: math.nextafter(cos(x), 0))
    assert rates(make, exact.mode()) == ours
    assert rates(make, contextlib.nullcontext()) != native  # the control


@pytest.mark.parametrize(
    ("make", "settings", "name"),
    [
        (optim.Adafactor, {}, "Adafactor"),
        (optim.Adam, {"fused": True}, "fused"),
        (optim.SGD, {"fused": True}, "fused"),
    ],
)
def test_what_was_not_checked_is_refused_by_name(
    make: Make, settings: dict[str, Any], name: str
) -> None:
    steps(contextlib.nullcontext(), make, **settings)  # the control
    with pytest.raises(exact.NotExactError, match=name):
        steps(exact.mode(), make, **settings)
