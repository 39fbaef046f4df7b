"""A recorded training step, repeated with other inputs."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact import kernels, products, registry
from exact.parts import Operation
from exact.program import Program
from exact.recording import Call, Recording, Ref, Update, numbers

__all__ = ["Replay"]

_PROGRAMS = 4  # made anew for other memory, until none is kept


class Replay:
    """The operations of a recording, to be repeated with other inputs."""

    def __init__(self, recording: Recording, had: list[Tensor | None], table: Any) -> None:
        self._recording = recording
        self._python = self._decided()
        outside = {id(x) for x in recording.outside.values()}
        # Whether each weight had a gradient before, and which, where it is added to.
        self._had = [
            (x, gradient is not None, gradient if id(gradient) in outside else None)
            for (x, _), gradient in zip(recording.gradients, had, strict=True)
        ]
        self._steps = _ready(recording, table)
        writes = any(
            isinstance(step, Call) and registry.writes(step.operation) for step in recording.steps
        )
        bases = _bases(recording)
        returned = [bases[number] for number in numbers(recording.results)]
        left = {bases[number] for number in numbers(recording.gradients)}
        self._returned = set(returned)
        # Results that share memory, with each other or with gradients, are to share it each time.
        shared = len(self._returned) < len(returned) or not left.isdisjoint(returned)
        shared = shared or _reads_updated(recording, bases)
        self._programs = 0 if writes or shared else _PROGRAMS
        self._program: Program | None = None
        self._running = threading.Lock()

    def holds(self) -> bool:
        """Whether what Python decided by is still the same."""
        for x, had, gradient in self._had:
            found = x.grad
            if (found is not None) is not had or (gradient is not None and found is not gradient):
                return False
        return self._decided() == self._python

    def _decided(self) -> list[Any]:
        recording = self._recording
        decided: list[Any] = [(x.requires_grad, x.dtype) for x in recording.outside.values()]
        for module in recording.modules:
            decided.append(module.training)
            decided += map(id, (*module._parameters.values(), *module._buffers.values()))
        return decided

    def __call__(self, inputs: list[Tensor]) -> Any:
        """The results of the step for these inputs; gradients are left at the weights."""
        with torch.no_grad(), products.computed_by(kernels):
            if not self._running.acquire(blocking=False):  # another thread has the memory
                return self._new(keeping=False)(inputs)
            try:
                return self._free_program()(inputs)
            finally:
                self._running.release()

    def _free_program(self) -> Program:
        """The last program; a new one where its memory is in use, or that from outside moved."""
        if self._program is None or not self._program.is_free():
            self._program = self._new(keeping=self._programs > 0)
            self._programs -= 1
        return self._program

    def _new(self, keeping: bool) -> Program:
        return Program(self._recording, self._steps, self._returned, keeping)


def _ready(recording: Recording, table: Any) -> list[list[Operation] | Update]:
    """Runs of operations between the optimisers' updates, without those that nobody needs."""
    needed = {*recording.outside, *numbers(recording.results)}
    needed.update(numbers(recording.gradients))
    read: set[int] = set()  # by kernels, or a view of it
    steps: list[list[Operation] | Update] = [[]]
    for step in reversed(recording.steps):
        if isinstance(step, Update):
            needed.update(numbers(step.gradients))
            steps += [step, []]
            continue
        results, inputs = set(numbers(step.results)), set(numbers((step.args, step.kwargs)))
        if not (results & needed or _has_effects(step.operation)):
            continue
        unused = (inputs | results) - needed
        needed |= inputs
        operations = steps[-1]
        assert isinstance(operations, list)  # noqa: S101 -- as it was appended
        kernel = kernels.find(step.operation)
        kept = not results.isdisjoint(read)
        operations.append(_operation(step, kernel, table[step.operation], sorted(unused), kept))
        if kernel or (kept and registry.is_view(step.operation)):
            read |= inputs
    return [step if isinstance(step, Update) else step[::-1] for step in reversed(steps) if step]


def _reads_updated(recording: Recording, bases: list[int]) -> bool:
    """Whether a gradient is read after an optimiser's step, which may have changed it."""
    updated: set[int] = set()
    for step in recording.steps:
        what = step.gradients if isinstance(step, Update) else (step.args, step.kwargs)
        read = {bases[number] for number in numbers(what)}
        if not updated.isdisjoint(read):
            return True
        if isinstance(step, Update):
            updated |= read
    return not updated.isdisjoint(bases[number] for number in numbers(recording.results))


def _has_effects(operation: Any) -> bool:
    return registry.writes(operation) or registry.is_random(operation)


def _operation(
    call: Call, kernel: Any, function: Callable[..., Any], unused: list[int], kept: bool
) -> Operation:
    places = [(i, x.number) for i, x in enumerate(call.args) if isinstance(x, Ref)]
    inner = numbers(([x for x in call.args if not isinstance(x, Ref)], call.kwargs))
    nested = (call.args, call.kwargs) if inner or call.kwargs else None
    return Operation(call, kernel, function, list(call.args), places, nested, unused, kept)


def _bases(recording: Recording) -> list[int]:
    """For each tensor, the one that it is a view of, or itself."""
    bases = list(range(recording.size))
    for call in recording.steps:
        if isinstance(call, Call) and registry.is_view(call.operation):
            for result in numbers(call.results):
                bases[result] = bases[numbers(call.args)[0]]
    return bases
