"""Kernels of sums, functions, softmax and the cross-entropy loss."""

import functools
from typing import Any

import torch
from torch import Tensor

from exact import grid
from exact.kernels.registry import KernelCall, is_float, is_plain, is_plain_int64, kernel
from exact.operations.losses import MEAN, NONE


@kernel("sum.dim_IntList")
def _sum(
    library: Any, x: Tensor, dims: list[int] | None, keepdim: bool = False, **dtype: Any
) -> Any:
    if not dims or len(dims) > 1 or dtype or not x.dim() or not is_plain(x):
        return None
    dim = dims[0] % x.dim()
    shape = list(x.shape)
    n = shape[dim]
    outer, inner = _size(shape[:dim]), _size(shape[dim + 1 :])
    shape[dim : dim + 1] = [1] if keepdim else []
    return _summed(library, x, (outer, n, inner), 0, torch.empty(shape))


@kernel("mean")
def _mean(library: Any, x: Tensor, **dtype: Any) -> Any:
    if dtype or not is_plain(x):
        return None
    return _summed(library, x, (1, x.numel(), 1), x.numel(), torch.empty(()))


def _summed(library: Any, x: Tensor, sizes: tuple[int, int, int], count: int, out: Tensor) -> Any:
    arguments = x.data_ptr(), *sizes, grid.sum_bits(sizes[1]), count, out.data_ptr()
    return KernelCall(library.sum, arguments, out)


def _size(shape: list[int]) -> int:
    return functools.reduce(int.__mul__, shape, 1)


@kernel("linalg_vector_norm")
def _norm(
    library: Any, x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, **dtype: Any
) -> Any:
    if order != 2 or dims is not None or keepdim or dtype or not is_plain(x):
        return None
    n, out = x.numel(), torch.empty(())
    return KernelCall(library.norm, (x.data_ptr(), n, grid.sum_bits(n), out.data_ptr()), out)


@kernel("_log_softmax")
def _log_softmax(library: Any, x: Tensor, dim: int, half_to_float: bool) -> Any:
    return _softmax_of_rows(library, x, dim, logarithm=True)


@kernel("_softmax")
def _softmax(library: Any, x: Tensor, dim: int, half_to_float: bool) -> Any:
    return _softmax_of_rows(library, x, dim, logarithm=False)


@kernel("_safe_softmax")
def _safe_softmax(library: Any, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    if dtype not in (None, torch.float32):
        return None
    return _softmax_of_rows(library, x, dim, logarithm=False)


def _softmax_of_rows(library: Any, x: Tensor, dim: int, logarithm: bool) -> Any:
    if not x.dim() or not is_plain(x):
        return None
    if dim % x.dim() != x.dim() - 1:
        moved = _softmax_of_rows(library, x.movedim(dim, -1).contiguous(), -1, logarithm)
        return _moved_back(moved, dim)
    n = x.shape[-1]
    out = torch.empty_like(x)
    sizes = (x.numel() // n, n, grid.sum_bits(n))
    arguments = x.data_ptr(), *sizes, logarithm, out.data_ptr()
    return KernelCall(library.softmax, arguments, out, kept=x)


def _moved_back(call: Any, dim: int) -> Tensor | None:
    """The result of a call with the last dimension moved to where it was."""
    found = call and call()
    return None if found is None else found.movedim(-1, dim).contiguous()


_MAPPED = ["exp", "sigmoid", "tanh", "relu", "sigmoid_backward", "tanh_backward", "relu_backward"]
for _number, _name in enumerate(_MAPPED[:-1]):

    @kernel(_name)
    def _map(library: Any, x: Tensor, y: Tensor | None = None, number: int = _number) -> Any:
        """The function of each number, or x times its slope by its value y."""
        out = torch.empty_like(x)
        if not is_plain(out) or (y is not None and not (is_plain(x, y) and x.shape == y.shape)):
            return None
        plain = x.contiguous()
        pointers = plain.data_ptr(), plain.data_ptr() if y is None else y.data_ptr()
        arguments = number, *pointers, x.numel(), out.data_ptr(), torch.get_num_threads()
        call = KernelCall(library.map, arguments, out)
        return call if plain is x else call()  # at once, as the copy is of these numbers

    if _name in ("exp", "sigmoid", "tanh"):

        @kernel(f"{_name}_")
        def _map_in_place(library: Any, x: Tensor, function: Any = _map) -> Any:
            found = function(library, x)
            if isinstance(found, KernelCall):
                found = found()
            return None if found is None else x.copy_(found)


@kernel("threshold_backward")
def _relu_backward(library: Any, grad: Tensor, x: Tensor, threshold: float) -> Any:
    return None if threshold else _map(library, grad, x, _MAPPED.index("relu_backward"))


@kernel("_log_softmax_backward_data")
def _log_softmax_backward(
    library: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype
) -> Any:
    if dtype is not torch.float32 or not is_plain(grad, output):
        return None
    if output.dim() and dim % output.dim() != output.dim() - 1:
        moved = (x.movedim(dim, -1).contiguous() for x in (grad, output))
        return _moved_back(_log_softmax_backward(library, *moved, -1, dtype), dim)
    n = output.shape[-1]
    out = torch.empty_like(output)
    sizes = output.numel() // n, n, grid.sum_bits(n)
    arguments = grad.data_ptr(), output.data_ptr(), *sizes, out.data_ptr()
    return KernelCall(library.log_softmax_backward, arguments, out, kept=(grad, output))


def _is_class(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> bool:
    """Whether it is the plain loss of each example, or their mean."""
    plain = weight is None and reduction in (NONE, MEAN) and x.dim() == 2 and is_plain(x)
    return plain and is_plain_int64(target) and target.shape == x.shape[:1]


@kernel("nll_loss_forward")
def _nll_loss(
    library: Any, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int
) -> Any:
    if not _is_class(x, target, weight, reduction):
        return None
    losses, count = torch.empty(target.shape), torch.zeros(())
    mean = torch.empty(()) if reduction == MEAN else None
    sizes = *x.shape, ignored, grid.sum_bits(len(x))
    means = None if mean is None else mean.data_ptr(), count.data_ptr()
    arguments = x.data_ptr(), target.data_ptr(), *sizes, losses.data_ptr(), *means
    results = losses if mean is None else mean, count
    return KernelCall(library.nll_loss, arguments, results, kept=losses)


@kernel("nll_loss_backward")
def _nll_loss_backward(
    library: Any,
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignored: int,
    count: Tensor,
) -> Any:
    if not (_is_class(x, target, weight, reduction) and is_float(grad, count)):
        return None
    out = torch.empty_like(x)
    stride, counted = (0, count.data_ptr()) if reduction == MEAN else (grad.stride()[0], None)
    sizes = *x.shape, ignored, counted, out.data_ptr()
    arguments = grad.data_ptr(), stride, target.data_ptr(), *sizes
    return KernelCall(library.nll_loss_backward, arguments, out)
