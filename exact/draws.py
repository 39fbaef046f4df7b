"""PyTorch's own random operations under the mode, as keyed draws.

`nn.Dropout`, `torch.randn` and `nn.init` then need no other code. The key of each draw is
an integer from PyTorch's generator on the CPU, and integers are the same on every machine:
so draws follow from the generator's seed, on any device, and repeat where its state is
restored, as by `torch.utils.checkpoint`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from exact import random
from exact.errors import NotExactError
from exact.grid import holds, require_fractions

__all__ = ["FORMS", "UNSEEDED", "seeded"]

aten = torch.ops.aten

_Generator = torch.Generator | None

_DEFAULT = threading.RLock()  # of PyTorch's default generator, which all threads share


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's default generator for the block, and leave it as it was before.

    Raises NotExactError while a block of another thread draws from it.
    """
    if not _DEFAULT.acquire(blocking=False):
        raise NotExactError(
            "a block in another thread draws from PyTorch's one generator: give a seed to one"
            " block at a time, or each operation a generator"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        _DEFAULT.release()


def _key(generator: _Generator) -> tuple[int, str]:
    if generator is not None and generator.device.type != "cpu":
        raise NotExactError(
            f"a generator on {generator.device} differs between devices: give one on the cpu, which"
            " draws for any device"
        )
    number = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
    return int(number), "mode"


def _random(x: Tensor, generator: _Generator) -> Tensor:
    """Numbers of [0, 1), float64, in the shape and on the device of x."""
    return random.uniform(tuple(x.shape), *_key(generator)).to(x.device)


def _rand(size: list[int], *, generator: _Generator = None, **options: Any) -> Tensor:
    return _uniform_(torch.empty(size, **options), generator=generator)


def _randn(size: list[int], *, generator: _Generator = None, **options: Any) -> Tensor:
    return _normal_(torch.empty(size, **options), generator=generator)


def _randperm(n: int, *, generator: _Generator = None, **options: Any) -> Tensor:
    dtype = options.get("dtype") or torch.int64
    if n < 0 or (n and not holds(dtype, n - 1)):
        raise RuntimeError(f"expected a number of integers of {dtype}, not {n}")
    return random.permutation(n, *_key(generator)).to(options.get("device"), dtype)


def _randint(
    low: int, high: int, size: list[int], *, generator: _Generator = None, **options: Any
) -> Tensor:
    x = torch.empty(size, **options | {"dtype": options.get("dtype") or torch.int64})
    if low >= high or not holds(x.dtype, low, high - 1):
        raise RuntimeError(f"expected integers from {low} to below {high}, all of {x.dtype}")
    return x.copy_(random.integers(tuple(x.shape), *_key(generator)) % (high - low) + low)


def _random_(x: Tensor, *, generator: _Generator = None) -> Tensor:
    if x.is_floating_point():
        largest = 2 ** (24 if x.dtype == torch.float32 else 53) - 1  # which it holds exactly
    else:
        largest = 1 if x.dtype == torch.bool else min(torch.iinfo(x.dtype).max, 2**63 - 1)
    return x.copy_(random.integers(tuple(x.shape), *_key(generator)) & largest)


def _uniform_(
    x: Tensor, low: float = 0, high: float = 1, *, generator: _Generator = None
) -> Tensor:
    require_fractions(x)
    if not low <= high:
        raise RuntimeError(f"expected a number to begin with below {high}, not {low}")
    draw = _random(x, generator)
    if x.dtype == torch.float32:  # cut, as rounding could make 1 of what is below it
        draw.mul_(2.0**24).floor_().mul_(2.0**-24)
    return x.copy_(draw.mul_(high - low).add_(low))


def _normal_(x: Tensor, mean: float = 0, std: float = 1, *, generator: _Generator = None) -> Tensor:
    require_fractions(x)
    if not std >= 0:
        raise RuntimeError(f"expected a deviation of at least 0, not {std}")
    draw = random.normal(tuple(x.shape), *_key(generator))
    return x.copy_(draw.mul_(std).add_(mean))


def _bernoulli(p: Tensor, *, generator: _Generator = None) -> Tensor:
    require_fractions(p)
    return _bernoulli_(torch.empty_like(p), p, generator=generator)


def _bernoulli_(x: Tensor, p: Any = 0.5, *, generator: _Generator = None) -> Tensor:
    if not (((p >= 0) & (p <= 1)).all() if isinstance(p, Tensor) else 0 <= p <= 1):
        raise RuntimeError("expected probabilities from 0 to 1")
    return x.copy_(_random(x, generator) < p)


def _dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    # By the same steps as where PyTorch composes dropout of `bernoulli_`, `div_` and `mul`:
    # which of the two ways it goes depends on the device.
    kept = _random(x, None) < 1 - p
    return x * _noise(kept, 1 - p, x), kept


def _noise(kept: Tensor, share: float, x: Tensor) -> Tensor:
    """1 / share where kept, else 0, in the type of x."""
    noise = kept.to(x.dtype)
    return noise / torch.full_like(noise, share) if share else noise


_DRAWS: dict[Any, Callable[..., Any]] = {
    aten.rand.default: _rand,
    aten.rand.generator: _rand,
    aten.randn.default: _randn,
    aten.randn.generator: _randn,
    aten.rand_like.default: lambda x, **options: _uniform_(torch.empty_like(x, **options)),
    aten.randn_like.default: lambda x, **options: _normal_(torch.empty_like(x, **options)),
    aten.randperm.default: _randperm,
    aten.randperm.generator: _randperm,
    aten.randint.default: lambda high, *args, **options: _randint(0, high, *args, **options),
    aten.randint.generator: lambda high, *args, **options: _randint(0, high, *args, **options),
    aten.randint.low: _randint,
    aten.randint.low_generator: _randint,
    aten.random_.default: _random_,
    aten.uniform_.default: _uniform_,
    aten.normal_.default: _normal_,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli_.float: _bernoulli_,
    aten.bernoulli_.Tensor: _bernoulli_,
    aten.native_dropout.default: _dropout,
}
_GRADIENTS: dict[Any, Callable[..., Any]] = {
    aten.native_dropout_backward.default: lambda grad, mask, scale: (
        grad * _noise(mask, 1 / scale if scale else 0, grad)
    ),
}
FORMS = _DRAWS | _GRADIENTS


def _by_generator(operation: Any) -> Callable[..., Any]:
    def form(*args: Any, generator: _Generator = None, **options: Any) -> Any:
        if generator is None:
            raise NotExactError(f"{operation} needs a seed: exact.mode(seed=…)")
        return _DRAWS[operation](*args, generator=generator, **options)

    return form


# Without a seed only a given generator decides.
UNSEEDED = {operation: _by_generator(operation) for operation in _DRAWS} | _GRADIENTS
