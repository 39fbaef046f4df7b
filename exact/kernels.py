"""Compiled kernels of the operations that a training step spends its time in: kernels.c.

They are optional. The implementations in PyTorch are the reference: a kernel has the same bits, or
declines, as it does for numbers that are too large for it, and then the reference is called. They
are compiled by the system's C compiler, once for each machine, and kept in the user's cache.
"""

import atexit
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from ctypes import c_double, c_int64, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Optimizer

from exact import functions, grid
from exact.bytes import mark_bytes, signed_bytes
from exact.products import product_bits
from exact.registry import named

__all__ = ["build", "find", "library", "multiply", "update"]

_SOURCE = Path(__file__).with_name("kernels.c")
# No fused multiply-add but where the source asks for it.
_FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")

Kernel = Callable[..., Any]
_KERNELS: dict[Any, Kernel] = {}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels. None, after a warning, where they cannot be compiled.

    Also None with EXACT_KERNELS=0 in the environment.
    """
    if os.environ.get("EXACT_KERNELS") == "0":
        return None
    try:
        return build(_cache())
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"exact.compile works without compiled kernels, slower: {reason.strip()[:300]}",
            stacklevel=2,
        )
        return None


def build(folder: Path, flags: tuple[str, ...] = ("-march=native",)) -> ctypes.CDLL:
    """Compile the kernels into the folder, or load what is there.

    Raises OSError without a C compiler and subprocess.SubprocessError where it fails.
    """
    compiler = _compiler()
    made_of = (_SOURCE.read_text(), compiler, flags, sys.platform, platform.machine(), _processor())
    path = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        # Several processes may do so at once: the name appears when the file is complete.
        with tempfile.TemporaryDirectory(dir=folder) as own:
            part = Path(own, path.name)
            command = [*compiler, *_FLAGS, *flags, "-o", str(part), str(_SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            part.replace(path)
    return _prepared(ctypes.CDLL(str(path)))


def _compiler() -> list[str]:
    """CC, the system's compiler, or the one that the package ziglang brings."""
    if named := os.environ.get("CC"):
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is None:
        raise OSError("no C compiler (cc, gcc, clang, or the package ziglang)")
    return [sys.executable, "-m", "ziglang", "cc"]


def _cache() -> Path:
    """The user's cache folder, or a temporary one where that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "exact-torch")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="exact-torch-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


def _processor() -> str:
    """What instructions this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    kept = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in kept)


def _prepared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library, told of the series of `functions` and of PyTorch's threads."""
    series = (functions.EXP_SERIES, functions.ARTANH_SERIES)
    found.use_series(*((c_double * len(terms))(*terms) for terms in series))
    if threads := _parallel():
        found.use_parallel(threads)
    floats, integers = c_void_p, c_void_p
    for name, kinds in {
        "float_product": (c_void_p, c_long),
        "byte_product": (c_void_p, c_long),
        "sum": (floats, c_long, c_long, c_long, c_long, c_double, floats),
        "log_softmax": (floats, c_long, c_long, c_long, floats),
        "log_softmax_backward": (floats, floats, c_long, c_long, c_long, floats),
        "nll_loss": (floats, integers, c_long, c_long, c_int64, floats),
        "nll_loss_backward": (floats, c_long, integers, c_long, c_long, c_int64, floats),
        "gather_bytes": (integers, c_long, integers, c_long, c_long, integers, floats, c_long),
        "sgd": (c_void_p, c_long, floats, c_long),
    }.items():
        getattr(found, name).argtypes = kinds
    return found


def _parallel() -> c_void_p | None:
    """GOMP_parallel of the OpenMP that PyTorch has loaded; None where there is another or none."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
    own = str(Path(torch.__file__).parent)
    for path in sorted(paths, key=lambda path: not path.startswith(own)):
        return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, c_void_p)
    return None


def find(operation: Any) -> Kernel | None:
    """The kernel of the operation, which returns None where it declines."""
    kernel, compiled = _KERNELS.get(operation), library()
    return None if kernel is None or compiled is None else functools.partial(kernel, compiled)


def _kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Register a function of the library and the operation's arguments; None declines."""

    def decorate(function: Kernel) -> Kernel:
        _KERNELS.update({named(name): function for name in names})
        return function

    return decorate


# Loops, as generators would take longer than some kernels.


def _is_float(*tensors: Tensor) -> bool:
    for x in tensors:  # noqa: SIM110
        if not (x.dtype is torch.float32 and x.is_cpu):
            return False
    return True


def _is_plain(*tensors: Tensor) -> bool:
    for x in tensors:
        if not (x.dtype is torch.float32 and x.is_cpu and x.is_contiguous() and x.numel()):
            return False
    return True


