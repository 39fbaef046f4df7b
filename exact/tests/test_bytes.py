"""Products with bytes are those of their numbers, and marks end where the numbers change."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import exact
from exact import products
from exact.bytes import mark_bytes, propagate_bytes, signed_bytes
from exact.tests.oracle import numbers


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 200),
    m=st.integers(1, 40),
    spread=st.sampled_from([0, 30, 100]),
    seed=st.integers(0, 99),
)
def test_a_product_with_bytes_is_that_of_their_numbers(
    n: int, k: int, m: int, spread: int, seed: int
) -> None:
    """With integer instructions where the CPU has them, as without."""
    generator = torch.Generator().manual_seed(seed)
    marked = exact.from_bytes(torch.randint(0, 256, (k, m), generator=generator).to(torch.uint8))
    a = numbers((n, k), spread, seed)
    a[0, 0] = [0.0, float("nan"), float("inf"), 1e-45, 3e38][seed % 5]
    plain = marked.clone()
    assert signed_bytes(marked) is not None and signed_bytes(plain) is None
    torch.testing.assert_close(
        products.matmul(a, marked), products.matmul(a, plain), rtol=0, atol=0, equal_nan=True
    )
    turned = propagate_bytes(marked, Tensor.t)
    torch.testing.assert_close(
        products.matmul(turned, a.t()),
        products.matmul(plain.t(), a.t()),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


def test_products_with_bytes_are_the_same_in_parts() -> None:
    a = numbers((products._ROWS + 3, 20), 30)
    generator = torch.Generator().manual_seed(1)
    marked = exact.from_bytes(torch.randint(0, 256, (20, 7), generator=generator).to(torch.uint8))
    plain, turned = marked.clone(), propagate_bytes(marked, Tensor.t)
    assert torch.equal(products.matmul(a, marked), products.matmul(a, plain))
    assert torch.equal(products.matmul(turned, a.t()), products.matmul(plain.t(), a.t()))


@pytest.mark.parametrize("k", [784, 1015, 1024, 4096, 65_536])
@pytest.mark.parametrize("byte", [0, 255])
@pytest.mark.parametrize("number", [-1.0, -2 + 2.0**-23])  # which rounds to -2
def test_the_largest_integers_neither_saturate_nor_overflow(
    k: int, byte: int, number: float
) -> None:
    marked = exact.from_bytes(torch.full((k, 4), byte).to(torch.uint8))
    turned = propagate_bytes(marked, Tensor.t)
    a, expected = torch.full((4, k), number), round(number) * k * byte / 256
    assert (products.matmul(a, marked) == expected).all()
    assert (products.matmul(turned, a.t()) == expected).all()


def test_a_slice_has_its_part_of_the_bytes() -> None:
    generator = torch.Generator().manual_seed(1)
    marked = exact.from_bytes(torch.randint(0, 256, (9, 5, 7), generator=generator).to(torch.uint8))
    slices = [marked[2:6].flatten(1), marked[8], marked[3:4, 1:3][0].t(), marked.split(4)[2][0]]
    slices += [marked[1:5].view(4, 35), marked[2:6].flatten(1).t(), marked[7:7].flatten(1)]
    for x in slices:
        bytes_ = signed_bytes(x)
        assert bytes_ is not None and torch.equal((bytes_.float() + 128) / 256, x)
        weights = numbers((x.shape[1], 3), 3)
        assert torch.equal(products.matmul(x, weights), products.matmul(x.clone(), weights))
    inner = torch.empty(0).set_(torch.zeros(20).untyped_storage(), 5, (5,), (1,))  # of 20
    mark_bytes(inner, torch.full((5,), -128, dtype=torch.int8))
    others = [marked[:, 1], marked[..., 1:3], marked[0].t()[1:], marked[0, 0].expand(2, 7)]
    others += [inner.as_strided((6,), (1,), 5), inner.as_strided((2,), (1,), 0)]
    assert [signed_bytes(x) for x in others] == [None] * len(others)


def test_a_changed_tensor_is_no_longer_taken_for_its_bytes() -> None:
    marked = exact.from_bytes(torch.full((3, 2), 255).to(torch.uint8))
    view = marked[1:]
    assert signed_bytes(marked) is not None
    view.add_(1 / 3)
    assert signed_bytes(marked) is None
    assert products.matmul(torch.ones(1, 3), marked)[0, 0] > 3


def test_a_mark_lives_with_its_tensor_alone() -> None:
    weights = numbers((4, 3), 3)
    marked = exact.from_bytes(torch.arange(20).view(5, 4).to(torch.uint8))
    torch.save(marked, saved := io.BytesIO())
    saved.seek(0)
    with exact.mode():
        expected = (marked.clone() * 3) @ weights
    assert signed_bytes(marked) is not None and signed_bytes(marked.t()) is not None
    shared = mark_bytes(marked.clone().mul_(1), torch.zeros(5, 4, dtype=torch.int8))
    assert copy.copy(shared)._version == shared._version  # so this does not tell them apart
    assert signed_bytes(shared) is not None and signed_bytes(copy.copy(shared)) is None
    for copied in (copy.deepcopy(marked), torch.load(saved)):
        assert signed_bytes(copied) is None
        with exact.mode():
            assert torch.equal(copied.mul_(3) @ weights, expected)
    with exact.mode():
        turned = marked.t()
        assert turned.data_ptr() == marked.data_ptr()
        torch._foreach_mul_([turned], 3.0)  # which below autograd counts no version by itself
        assert signed_bytes(marked) is None and signed_bytes(turned) is None
        assert torch.equal(marked @ weights, expected)


def test_a_change_of_shape_that_pytorch_does_not_count_ends_a_mark() -> None:
    marked = exact.from_bytes(torch.arange(20).view(5, 4).to(torch.uint8))
    expected, version = marked.clone().t() @ torch.ones(5, 3), marked._version
    with exact.mode():
        with torch.inference_mode():
            marked.swapaxes_(0, 1)
        assert marked._version == version and signed_bytes(marked) is None
        assert torch.equal(marked @ torch.ones(5, 3), expected)
