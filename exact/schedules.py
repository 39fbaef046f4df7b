"""Cosines and powers of learning rate schedules, which PyTorch computes in Python."""

import contextlib
import functools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from torch.optim import lr_scheduler, swa_utils

from exact import functions
from exact.dispatch import active
from exact.optimizers import Base

__all__ = ["exact_cosine", "exact_powers"]


@contextlib.contextmanager
def exact_cosine() -> Iterator[None]:
    """Give learning rate schedules a cosine of ours: Python's is the platform's library."""

    def cos(x: float) -> float:
        return functions.cos(x) if active() else math.cos(x)

    modules = [vars(module) for module in (lr_scheduler, swa_utils)]
    before = [module["math"] for module in modules]
    for module in modules:
        module["math"] = SimpleNamespace(**vars(math) | {"cos": cos})
    try:
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            module["math"] = original


@contextlib.contextmanager
def exact_powers() -> Iterator[None]:
    """Give learning rate schedules powers of ours during their steps."""
    original = lr_scheduler.LRScheduler.step

    @functools.wraps(original)
    def step(schedule: lr_scheduler.LRScheduler, *args: Any, **kwargs: Any) -> None:
        numbers = _powers(schedule) if active() else {}
        with _exact_gamma(schedule, numbers) if numbers else contextlib.nullcontext():
            original(schedule, *args, **kwargs)

    lr_scheduler.LRScheduler.step = step  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        if lr_scheduler.LRScheduler.step is step:  # else another library has wrapped it since
            lr_scheduler.LRScheduler.step = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _exact_gamma(schedule: lr_scheduler.LRScheduler, before: dict[str, float]) -> Iterator[None]:
    """Make the powers of these numbers of a schedule exact, and leave plain numbers behind."""

    def assign(kind: type[float]) -> None:
        for name, value in before.items():
            setattr(schedule, name, kind(value))
        if isinstance(schedule, lr_scheduler.CyclicLR):
            schedule._init_scale_fn()  # which has taken gamma

    assign(Base)
    try:
        yield
    finally:
        assign(float)
        for group in schedule.optimizer.param_groups:
            if isinstance(group["lr"], Base):
                group["lr"] = float(group["lr"])
        schedule._last_lr = [
            float(lr) if isinstance(lr, Base) else lr for lr in getattr(schedule, "_last_lr", [])
        ]


def _powers(schedule: lr_scheduler.LRScheduler) -> dict[str, float]:
    """The numbers of the schedule that it raises to powers."""
    found = ((name, getattr(schedule, name, None)) for name in ("gamma", "power"))
    return {name: value for name, value in found if isinstance(value, float)}
