"""Random numbers that are the same bits on every machine, from pure functions.

They are a function of their shape and a key `(seed, purpose, *counters)`:
`permutation(n, seed, "shuffle", epoch)` is one fixed permutation, whatever was
drawn before it. There is no generator and so no state to lose, share or restore.

Bits come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), in 64-bit integer arithmetic, which wraps alike everywhere.
Numbers are built from bits by single IEEE operations in a fixed order; torch's own
`randn` and `uniform_` are avoided, as their last bits differ between CPUs.
"""

import contextlib
import hashlib
import math

import torch
from torch import Tensor

from exact.dispatch import active
from exact.normal import inverse_normal_cdf

__all__ = ["integers", "normal", "permutation", "uniform"]

_MASK = 0xFFFFFFFF
_CHUNK = 2**13  # at a time, so that intermediate results fit into caches


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    """Numbers of [0, 1) in float64, each a multiple of 2^-53."""
    high, low = _words(2 * math.prod(shape), seed, purpose, *counters).view(-1, 2).unbind(1)
    bits = (high >> 5).mul_(2**26).add_(low >> 6)
    return bits.double().mul_(2.0**-53).view(shape)


def normal(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    """Numbers of the standard normal distribution in float64.

    The inverse of the distribution function at the centres of 2^52 equal steps of (0, 1).
    """
    high, low = _words(2 * math.prod(shape), seed, purpose, *counters).view(-1, 2).unbind(1)
    steps = (high >> 6).mul_(2**26).add_(low >> 6)  # 0 … 2^52 - 1
    u = steps.mul_(2).add_(1).double().mul_(2.0**-53)
    parts = [inverse_normal_cdf(v - 0.5, torch.minimum(v, 1 - v)) for v in u.split(_CHUNK)]
    return torch.cat(parts).view(shape)


def permutation(n: int, seed: int, purpose: str, *counters: int) -> Tensor:
    """The numbers 0 … n-1 in random order, int64 (n,)."""
    return torch.sort(integers((n,), seed, purpose, *counters), stable=True).indices


def integers(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    """Integers of [0, 2^63), int64."""
    high, low = _words(2 * math.prod(shape), seed, purpose, *counters).view(-1, 2).unbind(1)
    return (high << 31).bitwise_or_(low >> 1).view(shape)


def _words(n: int, seed: int, purpose: str, *counters: int) -> Tensor:
    """Random words of 32 bits, as int64 (n,): block i is Philox of counter i."""
    name = "/".join([str(seed), purpose, *map(str, counters)])
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    blocks = (n + 3) // 4
    words = torch.empty((blocks, 4), dtype=torch.int64)
    mode = active()
    recorded = mode is not None and mode.recording is not None
    # Not through the mode, which integers do not need, except in a step that is recorded.
    with contextlib.nullcontext() if recorded else torch._C._DisableTorchDispatch():
        for start in range(0, blocks, _CHUNK):
            block = torch.arange(start, min(start + _CHUNK, blocks))
            zero = torch.zeros_like(block)
            counter = (block & _MASK, block >> 32, zero, zero)
            columns = _philox(counter, (key & _MASK, key >> 32))
            torch.stack(columns, 1, out=words[start : start + _CHUNK])
    return words.flatten()[:n]


def _philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds on four words of 32 bits, each held in an int64."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        # The products may reach 2^64: int64 wraps, and the masks drop the copies of the sign
        # bit, so the two halves are those of the unsigned product.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = (p1 >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (p0 >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3
