"""Kernels of sums, functions, softmax, the cross-entropy loss and of gathering bytes."""

import functools
from typing import Any

import torch
from torch import Tensor

from exact import grid
from exact.bytes import mark_bytes, signed_bytes
from exact.kernels.registry import is_float, is_plain, kernel


@kernel("sum.dim_IntList")
def _sum(
    library: Any, x: Tensor, dims: list[int] | None, keepdim: bool = False, **dtype: Any
) -> Tensor | None:
    if not dims or len(dims) > 1 or dtype or not x.dim() or not is_plain(x):
        return None
    dim = dims[0] % x.dim()
    shape = list(x.shape)
    n = shape[dim]
    outer, inner = _size(shape[:dim]), _size(shape[dim + 1 :])
    shape[dim : dim + 1] = [1] if keepdim else []
    return _summed(library, x, (outer, n, inner), 0, torch.empty(shape))


@kernel("mean")
def _mean(library: Any, x: Tensor, **dtype: Any) -> Tensor | None:
    if dtype or not is_plain(x):
        return None
    return _summed(library, x, (1, x.numel(), 1), x.numel(), torch.empty(()))


def _summed(
    library: Any, x: Tensor, sizes: tuple[int, int, int], count: int, out: Tensor
) -> Tensor | None:
    bits = grid.sum_bits(sizes[1])
    return None if library.sum(x.data_ptr(), *sizes, bits, count, out.data_ptr()) else out


def _size(shape: list[int]) -> int:
    return functools.reduce(int.__mul__, shape, 1)


@kernel("linalg_vector_norm")
def _norm(
    library: Any, x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, **dtype: Any
) -> Tensor | None:
    if order != 2 or dims is not None or keepdim or dtype or not is_plain(x):
        return None
    n, out = x.numel(), torch.empty(())
    return None if library.norm(x.data_ptr(), n, grid.sum_bits(n), out.data_ptr()) else out


@kernel("_log_softmax")
def _log_softmax(library: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor | None:
    return _softmax_of_rows(library, x, dim, logarithm=True)


@kernel("_softmax")
def _softmax(library: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor | None:
    return _softmax_of_rows(library, x, dim, logarithm=False)


@kernel("_safe_softmax")
def _safe_softmax(
    library: Any, x: Tensor, dim: int, dtype: torch.dtype | None = None
) -> Tensor | None:
    if dtype not in (None, torch.float32):
        return None
    return _softmax_of_rows(library, x, dim, logarithm=False)


def _softmax_of_rows(library: Any, x: Tensor, dim: int, logarithm: bool) -> Tensor | None:
    if not x.dim() or not is_plain(x):
        return None
    if dim % x.dim() != x.dim() - 1:
        found = _softmax_of_rows(library, x.movedim(dim, -1).contiguous(), -1, logarithm)
        return None if found is None else found.movedim(-1, dim).contiguous()
    n = x.shape[-1]
    out = torch.empty_like(x)
    sizes = (x.numel() // n, n, grid.sum_bits(n))
    return None if library.softmax(x.data_ptr(), *sizes, logarithm, out.data_ptr()) else out


for _number, _name in enumerate(("exp", "sigmoid", "tanh", "sigmoid_backward", "tanh_backward")):

    @kernel(_name)
    def _map(
        library: Any, x: Tensor, y: Tensor | None = None, number: int = _number
    ) -> Tensor | None:
        """The function of each number, or x times its slope by its value y."""
        out = torch.empty_like(x)
        if not is_plain(out) or (y is not None and not (is_plain(x, y) and x.shape == y.shape)):
            return None
        x = x.contiguous()
        pointers = x.data_ptr(), x.data_ptr() if y is None else y.data_ptr()
        failed = library.map(number, *pointers, x.numel(), out.data_ptr(), torch.get_num_threads())
        return None if failed else out

    if not _name.endswith("backward"):

        @kernel(f"{_name}_")
        def _map_in_place(library: Any, x: Tensor, function: Any = _map) -> Tensor | None:
            found = function(library, x)
            return None if found is None else x.copy_(found)


@kernel("_log_softmax_backward_data")
def _log_softmax_backward(
    library: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype
) -> Tensor | None:
    if dtype is not torch.float32 or not is_plain(grad, output):
        return None
    if output.dim() and dim % output.dim() != output.dim() - 1:
        moved = (x.movedim(dim, -1).contiguous() for x in (grad, output))
        found = _log_softmax_backward(library, *moved, -1, dtype)
        return None if found is None else found.movedim(-1, dim).contiguous()
    n = output.shape[-1]
    out = torch.empty_like(output)
    arguments = (grad.data_ptr(), output.data_ptr(), output.numel() // n, n, grid.sum_bits(n))
    return None if library.log_softmax_backward(*arguments, out.data_ptr()) else out


def _is_class(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> bool:
    """Whether it is the plain loss of each example."""
    plain_target = target.dtype is torch.int64 and target.is_contiguous() and target.is_cpu
    plain = weight is None and reduction == 0 and x.dim() == 2 and is_plain(x)
    return plain and plain_target and target.shape == x.shape[:1]


@kernel("nll_loss_forward")
def _nll_loss(
    library: Any, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int
) -> tuple[Tensor, Tensor] | None:
    if not _is_class(x, target, weight, reduction):
        return None
    out = torch.empty(target.shape)
    arguments = (x.data_ptr(), target.data_ptr(), *x.shape, ignored, out.data_ptr())
    return None if library.nll_loss(*arguments) else (out, x.new_zeros(()))


@kernel("nll_loss_backward")
def _nll_loss_backward(
    library: Any,
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignored: int,
    total_weight: Tensor,
) -> Tensor | None:
    if not (_is_class(x, target, weight, reduction) and is_float(grad)):
        return None
    out = torch.empty_like(x)
    arguments = (grad.data_ptr(), grad.stride()[0], target.data_ptr(), *x.shape, ignored)
    return None if library.nll_loss_backward(*arguments, out.data_ptr()) else out


@kernel("index_select")
def _index_select(library: Any, x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    bytes_ = signed_bytes(x) if x.is_cpu and dim == 0 and x.numel() else None
    if bytes_ is None or not bytes_.is_contiguous() or index.dim() != 1:
        return None
    if index.dtype is not torch.int64 or not index.is_contiguous():
        return None
    rows, n = x.shape[0], index.shape[0]
    shape = (n, *x.shape[1:])
    gathered, out = torch.empty(shape, dtype=torch.int8), torch.empty(shape)
    images = bytes_.data_ptr(), rows, index.data_ptr(), n, x.numel() // rows
    results = gathered.data_ptr(), out.data_ptr()
    failed = library.gather_bytes(*images, *results, torch.get_num_threads())
    return None if failed else mark_bytes(out, gathered)
