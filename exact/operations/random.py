"""PyTorch's own random operations under the mode, from keyed numbers.

`nn.Dropout`, `torch.randn` and `nn.init` then need no other code. The key of each call is
an integer from PyTorch's generator on the CPU, and integers are the same on every machine:
so numbers follow from the generator's seed, on any device, and repeat where its state is
restored, as by `torch.utils.checkpoint`.
"""

from typing import Any

import torch
from torch import Tensor

from exact import random
from exact.errors import NotExactError
from exact.grid import representable, require_floating_point
from exact.registry import implements

__all__ = ["generator_key", "uniform64"]

_Generator = torch.Generator | None


def generator_key(generator: _Generator) -> tuple[int, str]:
    """A key of random numbers, from the generator or from the one of the block."""
    if generator is not None and generator.device.type != "cpu":
        raise NotExactError(
            f"a generator on {generator.device} differs between devices: give one on the cpu, which"
            " draws for any device"
        )
    number = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
    return int(number), "mode"


def uniform64(x: Tensor, generator: _Generator) -> Tensor:
    """Numbers of [0, 1), float64, in the shape and on the device of x."""
    return random.uniform(tuple(x.shape), *generator_key(generator)).to(x.device)


@implements("rand", "rand.generator", random=True)
def _rand(size: list[int], *, generator: _Generator = None, **options: Any) -> Tensor:
    return _uniform_(torch.empty(size, **options), generator=generator)


@implements("rand_like", random=True)
def _rand_like(x: Tensor, *, generator: _Generator = None, **options: Any) -> Tensor:
    return _uniform_(torch.empty_like(x, **options), generator=generator)


@implements("randn", "randn.generator", random=True)
def _randn(size: list[int], *, generator: _Generator = None, **options: Any) -> Tensor:
    return _normal_(torch.empty(size, **options), generator=generator)


@implements("randn_like", random=True)
def _randn_like(x: Tensor, *, generator: _Generator = None, **options: Any) -> Tensor:
    return _normal_(torch.empty_like(x, **options), generator=generator)


@implements("randperm", "randperm.generator", random=True)
def _randperm(n: int, *, generator: _Generator = None, **options: Any) -> Tensor:
    dtype = options.get("dtype") or torch.int64
    if n < 0 or (n and not representable(dtype, n - 1)):
        raise RuntimeError(f"expected a number of integers of {dtype}, not {n}")
    return random.permutation(n, *generator_key(generator)).to(options.get("device"), dtype)


@implements("randint", "randint.generator", random=True)
def _randint_from_0(high: int, size: list[int], **options: Any) -> Tensor:
    return _randint(0, high, size, **options)


@implements("randint.low", "randint.low_generator", random=True)
def _randint(
    low: int, high: int, size: list[int], *, generator: _Generator = None, **options: Any
) -> Tensor:
    x = torch.empty(size, **options | {"dtype": options.get("dtype") or torch.int64})
    if low >= high or not representable(x.dtype, low, high - 1):
        raise RuntimeError(f"expected integers from {low} to below {high}, all of {x.dtype}")
    return x.copy_(random.integers(tuple(x.shape), *generator_key(generator)) % (high - low) + low)


@implements("random_", random=True)
def _random_(x: Tensor, *, generator: _Generator = None) -> Tensor:
    if x.is_floating_point():
        largest = 2 ** (24 if x.dtype == torch.float32 else 53) - 1  # which it holds exactly
    else:
        largest = 1 if x.dtype == torch.bool else min(torch.iinfo(x.dtype).max, 2**63 - 1)
    return x.copy_(random.integers(tuple(x.shape), *generator_key(generator)) & largest)


@implements("uniform_", random=True)
def _uniform_(
    x: Tensor, low: float = 0, high: float = 1, *, generator: _Generator = None
) -> Tensor:
    require_floating_point(x)
    if not low <= high:
        raise RuntimeError(f"expected a lower bound of at most {high}, not {low}")
    numbers = uniform64(x, generator)
    if x.dtype == torch.float32:  # cut, as rounding could make 1 of what is below it
        numbers.mul_(2.0**24).floor_().mul_(2.0**-24)
    return x.copy_(numbers.mul_(high - low).add_(low))


@implements("normal_", random=True)
def _normal_(x: Tensor, mean: float = 0, std: float = 1, *, generator: _Generator = None) -> Tensor:
    require_floating_point(x)
    if not std >= 0:
        raise RuntimeError(f"expected a deviation of at least 0, not {std}")
    numbers = random.normal(tuple(x.shape), *generator_key(generator))
    return x.copy_(numbers.mul_(std).add_(mean))


@implements("bernoulli", random=True)
def _bernoulli(p: Tensor, *, generator: _Generator = None) -> Tensor:
    require_floating_point(p)
    return _bernoulli_(torch.empty_like(p), p, generator=generator)


@implements("bernoulli_.float", "bernoulli_.Tensor", random=True)
def _bernoulli_(x: Tensor, p: Any = 0.5, *, generator: _Generator = None) -> Tensor:
    if not (((p >= 0) & (p <= 1)).all() if isinstance(p, Tensor) else 0 <= p <= 1):
        raise RuntimeError("expected probabilities from 0 to 1")
    return x.copy_(uniform64(x, generator) < p)


@implements("native_dropout", random=True)
def _dropout(
    x: Tensor, p: float, train: bool | None, *, generator: _Generator = None
) -> tuple[Tensor, Tensor]:
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    # By the same steps as where PyTorch composes dropout of `bernoulli_`, `div_` and `mul`:
    # which of the two ways it goes depends on the device.
    kept = uniform64(x, generator) < 1 - p
    return x * _noise(kept, 1 - p, x), kept


@implements("native_dropout_backward")
def _dropout_backward(grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    return grad * _noise(mask, 1 / scale if scale else 0, grad)


def _noise(kept: Tensor, probability: float, x: Tensor) -> Tensor:
    """1 / probability where kept, else 0, in the dtype of x."""
    noise = kept.to(x.dtype)
    return noise / torch.full_like(noise, probability) if probability else noise
