"""A recorded training step, repeated with other inputs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exact import kernels, products, registry
from exact.recording import Call, Recording, Ref, Update, map_refs

__all__ = ["Replay"]


class _Operation(NamedTuple):
    """A call that is ready to be repeated."""

    kernel: Callable[..., Any] | None  # which returns None where it declines
    function: Callable[..., Any]
    args: list[Any]  # None where a tensor belongs
    tensors: list[tuple[int, int]]  # the places among them, and the numbers of the tensors
    nested: Any  # arguments with lists of tensors: these and `kwargs`, or None
    results: Any
    unused: list[int]  # tensors that no later call needs


class Replay:
    """The operations of a recording, to be repeated with other inputs."""

    def __init__(self, recording: Recording, had: list[Tensor | None], table: Any) -> None:
        self._recording = recording
        self._tensors: list[Any] = [None] * recording.size
        for index, x in recording.outside.items():
            self._tensors[index] = x
        self._python = self._decided()
        outside = {id(x) for x in recording.outside.values()}
        # Whether each weight had a gradient before, and which, where it is added to.
        self._had = [
            (x, gradient is not None, gradient if id(gradient) in outside else None)
            for (x, _), gradient in zip(recording.gradients, had, strict=True)
        ]
        self._steps = _ready(recording, table)

    def holds(self) -> bool:
        """Whether what Python decided by is still the same."""
        for x, had, gradient in self._had:
            found = x.grad
            if (found is not None) is not had or (gradient is not None and found is not gradient):
                return False
        return self._decided() == self._python

    def _decided(self) -> list[Any]:
        recording = self._recording
        decided: list[Any] = [x.requires_grad for x in recording.outside.values()]
        for module in recording.modules:
            decided += [module.training, *map(id, module._parameters.values())]
        return decided

    def __call__(self, inputs: list[Tensor]) -> Any:
        """The results of the step for these inputs; gradients are left at the weights."""
        tensors, recording = self._tensors.copy(), self._recording
        for number, x in zip(recording.inputs, inputs, strict=True):
            tensors[number] = x
        with torch.no_grad(), products.computed_by(kernels):
            for step in self._steps:
                if isinstance(step, Update):
                    for x, (index,) in step.gradients:
                        x.grad = tensors[index]
                    if not kernels.update(step.optimizer):
                        step.optimizer.step()
                else:
                    with torch._C._DisableTorchDispatch():
                        _repeat(step, tensors)
            for x, (index,) in recording.gradients:
                x.grad = tensors[index]
        return map_refs(lambda ref: tensors[ref.number], recording.results)


def _repeat(operations: list[_Operation], tensors: list[Any]) -> None:
    for kernel, function, args, places, nested, results, unused in operations:
        kwargs: dict[str, Any] = {}
        if nested is not None:
            args, kwargs = map_refs(lambda ref: tensors[ref.number], nested)
        else:
            args = args.copy()
            for place, number in places:
                args[place] = tensors[number]
        found = kernel(*args, **kwargs) if kernel else None
        if found is None:
            found = function(*args, **kwargs)
        if type(results) is Ref:
            tensors[results.number] = found
        elif results is not None:
            _store(results, found, tensors)
        for number in unused:
            tensors[number] = None


def _store(results: Any, found: Any, tensors: list[Any]) -> None:
    for result, x in zip(results, found, strict=True):
        if isinstance(result, Ref):
            tensors[result.number] = x


def _ready(recording: Recording, table: Any) -> list[list[_Operation] | Update]:
    """Runs of operations between the optimisers' updates, without those that nobody needs."""
    needed: set[int] = set(recording.outside)  # which are kept
    used = functools.partial(map_refs, lambda ref: needed.add(ref.number))
    used(recording.results)
    used([ref for _, ref in recording.gradients])
    steps: list[list[_Operation] | Update] = [[]]
    for step in reversed(recording.steps):
        if isinstance(step, Update):
            used([ref for _, ref in step.gradients])
            steps += [step, []]
            continue
        results: set[int] = set()
        map_refs(lambda ref: results.add(ref.number), step.results)  # noqa: B023
        if not (results & needed or _has_effects(step.operation)):
            continue
        before = set(needed)
        used([step.args, step.kwargs])
        unused = (needed | results) - before - set(recording.outside)
        operations = steps[-1]
        assert isinstance(operations, list)  # noqa: S101 -- as it was appended
        operations.append(_operation(step, table[step.operation], sorted(unused)))

    return [step if isinstance(step, Update) else step[::-1] for step in reversed(steps) if step]


def _has_effects(operation: Any) -> bool:
    return bool(operation._schema.is_mutable) or registry.is_random(operation)


def _operation(call: Call, function: Callable[..., Any], unused: list[int]) -> _Operation:
    places = [(i, x.number) for i, x in enumerate(call.args) if isinstance(x, Ref)]
    inner: list[Ref] = []
    map_refs(inner.append, ([x for x in call.args if not isinstance(x, Ref)], call.kwargs))
    nested = (call.args, call.kwargs) if inner or call.kwargs else None
    kernel = kernels.find(call.operation)
    return _Operation(kernel, function, list(call.args), places, nested, call.results, unused)
