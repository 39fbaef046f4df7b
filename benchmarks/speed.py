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
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST

import exact
from lab import networks, params, training
from lab.datasets import Examples
from lab.download import fetch
from lab.networks import Model
from lab.schema import Arithmetic, Params, folder
from tracking.repository import clone, environment

DATA = folder("fashion_mnist")
ROUNDS = 5
STEPS = 20


def ours(name: str, p: Params, arithmetic: Arithmetic) -> float:
    """Images per second of one epoch of our training, its validation included."""
    train, validation = p.dataset(name).load_training(DATA, p.seed)
    return len(train.targets) / seconds(name, p, arithmetic, train, validation)


def built(name: str, p: Params, features: Tensor) -> Model:
    """The model before training."""
    return networks.build(p.models[name].kind, p.architecture(name), features, 10, p.seed)


def seconds(
    name: str, p: Params, arithmetic: Arithmetic, train: Examples, validation: Examples
) -> float:
    """The time of one epoch."""
    model, task = built(name, p, train.features), p.dataset(name).task
    settings = p.training(name).model_copy(update={"epochs": 1})
    started = time.perf_counter()
    with training.arithmetic(arithmetic, p.seed):
        training.train(model, task, train, validation, settings, p.lr, p.seed)
    return time.perf_counter() - started


def the_books(name: str, p: Params, data: FashionMNIST) -> float:
    """Images per second of one epoch of the book's loop: dataset, ToTensor, DataLoader."""
    settings = p.training(name)
    network = built(name, p, torch.zeros(1, 1, 28, 28)).network
    optimizer = settings.optimizer.create(network.parameters(), p.lr)
    started = time.perf_counter()
    for images, labels in DataLoader(data, settings.batch_size, shuffle=True):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(data) / (time.perf_counter() - started)


def with_mlp(p: Params, **changes: Any) -> Params:
    """The parameters with changes to the multilayer perceptron's."""
    return p.model_copy(update={"mlp": p.training("mlp").model_copy(update=changes)})


def training_speed(temporary: Path) -> None:
    """Print images per second of all loops for both classifiers, and for a deeper network."""
    p = params.load()
    raw = temporary / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    assert p.download  # noqa: S101 -- params.yaml has Fashion-MNIST
    for name, contents in fetch(p.download, "FASHION_MNIST_MIRROR").items():
        (raw / name.removesuffix(".gz")).write_bytes(contents)
    data = FashionMNIST(str(temporary), transform=transforms.ToTensor())
    print(f"{'images per second':20} {'exact':>9} {'native':>9} {'book':>9}")
    trained = {
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
    train, _ = p.dataset("mlp").load_training(DATA, p.seed)
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


def pipeline_time(temporary: Path) -> None:
    """Print the seconds of `dvc repro` in a fresh clone, and of the plain script."""
    commands = {
        "pipeline": ["dvc", "repro", "--quiet"],
        "plain script": [sys.executable, "-m", "benchmarks.plain"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            checkout = temporary / "clone"
            clone(checkout)
            started = time.perf_counter()
            subprocess.run(command, cwd=checkout, env=environment(), check=True)
            taken[name].append(time.perf_counter() - started)
            shutil.rmtree(checkout)
    pipeline, plain = (statistics.median(side) for side in taken.values())
    print(f"\n{'seconds':20} {'pipeline':>9} {'plain':>9} {'ratio':>6}")
    print(f"{'all of it':20} {pipeline:9.0f} {plain:9.0f} {pipeline / plain:6.1f}")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {ROUNDS}\n")
    with tempfile.TemporaryDirectory() as new:
        training_speed(Path(new))
    growth()
    with tempfile.TemporaryDirectory() as new:
        pipeline_time(Path(new))
