"""Training speed beside the book's loop, and the pipeline beside one plain script.

All in one run and in turns, so that a slow moment of the machine meets both sides.
    make bench
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST

import exact
from benchmarks.clones import clone
from lab import datasets, models, params, repository, training
from lab.datasets import Examples
from lab.download import CONTENTS, fetch
from lab.params import Arithmetic, ModelName

ROUNDS = 5
STEPS = 20


def ours(name: ModelName, p: params.Params, arithmetic: Arithmetic) -> float:
    """Images per second of one epoch of our training, its validation included."""
    train, validation = datasets.load_training(name, p)
    return len(train.targets) / seconds(name, p, arithmetic, train, validation)


def seconds(
    name: ModelName, p: params.Params, arithmetic: Arithmetic, train: Examples,
    validation: Examples,
) -> float:  # fmt: skip
    """The time of one epoch."""
    model = models.build(models.architecture(name, p), p.seed)
    settings = p.training(name).model_copy(update={"epochs": 1})
    started = time.perf_counter()
    with training.arithmetic(arithmetic):
        training.train(model, train, validation, settings, p.lr, p.seed)
    return time.perf_counter() - started


def the_books(name: ModelName, p: params.Params, data: FashionMNIST) -> float:
    """Images per second of one epoch of the book's loop: dataset, ToTensor, DataLoader."""
    settings = p.training(name)
    model = nn.Sequential(nn.Flatten(), models.build(models.architecture(name, p), p.seed))
    optimizer = torch.optim.SGD(
        model.parameters(), p.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    started = time.perf_counter()
    for images, labels in DataLoader(data, settings.batch_size, shuffle=True):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(data) / (time.perf_counter() - started)


def with_mlp(p: params.Params, **changes: Any) -> params.Params:
    """The parameters with changes to the multilayer perceptron's."""
    return p.model_copy(update={"mlp": p.mlp.model_copy(update=changes)})


def training_speed(folder: Path) -> None:
    """Print images per second of all loops for both classifiers, and for a deeper network."""
    p = params.load()
    raw = folder / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for name, contents in fetch(list(CONTENTS), FashionMNIST.mirrors).items():
        (raw / name.removesuffix(".gz")).write_bytes(contents)
    data = FashionMNIST(str(folder), transform=transforms.ToTensor())
    print(f"{'images per second':20} {'exact':>9} {'native':>9} {'book':>9}")
    trained: dict[str, tuple[ModelName, params.Params]] = {
        "softmax_regression": ("softmax_regression", p),
        "mlp": ("mlp", p),
        "mlp, hidden 256-128": ("mlp", with_mlp(p, hidden=(256, 128))),
    }
    for title, (model, q) in trained.items():
        rounds = [
            (ours(model, q, "exact"), ours(model, q, "native"), the_books(model, q, data))
            for _ in range(ROUNDS)
        ]
        ours_exact, ours_native, book = map(statistics.median, zip(*rounds, strict=True))
        print(f"{title:20} {ours_exact:9,.0f} {ours_native:9,.0f} {book:9,.0f}")
        print(f"{'  times the book':20} {ours_exact / book:9.1f} {ours_native / book:9.1f}")


def head(examples: Examples, n: int) -> Examples:
    """The first n examples."""
    with exact.mode():  # which keeps what is known of their bytes
        return Examples(*(x[torch.arange(n)] for x in examples))


def growth() -> None:
    """Print how long a step takes as the hidden layer and the batch grow, and the ratio."""
    p = params.load()
    train, _ = datasets.load_training("mlp", p)
    print(f"\n{'milliseconds a step':20} {'exact':>9} {'native':>9} {'ratio':>6}")
    for width, batch in [(w, 256) for w in (64, 256, 1024, 4096)] + [(256, b) for b in (64, 1024)]:
        q = with_mlp(p, hidden=(width,), batch_size=batch)
        few, one = head(train, STEPS * batch), head(train, 1)
        rounds = [
            [seconds("mlp", q, kind, few, one) / STEPS for kind in ("exact", "native")]
            for _ in range(ROUNDS + 1)
        ][1:]  # the first warms up
        slow, fast = (1000 * statistics.median(side) for side in zip(*rounds, strict=True))
        name = f"width {width}, batch {batch}"
        print(f"{name:20} {slow:9.1f} {fast:9.1f} {slow / fast:6.1f}")


def pipeline_time(folder: Path) -> None:
    """Print the seconds of `dvc repro` in a fresh clone, and of the plain script."""
    commands = {
        "pipeline": ["dvc", "repro", "--quiet"],
        "plain script": [sys.executable, "-m", "benchmarks.plain"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            checkout = folder / "clone"
            clone(checkout)
            started = time.perf_counter()
            subprocess.run(command, cwd=checkout, env=repository.environment(), check=True)
            taken[name].append(time.perf_counter() - started)
            shutil.rmtree(checkout)
    pipeline, plain = (statistics.median(side) for side in taken.values())
    print(f"\n{'seconds':20} {'pipeline':>9} {'plain':>9} {'ratio':>6}")
    print(f"{'all of it':20} {pipeline:9.0f} {plain:9.0f} {pipeline / plain:6.1f}")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {ROUNDS}\n")
    with tempfile.TemporaryDirectory() as temporary:
        training_speed(Path(temporary))
    growth()
    with tempfile.TemporaryDirectory() as temporary:
        pipeline_time(Path(temporary))
