"""Random numbers of other distributions, each a function of keyed uniform or normal ones."""

import math
from typing import Any

import torch
from torch import Tensor

from exact import functions, grid, random, trigonometry
from exact.operations.random import generator_key, uniform64
from exact.registry import implements

_Generator = torch.Generator | None


def _open_uniform64(x: Tensor, generator: _Generator) -> Tensor:
    """Numbers of (0, 1) in the shape of x, in float64."""
    return uniform64(x, generator) + 2.0**-54


@implements("multinomial", random=True)
def _multinomial(
    p: Tensor, n: int, replacement: bool = False, *, generator: _Generator = None
) -> Tensor:
    """Indices (…, n) of rows of weights: by the running sums, or by the smallest exponentials."""
    grid.require_floating_point(p)
    if not (p.isfinite() & (p >= 0)).all() or not (p > 0).any(-1).all():
        raise RuntimeError("expected finite weights >= 0, of which some are positive")
    if not replacement:
        if not ((p > 0).sum(-1) >= n).all():
            raise RuntimeError(f"expected at least {n} positive weights")
        keys = -functions.log(_open_uniform64(p, generator)) / p.double()
        return torch.sort(keys, dim=-1, stable=True).indices[..., :n].contiguous()
    bits = grid.sum_bits(p.shape[-1])
    sums = torch.cumsum(grid.snap(p, grid.scale(p, [-1]), bits), -1)
    u = uniform64(p.new_empty(*p.shape[:-1], n), generator) * sums[..., -1:]
    index = torch.searchsorted(sums, u, right=True)
    last = torch.where(p > 0, torch.arange(p.shape[-1], device=p.device), 0).amax(-1, keepdim=True)
    return torch.minimum(index, last)


@implements("normal.Tensor_Tensor", "normal.Tensor_float", "normal.float_Tensor", random=True)
def _normal(mean: Any, std: Any = 1.0, *, generator: _Generator = None) -> Tensor:
    tensors = [z for z in (mean, std) if isinstance(z, Tensor)]
    if isinstance(std, Tensor) and not (std >= 0).all():
        raise RuntimeError("expected deviations of at least 0")
    shape = torch.broadcast_shapes(*(z.shape for z in tensors))
    numbers = random.normal(tuple(shape), *generator_key(generator)).to(tensors[0].device)
    result: Tensor = numbers * std + mean
    return result.to(tensors[0].dtype)


@implements("normal.float_float", random=True)
def _normal_of_size(
    mean: float, std: float, size: Any, *, generator: _Generator = None, **options: Any
) -> Tensor:
    x = torch.empty(size, **options)
    return x.copy_(random.normal(tuple(x.shape), *generator_key(generator)) * std + mean)


@implements("normal_functional", random=True)
def _normal_like(
    x: Tensor, mean: float = 0, std: float = 1, *, generator: _Generator = None
) -> Tensor:
    numbers = random.normal(tuple(x.shape), *generator_key(generator))
    return torch.empty_like(x).copy_(numbers * std + mean)


@implements("exponential_", random=True)
def _exponential_(x: Tensor, rate: float = 1, *, generator: _Generator = None) -> Tensor:
    if not rate > 0:
        raise RuntimeError(f"expected a rate above 0, not {rate}")
    numbers = -functions.log(_open_uniform64(x, generator))
    return x.copy_(numbers / torch.full_like(numbers, rate))


@implements("geometric_", random=True)
def _geometric_(x: Tensor, p: float, *, generator: _Generator = None) -> Tensor:
    if not 0 < p < 1:
        raise RuntimeError(f"expected a probability of (0, 1), not {p}")
    u = _open_uniform64(x, generator)
    base = functions.log1p(torch.full_like(u, -p))
    return x.copy_((functions.log(u) / base).ceil().clamp(min=1))


@implements("log_normal_", random=True)
def _log_normal_(
    x: Tensor, mean: float = 1, std: float = 2, *, generator: _Generator = None
) -> Tensor:
    numbers = random.normal(tuple(x.shape), *generator_key(generator))
    return x.copy_(functions.exp(numbers * std + mean))


@implements("cauchy_", random=True)
def _cauchy_(
    x: Tensor, median: float = 0, sigma: float = 1, *, generator: _Generator = None
) -> Tensor:
    u = _open_uniform64(x, generator)
    return x.copy_(trigonometry.tan((u - 0.5) * math.pi) * sigma + median)


@implements("random_.from", "random_.to", random=True)
def _random_between(
    x: Tensor, low: int, high: int | None = None, *, generator: _Generator = None
) -> Tensor:
    start, end = (0, low) if high is None else (low, high)
    if start >= end or not grid.representable(x.dtype, start, end - 1):
        raise RuntimeError(f"expected integers from {start} to below {end}, all of {x.dtype}")
    numbers = random.integers(tuple(x.shape), *generator_key(generator))
    return x.copy_(numbers % (end - start) + start)


@implements("randint_like", random=True)
def _randint_like(x: Tensor, high: int, *, generator: _Generator = None, **options: Any) -> Tensor:
    return _random_between(torch.empty_like(x, **options), 0, high, generator=generator)


@implements("randint_like.low_dtype", random=True)
def _randint_like_between(
    x: Tensor, low: int, high: int, *, generator: _Generator = None, **options: Any
) -> Tensor:
    return _random_between(torch.empty_like(x, **options), low, high, generator=generator)


@implements("rrelu_with_noise", random=True)
def _rrelu(
    x: Tensor,
    noise: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: _Generator = None,
) -> Tensor:
    """Negative numbers times a random slope, which `noise` keeps for the gradient."""
    if not training:
        return torch.where(x >= 0, x, x * ((lower + upper) / 2))
    slopes = (uniform64(x, generator) * (upper - lower) + lower).to(x.dtype)
    noise.copy_(torch.where(x > 0, torch.ones_like(x), slopes))
    return x * noise


@implements("rrelu_with_noise_backward")
def _rrelu_backward(
    grad: Tensor,
    x: Tensor,
    noise: Tensor,
    lower: float,
    upper: float,
    training: bool,
    of_result: bool,
) -> Tensor:
    if not training:
        return torch.where(x > 0, grad, grad * ((lower + upper) / 2))
    return grad * noise


@implements("bernoulli.p", random=True)
def _bernoulli(x: Tensor, p: float, *, generator: _Generator = None) -> Tensor:
    if not 0 <= p <= 1:
        raise RuntimeError("expected probabilities from 0 to 1")
    return (uniform64(x, generator) < p).to(x.dtype)
