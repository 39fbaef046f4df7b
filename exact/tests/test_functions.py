"""Functions are within one unit in the last place of float32 of the true value."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

from exact import functions

TRUE: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "sqrt": mpmath.sqrt,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "erf": mpmath.erf,
}


def inputs(name: str) -> Tensor:
    """Float32 numbers over the whole range, subnormals included."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 0x7F800000, (1500,), generator=generator, dtype=torch.int32)
    whole = bits.view(torch.float32)
    near = torch.linspace(0.5, 2, 301)
    usual = torch.linspace(-110, 110, 1001)
    if name in ("log", "sqrt"):
        return torch.cat([whole, near, torch.tensor([1e-45, 1.17549421e-38, 3.4028235e38])])
    return torch.cat([whole, -whole, near - 1, usual])


@pytest.mark.parametrize("name", TRUE)
def test_within_one_unit_in_the_last_place(name: str) -> None:
    x = inputs(name)
    result = getattr(functions, name)(x).float()
    with mpmath.workdps(60):
        for value, ours in zip(x.tolist(), result.tolist(), strict=True):
            true = TRUE[name](mpmath.mpf(value))
            nearest = torch.tensor(float(true), dtype=torch.float64).float().item()
            around = torch.tensor(nearest)
            below = torch.nextafter(around, torch.tensor(-math.inf)).item()
            above = torch.nextafter(around, torch.tensor(math.inf)).item()
            assert below <= ours <= above, (name, value, ours, nearest)


@pytest.mark.parametrize("name", TRUE)
def test_special_values_are_those_of_torch(name: str) -> None:
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -1.0, 1.0, 1e-45])
    ours = getattr(functions, name)(x).float()
    torch.testing.assert_close(ours, getattr(torch, name)(x), rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(ours.signbit()[:2], getattr(torch, name)(x).signbit()[:2])


def test_the_normal_distribution_function_is_right_far_into_its_tails() -> None:
    x = torch.linspace(-13, 8, 211)
    with mpmath.workdps(40):
        for value, ours in zip(x.tolist(), functions.normal_cdf(x).tolist(), strict=True):
            true = float(mpmath.ncdf(mpmath.mpf(value)))
            assert ours == pytest.approx(true, rel=1e-12)


def test_the_cosine_of_a_schedule_is_the_true_one() -> None:
    with mpmath.workdps(40):
        for i in range(-800, 801):
            x = i * math.pi / 200
            assert abs(functions.cos(x) - mpmath.cos(mpmath.mpf(x))) <= 2.0**-52
    assert functions.cos(0.0) == 1 and functions.cos(math.pi) == -1


@pytest.mark.parametrize("name", TRUE)
def test_vectors_and_single_numbers_give_the_same_bits(name: str) -> None:
    x = inputs(name)[:333]
    function = getattr(functions, name)
    single = torch.stack([function(value) for value in x])
    assert torch.equal(function(x).view(torch.int64), single.view(torch.int64))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    for name in TRUE:
        assert getattr(functions, name)(torch.ones(shape)).shape == shape
