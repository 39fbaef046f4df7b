"""Sums and products are the true ones of the rounded numbers, in any order of summation."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import exact
from exact import grid, products
from exact.tests.oracle import numbers


def rounded(row: list[float], bits: int) -> list[Fraction]:
    """The slow oracle: rational numbers, rounded half to even to the grid."""
    largest = max(map(abs, row), default=0)
    if not largest:
        return [Fraction(0)] * len(row)
    exponent = 0
    while Fraction(2) ** exponent <= Fraction(largest):
        exponent += 1
    while Fraction(2) ** (exponent - 1) > Fraction(largest):
        exponent -= 1
    step = Fraction(2) ** (exponent - bits)
    return [round(Fraction(value) / step) * step for value in row]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 4),
    k=st.integers(1, 40),
    m=st.integers(1, 4),
    spread=st.sampled_from([0, 3, 30, 100]),
    seed=st.integers(0, 99),
)
def test_a_product_is_that_of_rational_numbers(
    n: int, k: int, m: int, spread: int, seed: int
) -> None:
    a, b = numbers((n, k), spread, seed), numbers((k, m), spread, seed + 1)
    a_bits, b_bits = products.product_bits(k)
    rows = [rounded(row, a_bits) for row in a.tolist()]
    columns = [rounded(column, b_bits) for column in b.t().tolist()]
    expected = [
        [float(sum(map(Fraction.__mul__, r, c), Fraction(0))) for c in columns] for r in rows
    ]
    assert products.matmul(a, b).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 4) | st.integers(1, 100),
    spread=st.sampled_from([0, 3, 30, 100]),
    seed=st.integers(0, 99),
)
def test_a_sum_is_that_of_rational_numbers(n: int, spread: int, seed: int) -> None:
    x = numbers((n,), spread, seed)
    # Of one or two numbers the sum has but one order, and none of them is rounded.
    terms = rounded(x.tolist(), 53 - (n - 1).bit_length()) if n > 2 else map(Fraction, x.tolist())
    assert grid.sum(x, [0]).item() == float(sum(terms, Fraction(0)))


@pytest.mark.parametrize("k", [1, 2, 3, 784, 65_536])
def test_the_order_of_summation_does_not_matter_and_in_float32_it_does(k: int) -> None:
    a, b = numbers((8, k), 8), numbers((k, 8), 8, 1)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(1))
    assert torch.equal(products.matmul(a, b), products.matmul(a[:, order], b[order]))
    assert torch.equal(grid.sum(a, [1]), grid.sum(a[:, order], [1]))
    if k >= 784:
        assert not torch.equal(a @ b, a[:, order] @ b[order])  # the control


def test_a_row_does_not_depend_on_the_batch_and_in_float32_it_does() -> None:
    a, b = numbers((300, 784), 3), numbers((784, 10), 3, 1)
    alone = torch.cat([products.matmul(row, b) for row in a.split(1)])
    assert torch.equal(products.matmul(a, b), alone)
    assert not torch.equal(a @ b, torch.cat([row @ b for row in a.split(1)]))  # the control


def test_products_are_as_good_as_float32s() -> None:
    a, b = numbers((64, 784), 2), numbers((784, 64), 2, 1)
    true = a.double() @ b.double()
    error = (products.matmul(a, b) - true).abs().max() / true.abs().max()
    assert error < 2e-6


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "batched"])
def test_layouts_do_not_matter(layout: str) -> None:
    a, b = numbers((6, 20), 3), numbers((20, 4), 3, 1)
    expected = products.matmul(a, b)
    match layout:
        case "transposed":
            a, b = a.t().contiguous().t(), b.t().contiguous().t()
        case "strided":
            a = torch.stack([a, a], 2)[:, :, 0]
        case "expanded":
            a = a[:1].expand(6, 20)
            expected = expected[:1].expand(6, 4)
        case "batched":
            a, expected = a.expand(3, 6, 20), expected.expand(3, 6, 4)
            b = b.expand(3, 20, 4)
    assert torch.equal(products.matmul(a, b), expected)


@pytest.mark.parametrize(("n", "k", "m"), [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0), (1, 1, 1)])
def test_empty_and_tiny_shapes(n: int, k: int, m: int) -> None:
    a, b = torch.ones(n, k), torch.ones(k, m)
    assert torch.equal(products.matmul(a, b), (a @ b).double())
    assert torch.equal(grid.sum(a, [0]), a.double().sum(0))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so_in_its_row(bad: float) -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 2)
    a[1, 2] = bad
    result = products.matmul(a, b)
    assert not result[1].isfinite().any() and result[[0, 2]].isfinite().all()
    assert not grid.sum(a, [0, 1]).isfinite()


@pytest.mark.parametrize("size", [1e-45, 1e-38, 3e38])
def test_extreme_sizes(size: float) -> None:
    x = torch.full((5,), size)
    assert grid.sum(x, [0]).item() == 5 * float(x[0])


@pytest.mark.parametrize("exponents", [(-537, -538), (500, 500), (1000, -900), (-1010, 60)])
def test_float64_products_do_not_depend_on_their_order_at_any_scale(
    exponents: tuple[int, int],
) -> None:
    def scaled(x: Tensor, exponent: int) -> Tensor:  # in two steps, as one number can be too small
        return x * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(-7, 8, (2, 30, 300), generator=generator).double()
    expected, order = scaled(a @ b.t(), sum(exponents)), torch.randperm(300, generator=generator)
    a, b = scaled(a, exponents[0]), scaled(b, exponents[1])
    assert torch.equal(products.matmul(a, b.t()), expected)
    assert torch.equal(products.matmul(a[:, order], b[:, order].t()), expected)


def test_a_huge_number_of_bits_is_not_asked_for() -> None:
    for k in (1, 2, 3, 784, 65_536, 2**20):
        a, b = products.product_bits(k)
        assert max(a, b) <= 22 and a + b + (k - 1).bit_length() <= 53


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sums_of_subnormal_numbers_depend_on_no_order(order: int) -> None:
    x = (torch.arange(10_001) * 450_359_962_731 % (2**52 - 1)).view(torch.float64)
    places, zero = torch.zeros(10_001, dtype=torch.int64), x.new_zeros(1)
    assert x.roll(3).sum() != x.sum()  # the control
    true = sum(Fraction(value) for value in x.tolist())
    with exact.mode():
        assert torch.equal(x.roll(order).sum(), x.sum())
        in_place = [zero.index_add(0, places, y) for y in (x, x.roll(order))]
        assert torch.equal(*in_place)
        assert abs(Fraction(x.sum().item()) / true - 1) < Fraction(1, 2**30)
