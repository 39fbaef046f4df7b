"""Compile kernels.c by the system's C compiler, once for each machine, and load it.

The compiled file is kept in the user's cache.
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
from ctypes import c_double, c_int64, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch

from exact import functions

__all__ = ["build", "fields", "library"]

_SOURCE = Path(__file__).with_name("kernels.c")  # which includes the headers beside it
# No fused multiply-add but where the source asks for it. Nobody reads errno or the flags of
# floating-point exceptions, for which compilers would leave loops with conditions without vectors.
_FLAGS = (
    *("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-shared"),
)


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
    parts = sorted([_SOURCE, *_SOURCE.parent.glob("*.h")])
    sources = [part.read_text() for part in parts]
    made_of = (sources, compiler, flags, sys.platform, platform.machine(), _processor())
    path = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        # Several processes may do so at once: the name appears when the file is complete.
        with tempfile.TemporaryDirectory(dir=folder) as own:
            part = Path(own, path.name)
            command = [*compiler, *_FLAGS, *flags, "-o", str(part), str(_SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            part.replace(path)
    return _prepared(ctypes.CDLL(str(path)))


def fields(names: str) -> list[tuple[str, Any]]:
    """The fields of a structure in C: with a star they are pointers, else of type long."""
    return [(name.strip("*"), c_void_p if "*" in name else c_long) for name in names.split()]


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
        "convolve": (c_void_p, c_long),
        "convolve_gradients": (c_void_p, c_long),
        "max_pool": (c_void_p, c_long),
        "max_pool_backward": (floats, integers, c_long, c_long, c_long, floats),
        "sum": (floats, c_long, c_long, c_long, c_long, c_long, floats),
        "norm": (floats, c_long, c_long, floats),
        "average_pool": (c_void_p, c_long, c_long),
        "average_pool_backward": (c_void_p, c_long),
        "map": (c_long, floats, floats, c_long, floats, c_long),
        "softmax": (floats, c_long, c_long, c_long, c_long, floats),
        "log_softmax_backward": (floats, floats, c_long, c_long, c_long, floats),
        "nll_loss": (floats, integers, c_long, c_long, c_int64, c_long, floats, floats, floats),
        "nll_loss_backward": (floats, c_long, integers, c_long, c_long, c_int64, floats, floats),
        "gather_bytes": (integers, c_long, integers, c_long, c_long, integers, floats, c_long),
        "gather_rows": (c_void_p, c_long, integers, c_long, c_long, c_void_p),
        "argmax": (floats, c_long, c_long, integers),
        "equal": (integers, integers, c_long, c_void_p),
        "count": (c_void_p, c_long, integers),
        "sgd": (c_void_p, c_long, floats, c_long),
        "run": (c_void_p, c_long, c_long),
    }.items():
        getattr(found, name).argtypes = kinds
    found.run.restype = c_long
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