class _Product(ctypes.Structure):
    _fields_ = (
        ("a", c_void_p), ("b", c_void_p), ("n", c_long), ("k", c_long), ("m", c_long),
        ("sa_n", c_long), ("sa_k", c_long), ("sb_k", c_long), ("sb_m", c_long),
        ("a_bits", c_long), ("b_bits", c_long),
        ("bias", c_void_p), ("bias_n", c_long), ("bias_m", c_long),
        ("out", c_void_p), ("so_n", c_long), ("so_m", c_long),
        ("wide", c_long), ("batch", c_long), ("sa_b", c_long), ("sb_b", c_long), ("so_b", c_long),
        ("a_blocks", c_void_p), ("b_blocks", c_void_p), ("steps", c_void_p),
        ("row", c_long), ("pair", c_long), ("low", c_long), ("failed", c_long),
    )  # fmt: skip


@_kernel("mm")
def _mm(library: Any, a: Tensor, b: Tensor) -> Tensor | None:
    return _product(library, a, b, None)


@_kernel("addmm")
def _addmm(library: Any, bias: Tensor, a: Tensor, b: Tensor, **factors: float) -> Tensor | None:
    plain = bias.dim() == 1 and len(bias) == b.shape[-1] and _is_plain(bias)
    return _product(library, a, b, bias) if plain and not factors else None


