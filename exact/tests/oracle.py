"""What the tests of exact operations compare with, and how."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The value and, for a fixed gradient of it, those of the inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).view(y.shape) / max(y.numel(), 1)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def true_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Fail where the gradients of float64 inputs are not the slopes of the function.

    Products are rounded to 22 bits, so steps are wider than is usual in float64.
    """
    step = 2.0**-9
    for which, x in enumerate(inputs):
        gradient = value_and_gradients(function, *inputs)[1 + which].flatten()
        for i in range(0, x.numel(), max(x.numel() // 5, 1)):
            values = []
            for sign in (1, -1):
                moved = x.clone()
                moved.view(-1)[i] += sign * step
                y = value_and_gradients(function, *inputs[:which], moved, *inputs[which + 1 :])[0]
                weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).view(y.shape) / y.numel()
                values.append((y * weights).sum().item())
            slope = (values[0] - values[1]) / (2 * step)
            assert abs(gradient[i].item() - slope) < 1e-3 * (1 + abs(slope)), (which, i)


def relaid(x: Tensor) -> Iterator[Tensor]:
    """The same numbers in other layouts: with turned dimensions, with gaps, and off the start."""
    yield x.transpose(0, -1).contiguous().transpose(0, -1)
    yield torch.stack([x, x], -1)[..., 0]
    yield torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape)


def bits(tensors: Sequence[Tensor]) -> list[bytes]:
    """The very bits, where -0 is not 0 and NaN is itself."""
    return [x.contiguous().numpy().tobytes() for x in tensors]


def numbers(shape: tuple[int, ...], spread: int, seed: int = 0) -> Tensor:
    """Float32 numbers of both signs whose sizes differ by up to 2^spread."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(-spread, 1, shape, generator=generator).double()
    return (torch.randn(shape, generator=generator).double() * 2.0**sizes).float()
