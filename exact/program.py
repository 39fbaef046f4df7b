"""The operations of a recorded step, in memory that stays where it is.

Most of a small operation's time is Python's: finding its tensors, checking them, allocating the
result. So an operation that has a kernel is prepared once, to read and write the same memory each
time, and several in a row are one call of the library. Views of such memory, and tensors that
follow from shapes alone, are made once. Only small tensors are kept in this way, as the time of
large ones is in the operation itself.
"""

import itertools
from typing import Any

import torch
from torch import Tensor

from exact import kernels, registry
from exact.bytes import signed_bytes
from exact.parts import Operation, Prepared, Repeated, address
from exact.recording import Gradients, Recording, Ref, Update, map_refs, numbers

__all__ = ["Program"]

_SMALL, _ALL = 2**20, 2**25  # bytes: of a tensor that is kept, and of all of them
_BY_SHAPE = {registry.named(f"{name}_like") for name in ("ones", "zeros", "full")}


class Program:
    """Lists of operations and the updates between them, to be run again and again.

    `returned`: the tensors whose memory the step returns.
    `keeping`: whether tensors stay where they are, for which no operation may write its arguments.
    """

    def __init__(
        self,
        recording: Recording,
        steps: list[list[Operation] | Update],
        returned: set[int],
        keeping: bool,
    ) -> None:
        self._recording, self._steps, self._returned = recording, steps, returned
        self._keeping = keeping
        self._tensors: list[Any] = [None] * recording.size  # those that stay
        for number, x in recording.outside.items():
            self._tensors[number] = x
        self._copied: set[int] = set()  # of the arguments
        self._constant: set[int] = set()  # those that follow from shapes
        self._memory: dict[int, bool] = {}  # its own, by address: whether it holds constants
        self._size = 0  # bytes of it
        self._read: set[int] = set()  # memory of which the numbers are read, not only their bytes
        self._omitted: list[kernels.KernelCall] = []  # as Prepared has it
        self._parts: list[list[Repeated | Prepared] | Update] = []  # once it has run
        self._gradients: list[tuple[Tensor, Any]] = []  # weights, and the memory of their gradients
        updates = [step.gradients for step in steps if isinstance(step, Update)]
        self._left = [*itertools.chain(*updates), *recording.gradients]
        before = {id(x): ref for gradients in updates for x, ref in gradients}
        new = Ref(-1)  # where no update left one
        self._left_last = [
            (x, ref) for x, ref in recording.gradients if before.get(id(x), new) != ref
        ]

    def __call__(self, inputs: list[Tensor]) -> Any:
        """The results of the step for these inputs; gradients are left at the weights."""
        tensors = self._tensors.copy()
        for number, x in zip(self._recording.inputs, inputs, strict=True):
            tensors[number] = x
        first = not self._parts
        (self._prepare if first else self._run)(tensors)
        self._leave(self._left_last, tensors, copied=first)
        with torch._C._DisableTorchDispatch():
            return map_refs(lambda ref: self._result(tensors[ref.number]), self._recording.results)

    def is_free(self) -> bool:
        """Whether all memory is where it was, and nobody outside has any of the program's own.

        Takes the gradients of the last run away.
        """
        for x, _ in self._gradients:
            x.grad = None
        return bool(self._parts) and (not self._keeping or self._places() == self._known)

    def _places(self) -> list[Any]:
        """Where tensors from outside are, and how many share the memory of each gradient."""
        places: list[Any] = [torch.get_num_threads()]
        for x in self._recording.outside.values():
            bytes_ = signed_bytes(x) if x.dtype is torch.float32 else None
            places += [x.data_ptr(), x.shape, x.stride(), x.dtype]
            places.append(None if bytes_ is None else bytes_.data_ptr())
        for _, storage in self._gradients:
            places.append(torch._C._storage_Use_Count(storage._cdata))
        return places

    def _result(self, x: Tensor) -> Tensor:
        return x.clone() if address(x) in self._memory else x.detach()

    def _leave(self, gradients: Gradients, tensors: list[Any], copied: bool) -> None:
        """Leave the gradients at the weights, in the program's memory unless they are copied."""
        with torch._C._DisableTorchDispatch():
            for x, ref in gradients:
                x.grad = found = None if ref is None else tensors[ref.number]
                constant = None if found is None else self._memory.get(address(found))
                if found is not None and constant is not None:
                    x.grad = found.clone() if copied or constant else found.detach()

    def _update(self, step: Update, tensors: list[Any], copied: bool) -> None:
        self._leave(step.gradients, tensors, copied)
        if not kernels.update(step.optimizer):
            step.optimizer.step()

    def _run(self, tensors: list[Any]) -> None:
        with torch._C._DisableTorchDispatch():
            for number in self._recording.inputs:
                if number in self._copied:
                    tensors[number] = self._tensors[number].copy_(tensors[number])
        for group in self._parts:
            if isinstance(group, Update):
                self._update(group, tensors, copied=False)
                continue
            with torch._C._DisableTorchDispatch():
                for part in group:
                    part(tensors)

    def _prepare(self, tensors: list[Any]) -> None:
        """Run the operations, and note how to run them again."""
        with torch._C._DisableTorchDispatch():
            for number in set(self._recording.inputs) - self._returned:
                is_index = tensors[number].dtype is torch.int64  # or a label: no update writes it
                if is_index and self._keep([number], tensors, copy=True):
                    self._copied.add(number)
        known: list[list[Repeated | Prepared] | Update] = []
        for group in self._steps:
            if isinstance(group, Update):
                known.append(group)
                self._update(group, tensors, copied=True)  # so that nobody has them at the end
                continue
            parts: list[Repeated | Prepared] = []
            with torch._C._DisableTorchDispatch():
                for operation in group:
                    part = self._first(operation, tensors)
                    if isinstance(part, Prepared) and parts and isinstance(parts[-1], Prepared):
                        parts[-1].extend(part)
                    elif part:
                        parts.append(part)
            known.append(parts)
        for x, ref in self._left:
            if ref and self._memory.get(address(tensors[ref.number])) is False:
                self._gradients.append((x, tensors[ref.number].untyped_storage()))
        read = numbers((self._recording.results, self._left))
        self._read.update(address(tensors[number]) for number in read)
        for part in itertools.chain(*(parts for parts in known if isinstance(parts, list))):
            if isinstance(part, Prepared):
                part.omit_floats(self._read)
        self._known, self._parts = self._places(), known

    def _first(self, operation: Operation, tensors: list[Any]) -> Repeated | Prepared | None:
        """Do the operation; return how to do it again, None where its results stay as they are."""
        call = operation.do(tensors)
        part = self._how(operation, call, tensors)
        if part:
            self._read.update(part.reads(tensors))
        for number in operation.unused:
            tensors[number] = None
        return part

    def _how(
        self, operation: Operation, call: kernels.KernelCall | None, tensors: list[Any]
    ) -> Repeated | Prepared | None:
        """The same for an operation that was done; `call`: its kernel."""
        kind, results = operation.call.operation, numbers(operation.call.results)
        inputs, again = operation.inputs(), Repeated(operation)
        memory = {address(tensors[number]) for number in inputs}
        shares = any(address(tensors[number]) in memory for number in results)  # as a view does
        stays = all(self._tensors[number] is not None for number in inputs)
        random = registry.is_random(kind)
        if not random and (kind in _BY_SHAPE or self._constant.issuperset(inputs)):
            if not self._keep(results, tensors, constant=True):
                return again
            self._constant.update(results)
            return None
        if shares:
            return None if stays and self._keep(results, tensors, shared=True) else again
        if stays and call and self._keep(results, tensors):
            return Prepared([operation], [call], self._omitted)
        if operation.kept and self._keep(results, tensors, copy=True):
            return again._replace(kept=tuple((n, self._tensors[n]) for n in results))
        return again

    def _keep(
        self,
        numbers: list[int],
        tensors: list[Any],
        constant: bool = False,
        shared: bool = False,
        copy: bool = False,
    ) -> bool:
        """Let these tensors stay, if they are small; `shared`: their memory does so already."""
        found = [tensors[number] for number in numbers]
        size = 0 if shared else sum(x.numel() * x.element_size() for x in found)
        small = size <= _SMALL and self._size + size <= _ALL and all(x.is_cpu for x in found)
        if not (self._keeping and small):
            return False
        if copy:
            if any(signed_bytes(x) is not None for x in found):  # which a copy does not have
                return False
            copies = [x.clone() for x in found]
            if [x.stride() for x in found] != [x.stride() for x in copies]:
                return False
            found = copies
        self._size += size
        for number, x in zip(numbers, found, strict=True):
            tensors[number] = self._tensors[number] = x
            if not shared:
                self._memory[address(x)] = constant
        return True
