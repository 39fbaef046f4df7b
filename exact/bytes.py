"""Tensors of numbers that come from bytes, as the pixels of images.

Such numbers lie on every grid, so products need not round them, and use instructions for
bytes where the CPU has them. Operations that move numbers pass the mark on.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["from_bytes", "mark_bytes", "propagate_bytes", "signed_bytes"]

# Of each marked tensor its bytes, and its version then. Beside it and not its attribute, as
# a copy takes attributes along and counts its versions anew.
_MARKS = WeakTensorKeyDictionary()
_MARKED = "_exact_marked"  # an attribute of all that are, and of their copies


def from_bytes(x: Tensor) -> Tensor:
    """Convert uint8 (…) to the numbers x / 256 in [0, 1), float32 (…), marked with their bytes.

    Indexing under the mode passes the mark on; a view with all numbers keeps it; a copy loses it.
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
    """The bytes that x, or the tensor that it is a view of all of, is marked with, less 128.

    The view has another shape, as of flattened images, or is the transpose of one. None without a
    mark, and where x has changed since: views count their versions together.
    """
    bytes_, version = _mark(x)
    base = x._base
    if bytes_ is None and base is not None and hasattr(base, _MARKED) and _is_whole(x, base):
        bytes_, version = _mark(base)
        if bytes_ is not None:
            turned = not x.is_contiguous()
            bytes_ = bytes_.reshape(x.shape[::-1]).t() if turned else bytes_.reshape(x.shape)
    return None if bytes_ is None or version != x._version else bytes_


def _from_signed(bytes_: Tensor) -> Tensor:
    return mark_bytes(bytes_.float().add_(128).mul_(1 / 256), bytes_)


def _mark(x: Tensor) -> tuple[Tensor | None, int]:
    # A search in such a dictionary takes longer than a small operation.
    return _MARKS.get(x, (None, 0)) if hasattr(x, _MARKED) else (None, 0)


def mark_bytes(x: Tensor, bytes_: Tensor) -> Tensor:
    """Mark x, which is (bytes_ + 128) / 256, with its bytes less 128."""
    if not x.is_inference():  # whose changes are not counted
        _MARKS[x] = (bytes_, x._version)
        setattr(x, _MARKED, True)
    return x


def _is_whole(x: Tensor, base: Tensor) -> bool:
    """Whether x has all numbers of the base in their order, or is the transpose of such a view."""
    return bool(
        base.is_contiguous() and x.numel() == base.numel() and x.dtype == base.dtype
        and x.storage_offset() == base.storage_offset()
        and (x.is_contiguous() or (x.dim() == 2 and x.stride() == (1, x.shape[0])))
    )  # fmt: skip
