"""One training on several workers: equal bytes, time per step, and bytes sent per step.

    python -m benchmarks.workers      # fills the tables of docs/workers.md

Run `make repro` first, for the data. All workers are processes of this machine, with a thread each.
"""

import hashlib
import os
import time
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from exact.tests.workers import on_workers
from lab import networks, params, schema, training
from lab.common.files import write_text
from lab.datasets import Examples
from lab.models.mlp import MLP
from lab.schema import Arithmetic
from lab.workers import Group
from tracking.repository import ROOT

NUMBERS = (1, 2, 3, 4, 5, 8)  # of workers
SIZES = (256, 250, 77, 3)  # of batches
IMAGES = 1000
WIDTH, BATCH, STEPS = 4096, 1024, 8  # of the wide network
MACHINES, NETWORK = 8, 10e9 / 8  # bytes per second each way
PAGE = ROOT / "docs/workers.md"


class Step(NamedTuple):
    """What a step of the wide network takes, of a worker: time, and bytes in all-reduces."""

    seconds: float
    cpu: float  # seconds
    sent: int


def images() -> Examples:
    """The first training images."""
    p = params.load()
    dataset = p.dataset("mlp")
    examples, _ = dataset.load_training(schema.folder(p.models["mlp"].data), p.seed)
    return Examples(examples.features[:IMAGES], examples.targets[:IMAGES])


def digests(mesh: DeviceMesh | None, arithmetic: Arithmetic) -> list[str]:
    """A digest of weights and history for each size of a batch, after an epoch with dropout."""
    p, examples, results = params.load(), images(), []
    settings = {"hidden": (64,), "activation": "relu", "dropout": 0.2}
    for size in SIZES:
        architecture = MLP.model_validate(settings)
        model = networks.build("mlp", architecture, examples.features, 10, p.seed)
        part = Examples(*(x[: 40 * size] for x in examples))
        chosen = p.training("mlp").model_copy(update={"epochs": 1, "batch_size": size})
        task = p.dataset("mlp").task
        group = Group(mesh) if mesh else None
        with training.arithmetic(arithmetic, p.seed):
            history = training.train(model, task, part, part, chosen, p.lr, p.seed, group=group)
        sha256 = hashlib.sha256(repr(history).encode())
        for weights in model.network.parameters():
            sha256.update(weights.detach().numpy().tobytes())
        results.append(sha256.hexdigest()[:8])
    return results


def wide(mesh: DeviceMesh | None) -> Step:
    """The fastest step of an MLP of one hidden layer of WIDTH units."""
    p, examples = params.load(), images()
    settings = {"hidden": (WIDTH,), "activation": "relu", "dropout": 0.0}
    model = networks.build("mlp", MLP.model_validate(settings), examples.features, 10, p.seed)
    many = Examples(*(x.repeat(2, *[1] * (x.dim() - 1))[:BATCH] for x in examples))
    task, network, group = p.dataset("mlp").task, model.network, Group(mesh) if mesh else None
    optimizer = torch.optim.SGD(network.parameters(), p.lr, momentum=0.9, foreach=True)
    forward = group.replicated(network) if group else network
    sent, all_reduce = [0], dist.all_reduce

    def counted(x: torch.Tensor, *args: Any) -> Any:
        sent[0] += x.nbytes
        return all_reduce(x, *args)

    dist.all_reduce = counted  # type: ignore[assignment]
    seconds, cpu = [], []
    with training.arithmetic("exact", p.seed):
        for _ in range(STEPS):
            begin, cpu_begin, sent[0] = time.perf_counter(), time.process_time(), 0
            features, targets = (group.divided(group.part(x), len(x)) if group else x for x in many)
            loss = task.losses(forward(features), targets).mean()
            network.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - cpu_begin)
    return Step(min(seconds), min(cpu), sent[0])


def equal_bytes() -> str:
    """A row for each number of workers: the digests."""
    rows = ["| arithmetic | workers | " + " | ".join(f"batch of {n}" for n in SIZES) + " |"]
    rows.append("| --- | --- |" + " --- |" * len(SIZES))
    for arithmetic in get_args(Arithmetic):
        for n in NUMBERS:
            work = partial(digests, arithmetic=arithmetic)
            found = work(None) if n == 1 else on_workers(work, n)[0]
            rows.append(f"| {arithmetic} | {n} | " + " | ".join(f"`{d}`" for d in found) + " |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def steps() -> tuple[str, str]:
    """The time of a step by number of workers; and on paper, for machines with a network."""
    cores = f"workers with a thread each, {os.cpu_count()} cores"
    rows = [f"| {cores} | seconds a step | speed | CPU seconds of each worker |"]
    rows.append("| --- | --- | --- | --- |")
    measured = {}
    for n in (1, 2, 4):
        measured[n] = wide(None) if n == 1 else on_workers(wide, n)[0]
        speed = measured[1].seconds / measured[n].seconds
        rows.append(f"| {n} | {measured[n].seconds:.2f} | {speed:.2f} | {measured[n].cpu:.2f} |")
        print(rows[-1], flush=True)
    sent = measured[2].sent
    compute = measured[1].cpu / MACHINES
    passing = 2 * (MACHINES - 1) / MACHINES * sent / NETWORK
    paper = [
        f"| {MACHINES} machines of 10 Gbit/s, batch {BATCH} | |",
        "| --- | --- |",
        f"| bytes in all-reduces, a step | {sent:,} |",
        f"| of them maxima | {maxima():,} |",
        f"| seconds to pass {2 * (MACHINES - 1)}/{MACHINES} of them, in a ring | {passing:.3f} |",
        f"| seconds to compute 1/{MACHINES} of the batch, by one thread here | {compute:.3f} |",
        f"| speed relative to one machine | {measured[1].cpu / (compute + passing):.1f} |",
    ]
    return "\n".join(rows), "\n".join(paper)


def maxima() -> int:
    """The bytes of the sizes: of a layer's rows and columns, of its biases; and of the loss."""
    layers = ((784, WIDTH), (WIDTH, 10))
    return 8 * (sum(inputs + 2 * outputs for inputs, outputs in layers) + 1)


def main() -> None:
    """Fill the tables of the page."""
    page = PAGE.read_text(encoding="utf-8")
    tables = dict(zip(("equal", "steps", "paper"), (equal_bytes(), *steps()), strict=True))
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = page.split(begin, 1)
        page = f"{before}{begin}{table}\n{end}{rest.split(end, 1)[1]}"
    write_text(PAGE, page)
    print(tables["paper"])


if __name__ == "__main__":
    main()
