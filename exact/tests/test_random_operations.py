"""PyTorch's random operations under the mode follow from the seed, and are well distributed."""

import math
from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import exact
from exact import random
from exact.tests.oracle import bits

N = 20_000
ROUNDED = 10  # a seed of which a draw is closer to 1 than float32 can be
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
    generator = torch.Generator()
    with exact.mode():
        drawn = torch.rand(2_000_000, generator=generator.manual_seed(ROUNDED))
    key = int(torch.empty((), dtype=torch.int64).random_(generator=generator.manual_seed(ROUNDED)))
    draws = random.uniform((2_000_000,), key, "mode")
    assert draws.max() < 1 == draws.float().max()  # the control: rounded, one of them is 1
    assert drawn.max() < 1


def test_integers_are_drawn_from_the_whole_range() -> None:
    with exact.mode(seed=1):
        wide = torch.randint(2**62, (1000,))
        filled = {
            dtype: torch.empty(4000, dtype=dtype).random_()
            for dtype in (torch.uint8, torch.int64, torch.float32, torch.float64)
        }
    assert 450 < int((wide % 2).sum()) < 550 and wide.max() > 2**61
    most = {torch.uint8: 2**8, torch.int64: 2**63, torch.float32: 2**24, torch.float64: 2**53}
    for dtype, x in filled.items():
        assert 0.997 * most[dtype] < int(x.max()) + 1 <= most[dtype]
        assert 1800 < int((x % 2).sum()) < 2200  # the last bit


WRONG: list[Callable[[], Tensor]] = [
    lambda: torch.randint(5, 5, (3,)),
    lambda: torch.randint(5, 2, (3,)),
    lambda: torch.randint(0, 300, (3,), dtype=torch.uint8),
    lambda: torch.empty(3).normal_(0, -1),
    lambda: torch.empty(3).uniform_(3, 1),
    lambda: torch.empty(3).bernoulli_(1.5),
    lambda: torch.bernoulli(torch.tensor([2.0])),
    lambda: torch.bernoulli(torch.tensor([1])),
    lambda: torch.bernoulli(torch.tensor([float("nan")])),
    lambda: torch.rand(3, dtype=torch.int64),
    lambda: torch.randn_like(torch.ones(3, dtype=torch.int64)),
    lambda: torch.randperm(-1),
    lambda: torch.randperm(300, dtype=torch.uint8),
]


@pytest.mark.parametrize("draw", WRONG)
def test_ranges_and_types_that_cannot_be_are_errors_as_natively(draw: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError):
        draw()
    with exact.mode(seed=1), pytest.raises((RuntimeError, TypeError)):
        draw()


def test_a_gradient_passes_where_dropout_kept() -> None:
    x = torch.ones(1000, requires_grad=True)
    with exact.mode(seed=1):
        y = F.dropout(x, 0.25)
        y.backward(torch.ones(1000))
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert set(y.tolist()) == {0.0, float(torch.tensor(1 / 0.75))}


def test_without_a_seed_there_is_no_draw() -> None:
    with exact.mode(), pytest.raises(exact.NotExactError, match="seed"):
        torch.rand(3)


GENERATED: dict[str, Callable[[torch.Generator], Tensor]] = {
    "rand": lambda g: torch.rand(9, generator=g),
    "randn": lambda g: torch.randn(9, generator=g),
    "randint": lambda g: torch.randint(99, (9,), generator=g),
    "randint from": lambda g: torch.randint(-9, 99, (9,), generator=g),
    "randperm": lambda g: torch.randperm(9, generator=g),
    "normal_": lambda g: torch.empty(9).normal_(generator=g),
    "uniform_": lambda g: torch.empty(9).uniform_(generator=g),
    "bernoulli": lambda g: torch.bernoulli(torch.full((99,), 0.3), generator=g),
}


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("seed", [None, 1])
def test_a_generator_decides_if_one_is_given(name: str, seed: int | None) -> None:
    draw = GENERATED[name]
    generator = torch.Generator()
    with exact.mode(seed=seed):
        one, two = draw(generator.manual_seed(5)), draw(generator)
        again, other = draw(generator.manual_seed(5)), draw(generator.manual_seed(6))
    assert torch.equal(one, again)
    assert not torch.equal(one, two) and not torch.equal(one, other)  # the controls


