"""Random numbers that are the same bits on every machine, from pure functions.

They are a function of their shape and a key `(seed, purpose, *counters)`:
`permutation(n, seed, "shuffle", epoch)` is one fixed permutation, whatever was
drawn before it. There is no generator and so no state to lose, share or restore.

Bits come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), in 64-bit integer arithmetic, which wraps alike everywhere.
Numbers are built from bits by single IEEE operations in a fixed order; torch's own
`randn` and `uniform_` are avoided, as their last bits differ between CPUs.
"""

import hashlib
import math

import torch
from torch import Tensor

from exact.functions import log, polynomial, sqrt

__all__ = ["integers", "normal", "permutation", "uniform"]

_MASK = 0xFFFFFFFF


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    """Numbers of [0, 1) in float64, each a multiple of 2^-53."""
    high, low = _words(2 * math.prod(shape), seed, purpose, *counters).view(-1, 2).unbind(1)
    return ((high >> 5) * 2**26 + (low >> 6)).double().mul(2.0**-53).view(shape)


def normal(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    """Numbers of the standard normal distribution in float64.

    The inverse of the distribution function at the centres of 2^52 equal steps
    of (0, 1), by Wichura's algorithm AS 241 (Applied Statistics 37, 1988), which
    is right to about 16 digits.
    """
    high, low = _words(2 * math.prod(shape), seed, purpose, *counters).view(-1, 2).unbind(1)
    steps = (high >> 6) * 2**26 + (low >> 6)  # 0 … 2^52 - 1
    return _inverse_normal((2 * steps + 1).double().mul(2.0**-53)).view(shape)


def permutation(n: int, seed: int, purpose: str, *counters: int) -> Tensor:
    """The numbers 0 … n-1 in random order, int64 (n,)."""
    return torch.sort(integers((n,), seed, purpose, *counters), stable=True).indices


def integers(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    """Integers of [0, 2^63), int64."""
    high, low = _words(2 * math.prod(shape), seed, purpose, *counters).view(-1, 2).unbind(1)
    return ((high << 31) | (low >> 1)).view(shape)


def _words(n: int, seed: int, purpose: str, *counters: int) -> Tensor:
    """Random words of 32 bits, as int64 (n,): block i is Philox of counter i."""
    name = "/".join([str(seed), purpose, *map(str, counters)])
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    block = torch.arange((n + 3) // 4)
    zero = torch.zeros_like(block)
    words = _philox((block & _MASK, block >> 32, zero, zero), (key & _MASK, key >> 32))
    return torch.stack(words, 1).flatten()[:n]


def _philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds on four words of 32 bits, each held in an int64."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        # The products may reach 2^64: int64 wraps, and the mask below drops the
        # copies of the sign bit, so the two halves are those of the unsigned product.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _inverse_normal(u: Tensor) -> Tensor:
    """The x at which the standard normal distribution function is u of (0, 1)."""
    q = u - 0.5
    r = 0.180625 - q * q
    centre = q * (polynomial(r, _A) / polynomial(r, _B))  # where |q| <= 0.425
    t = sqrt(-log(torch.minimum(u, 1 - u)))
    near = polynomial(t - 1.6, _C) / polynomial(t - 1.6, _D)  # where t <= 5
    far = polynomial(t - 5, _E) / polynomial(t - 5, _F)
    tail = torch.where(t <= 5, near, far)
    return torch.where(q.abs() <= 0.425, centre, torch.where(q < 0, -tail, tail))


_A = (
    3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
    1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
    3.3430575583588128105e4, 2.5090809287301226727e3,
)  # fmt: skip
_B = (
    1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
    2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4,
    5.2264952788528545610e3,
)  # fmt: skip
_C = (
    1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
    3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
    2.27238449892691845833e-2, 7.74545014278341407640e-4,
)  # fmt: skip
_D = (
    1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
    1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
    1.05075007164441684324e-9,
)  # fmt: skip
_E = (
    6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
    2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
    2.71155556874348757815e-5, 2.01033439929228813265e-7,
)  # fmt: skip
_F = (
    1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
    7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
    2.04426310338993978564e-15,
)  # fmt: skip
