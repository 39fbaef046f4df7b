"""The mode of PyTorch that sends each operation of a block to its exact implementation.

    loss.backward()  →  autograd  →  aten.mm(a, b)  →  ExactMode  →  registry  →  products.matmul
                                                           │
                                              not registered: NotExactError

Below autograd, PyTorch is a stream of some hundred small operations. An operation that
nobody has looked at is refused, so none can change results unnoticed. PyTorch's table of
decompositions in Python is not used: its formulas change between releases, and they round
intermediate results. Only operations that PyTorch itself defines as a sequence of others are
taken apart (`decompose`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from exact import machine, registry
from exact.errors import NotExactError
from exact.recording import Recording

__all__ = ["ExactMode", "active"]

_INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64}
_UNSIGNED = {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
_DTYPES = {torch.float32, torch.float64, torch.bool} | _INTEGERS | _UNSIGNED


def active() -> "ExactMode | None":
    """The mode that this thread is in."""
    stack = _get_current_dispatch_mode_stack()
    return next((mode for mode in stack if isinstance(mode, ExactMode)), None)


class ExactMode(TorchDispatchMode):
    """Calls the exact implementation of each operation.

    Raises NotExactError for operations without one, for tensor subclasses, and for
    dtypes, layouts and devices on which no result is exact.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # By default each operation passes a wrapper that keeps torch.compile out, which costs
        # as much as the operation. `process.skip_compilation` does so at no cost.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = registry.UNSEEDED
        self.depth = 0  # of nested blocks
        self.recording: Recording | None = None  # of the step that `compile` records
        self._accepted: set[tuple[torch.dtype, torch.device]] = set()  # of results
        self._dense: set[tuple[torch.dtype, torch.layout]] = set()  # of operands

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute the operation `func` exactly."""
        for kind in types:
            if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
                if func is torch.ops.prim.device.default:
                    return func(*args)  # called from C++, where an error would end the process
                if kind.__module__.startswith("torch.distributed."):
                    from exact import distributed  # only here: it loads much of PyTorch

                    if self.recording is not None:
                        self.recording.shared = True
                    return distributed.dispatch(self, func, args, kwargs or {})
                raise NotExactError(
                    f"{func} of {kind.__name__}, a subclass with a __torch_dispatch__ of its own:"
                    " plain tensors and DTensors are exact"
                )
        implementation = self.table[func]
        if implementation is None and func.namespace in ("c10d", "_c10d_functional"):
            import exact.distributed  # noqa: F401  # registers what DTensors gather by

            implementation = self.table[func]
        if implementation is None:
            return self._decompose(func, args, kwargs or {})
        for x in args:
            if isinstance(x, Tensor) and (x.dtype, x.layout) not in self._dense:
                self._require_dense_and_real(func, x)
        if self.recording is not None:
            self.recording.before(func, args, kwargs or {})
        result = implementation(*args, **(kwargs or {}))
        changed = args[0] if result is None and args else result  # in-place updates return nothing
        for x in changed if isinstance(changed, (list, tuple)) else (changed,):
            if isinstance(x, Tensor) and (x.dtype, x.device) not in self._accepted:
                self._require_exact_dtype(func, x)
        if self.recording is not None:
            self.recording.add(func, args, kwargs or {}, result)
        return result

    @property
    def seeded(self) -> bool:
        """Whether PyTorch's generator may be drawn from."""
        return self.table is registry.SEEDED

    def _decompose(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise NotExactError(
                f"{func} has no exact implementation: use other operations,"
                " or leave exact mode for it"
            )
        return result

    def _require_dense_and_real(self, func: Any, x: Tensor) -> None:
        # Such operands come from outside the block; their results may be dense and real.
        if x.is_complex() or x.is_quantized or x.layout is not torch.strided:
            raise NotExactError(
                f"{func} of {x.dtype}, {x.layout}: only dense tensors of real numbers are exact"
            )
        self._dense.add((x.dtype, x.layout))

    def _require_exact_dtype(self, func: Any, x: Tensor) -> None:
        if x.dtype not in _DTYPES or x.device.type not in ("cpu", "cuda", "meta"):
            raise NotExactError(
                f"{func} returns {x.dtype} on {x.device.type}: exact are real numbers of 32 and 64"
                " bits, integers and booleans, on cpu and cuda"
            )
        if x.device.type == "cuda":
            machine.check("cuda")
        self._accepted.add((x.dtype, x.device))
