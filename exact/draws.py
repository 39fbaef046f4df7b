"""PyTorch's own random operations under the mode, as keyed draws.

`nn.Dropout`, `torch.randn` and `nn.init` then need no other code: the n-th draw in the
mode's block follows from (seed, n) alone, on any device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import random
from exact.errors import NotExactError

__all__ = ["Draws"]

aten = torch.ops.aten


class Draws:
    """The forms of random operations; they share the seed and count the draws."""

    def __init__(self, seed: int | None) -> None:
        self.seed, self.count = seed or 0, 0
        self.forms: dict[Any, Callable[..., Any]] = {
            aten.rand.default: self._rand,
            aten.randn.default: self._randn,
            aten.rand_like.default: lambda x, **options: self._uniform_(
                torch.empty_like(x, **options)
            ),
            aten.randn_like.default: lambda x, **options: self._normal_(
                torch.empty_like(x, **options)
            ),
            aten.randperm.default: self._randperm,
            aten.randperm.generator: self._randperm,
            aten.randint.default: lambda high, *args, **kw: self._randint(0, high, *args, **kw),
            aten.randint.low: self._randint,
            aten.random_.default: self._random_,
            aten.uniform_.default: self._uniform_,
            aten.normal_.default: self._normal_,
            aten.bernoulli.default: lambda x, generator=None: self._bernoulli_(
                torch.empty_like(x), x, generator
            ),
            aten.bernoulli_.float: self._bernoulli_,
            aten.bernoulli_.Tensor: self._bernoulli_,
            aten.native_dropout.default: self._dropout,
            aten.native_dropout_backward.default: lambda grad, mask, scale: (
                grad * _noise(mask, 1 / scale if scale else 0, grad)
            ),
        }
        if seed is None:
            self.forms = {operation: _refuse(operation) for operation in self.forms}

    def _key(self, generator: torch.Generator | None) -> tuple[int, str, int]:
        if generator is not None:
            raise NotExactError(
                "a random operation with a generator differs between CPUs: leave it out, and the"
                " draw follows from exact.mode(seed=…)"
            )
        self.count += 1
        return self.seed, "mode", self.count

    def _random(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Numbers of [0, 1), float64, in the shape and on the device of x."""
        return random.uniform(tuple(x.shape), *self._key(generator)).to(x.device)

    def _rand(self, size: list[int], **options: Any) -> Tensor:
        return self._uniform_(torch.empty(size, **options))

    def _randn(self, size: list[int], **options: Any) -> Tensor:
        return self._normal_(torch.empty(size, **options))

    def _randperm(
        self, n: int, *, generator: torch.Generator | None = None, **options: Any
    ) -> Tensor:
        if generator is not None:  # a DataLoader's; integers on the CPU are the same everywhere
            return torch.randperm(n, generator=generator)
        order = random.permutation(n, *self._key(None))
        return order.to(options.get("device"), options.get("dtype") or torch.int64)

    def _randint(self, low: int, high: int, size: list[int], **options: Any) -> Tensor:
        x = torch.empty(size, **options | {"dtype": options.get("dtype") or torch.int64})
        return x.copy_(self._random(x, None).mul_(high - low).floor_().add_(low))

    def _random_(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        if x.dtype == torch.bool:
            end = 2
        else:
            end = 2**24 if x.is_floating_point() else min(2**24, torch.iinfo(x.dtype).max + 1)
        return x.copy_(self._random(x, generator).mul_(end).floor_())

    def _uniform_(
        self, x: Tensor, low: float = 0, high: float = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        draw = self._random(x, generator)
        if x.dtype == torch.float32:  # cut, as rounding could make 1 of what is below it
            draw.mul_(2.0**24).floor_().mul_(2.0**-24)
        return x.copy_(draw.mul_(high - low).add_(low))

    def _normal_(
        self, x: Tensor, mean: float = 0, std: float = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        draw = random.normal(tuple(x.shape), *self._key(generator))
        return x.copy_(draw.mul_(std).add_(mean))

    def _bernoulli_(
        self, x: Tensor, p: Any = 0.5, generator: torch.Generator | None = None
    ) -> Tensor:
        return x.copy_(self._random(x, generator) < p)

    def _dropout(self, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        if train is False:
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        # By the same steps as where PyTorch composes dropout of `bernoulli_`, `div_` and `mul`:
        # which of the two ways it goes depends on the device.
        kept = self._random(x, None) < 1 - p
        return x * _noise(kept, 1 - p, x), kept


def _noise(kept: Tensor, share: float, x: Tensor) -> Tensor:
    """1 / share where kept, else 0, in the type of x."""
    noise = kept.to(x.dtype)
    return noise / torch.full_like(noise, share) if share else noise


def _refuse(operation: Any) -> Callable[..., Any]:
    def form(*args: Any, **kwargs: Any) -> Any:
        raise NotExactError(f"{operation} needs a seed: exact.mode(seed=…)")

    return form
