"""Mini-batch stochastic gradient descent, and what is watched while it runs."""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import exact
from exact import random
from lab.datasets import Examples
from lab.files import InputError
from lab.models import Dropout, Network, linear_layers, predict
from lab.params import Arithmetic, Training

if TYPE_CHECKING:
    from lab.checkpoints import Checkpoint, Saved


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
    """The loss is no longer a number. `history` has the epochs before, and the begun one's loss."""

    def __init__(self, message: str, history: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.history = history


@dataclasses.dataclass
class Position:
    """Where a training stands, between two steps: what the next row of the history is made of.

    `norms` are the gradients', by layer; `history` has a row for each epoch done.
    """

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    examples: int = 0  # met in them
    loss_sum: float = 0.0  # over these examples
    correct: int = 0  # of them
    norms: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


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
    model: Network,
    train: Examples,
    validation: Examples,
    settings: Training,
    lr: float,
    seed: int,
    checkpoint: "Checkpoint | None" = None,
) -> list[dict[str, Any]]:
    """Train the model in place, on the device of the examples, and return the history by epoch.

    A row holds the epoch (from 1); loss and accuracy on the training examples, as met
    on the way, before each step; both on the validation examples at the epoch's end;
    and per layer the gradient's Euclidean norm, as the mean over every tenth step.
    With a checkpoint, goes on from what it holds, and saves to it from time to time.
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
    at = Position()
    if checkpoint and checkpoint.saved:
        at = _restore(checkpoint.saved, model, optimizer, schedule)

    # No bar where standard error is a file or a pipe.
    progress = tqdm(
        initial=schedule.last_epoch, total=total, unit="step", disable=None, leave=False
    )
    with progress:
        while at.epoch <= settings.epochs:
            model.train()
            batches = minibatches(n, settings.batch_size, seed, at.epoch, train.targets.device)
            for batch in itertools.islice(batches, at.step, None):
                features = train.features.index_select(0, batch)  # several times as fast as [batch]
                targets = train.targets.index_select(0, batch)
                outputs = model(features)
                loss = losses(outputs, targets).mean()  # over the actual size of a short batch
                model.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

                value = loss.item()
                _require_finite(value, f"step {at.step + 1}", at, lr)
                at.step += 1
                at.examples += len(batch)
                at.loss_sum += value * len(batch)
                if classify:
                    at.correct += int((outputs.argmax(1) == targets).sum())
                if at.step % NORM_EVERY == 1:
                    for name, layer in layers.items():
                        at.norms.setdefault(name, []).append(_gradient_norm(layer))
                if checkpoint and checkpoint.due():
                    checkpoint.save(*_state(at, model, optimizer, schedule))
                progress.update()

            watched = measure(predict(model, validation.features), validation.targets)
            _require_finite(watched["loss"], "in validation", at, lr)
            row = {"epoch": at.epoch, "train_loss": at.loss_sum / n}
            if classify:
                row["train_accuracy"] = at.correct / n
            row |= {f"validation_{key}": value for key, value in watched.items()}
            row |= {f"gradient_norm_{k}": math.fsum(v) / len(v) for k, v in at.norms.items()}
            at = Position(at.epoch + 1, history=[*at.history, row])
            progress.set_postfix(
                {k: f"{v:.4f}" for k, v in row.items() if "loss" in k or "acc" in k}
            )
    return at.history


def _state(
    at: Position, model: Network, optimizer: Optimizer, schedule: LambdaLR
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that the next step depends on: tensors, and what JSON can say."""
    optimized = optimizer.state_dict()
    momentum = {
        f"momentum.{i}": state["momentum_buffer"]
        for i, state in optimized["state"].items()
        if state["momentum_buffer"] is not None
    }
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return weights | momentum, {
        "position": dataclasses.asdict(at),
        "groups": optimized["param_groups"],
        "schedule": schedule.state_dict(),
    }


def _restore(saved: "Saved", model: Network, optimizer: Optimizer, schedule: LambdaLR) -> Position:
    """Bring back what `_state` took, and return where training stood."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}}
    for key, tensor in saved.tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    model.load_state_dict(parts["model"])
    momentum = {int(i): {"momentum_buffer": tensor} for i, tensor in parts["momentum"].items()}
    optimizer.load_state_dict({"state": momentum, "param_groups": saved.state["groups"]})
    schedule.load_state_dict(saved.state["schedule"])
    for layer in model.modules():
        if isinstance(layer, Dropout):
            layer.calls = schedule.last_epoch  # one a step
    return Position(**saved.state["position"])


def _require_finite(loss: float, where: str, at: Position, lr: float) -> None:
    if math.isfinite(loss):
        return
    history = list(at.history)
    if at.examples:
        history.append({"epoch": at.epoch, "train_loss": at.loss_sum / at.examples})
    raise DivergedError(
        f"training diverged: the loss is {loss} in epoch {at.epoch}, {where};"
        f" a learning rate below lr = {lr:g} may help",
        history,
    )


def _gradient_norm(layer: nn.Module) -> float:
    """The Euclidean norm of the gradient of weights and bias together."""
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    norms = [torch.linalg.vector_norm(gradient).item() for gradient in gradients]
    return math.sqrt(math.fsum(norm * norm for norm in norms))
