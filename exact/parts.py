"""The parts of a program: operations that are repeated, by Python or by the library of kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from exact import kernels
from exact.recording import Call, Ref, map_refs, numbers

__all__ = ["Operation", "Prepared", "Repeated", "address"]


class Operation(NamedTuple):
    """A call that is ready to be repeated."""

    call: Call
    kernel: Callable[..., Any] | None  # as kernels.find returns it
    function: Callable[..., Any]
    args: list[Any]  # None where a tensor belongs
    tensors: list[tuple[int, int]]  # the places among them, and the numbers of the tensors
    nested: Any  # arguments with lists of tensors: these and the keywords, or None
    unused: list[int]  # tensors that no later call needs
    kept: bool  # whether a kernel reads the results

    def inputs(self) -> list[int]:
        """The numbers of the tensors among its arguments."""
        return numbers((self.call.args, self.call.kwargs))

    def arguments(self, tensors: list[Any]) -> Any:
        """The arguments and keywords, of the tensors by number."""
        if self.nested is not None:
            return map_refs(lambda ref: tensors[ref.number], self.nested)
        args = self.args.copy()
        for place, number in self.tensors:
            args[place] = tensors[number]
        return args, {}

    def do(self, tensors: list[Any]) -> kernels.KernelCall | None:
        """Put the results where their numbers say; return the call of a kernel that made them."""
        args, kwargs = self.arguments(tensors)
        found = self.kernel(*args, **kwargs) if self.kernel else None
        call = found if isinstance(found, kernels.KernelCall) else None
        if call:
            found = call()
        if found is None:
            found = self.function(*args, **kwargs)
            if call:
                found = _copied(call.results, found)
        _store(self.call.results, found, tensors)
        return call


class Repeated(NamedTuple):
    """An operation that Python calls."""

    operation: Operation
    kept: tuple[tuple[int, Tensor], ...] = ()  # the results that are copied, and to where

    def __call__(self, tensors: list[Any]) -> None:
        """Find its tensors by their numbers, and put its results there."""
        self.operation.do(tensors)
        for number, x in self.kept:
            tensors[number] = x.copy_(tensors[number])
        for number in self.operation.unused:
            tensors[number] = None

    def reads(self, tensors: list[Any]) -> list[int]:
        """The memory whose numbers it reads."""
        return [address(tensors[number]) for number in self.operation.inputs()]


class Prepared:
    """Operations that are one call of the library.

    `omitted`: calls of the whole program that leave out the floats of what they make of bytes.
    """

    def __init__(
        self,
        operations: list[Operation],
        calls: list[kernels.KernelCall],
        omitted: list[kernels.KernelCall],
    ) -> None:
        self._operations, self._calls, self._omitted = operations, calls, omitted
        self._together: kernels.Calls | None = None

    def extend(self, other: "Prepared") -> None:
        """Let those of the other follow."""
        self._operations += other._operations
        self._calls += other._calls

    def reads(self, tensors: list[Any]) -> list[int]:
        """The memory whose numbers the only operation reads, and not just the bytes of them."""
        (operation,), (call,) = self._operations, self._calls
        memory = [address(tensors[number]) for number in operation.inputs()]
        if call.marked is not None:
            memory.remove(address(call.marked))
        return memory

    def omit_floats(self, read: set[int]) -> None:
        """Leave out the numbers of bytes where only the bytes are read; `read`: other memory."""
        for i, call in enumerate(self._calls):
            if call.bytes_alone and address(call.results) not in read:
                self._omitted.append(call)
                self._calls[i] = call._replace(arguments=call.bytes_alone)

    def __call__(self, tensors: list[Any]) -> None:
        """Write the results; `tensors` by number, for what the kernels decline."""
        if self._together is None:
            self._together = kernels.Calls(self._calls)
        at = 0
        while (at := self._together.run(at)) < len(self._calls):
            for call in self._omitted:  # as Python reads floats
                call()
            operation = self._operations[at]
            args, kwargs = operation.arguments(tensors)
            _copied(self._calls[at].results, operation.function(*args, **kwargs))
            at += 1


def address(x: Tensor) -> int:
    """Where the memory begins that the tensor shares with its views."""
    return x.untyped_storage().data_ptr()


def _copied(to: Any, results: Any) -> Any:
    """The results, in the memory of other tensors."""
    for x, result in zip(_listed(to), _listed(results), strict=True):
        x.copy_(result)
    return to


def _listed(results: Any) -> Any:
    return [results] if isinstance(results, Tensor) else results


def _store(results: Any, found: Any, tensors: list[Any]) -> None:
    if isinstance(results, Ref):
        tensors[results.number] = found
    elif results is not None:
        for result, x in zip(results, found, strict=True):
            _store(result, x, tensors)
