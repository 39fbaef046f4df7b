"""The operations of a recorded step, in memory that stays where it is.

Most of a small operation's time is Python's: finding its tensors, checking them, allocating the
result. So an operation that has a kernel is prepared once, to read and write the same memory each
time, and several in a row are one call of the library. Views of such memory, and tensors that
follow from shapes alone, are made once. Only small tensors are kept in this way, as the time of
large ones is in the operation itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import kernels, registry
from exact.bytes import signed_bytes
from exact.parts import Operation, Prepared, Repeated, copied, store
from exact.recording import Recording, Ref, Update, map_refs, numbers

__all__ = ["Program"]

_SMALL, _ALL = 2**20, 2**25  # bytes: of a tensor that is kept, and of all of them
_BY_SHAPE = {registry.named(f"{name}_like") for name in ("ones", "zeros", "full")}


class Program:
    """Operations and updates, run again and again. `steps`: lists of operations between updates.

    `changed`: the numbers of tensors whose memory is written after they are made, or which the step
    hands out.
    """

    def __init__(
        self,
        recording: Recording,
        steps: list[list[Operation] | Update],
        changed: set[int],
        keeping: bool,
    ) -> None:
        self._recording, self._steps, self._changed = recording, steps, changed
        self._keeping = keeping  # whether tensors stay at all
        self._tensors: list[Any] = [None] * recording.size  # those that stay
        for number, x in recording.outside.items():
            self._tensors[number] = x
        self._own: set[int] = set()  # of them, those in the program's own memory
        self._constant: set[int] = set()  # of these, those that no operation writes
        self._size = 0  # bytes of its memory
        self._parts: list[list[Repeated | Prepared] | Update] = []  # once it has run
        self._gradients: list[tuple[Tensor, Any]] = []  # weights, and the memory of their gradients
        updates = [step for step in steps if isinstance(step, Update)]
        left, found = (
            [(id(x), number) for x, number in gradients]
            for gradients in (recording.gradients, updates[-1].gradients if updates else [])
        )
        self._leaves_others = left != found  # gradients than the last update finds, as by zero_grad

    def __call__(self, inputs: list[Tensor]) -> Any:
        """The results of the step for these inputs; gradients are left at the weights."""
        tensors = self._tensors.copy()
        for number, x in zip(self._recording.inputs, inputs, strict=True):
            tensors[number] = x
        first = not self._parts
        if first:
            self._prepare(tensors)
        else:
            self._run(tensors)
        if first or self._leaves_others:
            for step in self._steps:
                for x, _ in step.gradients if isinstance(step, Update) else ():
                    x.grad = None
            self._leave(self._recording.gradients, tensors)
        with torch._C._DisableTorchDispatch():
            return map_refs(
                lambda ref: self._outside(ref.number, tensors, Tensor.clone),
                self._recording.results,
            )

    def is_free(self) -> bool:
        """Whether all memory is where it was, and nobody outside has any of the program's own.

        Takes the gradients of the last run away.
        """
        for x, _ in self._gradients:
            x.grad = None
        return bool(self._parts) and (not self._keeping or self._memory() == self._known)

    def _memory(self) -> list[Any]:
        """Where tensors from outside are, and how many share the memory of each gradient."""
        memory: list[Any] = [torch.get_num_threads()]
        for x in self._recording.outside.values():
            bytes_ = signed_bytes(x) if x.dtype is torch.float32 else None
            memory += [x.data_ptr(), x.stride(), None if bytes_ is None else bytes_.data_ptr()]
        for _, storage in self._gradients:
            memory.append(torch._C._storage_Use_Count(storage._cdata))
        return memory

    def _leave(self, gradients: list[tuple[Tensor, Ref]], tensors: list[Any]) -> None:
        with torch._C._DisableTorchDispatch():
            for x, (number,) in gradients:
                x.grad = self._outside(number, tensors, Tensor.detach)

    def _outside(self, number: int, tensors: list[Any], given: Callable[[Tensor], Tensor]) -> Any:
        return given(tensors[number]) if number in self._own else tensors[number]

    def _update(self, step: Update, tensors: list[Any]) -> None:
        self._leave(step.gradients, tensors)
        if not kernels.update(step.optimizer):
            step.optimizer.step()

    def _run(self, tensors: list[Any]) -> None:
        with torch._C._DisableTorchDispatch():
            for number in self._recording.inputs:
                if number in self._own:
                    tensors[number] = self._tensors[number].copy_(tensors[number])
        for group in self._parts:
            if isinstance(group, Update):
                self._update(group, tensors)
                continue
            with torch._C._DisableTorchDispatch():
                for part in group:
                    part(tensors)

    def _prepare(self, tensors: list[Any]) -> None:
        """Run the operations, and note how to run them again."""
        with torch._C._DisableTorchDispatch():
            for number in self._recording.inputs:
                if number not in self._changed:
                    self._keep([number], tensors, copy=True)
        known: list[list[Repeated | Prepared] | Update] = []
        for group in self._steps:
            if isinstance(group, Update):
                known.append(group)
                self._update(group, tensors)
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
        for x, (number,) in self._recording.gradients:
            if number in self._own:
                x.grad = None  # which shares the memory after an update
                self._gradients.append((x, self._tensors[number].untyped_storage()))
        self._known, self._parts = self._memory(), known

    def _first(self, operation: Operation, tensors: list[Any]) -> Repeated | Prepared | None:
        """Do the operation; return how to do it again, None where its results stay as they are."""
        args, kwargs = operation.arguments(tensors)
        found = operation.kernel(*args, **kwargs) if operation.kernel else None
        call = found if isinstance(found, kernels.KernelCall) else None
        if call and (found := call()) is None:
            found = copied(call.results, operation.function(*args, **kwargs))
        if found is None:
            found = operation.function(*args, **kwargs)
        store(operation.call.results, found, tensors)
        part = self._how(operation, call, tensors)
        for number in operation.unused:
            tensors[number] = None
        return part

    def _how(
        self, operation: Operation, call: kernels.KernelCall | None, tensors: list[Any]
    ) -> Repeated | Prepared | None:
        """The same for an operation that was done; `call`: its kernel."""
        kind, results = operation.call.operation, numbers(operation.call.results)
        inputs = numbers((operation.call.args, operation.call.kwargs))
        again = Repeated(operation)
        if kind._schema.is_mutable:
            return again
        constant = kind in _BY_SHAPE or self._constant.issuperset(inputs)
        if constant and not registry.is_random(kind) and self._changed.isdisjoint(results):
            if not self._keep(results, tensors):
                return again
            self._constant.update(results)
            return None
        stays = all(self._tensors[number] is not None for number in inputs)
        if stays and kind.is_view:
            own = not self._own.isdisjoint(inputs)
            return None if self._keep(results, tensors, own) else again
        if stays and call and self._keep(results, tensors):
            return Prepared([operation], [call])
        if operation.kept and not call and self._keep(results, tensors, copy=True):
            return again._replace(kept=tuple((n, self._tensors[n]) for n in results))
        return again

    def _keep(
        self, numbers: list[int], tensors: list[Any], own: bool = True, copy: bool = False
    ) -> bool:
        """Let these tensors stay, if they are small."""
        found = [tensors[number] for number in numbers]
        size = sum(x.numel() * x.element_size() for x in found if own)
        if not self._keeping or size > _SMALL or self._size + size > _ALL:
            return False
        if not all(x.is_cpu for x in found):
            return False
        if copy:
            if any(signed_bytes(x) is not None for x in found):  # which a copy would not have
                return False
            layouts = [x.stride() for x in found]
            found = [x.clone() for x in found]
            if [x.stride() for x in found] != layouts:
                return False
        self._size += size
        for number, x in zip(numbers, found, strict=True):
            tensors[number] = self._tensors[number] = x
        if own:
            self._own.update(numbers)
        return True
