"""A recorded step does what the step did to gradients, by whichever way it got them."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.optimizer import register_optimizer_step_pre_hook

import exact
from exact import random
from exact.tests.test_program import V, W, both

G = [torch.ones(4, 3), torch.zeros(4, 3)]


def weights(number: int) -> list[nn.Parameter]:
    return [nn.Parameter(W.clone()) for _ in range(number)]


def left(*parameters: Tensor) -> list[Tensor]:
    """Weights and gradients, which may be missing."""
    gradients = [torch.zeros(0) if p.grad is None else p.grad for p in parameters]
    return [*(p.detach() for p in parameters), *gradients]


def squares(x: Tensor) -> Tensor:
    return x.square().sum()


def descent(optimizer: SGD, w: Tensor) -> Callable[[Tensor], None]:
    """A training step of the weights w."""

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        squares(x @ w).backward()
        optimizer.step()

    return step


def test_a_gradient_that_a_step_clears_is_not_applied_by_its_optimizer() -> None:
    def tasks(compiled: Any) -> list[Tensor]:
        a, b = weights(2)
        optimizer = SGD([a, b], 0.1)
        first, second = (compiled(descent(optimizer, w)) for w in (a, b))
        for _ in range(4):
            first(V)
            second(V)
        return left(a, b)

    both(tasks)


def test_the_second_update_of_a_step_has_fewer_gradients() -> None:
    def twice(compiled: Any) -> list[Tensor]:
        a, b = weights(2)
        optimizer = SGD([a, b], 0.1)

        @compiled
        def step(x: Tensor) -> None:
            for used in ((a, b), (a,)):
                optimizer.zero_grad()
                squares(x @ torch.cat(used, 1)).backward()
                optimizer.step()

        for _ in range(3):
            step(V)
        return left(a, b)

    both(twice)


def test_an_optimizer_that_calls_the_step_of_its_base_class_is_one_update() -> None:
    class Derived(SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            super().step(None)
            self.param_groups[0]["params"][0].mul_(0.5)

    SGD(weights(1))  # which decorates the step of the base class

    def derived(compiled: Any) -> list[Tensor]:
        (w,) = weights(1)
        step = compiled(descent(Derived([w], 0.1), w))
        for _ in range(3):
            step(V)
        return left(w)

    both(derived)


def test_a_gradient_from_outside_that_the_step_does_not_read() -> None:
    def passed_on(compiled: Any) -> list[Tensor]:
        w, u = weights(2)
        optimizer = SGD([w, u], 0.1)

        @compiled
        def step(x: Tensor) -> None:
            w.grad = None
            squares(x @ w).backward()
            optimizer.step()

        for number in range(6):
            u.grad = G[number > 3]
            step(V)
        return left(w, u)

    both(passed_on)


def test_the_gradient_of_a_weight_that_a_view_from_outside_or_the_optimizer_leads_to() -> None:
    def led(compiled: Any) -> list[Tensor]:
        w, u = weights(2)
        turned, optimizer = w.t(), SGD([u], 0.1)

        @compiled
        def step(x: Tensor) -> None:
            w.grad = None
            (x @ turned).sum().backward()
            u.grad = x.mean() * W
            optimizer.step()

        found = []
        for number in range(5):
            step(torch.ones(2, 3) * number)
            found += left(w, u)
        return found

    both(led)


def test_a_module_clears_the_gradient_of_a_weight_that_is_not_used() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.other = weights(2)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.used

    def cleared(compiled: Any) -> list[Tensor]:
        model, found = Two(), []

        @compiled
        def step(x: Tensor) -> None:
            model.zero_grad()
            squares(model(x)).backward()

        for number in range(8):
            model.other.grad = W.clone()
            step(V * number)
            found += left(model.used, model.other)
        return found

    both(cleared)


@pytest.mark.parametrize("cleared", [False, True])
def test_a_step_without_gradients_is_repeated_and_leaves_them(cleared: bool) -> None:
    """A warning would say that it is not repeated."""

    def predicting(compiled: Any) -> list[Tensor]:
        model = nn.Linear(3, 2)
        optimizer = SGD(model.parameters(), 0.1)
        forward, found = compiled(lambda x: model(x) * 2), []
        for number in range(12):
            if cleared or not number % 3:
                optimizer.zero_grad()
            squares(model(W * number)).backward()
            found += [forward(W).detach(), *(x.clone() for x in left(model.weight))]
        return found

    both(predicting)


def test_a_gradient_that_a_hook_replaces() -> None:
    def replaced(compiled: Any) -> list[Tensor]:
        (w,) = weights(1)
        optimizer = SGD([w], 0.1)

        def halve(*_: Any) -> None:
            assert w.grad is not None
            w.grad = w.grad * 0.5

        optimizer.register_step_pre_hook(halve)
        step, found = compiled(descent(optimizer, w)), []
        for number in range(5):
            step(V * number)
            found += left(w)
        return found

    with pytest.warns(UserWarning, match="not repeated"):
        both(replaced)


def test_hooks_of_all_optimizers_are_called() -> None:
    def hooked(compiled: Any) -> list[Tensor]:
        (w,) = weights(1)
        step = compiled(descent(SGD([w], 0.1), w))

        def halve(*_: Any) -> None:
            assert w.grad is not None
            w.grad.mul_(0.5)

        with register_optimizer_step_pre_hook(halve):
            for _ in range(5):
                step(V)
        return left(w)

    both(hooked)


@pytest.mark.parametrize("decay", [0.0, 1e-50])  # below the range of float32
def test_weight_decay_of_infinity(decay: float) -> None:
    def decayed(compiled: Any) -> list[Tensor]:
        w = nn.Parameter(torch.zeros(2))
        optimizer = SGD([w], 0.1, weight_decay=decay)

        @compiled
        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            (w * x).sum().backward()
            optimizer.step()

        for _ in range(4):
            with torch.no_grad():
                w.copy_(torch.tensor([torch.inf, 1.0]))
            step(torch.ones(2))
        return [w.isnan()]

    both(decayed)


def test_random_numbers_of_a_key_are_the_same_each_time() -> None:
    def noise(compiled: Any) -> list[Tensor]:
        step = compiled(lambda x: x + random.uniform((3,), 1, "noise").float())
        return [step(torch.ones(3) * number) for number in range(4)]

    both(noise)


def test_a_buffer_that_is_replaced_is_noticed() -> None:
    def normalised(compiled: Any) -> list[Tensor]:
        layer = nn.BatchNorm1d(4).eval()
        step, found = compiled(layer), []
        for number in range(8):
            if number == 4:
                layer.running_mean = torch.ones(4)
            found.append(step(V).detach())
        return found

    both(normalised)


def test_results_keep_their_type_or_are_refused() -> None:
    with exact.mode():
        largest = exact.compile(lambda x: x.max(1))
        assert all(type(largest(V)) is torch.return_types.max for _ in range(4))
        for made in (lambda x: OrderedDict(y=x * 2), lambda x: [(x * 2).numpy()]):
            with pytest.raises(TypeError, match="a compiled step returns tensors and numbers, in"):
                exact.compile(made)(V)
