"""Kernels that gather rows."""

from typing import Any

import torch
from torch import Tensor

from exact.bytes import mark_bytes, signed_bytes
from exact.kernels.registry import KernelCall, is_plain_int64, kernel


@kernel("index_select")
def _index_select(library: Any, x: Tensor, dim: int, index: Tensor) -> KernelCall | None:
    if dim or not (x.is_cpu and x.numel() and is_plain_int64(index)) or index.dim() != 1:
        return None
    rows, n = x.shape[0], index.shape[0]
    shape, bytes_ = (n, *x.shape[1:]), signed_bytes(x)
    if bytes_ is not None and bytes_.is_contiguous():
        gathered, out = torch.empty(shape, dtype=torch.int8), torch.empty(shape)
        images = bytes_.data_ptr(), rows, index.data_ptr(), n, x.numel() // rows
        threads = torch.get_num_threads()
        full = *images, gathered.data_ptr(), out.data_ptr(), threads
        alone = *images, gathered.data_ptr(), None, threads
        kept, result = (bytes_, gathered), mark_bytes(out, gathered)
        return KernelCall(library.gather_bytes, full, result, kept, bytes_alone=alone)
    if bytes_ is not None or x.dim() != 1 or not x.is_contiguous():
        return None  # of many numbers, as PyTorch has threads for them
    out = x.new_empty(shape)
    arguments = x.data_ptr(), rows, index.data_ptr(), n, x.element_size(), out.data_ptr()
    return KernelCall(library.gather_rows, arguments, out)