def _product(library: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor | None:
    if not (a.dim() == b.dim() == 2 and _is_float(a, b) and a.numel() and b.numel()):
        return None
    (n, k), m = a.shape, b.shape[1]
    if b.shape[0] != k:
        return None
    out = torch.empty((n, m))
    bits = product_bits(k)
    bias_data = None if bias is None else bias.data_ptr()
    a_bytes, b_bytes = signed_bytes(a), signed_bytes(b)
    multiply = library.float_product if a_bytes is b_bytes is None else library.byte_product
    if a_bytes is None:
        right = b if b_bytes is None else b_bytes
        product = _Product(
            a.data_ptr(), right.data_ptr(), n, k, m, *a.stride(), *right.stride(), *bits,
            bias_data, 0, 1, out.data_ptr(), m, 1, False, 1,
        )  # fmt: skip
    else:  # bᵀ aᵀ, as bytes come second
        product = _Product(
            b.data_ptr(), a_bytes.data_ptr(), m, k, n, *b.stride()[::-1], *a_bytes.stride()[::-1],
            *bits[::-1], bias_data, 1, 0, out.data_ptr(), 1, m, False, 1,
        )  # fmt: skip
    failed = multiply(ctypes.byref(product), torch.get_num_threads())
    return None if failed else out


def multiply(a: Tensor, b: Tensor) -> Tensor | None:
    """The product of `products.matmul` in float64, of float32 (…, n, k) and (…, k, m).

    None where there is no kernel for it.
    """
    compiled = library()
    if compiled is None or not (_is_float(a, b) and a.numel() and b.numel()):
        return None
    if a.shape[-1] != b.shape[-2] or a.dim() < 2 or b.dim() < 2:
        return None
    (n, k), m = a.shape[-2:], b.shape[-1]
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    x = a.expand(*batch, n, k).reshape(-1, n, k)
    y = b.expand(*batch, k, m).reshape(-1, k, m)
    out = torch.empty((*batch, n, m), dtype=torch.float64)
    product = _Product(
        x.data_ptr(), y.data_ptr(), n, k, m, *x.stride()[1:], *y.stride()[1:], *product_bits(k),
        None, 0, 0, out.data_ptr(), m, 1, True, len(x), x.stride()[0], y.stride()[0], n * m,
    )  # fmt: skip
    failed = compiled.float_product(ctypes.byref(product), torch.get_num_threads())
    return None if failed else out


@_kernel("sum.dim_IntList")
def _sum(
    library: Any, x: Tensor, dims: list[int] | None, keepdim: bool = False, **dtype: Any
) -> Tensor | None:
    if not dims or len(dims) > 1 or dtype or not x.dim() or not _is_plain(x):
        return None
    dim = dims[0] % x.dim()
    shape = list(x.shape)
    n = shape[dim]
    outer, inner = _size(shape[:dim]), _size(shape[dim + 1 :])
    shape[dim : dim + 1] = [1] if keepdim else []
    return _summed(library, x, (outer, n, inner), 0, torch.empty(shape))


@_kernel("mean")
def _mean(library: Any, x: Tensor, **dtype: Any) -> Tensor | None:
    if dtype or not _is_plain(x):
        return None
    return _summed(library, x, (1, x.numel(), 1), x.numel(), torch.empty(()))


def _summed(
    library: Any, x: Tensor, sizes: tuple[int, int, int], count: int, out: Tensor
) -> Tensor | None:
    bits = grid.sum_bits(sizes[1])
    return None if library.sum(x.data_ptr(), *sizes, bits, count, out.data_ptr()) else out


def _size(shape: list[int]) -> int:
    return functools.reduce(int.__mul__, shape, 1)


@_kernel("_log_softmax")
def _log_softmax(library: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor | None:
    if not x.dim() or dim % x.dim() != x.dim() - 1 or not _is_plain(x):
        return None
    n = x.shape[-1]
    out = torch.empty_like(x)
    sizes = (x.numel() // n, n, grid.sum_bits(n))
    return None if library.log_softmax(x.data_ptr(), *sizes, out.data_ptr()) else out


@_kernel("_log_softmax_backward_data")
def _log_softmax_backward(
    library: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype
) -> Tensor | None:
    if dtype is not torch.float32 or dim % output.dim() != output.dim() - 1:
        return None
    if not _is_plain(grad, output):
        return None
    n = output.shape[-1]
    out = torch.empty_like(output)
    arguments = (grad.data_ptr(), output.data_ptr(), output.numel() // n, n, grid.sum_bits(n))
    return None if library.log_softmax_backward(*arguments, out.data_ptr()) else out


def _is_class(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> bool:
    """Whether it is the plain loss of each example."""
    return bool(
        weight is None and reduction == 0 and x.dim() == 2 and _is_plain(x)
        and target.dtype is torch.int64 and target.is_contiguous() and target.is_cpu
        and target.shape == x.shape[:1]
    )  # fmt: skip


@_kernel("nll_loss_forward")
def _nll_loss(
    library: Any, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int
) -> tuple[Tensor, Tensor] | None:
    if not _is_class(x, target, weight, reduction):
        return None
    out = torch.empty(len(x))
    arguments = (x.data_ptr(), target.data_ptr(), *x.shape, ignored, out.data_ptr())
    return None if library.nll_loss(*arguments) else (out, x.new_zeros(()))


@_kernel("nll_loss_backward")
def _nll_loss_backward(
    library: Any, grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int,
    ignored: int, total_weight: Tensor,
) -> Tensor | None:  # fmt: skip
    if not (_is_class(x, target, weight, reduction) and _is_float(grad)):
        return None
    out = torch.empty_like(x)
    arguments = (grad.data_ptr(), grad.stride()[0], target.data_ptr(), *x.shape, ignored)
    return None if library.nll_loss_backward(*arguments, out.data_ptr()) else out


@_kernel("index_select")
def _index_select(library: Any, x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    bytes_ = signed_bytes(x) if x.is_cpu and dim == 0 and x.numel() else None
    if bytes_ is None or not bytes_.is_contiguous() or index.dim() != 1:
        return None
    if index.dtype is not torch.int64 or not index.is_contiguous():
        return None
    shape = (len(index), *x.shape[1:])
    gathered, out = torch.empty(shape, dtype=torch.int8), torch.empty(shape)
    failed = library.gather_bytes(
        bytes_.data_ptr(), len(x), index.data_ptr(), len(index), x[0].numel(),
        gathered.data_ptr(), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return None if failed else mark_bytes(out, gathered)


class _Weights(ctypes.Structure):
    _fields_ = (
        ("weights", c_void_p), ("momentum", c_void_p), ("grad", c_void_p), ("n", c_long),
    )  # fmt: skip


def update(optimizer: Optimizer) -> bool:
    """Do the optimiser's step; False, with nothing done, where there is no kernel for it."""
    compiled = library()
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if type(optimizer) is not SGD or hooks or compiled is None:
        return False
    updates = [_sgd(group, optimizer.state) for group in optimizer.param_groups]
    if not all(updates):
        return False
    for parameters, weights, settings in filter(None, updates):
        compiled.sgd(weights, len(weights), settings, torch.get_num_threads())
        increment_version(parameters)
    return True


def _sgd(group: dict[str, Any], state: Any) -> tuple[list[Tensor], Any, Any] | None:
    """What the kernel takes: the weights with their gradients and momentum, and the settings."""
    if any(group[key] for key in ("nesterov", "maximize", "differentiable", "fused")):
        return None
    numbers = [-group["lr"], group["momentum"], 1 - group["dampening"], group["weight_decay"]]
    parameters, rows = [], []
    for p in group["params"]:
        grad = p.grad
        if grad is None:
            continue
        tensors = [p, grad]
        if group["momentum"]:
            if (buffer := state[p].get("momentum_buffer")) is None:
                return None
            tensors.append(buffer)
        if not _is_plain(*tensors) or any(x.shape != p.shape for x in tensors):
            return None
        weights, gradient, *momentum = (x.data_ptr() for x in tensors)
        rows.append(_Weights(weights, momentum[0] if momentum else None, gradient, p.numel()))
        parameters.append(p)
    if not all(isinstance(number, float | int) for number in numbers):
        return None
    return parameters, (_Weights * len(rows))(*rows), (ctypes.c_float * 4)(*numbers)
