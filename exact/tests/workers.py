"""Runs a function on several workers: processes of one machine that form a group."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

FORKS = multiprocessing.get_context("forkserver")
Result = TypeVar("Result")


def on_workers(function: Callable[[DeviceMesh], Result], n: int) -> list[Result]:
    """What the function returned on each of n workers. It is called with their mesh."""
    # Forked from a process that has loaded PyTorch and the function's module, which takes seconds.
    module = (function.func if isinstance(function, partial) else function).__module__
    FORKS.set_forkserver_preload(["torch._dynamo", __name__, module])
    with TemporaryDirectory() as folder, ProcessPoolExecutor(n, mp_context=FORKS) as pool:
        store = Path(folder, "store").as_uri()
        return list(pool.map(partial(_work, function, n, store), range(n)))


def _work(function: Callable[[DeviceMesh], Result], n: int, store: str, rank: int) -> Result:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=n, timeout=timedelta(seconds=120)
    )
    try:
        return function(init_device_mesh("cpu", (n,)))
    finally:
        dist.destroy_process_group()
