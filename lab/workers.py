"""One training on several workers: processes that divide each batch, on one machine or on many.

The results are the bytes of one process, so the number of workers is no parameter. WORKERS in the
environment starts that many on this machine; `torchrun` starts them on several. Each holds the
whole model and all data. The first one, of rank 0, writes what a single process would write.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lab.common.files import InputError, one_line
from lab.common.workspace import STORE, end_with_parent

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from lab.checkpoints import Checkpoint
    from lab.networks import Model

TIMEOUT = 40.0  # seconds until the others give up a worker that does not answer
LOST = 75  # the exit status of a worker that has lost another one
LARGEST = 256  # workers that WORKERS starts on one machine


class LostError(InputError):
    """Another worker is gone or does not answer."""

    exit_code = LOST


class Group:
    """The workers of one training, seen from one of them."""

    def __init__(self, mesh: "DeviceMesh") -> None:
        self.mesh, self.rank, self.size = mesh, mesh.get_local_rank(), mesh.size()

    def part(self, x: Tensor) -> Tensor:
        """This worker's rows, as DTensor divides them; of fewer rows than workers, all."""
        if len(x) < self.size:
            return x
        rows = math.ceil(len(x) / self.size)
        return x[self.rank * rows : (self.rank + 1) * rows]

    def divided(self, part: Tensor, n: int) -> "DTensor":
        """The n rows of which each worker has its `part`."""
        from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

        placement: Placement = Replicate() if n < self.size else Shard(0)
        shape = torch.Size([n, *part.shape[1:]])
        return DTensor.from_local(
            part, self.mesh, [placement], run_check=False, shape=shape, stride=part.stride()
        )

    def replicated(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """The network as a function of a divided batch.

        Its weights and their gradients stay plain tensors, the same on each worker. So the
        optimiser, the checkpoints and the files of a training know nothing of workers.
        """
        from torch.distributed.tensor import DTensor, Replicate

        def forward(features: Tensor) -> Tensor:
            state: dict[str, Tensor] = {
                name: DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)
                for name, x in chain(network.named_parameters(), network.named_buffers())
            }
            outputs: Tensor = torch.func.functional_call(network, state, (features,))
            return outputs

        return forward

    def predict(self, model: "Model", features: Tensor) -> Tensor:
        """All outputs (N, outputs) on each worker, of which each computes a part."""
        return self.divided(model.predict(self.part(features)), len(features)).full_tensor()

    def agree(self, checkpoint: "Checkpoint") -> None:
        """Let all continue from worker 0's checkpoint; the others will write none.

        Raises InputError where a worker trains from other parameters, code or data.
        """
        from safetensors import torch as safetensors

        from lab.checkpoints import Saved

        own = torch.tensor(list(checkpoint.path.name.encode()), device=self._device)  # a digest
        keys = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(keys, own)
        for rank, key in enumerate(keys):
            if not torch.equal(key, keys[0]):
                raise InputError(
                    f"worker {rank} has other parameters, code, data or another PyTorch than"
                    " worker 0: bring all machines to the same commit, and run `dvc pull`"
                )
        saved = checkpoint.saved
        sent = b"", b""
        if saved:
            sent = safetensors.save(saved.tensors), json.dumps(saved.state).encode()
        tensors, state = (self._broadcast(part) for part in sent)
        checkpoint.saved = Saved(safetensors.load(tensors), json.loads(state)) if state else None
        checkpoint.writes = self.rank == 0

    def _broadcast(self, contents: bytes) -> bytes:
        length = torch.tensor([len(contents)], device=self._device)
        torch.distributed.broadcast(length, 0)
        data = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0 and contents:
            data = torch.frombuffer(bytearray(contents), dtype=torch.uint8)
        data = data.to(self._device)
        torch.distributed.broadcast(data, 0)
        return data.cpu().numpy().tobytes()

    @property
    def _device(self) -> str:
        return self.mesh.device_type


def number() -> int:
    """The number of workers that the environment's WORKERS asks for, which is 1 by default.

    Raises InputError for anything but a number from 1 to LARGEST.
    """
    text = os.environ.get("WORKERS") or "1"
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST):
        raise InputError(f"WORKERS: expected a number from 1 to {LARGEST}; found {text}")
    return int(text)


