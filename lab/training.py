"""Mini-batch stochastic gradient descent, and what is watched while it runs."""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import exact
from exact import random
from lab.datasets import Examples
from lab.files import InputError
from lab.models import Network, linear_layers, predict
from lab.params import Arithmetic, Training


@contextlib.contextmanager
def arithmetic(kind: Arithmetic) -> Iterator[None]:
    """Compute exactly, or as PyTorch does on this machine, within the block.

    Raises InputError where exact arithmetic lacks an operation or the machine's support.
    """
    if kind == "native":
        before = torch.are_deterministic_algorithms_enabled()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which a GPU needs for it
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
        return
    try:
        with exact.mode():
            yield
    except (exact.NotExactError, exact.MachineError) as error:
        raise InputError(f"exact arithmetic: {error}") from error


def device() -> torch.device:
    """The GPU where there is one, else the CPU; the environment's DEVICE=cpu or cuda overrules.

    No parameter of an experiment, as results do not depend on it. Raises InputError for
    another DEVICE, or a GPU that is not there.
    """
    asked = os.environ.get("DEVICE", "")
    if asked not in ("", "cpu", "cuda"):
        raise InputError(f"DEVICE: expected cpu or cuda, found {asked}")
    if asked == "cpu" or not torch.cuda.is_available():
        if asked == "cuda":
            raise InputError("DEVICE: cuda is asked for, and PyTorch finds no GPU")
        return torch.device("cpu")
    return torch.device("cuda")


NORM_EVERY = 10  # steps; at each one it would take a fifth of the time


class DivergedError(InputError):
    """The loss is no longer a number."""


def minibatches(
    n: int, size: int, seed: int, epoch: int, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """The indices 0 … n-1 in this epoch's own order, `size` at a time; the last may be short."""
    yield from random.permutation(n, seed, "order of examples", epoch).to(device).split(size)


def squared_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """½(ŷ - y)² per example, (N, 1) -> (N,). As in the book, with the ½ that nn.MSELoss lacks.

    Raises ValueError where the shapes differ: (N, 1) - (N,) would be (N, N) without a word.
    """
    if predictions.shape != targets.shape:
        raise ValueError(f"shapes differ: {tuple(predictions.shape)}, {tuple(targets.shape)}")
    return (0.5 * (predictions - targets) ** 2).squeeze(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits) at the label, per example, (N, classes), (N,) -> (N,)."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss per example: squared for real targets, cross-entropy for classes."""
    return (squared_loss if targets.is_floating_point() else cross_entropy)(outputs, targets)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of examples whose largest logit is that of their label."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def measure(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean loss, and for classes the accuracy."""
    values = losses(outputs, targets)
    result = {"loss": math.fsum(values.tolist()) / len(values)}  # rounded once
    if not targets.is_floating_point():
        result["accuracy"] = accuracy(outputs, targets)
    return result


def train(
    model: Network, train: Examples, validation: Examples, settings: Training, lr: float, seed: int
) -> list[dict[str, Any]]:
    """Train the model in place, on the device of the examples, and return the history by epoch.

    A row holds the epoch (from 1); loss and accuracy on the training examples, as met
    on the way, before each step; both on the validation examples at the epoch's end;
    and per layer the gradient's Euclidean norm, as the mean over every tenth step.
    Raises DivergedError where the loss is NaN or infinite.
    """
    model.to(train.features.device)
    n, classify = len(train.targets), not train.targets.is_floating_point()
    steps_per_epoch = math.ceil(n / settings.batch_size)
    total = steps_per_epoch * settings.epochs
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        foreach=True,  # one call for all layers, where each call costs
    )
    linear = settings.lr_schedule == "linear"
    schedule = LambdaLR(optimizer, lambda step: (total - step) / total if linear else 1.0)
    layers = linear_layers(model)
    history = []

    # No bar where standard error is a file or a pipe.
    progress = tqdm(total=total, unit="step", disable=None, leave=False)
    with progress:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            loss_sum, correct = 0.0, 0
            norms: dict[str, list[float]] = {name: [] for name in layers}
            batches = minibatches(n, settings.batch_size, seed, epoch, train.targets.device)
            for step, batch in enumerate(batches, start=1):
                features = train.features.index_select(0, batch)  # several times as fast as [batch]
                targets = train.targets.index_select(0, batch)
                outputs = model(features)
                loss = losses(outputs, targets).mean()  # over the actual size of a short batch
                model.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

                value = loss.item()
                _require_finite(value, f"epoch {epoch}, step {step}", lr)
                loss_sum += value * len(batch)
                if classify:
                    correct += int((outputs.argmax(1) == targets).sum())
                if step % NORM_EVERY == 1:
                    for name, layer in layers.items():
                        norms[name].append(_gradient_norm(layer))
                progress.update()

            watched = measure(predict(model, validation.features), validation.targets)
            _require_finite(watched["loss"], f"epoch {epoch}, in validation", lr)
            row = {"epoch": epoch, "train_loss": loss_sum / n}
            if classify:
                row["train_accuracy"] = correct / n
            row |= {f"validation_{key}": value for key, value in watched.items()}
            row |= {f"gradient_norm_{name}": math.fsum(n) / len(n) for name, n in norms.items()}
            history.append(row)
            progress.set_postfix(
                {k: f"{v:.4f}" for k, v in row.items() if "loss" in k or "acc" in k}
            )
    return history


def _require_finite(loss: float, where: str, lr: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"training diverged: the loss is {loss} in {where};"
            f" a learning rate below lr = {lr:g} may help"
        )


def _gradient_norm(layer: nn.Module) -> float:
    """The Euclidean norm of the gradient of weights and bias together."""
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    norms = [torch.linalg.vector_norm(gradient).item() for gradient in gradients]
    return math.sqrt(math.fsum(norm * norm for norm in norms))
