"""A compiled step leaves the same bits as the mode, in weights, state, gradients and results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import exact
from exact.tests.oracle import bits

G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (60, 2, 6, 6), generator=G).to(torch.uint8)
LABELS = torch.randint(0, 4, (60,), generator=G)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 4)
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4)
    )


def deep() -> nn.Module:
    layers = [nn.Linear(72, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 7), nn.GELU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(7, 4))


def normalised() -> nn.Module:
    layers = [nn.BatchNorm2d(4), nn.SiLU(), nn.AvgPool2d(2), nn.GroupNorm(2, 4)]
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.Flatten(), nn.Linear(16, 4))


class Recurrent(nn.Module):
    """The rows of an image, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(12, 7, num_layers=2, batch_first=True, bidirectional=True)
        self.layer = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 2, 6, 6) to logits (N, 4)."""
        outputs, _ = self.cells(x.transpose(1, 2).flatten(2))
        logits: Tensor = self.layer(outputs[:, -1])
        return logits


MODELS = [convolutional, perceptron, deep, normalised, Recurrent]
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01, foreach=True),
}


def train(
    make: Callable[[], nn.Module],
    optimizer_of: Callable[[Any], optim.Optimizer],
    compiled: bool,
    steps: int = 12,
    change: Callable[[int, nn.Module, optim.Optimizer], None] = lambda *_: None,
) -> tuple[list[bytes], list[int]]:
    """The bits of all that the training leaves, and in which steps Python ran."""
    with exact.mode(seed=3):
        model, images, ran = make(), exact.from_bytes(IMAGES), []
        optimizer = optimizer_of(model.parameters())

        def step(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            ran.append(number)
            outputs = model(images[batch])
            loss = F.cross_entropy(outputs, LABELS[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss, {"right": (outputs.argmax(1) == LABELS[batch]).sum()}

        left = []
        do = exact.compile(step) if compiled else step
        for number in range(steps):
            change(number, model, optimizer)
            batch = torch.arange(12 if number % 4 < 3 else 5) * 3 + number
            loss, others = do(batch)
            left += [loss.detach(), others["right"]]
            left += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            left += [p.detach().clone() for p in model.parameters()]
        for state in optimizer.state.values():
            left += [x for x in state.values() if isinstance(x, Tensor)]
        left.append(torch.rand(3))  # as many random numbers have been drawn
    return bits(left), ran


@pytest.mark.sample(10)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])
def test_a_compiled_training_leaves_the_same_bits(make: Any, optimizer: str) -> None:
    expected, ran = train(make, OPTIMIZERS[optimizer], compiled=False)
    assert ran == list(range(12))
    found, ran = train(make, OPTIMIZERS[optimizer], compiled=True)
    assert ran == [0, 1, 3, 7]  # twice with each of the two shapes
    assert found == expected
    assert train(make, lambda p: optim.SGD(p, 0.2), compiled=True)[0] != expected  # the control


def test_settings_of_the_optimiser_and_of_modules_may_change() -> None:
    def change(number: int, model: nn.Module, optimizer: optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        optimizer.param_groups[0]["momentum"] = 0.9 if number > 5 else 0.5
        if number in (6, 8):  # as by a checkpoint: other tensors, and other numbers in them
            state = optimizer.state_dict()
            optimizer.load_state_dict({**state, "state": {} if number == 6 else state["state"]})
            model.load_state_dict({key: x * 0.5 for key, x in model.state_dict().items()})
        if number in (2, 10):
            optimizer.zero_grad()

    momentum = OPTIMIZERS["momentum"]
    expected, _ = train(perceptron, momentum, compiled=False, change=change)
    found, ran = train(perceptron, momentum, compiled=True, change=change)
    assert found == expected and ran == [0, 1, 2, 3, 4, 7, 10]
    assert train(perceptron, momentum, compiled=True)[0] != expected  # the control

    def evaluate(number: int, model: nn.Module, optimizer: optim.Optimizer) -> None:
        model.train(number != 5)
        if number == 8:
            model[1].weight = nn.Parameter(model[1].weight.detach().clone())  # type: ignore[index]

    expected, _ = train(perceptron, momentum, compiled=False, change=evaluate)
    found, ran = train(perceptron, momentum, compiled=True, change=evaluate)
    assert found == expected and {5, 8} < set(ran)


def mask(x: Tensor) -> Tensor:
    return x[x > 0].sum()


def item(x: Tensor) -> Tensor:
    return x * x.sum().item()


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def restored(x: Tensor) -> Tensor:
    state = torch.get_rng_state()
    first = torch.rand(3)
    torch.set_rng_state(state)
    return first + torch.rand(3)


def closure(x: Tensor) -> Tensor:
    optim.SGD([nn.Parameter(x.clone())], 0.1).step(lambda: 1.0)
    return x


@pytest.mark.parametrize(
    ("step", "advice"),
    [
        *((step, "outside the step") for step in (mask, item, branch, restored)),
        (closure, "step\\(\\) alone"),
    ],
)
def test_a_step_that_data_decide_on_is_refused_with_what_to_do(step: Any, advice: str) -> None:
    with exact.mode(seed=1):
        step(torch.ones(3))  # the control
        with pytest.raises(exact.NotExactError, match=advice):
            exact.compile(step)(torch.ones(3))
        assert exact.compile(torch.exp)(torch.ones(3)).shape == (3,)  # nothing is left of it


def test_a_step_that_always_differs_runs_under_the_mode_and_says_so_once() -> None:
    factors = iter(range(20))

    @exact.compile
    def step(x: Tensor) -> Tensor:
        return x * float(next(factors))

    with exact.mode():
        with pytest.warns(
            UserWarning, match=r"aten.mul.*: give what changes as a tensor"
        ) as warned:
            results = [step(torch.ones(2)).tolist() for _ in range(10)]
        assert results == [[float(i)] * 2 for i in range(10)] and len(warned) == 1
        with pytest.raises(TypeError, match="tensors and numbers as arguments, not list"):
            exact.compile(lambda x: x)([1])


def test_gradients_are_added_up_as_without_compilation() -> None:
    def run(compiled: bool) -> tuple[list[bytes], int]:
        weight, calls, left = nn.Parameter(torch.ones(3, 2)), 0, []

        def step(x: Tensor, scale: float) -> Tensor:
            nonlocal calls
            calls += 1
            loss = ((x @ weight) * scale).square().sum()
            loss.backward()
            return loss

        do = exact.compile(step) if compiled else step
        with exact.mode():
            for number in range(12):
                if number == 8:
                    weight.grad = None
                loss = do(torch.arange(6.0).view(2, 3) + number, 2.0 if number % 2 else 0.5)
                assert weight.grad is not None
                left += [loss.detach(), weight.grad.clone()]
        return bits(left), calls

    (expected, all_), (found, some) = run(compiled=False), run(compiled=True)
    assert found == expected and some < all_ == 12


def test_a_tensor_may_be_two_arguments_and_a_weight_one() -> None:
    x, y = torch.rand(3, 4), torch.rand(3, 4)
    product = exact.compile(lambda x, y: x * 2 + y)
    with exact.mode():
        for _ in range(4):
            assert torch.equal(product(x, y), x * 2 + y)
            assert torch.equal(product(x, x), x * 2 + x)

    def step(weight: Tensor, x: Tensor) -> None:
        (weight * x).sum().backward()

    weight, compiled = nn.Parameter(torch.ones(3, 4)), exact.compile(step)
    with exact.mode():
        for number in range(1, 5):
            compiled(weight, torch.ones(3, 4))
            assert weight.grad is not None and weight.grad.tolist() == [[number] * 4] * 3


def test_weights_may_be_frozen_and_more_shapes_than_are_kept() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))

    @exact.compile
    def step(x: Tensor) -> None:
        first.grad = second.grad = None
        (first * second * x).sum().backward()

    with exact.mode():
        for number in range(9):
            second.requires_grad_(number < 5)
            step(torch.ones(2))
            assert first.grad is not None and (second.grad is not None) == (number < 5)
        double = exact.compile(lambda x, factor: x * factor)
        with pytest.warns(UserWarning, match="64 sets of shapes and numbers") as warned:
            products = [double(torch.ones(2), factor).tolist() for factor in range(70)]
        assert products == [[factor] * 2 for factor in range(70)] and len(warned) == 1


def test_outside_of_the_mode_the_step_itself_is_called() -> None:
    x = torch.rand(50, 300)
    product = exact.compile(lambda x: x @ x.t())
    assert torch.equal(product(x), x @ x.t())
    with exact.mode():
        assert [torch.equal(product(x), x @ x.t()) for _ in range(3)] == [True] * 3
    assert torch.equal(product(x), x @ x.t())