def is_worker() -> bool:
    """Whether this process was started as one of several workers.

    Raises InputError where the environment lacks a part of what `torchrun` sets.
    """
    names = ["WORLD_SIZE", "RANK", "LOCAL_RANK"]
    numbers = [os.environ.get(name, "") for name in names]
    if numbers[0] in ("", "1"):
        return False
    if STORE not in os.environ:
        names += ["MASTER_ADDR", "MASTER_PORT"]
    missing = [name for name in names if not os.environ.get(name)]
    if missing or not all(number.isdecimal() for number in numbers):
        raise InputError(
            f"WORLD_SIZE={numbers[0]}: expected numbers in {', '.join(names[:3])}, and"
            " MASTER_ADDR and MASTER_PORT: start workers by WORKERS, or by torchrun"
        )
    return True


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group | None]:
    """The group of the workers of this training, or None in a process that trains alone.

    Raises LostError where a worker is gone, or does not answer for TIMEOUT seconds.
    """
    if not is_worker():
        yield None
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if store := os.environ.get(STORE):
        end_with_parent()
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=Path(store).as_uri() if store else "env://",
            timeout=timedelta(seconds=TIMEOUT),
            world_size=size,
            rank=rank,
        )
        yield Group(init_device_mesh(device.type, (size,)))
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if store:
            sys.exit(LOST)  # the process that started this one says which worker it was
        raise LostError(
            "the connection to another worker is lost; run it again, and it goes on from the"
            f" checkpoint ({one_line(error)[:200]})"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def launch(command: Sequence[str], n: int) -> None:
    """Run the command as n workers on this machine, each of which joins the group.

    If one fails, all are ended. Raises InputError, which says which one it was and why, except
    where worker 0 has said so itself: then SystemExit.
    """
    with tempfile.TemporaryDirectory(prefix="workers-") as folder, contextlib.ExitStack() as stack:
        logs = [Path(folder, f"{rank}.log") for rank in range(n)]
        workers: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, workers)
        for rank, log in enumerate(logs):
            # Worker 0 speaks for all; what another says is shown if it is why all end.
            errors = None if rank == 0 else stack.enter_context(log.open("wb"))
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, STORE: Path(folder, "store")}
            environment = os.environ | {key: str(value) for key, value in own.items()}
            if sys.platform == "linux":  # by name, hosts are not found everywhere
                environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
            workers.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            )
        while (statuses := _statuses(workers)) and None in statuses and not any(statuses):
            time.sleep(0.05)
        deadline = time.monotonic() + 2  # for the others to notice
        while None in (statuses := _statuses(workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        _end(workers)
        if any(status != 0 for status in statuses):
            _explain(statuses, logs)


def _statuses(workers: Sequence["subprocess.Popen[bytes]"]) -> list[int | None]:
    return [worker.poll() for worker in workers]


def _end(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End all processes: politely, and after three seconds by SIGKILL, as one may be stopped."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + 3
    for worker in workers:
        try:
            worker.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _explain(statuses: Sequence[int | None], logs: Sequence[Path]) -> None:
    """Raise an error with the first cause: the worker that did not merely lose another one."""
    n, again = len(statuses), "run it again, and it goes on from the checkpoint"
    if statuses[0] not in (None, 0, LOST) and statuses[0] > 0:
        sys.exit(statuses[0])
    for rank, status in enumerate(statuses):
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            raise InputError(f"worker {rank} of {n} was ended by {name}; {again}")
    for rank, status in enumerate(statuses):
        if status not in (None, 0, LOST):
            lines = logs[rank].read_text(errors="replace").strip().splitlines()
            reason = one_line(lines[-1] if lines else f"exit status {status}")
            raise InputError(f"worker {rank} of {n}: {reason.removeprefix('error: ')}")
    for rank, status in enumerate(statuses):
        if status is None:
            raise InputError(f"worker {rank} of {n} did not answer for {TIMEOUT:g} s; {again}")
    raise InputError(f"the {n} workers lost one another; {again}")
