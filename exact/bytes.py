"""Tensors of numbers that come from bytes, as the pixels of images.

Such numbers lie on every grid, so products need not round them, and use instructions for
bytes where the CPU has them. Operations that move numbers pass the mark on.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["from_bytes", "propagate_bytes", "signed_bytes"]

# Of each marked tensor its bytes, and its version then. Beside it and not its attribute, as
# a copy takes attributes along and counts its versions anew.
_MARKS = WeakTensorKeyDictionary()


def from_bytes(x: Tensor) -> Tensor:
    """Convert uint8 (…) to the numbers x / 256 in [0, 1), float32 (…), marked with their bytes.

    Indexing under the mode passes the mark on; a transposed view keeps it; a copy loses it.
    Without it a product is the same, but slower. A change by PyTorch ends it; one
    through `.numpy()` or `.data` is not noticed, so make none.
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
    """The bytes that x, or the matrix that it is the transpose of, is marked with, less 128.

    None without a mark, and where x has changed since: views count their versions together.
    """
    bytes_, version = _MARKS.get(x, (None, 0))
    base = x._base
    if bytes_ is None and base is not None and _is_transpose(x, base):
        bytes_, version = _MARKS.get(base, (None, 0))
        bytes_ = None if bytes_ is None else bytes_.t()
    return None if bytes_ is None or version != x._version else bytes_


def _from_signed(bytes_: Tensor) -> Tensor:
    x = bytes_.float().add_(128).mul_(1 / 256)
    if not x.is_inference():  # whose changes are not counted
        _MARKS[x] = (bytes_, x._version)
    return x


def _is_transpose(x: Tensor, base: Tensor) -> bool:
    return bool(
        x.dim() == 2 and x.dtype == base.dtype and x.shape == base.shape[::-1]
        and x.stride() == base.stride()[::-1] and x.storage_offset() == base.storage_offset()
    )  # fmt: skip
