"""Tensors of numbers that come from bytes, as the pixels of images.

Such numbers lie on every grid, so products need not round them, and use instructions for
bytes where the CPU has them. Operations that move numbers pass the mark on.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["from_bytes", "mark_bytes", "propagate_bytes", "signed_bytes"]

_MARK = "_exact_bytes"  # an attribute of all marked tensors


class _Mark:
    """The bytes of one tensor, and its version then: changes of the tensor end it."""

    def __init__(self, x: Tensor, bytes_: Tensor) -> None:
        self.of, self.bytes, self.version = weakref.ref(x), bytes_, x._version

    def __reduce__(self) -> Any:
        # A copy of the tensor counts its versions anew, so it has no mark: an empty set instead,
        # which torch.load accepts.
        return set, ()


def from_bytes(x: Tensor) -> Tensor:
    """Convert uint8 (…) to the numbers x / 256 in [0, 1), float32 (…), marked with their bytes.

    Indexing under the mode passes the mark on; a slice or another shape keeps it; a copy loses it.
    Without it a product is the same, but slower. A change by an operation of PyTorch ends it. Not
    noticed are those of which PyTorch keeps no count, so make none: through `.numpy()` or `.data`,
    by `apply_` and `map_`, or through a view that is made in inference mode.
    Raises TypeError for other types than uint8.
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"expected bytes (torch.uint8), not {x.dtype}")
    return _from_signed((x ^ 0x80).view(torch.int8))  # x - 128


def propagate_bytes(x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """The result of an operation that moves numbers, marked if x is."""
    bytes_ = signed_bytes(x)
    return operation(x) if bytes_ is None else _from_signed(operation(bytes_))


def signed_bytes(x: Tensor) -> Tensor | None:
    """The bytes that x, or the tensor that it is a view of, is marked with, less 128.

    The view has numbers that follow each other in memory, as a slice of images or flattened ones,
    or is the transpose of one. None without a mark, and where x has changed since: views count
    their versions together.
    """
    mark = _mark(x)
    if mark is not None:
        return mark.bytes
    base = x._base
    mark = None if base is None else _mark(base)
    if base is None or mark is None or not (base.is_contiguous() and x.dtype == base.dtype):
        return None
    turned = not x.is_contiguous()
    if turned and not (x.dim() == 2 and x.stride() == (1, x.shape[0])):
        return None
    first = x.storage_offset() - base.storage_offset()
    if first < 0 or first + x.numel() > base.numel():  # of as_strided
        return None
    bytes_ = mark.bytes.reshape(-1)[first : first + x.numel()]
    return bytes_.reshape(x.shape[::-1]).t() if turned else bytes_.reshape(x.shape)


def _from_signed(bytes_: Tensor) -> Tensor:
    return mark_bytes(bytes_.float().add_(128).mul_(1 / 256), bytes_)


def _mark(x: Tensor) -> _Mark | None:
    mark: _Mark | None = getattr(x, _MARK, None)
    # A shallow copy has the mark of another tensor; some changes of the shape count no version.
    same = mark and mark.of() is x and mark.version == x._version and mark.bytes.shape == x.shape
    return mark if same else None


def mark_bytes(x: Tensor, bytes_: Tensor) -> Tensor:
    """Mark x, which is (bytes_ + 128) / 256, with its bytes less 128."""
    if not x.is_inference():  # whose changes are not counted
        setattr(x, _MARK, _Mark(x, bytes_))
    return x
