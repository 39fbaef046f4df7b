"""A training step that is recorded once and then repeated without autograd and dispatch.

The mode is the reference: the same exact implementations are called in the same order, so the
results are the same bits. Python's own work, autograd's and the mode's is left out.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from exact import kernels, products, registry
from exact.bytes import signed_bytes
from exact.dispatch import ExactMode, active
from exact.recording import Call, Recording, Ref, Update, map_refs

__all__ = ["compile"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_ATTEMPTS = 4  # at two equal recordings
_SHAPES = 64  # sets of them that a step is recorded for


def compile(step: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:  # noqa: A001
    """A function that does the same as `step` under the mode, with the same bits, but faster.

        @exact.compile
        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

    The first calls with each set of shapes are recorded: as soon as two did the same, later ones
    repeat it. What Python does in the step (branches, prints, counters) is not repeated. Learning
    rates, momentum and other settings of the optimiser may change, and so may its state, the
    weights, and whether modules train. Numbers that change between calls belong into tensors.
    Results have no gradient. Outside of the mode, and for arguments that need a gradient, `step`
    itself is called.
    Raises NotExactError where data decide what the step does, as by `.item()`.
    """
    compiled: _Compiled[_Result] = _Compiled(step)

    @functools.wraps(step)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        return compiled(*args, **kwargs)

    return call


class _Compiled(Generic[_Result]):
    def __init__(self, step: Callable[..., _Result]) -> None:
        self._step = step
        self._known: dict[Any, _Known] = {}  # by what is known of the arguments

    def __call__(self, *args: Any, **kwargs: Any) -> _Result:
        mode = active()
        values = [*args, *kwargs.values()]
        inputs = [x for x in values if isinstance(x, Tensor)]
        if mode is None or mode.recording or any(map(_is_special, inputs)):
            return self._step(*args, **kwargs)
        which = tuple(_first(inputs, x) for x in inputs)
        key = (mode.seeded, torch.is_grad_enabled(), which, *kwargs, *map(_described, values))
        known = self._known.get(key)
        if known is None:
            if len(self._known) == _SHAPES:
                return self._step(*args, **kwargs)
            known = self._known[key] = _Known()
            if len(self._known) == _SHAPES:
                _warn("others than these 64 sets of shapes and numbers are not repeated")
        if known.replay and known.replay.holds():
            result: _Result = known.replay(inputs)
            return result
        if not known.attempts:
            return self._step(*args, **kwargs)
        return known.record(mode, inputs, lambda: self._step(*args, **kwargs))


def _is_special(x: Tensor) -> bool:
    return x.requires_grad or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__


def _first(inputs: list[Tensor], x: Tensor) -> int:
    """Where the same tensor is first among the inputs."""
    return next(i for i, other in enumerate(inputs) if other is x)


def _warn(why: str) -> None:
    warnings.warn(f"exact.compile: {why}", stacklevel=5)


def _described(x: Any) -> Any:
    """What decides about an argument which operations are done with it."""
    if isinstance(x, Tensor):
        marked = x.dtype == torch.float32 and signed_bytes(x) is not None
        return x.shape, x.stride(), x.dtype, x.device, marked
    try:
        hash(x)
    except TypeError:
        raise TypeError(
            f"a compiled step takes tensors and numbers as arguments, not {type(x).__name__}"
        ) from None
    return type(x), x


class _Known:
    """What is known of the calls with one set of shapes."""

    def __init__(self) -> None:
        self.attempts = _ATTEMPTS
        self.replay: Replay | None = None
        self._last: Recording | None = None

    def record(self, mode: ExactMode, inputs: list[Tensor], step: Callable[[], _Result]) -> _Result:
        """Do the step under the mode, and compare what it does with what it did last time."""
        last = self._last
        had = [x.grad for x, _ in last.gradients] if last else []
        mode.recording = recording = Recording(inputs)
        try:
            result: _Result = recording.run(step)
        finally:
            mode.recording = None
        self._last, self.replay = recording, None
        if last:
            difference = recording.difference(last)
            if difference is None:
                self.replay, self._last = Replay(recording, had, mode.table), None
            else:
                self.attempts -= 1
                if not self.attempts:
                    _warn(
                        "the step is not repeated, as each call does something else"
                        f" ({difference}): give what changes as a tensor argument"
                    )
        return result


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
        with torch.no_grad(), products.computed_by(kernels.multiply):
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
    flat = not call.kwargs and not any(isinstance(x, (list, dict)) for x in call.args)
    places = [(i, x.number) for i, x in enumerate(call.args) if isinstance(x, Ref)] if flat else []
    nested = None if flat else (call.args, call.kwargs)
    kernel = kernels.find(call.operation)
    return _Operation(kernel, function, list(call.args), places, nested, call.results, unused)
