"""Functions are within one unit in the last place of float32 of the true value."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

from exact import functions, hyperbolic, normal, trigonometry

MODULES = (functions, hyperbolic, normal, trigonometry)
TRUE: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "exp": mpmath.exp,
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log2": lambda x: mpmath.log(x, 2),
    "log10": mpmath.log10,
    "log1p": mpmath.log1p,
    "sqrt": mpmath.sqrt,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "sinh": mpmath.sinh,
    "cosh": mpmath.cosh,
    "asinh": mpmath.asinh,
    "acosh": mpmath.acosh,
    "atanh": mpmath.atanh,
    "erf": mpmath.erf,
    "erfc": mpmath.erfc,
    "erfinv": mpmath.erfinv,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "tan": mpmath.tan,
    "asin": mpmath.asin,
    "acos": mpmath.acos,
    "atan": mpmath.atan,
}
FUNCTIONS = {
    name: next(vars(m)[name] for m in reversed(MODULES) if name in m.__all__) for name in TRUE
}
DOMAINS = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt"), (2.0**-149, math.inf)),
    "log1p": (-1 + 2.0**-24, math.inf),
    "acosh": (1, math.inf),
    **dict.fromkeys(("atanh", "erfinv"), (-1 + 2.0**-24, 1 - 2.0**-24)),
    **dict.fromkeys(("asin", "acos"), (-1, 1)),
    **dict.fromkeys(("exp2", "sinh", "cosh", "expm1"), (-150, 150)),
}


def inputs(name: str) -> Tensor:
    """Float32 numbers over the whole range of the function, subnormals included."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 0x7F800000, (1000,), generator=generator, dtype=torch.int32)
    whole = bits.view(torch.float32)
    near, usual = torch.linspace(-1, 1, 401), torch.linspace(-110, 110, 601)
    ends = torch.tensor([1e-45, 1.17549421e-38, 3.4028235e38, 1 - 2.0**-24])
    x = torch.cat([whole, -whole, near, near + 1, usual, ends, -ends])
    low, high = DOMAINS.get(name, (-math.inf, math.inf))
    x = x[(x >= low) & (x <= high)]
    return x[::4] if name == "erfinv" else x  # which takes mpmath long


@pytest.mark.parametrize("name", TRUE)
def test_within_one_unit_in_the_last_place(name: str) -> None:
    x = inputs(name)
    result = FUNCTIONS[name](x).float()
    with mpmath.workdps(90):
        for value, ours in zip(x.tolist(), result.tolist(), strict=True):
            true = TRUE[name](mpmath.mpf(value))
            nearest = torch.tensor(float(true), dtype=torch.float64).float().item()
            around = torch.tensor(nearest)
            below = torch.nextafter(around, torch.tensor(-math.inf)).item()
            above = torch.nextafter(around, torch.tensor(math.inf)).item()
            assert below <= ours <= above, (name, value, ours, nearest)


@pytest.mark.parametrize("name", TRUE)
def test_special_values_are_those_of_torch(name: str) -> None:
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -1.0, 1.0, 1e-38])
    ours, native = FUNCTIONS[name](x).float(), getattr(torch, name)(x)
    torch.testing.assert_close(ours, native, rtol=1e-6, atol=0, equal_nan=True)
    zeros = ~native[:2].isnan()  # the sign of NaN is left open
    assert torch.equal(ours.signbit()[:2][zeros], native.signbit()[:2][zeros])


SPECIAL = torch.tensor(
    [0.0, -0.0, math.inf, -math.inf, math.nan, 1, -1, 2, 0.5, -3.5, 3, -4, 1e-45, 1e38, -1e38]
)


@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_pairs_of_special_values_are_those_of_torch(name: str) -> None:
    x, y = torch.meshgrid(SPECIAL, SPECIAL, indexing="ij")
    function = functions.pow if name == "pow" else trigonometry.atan2
    ours, native = function(x, y).float(), getattr(torch, name)(x, y)
    torch.testing.assert_close(ours, native, rtol=1e-6, atol=2e-45, equal_nan=True)
    numbers = ~native.isnan()
    assert torch.equal(ours.signbit()[numbers], native.signbit()[numbers])


@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_functions_of_two_are_within_one_unit_in_the_last_place(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(600, generator=generator) * 10 for _ in range(2))
    x = x.abs() if name == "pow" else x
    function = functions.pow if name == "pow" else trigonometry.atan2
    with mpmath.workdps(60):
        for a, b, ours in zip(x.tolist(), y.tolist(), function(x, y).tolist(), strict=True):
            true = mpmath.power(a, b) if name == "pow" else mpmath.atan2(a, b)
            assert abs(ours / true - 1) < 2.0**-45


def test_sines_of_large_float64_numbers_are_right() -> None:
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(0x413 << 52, 0x7FE << 52, (300,), generator=generator)
    # The last is, of all float64 numbers, the nearest to a multiple of π/2.
    last = torch.tensor([6381956970095103], dtype=torch.float64) * 2.0**797
    x = torch.cat([bits.view(torch.float64), last])
    with mpmath.workdps(400):
        for value, sine, cosine in zip(
            x.tolist(), trigonometry.sin(x).tolist(), trigonometry.cos(x).tolist(), strict=True
        ):
            assert abs(sine / mpmath.sin(mpmath.mpf(value)) - 1) < 2.0**-50
            assert abs(cosine / mpmath.cos(mpmath.mpf(value)) - 1) < 2.0**-50


def test_powers_of_two_have_whole_logarithms() -> None:
    k = torch.arange(-1022, 1024).double()
    assert torch.equal(functions.log2(functions.exp2(k)), k)


def test_the_normal_distribution_function_is_right_far_into_its_tails() -> None:
    x = torch.linspace(-13, 8, 211)
    with mpmath.workdps(40):
        for value, ours in zip(x.tolist(), normal.normal_cdf(x).tolist(), strict=True):
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
    x = inputs(name)[::40]
    function = FUNCTIONS[name]
    single = torch.stack([function(value) for value in x])
    assert torch.equal(function(x).view(torch.int64), single.view(torch.int64))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    for name in TRUE:
        assert FUNCTIONS[name](torch.ones(shape)).shape == shape
