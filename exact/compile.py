"""A training step that is recorded once and then repeated without autograd and dispatch.

The mode is the reference: the same exact implementations are called in the same order, so the
results are the same bits. Python's own work, autograd's and the mode's is left out.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from exact.bytes import signed_bytes
from exact.dispatch import ExactMode, active
from exact.recording import Recording
from exact.replay import Replay

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
        grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        key = (mode.seeded, *grad, which, *kwargs, *map(_described, values))
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
