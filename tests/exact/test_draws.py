"""PyTorch's random operations under the mode follow from the seed, and are well distributed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exact
from exact import random
from tests.exact.oracle import bits

N = 20_000
DRAWS: dict[str, tuple[Callable[[], Tensor], float, float]] = {  # mean and deviation
    "rand": (lambda: torch.rand(N), 0.5, 0.2887),
    "randn": (lambda: torch.randn(N), 0, 1),
    "rand_like": (lambda: torch.rand_like(torch.empty(N)), 0.5, 0.2887),
    "randn_like": (lambda: torch.randn_like(torch.empty(N)), 0, 1),
    "uniform_": (lambda: torch.empty(N).uniform_(-1, 3), 1, 1.1547),
    "normal_": (lambda: torch.empty(N).normal_(2, 3), 2, 3),
    "bernoulli": (lambda: torch.bernoulli(torch.full((N,), 0.3)), 0.3, 0.4583),
    "bernoulli_": (lambda: torch.empty(N).bernoulli_(0.3), 0.3, 0.4583),
    "randint": (lambda: torch.randint(10, (N,)).float(), 4.5, 2.8723),
    "randint from": (lambda: torch.randint(-5, 5, (N,)).float(), -0.5, 2.8723),
    "randperm": (lambda: torch.randperm(N).float() / N, 0.5, 0.2887),
    "dropout": (lambda: F.dropout(torch.ones(N), 0.3), 1, 0.6547),
    "xavier": (lambda: nn.init.xavier_uniform_(torch.empty(100, 200)), 0, 0.0816),
    "kaiming": (lambda: nn.init.kaiming_normal_(torch.empty(100, 200)), 0, 0.1),
    "truncated": (lambda: nn.init.trunc_normal_(torch.empty(N), a=-9, b=9), 0, 1),
    "linear": (lambda: nn.Linear(200, 100).weight.detach(), 0, 0.0408),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_seed_decides_and_the_distribution_is_right(name: str) -> None:
    draw, mean, deviation = DRAWS[name]

    def drawn(seed: int) -> list[Tensor]:
        with exact.mode(seed=seed):
            return [draw(), draw()]

    first, second = drawn(1)
    assert bits([first, second]) == bits(drawn(1))
    # The controls: another seed, and the next draw of the same.
    assert bits([first]) != bits(drawn(2)[:1])
    assert bits([first]) != bits([second])
    assert abs(first.mean().item() - mean) < 5 * deviation / N**0.5
    assert abs(first.std().item() - deviation) < 0.03 * deviation


def test_dropout_is_the_same_by_either_way_that_pytorch_takes() -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def dropped(dropout: Callable[[Tensor], Tensor]) -> list[bytes]:
        with exact.mode(seed=1):
            y = dropout(x)
            (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        return bits([y.detach(), gradient])

    by_parts = dropped(lambda x: F.dropout(x, 0.3))  # as on a CPU
    assert by_parts == dropped(lambda x: torch.native_dropout(x, 0.3, True)[0])  # as on a GPU
    with exact.mode(seed=1), torch.inference_mode():
        assert bits([F.dropout(x, 0.3)]) == by_parts[:1]
    with exact.mode(seed=1):
        assert torch.equal(torch.native_dropout(x, 0.3, False)[0], x)


def test_draws_have_the_type_asked_for_and_stay_below_one() -> None:
    with exact.mode(seed=0):
        whole = torch.zeros(1000, dtype=torch.int8)
        assert len(set(torch.rand_like(whole, dtype=torch.float32).tolist())) > 900
        assert torch.randperm(4, dtype=torch.int32).dtype == torch.int32
        assert int(whole.random_().min()) >= 0 and int(whole.max()) > 100
        assert whole.bool().random_().float().mean() < 0.6
    with exact.mode(seed=0):
        for _ in range(16):
            torch.rand(1)
        drawn = torch.rand(2_000_000)
    draws = random.uniform((2_000_000,), 0, "mode", 17)
    assert draws.max() < 1 == draws.float().max()  # the control: rounded, one of them is 1
    assert drawn.max() < 1


def test_a_gradient_passes_where_dropout_kept() -> None:
    x = torch.ones(1000, requires_grad=True)
    with exact.mode(seed=1):
        y = F.dropout(x, 0.25)
        y.backward(torch.ones(1000))
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert set(y.tolist()) == {0.0, float(torch.tensor(1 / 0.75))}


def test_without_a_seed_or_with_a_generator_there_is_no_draw() -> None:
    with exact.mode(), pytest.raises(exact.NotExactError, match="seed"):
        torch.rand(3)
    with exact.mode(seed=1), pytest.raises(exact.NotExactError, match="generator"):
        torch.empty(3).normal_(generator=torch.Generator().manual_seed(1))


def test_a_data_loader_shuffles_as_the_seed_says() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(50))

    def order(seed: int) -> list[int]:
        with exact.mode(seed=seed):
            loader = torch.utils.data.DataLoader(data, 8, shuffle=True)
            return [int(i) for (batch,) in loader for i in batch]

    assert sorted(order(1)) == list(range(50))
    assert order(1) == order(1) != order(2)
