"""The block in which plain PyTorch code computes the same bits on every machine."""

import contextlib
import threading
from collections.abc import Iterator

import torch

from exact import machine, optimizers, process, registry
from exact.dispatch import active
from exact.errors import NotExactError

__all__ = ["mode"]

_DEFAULT_GENERATOR = threading.RLock()  # which all threads share


@contextlib.contextmanager
def mode(seed: int | None = None) -> Iterator[None]:
    """Compute exactly within the block, and in threads that are started in it.

        with exact.mode(seed=1):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

    PyTorch's random operations follow from the seed, or from a generator that they are given.
    Raises NotExactError where an operation has no exact implementation, and MachineError
    where the machine does not keep the rules of IEEE 754 that exactness rests on.
    """
    machine.check()
    table = registry.UNSEEDED if seed is None else registry.SEEDED
    seeding = contextlib.nullcontext() if seed is None else _seeded(seed)
    with seeding, process.entered() as current:
        outer, current.table = current.table, table
        current.depth += 1
        depth = current.depth
        try:
            yield
        finally:
            if active() is not current or current.depth != depth:
                raise NotExactError(
                    "exact.mode() blocks must be nested; these overlapped (are they in coroutines"
                    " or generators?), so some results may not be exact"
                )
            current.table = outer
            current.depth -= 1
            optimizers.restore()
    machine.check()  # as the block may have changed a thread's rounding


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's default generator for the block, and restore its state afterwards.

    Raises NotExactError while a block of another thread draws from it.
    """
    if not _DEFAULT_GENERATOR.acquire(blocking=False):
        raise NotExactError(
            "a block in another thread draws from PyTorch's one generator: give a seed to one"
            " block at a time, or each operation a generator"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        _DEFAULT_GENERATOR.release()
