"""What overlaps with the memory that is written to is read before, or refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import exact

LARGE = torch.rand(1999, 2000, generator=torch.Generator().manual_seed(0))
OVERLAPS: dict[str, Callable[[Tensor], object]] = {
    "copy_": lambda x: x[:, :1999].copy_(x[:, :1999].t()),
    "add_": lambda x: x[:, 1:].add_(x[:, :-1]),
    "mul to out": lambda x: torch.mul(x[:, :-1], 0.5, out=x[:, 1:]),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_what_overlaps_with_what_is_written_is_read_before(name: str) -> None:
    x, y = LARGE.clone(), LARGE.clone()
    with exact.mode():
        OVERLAPS[name](x)
    OVERLAPS[name](y)
    separate = {
        "copy_": lambda: (LARGE[:, :1999].t(), LARGE[:, 1999:]),
        "add_": lambda: (LARGE[:, :1], LARGE[:, 1:] + LARGE[:, :-1]),
        "mul to out": lambda: (LARGE[:, :1], LARGE[:, :-1] * 0.5),
    }
    expected = torch.cat(separate[name](), 1)
    assert torch.equal(x, expected)
    assert not torch.equal(y, expected)  # the control


def test_also_where_the_two_do_not_know_of_each_other() -> None:
    numbers = LARGE.flatten().numpy().copy()
    expected = LARGE.flatten()[1:] + LARGE.flatten()[:-1]
    x, y = torch.from_numpy(numbers[1:]), torch.from_numpy(numbers[:-1])
    with exact.mode():
        x.add_(y)
    assert torch.equal(x, expected)


def test_a_list_with_a_place_twice_is_not_written_to() -> None:
    x = torch.ones(6)
    with exact.mode():
        torch._foreach_mul_([x[:3], x[3:], x[:0]], 2.0)  # the control
        for common in ([x[2:], x[:3]], [x[::2], x[4:]]):
            with pytest.raises(exact.NotExactError, match="share their memory"):
                torch._foreach_mul_(common, 2.0)
    assert (x == 2).all()


@pytest.mark.parametrize(
    "folded",
    [
        lambda: torch.zeros(3).expand(4, 3),
        lambda: torch.zeros(9).unfold(0, 3, 1),
        lambda: torch.zeros(9).as_strided((3, 3), (2, 1)),
    ],
)
def test_a_place_that_is_several_is_not_written_to(folded: Callable[[], Tensor]) -> None:
    with exact.mode():
        folded().squeeze_().t_()  # the controls: these move no number
        for apart in (torch.zeros(3, 4).t(), torch.zeros(9)[::2], torch.zeros(2, 3, 4)[:, 1]):
            apart.mul_(2)
        with pytest.raises(exact.NotExactError, match=r"aten\.mul_.* one in memory"):
            folded().mul_(2)


def test_a_tensor_that_is_set_to_another_shares_its_memory() -> None:
    x = torch.zeros(6)
    part = x[:3]
    with exact.mode():
        x.set_(part)  # type: ignore[call-overload]
        x.fill_(1)
    assert (part == 1).all()