def test_draws_repeat_where_the_state_of_pytorch_is_restored_and_leave_it_as_it_was() -> None:
    before = torch.get_rng_state()
    with exact.mode(seed=1):
        state = torch.get_rng_state()
        one, two = torch.rand(3), torch.rand(3)
        torch.set_rng_state(state)
        assert torch.equal(torch.rand(3), one)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(3), one)
        assert torch.equal(torch.rand(3), two)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), exact.mode(seed=1):
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_recomputes_drops_the_same(reentrant: bool) -> None:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradient(run: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        with exact.mode(seed=3):
            model = nn.Sequential(nn.Linear(20, 30), nn.Dropout(0.5), nn.Linear(30, 1))
            run(model, x).square().mean().backward()
        weight = model[0].weight
        assert isinstance(weight.grad, Tensor)
        return weight.grad

    def recomputed(keep: bool) -> Tensor:
        return gradient(
            lambda model, x: checkpoint(model, x, use_reentrant=reentrant, preserve_rng_state=keep)
        )

    plain = gradient(lambda model, x: model(x))
    assert torch.equal(recomputed(keep=True), plain)
    assert not torch.equal(recomputed(keep=False), plain)  # the control


def test_only_one_thread_at_a_time_has_a_seed() -> None:
    entered: list[bool | str] = []

    def enter() -> None:
        try:
            with exact.mode(seed=2):
                entered.append(True)
        except exact.NotExactError as error:
            entered.append(str(error))

    def from_another_thread() -> bool | str:
        thread = Thread(target=enter)
        thread.start()
        thread.join()
        return entered[-1]

    with exact.mode(seed=1):
        assert "one block at a time" in str(from_another_thread())
    assert from_another_thread() is True  # the control


def test_a_data_loader_shuffles_as_the_seed_says() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(50))

    def order(seed: int) -> list[int]:
        with exact.mode(seed=seed):
            loader = torch.utils.data.DataLoader(data, 8, shuffle=True)
            return [int(i) for (batch,) in loader for i in batch]

    assert sorted(order(1)) == list(range(50))
    assert order(1) == order(1) != order(2)


P = torch.tensor([0.1, 0.0, 0.6, 0.3])
DISTRIBUTIONS: dict[str, tuple[Callable[[int], Tensor], float, float]] = {
    "exponential": (lambda n: torch.empty(n).exponential_(2), 0.5, 0.25),
    "geometric": (lambda n: torch.empty(n).geometric_(0.25), 4, 12),
    "normal": (lambda n: torch.normal(torch.ones(n), torch.full((n,), 2.0)), 1, 4),
    "normal of a size": (lambda n: torch.normal(1.0, 2.0, (n,)), 1, 4),
    "multinomial": (lambda n: torch.multinomial(P, n, replacement=True).float(), 2.1, 0.69),
    "first of multinomial": (
        lambda n: torch.multinomial(P.expand(n, 4), 2)[:, 0].float(), 2.1, 0.69,
    ),
    "random": (lambda n: torch.empty(n).random_(2, 6), 3.5, 1.25),
    "randint_like": (lambda n: torch.randint_like(torch.empty(n), 2, 6), 3.5, 1.25),
    "rrelu": (lambda n: nn.functional.rrelu(-torch.ones(n), 0.2, 0.4, True), -0.3, 0.04 / 12),
    "categorical": (lambda n: torch.distributions.Categorical(P).sample((n,)).float(), 2.1, 0.69),
    "rsample": (lambda n: torch.distributions.Normal(1.0, 2.0).rsample((n,)), 1, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_moments_are_those_of_the_distribution(name: str) -> None:
    draw, mean, variance = DISTRIBUTIONS[name]
    n = 20_000
    with exact.mode(seed=5):
        x, other = draw(n), draw(n)
    with exact.mode(seed=5):
        assert torch.equal(draw(n), x)
    assert not torch.equal(x, other)
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=0.1)


def test_multinomial_never_takes_what_has_no_weight_nor_one_twice() -> None:
    with exact.mode(seed=1):
        several = torch.multinomial(P.expand(500, 4), 3)
        repeated = torch.multinomial(P, 5000, replacement=True)
    assert sorted(set(repeated.tolist())) == [0, 2, 3]
    assert (several.sort(1).values == torch.tensor([0, 2, 3])).all()
