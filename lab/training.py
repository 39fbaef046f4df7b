"""Training: mini-batch gradient descent, and what is watched while it runs."""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from tqdm import tqdm

import exact
from exact import random
from lab.common.files import InputError
from lab.datasets import Examples
from lab.networks import NORM, Model, exactly, layers
from lab.optimizers import Training
from lab.schema import Arithmetic
from lab.tasks import Classification, Task, correct

if TYPE_CHECKING:
    from lab.checkpoints import Checkpoint, Saved
    from lab.workers import Group

NORM_EVERY = 10  # steps; at each step it would take a fifth of the time


@contextlib.contextmanager
def arithmetic(kind: Arithmetic, seed: int | None = None) -> Iterator[None]:
    """Compute exactly, or as PyTorch does on this machine; dropout follows from the seed.

    Raises InputError where exact arithmetic lacks an operation or the machine's support.
    """
    if seed is not None:  # dropout must not reuse the random numbers of the initial weights
        seed = int(random.integers((1,), seed, "training"))
    if kind == "exact":
        with exactly(seed, advice="; or train with arithmetic=native"):
            yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which a GPU needs for it
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def device() -> torch.device:
    """The GPU where there is one, else the CPU; the environment's DEVICE=cpu or cuda overrules.

    Of several workers on one machine, each has a GPU of its own.
    Raises InputError for another DEVICE, or a GPU that is not there.
    """
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    name = os.environ.get("DEVICE") or available[0]
    if name not in available:
        why = "" if "cuda" in available else ", as PyTorch finds no GPU"
        raise InputError(f"DEVICE: expected {' or '.join(available)}{why}; found {name}")
    if name == "cuda" and (rank := int(os.environ.get("LOCAL_RANK", "0"))):
        if rank >= torch.cuda.device_count():
            raise InputError(f"expected at most {torch.cuda.device_count()} workers, one per GPU")
        torch.cuda.set_device(rank)  # which the name "cuda" means from now on
    return torch.device(name)


class DivergedError(InputError):
    """The loss is not finite. `history`: completed epochs, plus the current one's partial loss."""

    def __init__(self, message: str, history: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.history = history


@dataclasses.dataclass
class TrainState:
    """Where a training is between two steps: what the next row of the history is made of."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    examples: int = 0  # examples in them
    loss_sum: float = 0.0  # over these examples
    correct: int = 0  # of them, where there are classes
    norms: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # by layer
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # completed epochs


def minibatches(
    n: int, size: int, seed: int, epoch: int, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """The indices 0 … n-1 in this epoch's own order, `size` at a time; the last may be short."""
    yield from random.permutation(n, seed, "order of examples", epoch).to(device).split(size)


def augment(images: Tensor, settings: Training, numbers: Tensor) -> Tensor:
    """Shift each image by up to `shift` pixels both ways, and mirror half of them (`flip`).

    Images (N, channels, height, width); pixels from outside are 0. `numbers`: a random integer
    from 0 to 2^63 - 1 for each image and decision, (N, 3).
    """
    (channels, height, width), shift = images.shape[1:], settings.shift
    down, right, mirrored = numbers.unbind(1)
    rows = torch.arange(height, device=images.device) + (down % (2 * shift + 1))[:, None]
    columns = torch.arange(width, device=images.device) + (right % (2 * shift + 1))[:, None]
    if settings.flip:
        columns = torch.where(mirrored[:, None] % 2 == 1, columns.flip(1), columns)
    padded = F.pad(images, [shift] * 4)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (N, height, width)
    pixels = pixels.flatten(1)[:, None].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, pixels).view_as(images)


def train(
    model: Model,
    task: Task,
    train: Examples,
    validation: Examples,
    settings: Training,
    lr: float,
    seed: int,
    checkpoint: "Checkpoint | None" = None,
    group: "Group | None" = None,
) -> list[dict[str, Any]]:
    """Train the model in place, on the device of the examples, and return the history by epoch.

    A row holds the epoch (from 1); the measures of the task on the training examples, as they
    were before each step, and on the validation examples at the end of the epoch; and for each
    layer the Euclidean norm of the gradient, as the mean over every tenth step.
    The workers of a group divide each batch, and all return the same.
    Raises DivergedError where the loss is NaN or infinite, and InputError where `shift` or `flip`
    is set and the examples are no images.
    """
    network = model.network.to(train.features.device)
    n, classify = len(train.targets), "accuracy" in task.measures
    augmented = settings.flip or settings.shift > 0
    if augmented and train.features.ndim != 4:
        shape = tuple(train.features.shape[1:])
        raise InputError(f"shift and flip are for images; the examples have the shape {shape}")
    steps_per_epoch = math.ceil(n / settings.batch_size)
    steps = steps_per_epoch * settings.epochs
    optimizer = settings.optimizer.create(network.parameters(), lr)
    schedule = settings.schedule(optimizer, steps_per_epoch)
    watched = layers(network)
    average = None
    if decay := settings.weight_averaging:
        average = AveragedModel(network, avg_fn=get_ema_avg_fn(decay))
    evaluated = model._replace(network=average.module) if average else model
    forward = group.replicated(network) if group else network

    def take_step(batch: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Update the weights; return the mean loss, and the number of correct predictions."""
        mine = group.part(batch) if group else batch
        features = train.features.index_select(0, mine)  # several times as fast as [mine]
        targets = train.targets.index_select(0, mine)
        if numbers is not None:
            features = augment(features, settings, numbers.index_select(0, mine))
        if group:
            features, targets = (group.divided(x, len(batch)) for x in (features, targets))
        outputs = forward(features)
        if isinstance(task, Classification):
            losses = task.losses(outputs, targets, settings.label_smoothing)
        else:
            losses = task.losses(outputs, targets)
        loss = losses.mean()  # over the size of this batch
        network.zero_grad()
        loss.backward()
        optimizer.step()
        return loss, correct(outputs, targets) if classify else None

    number: Callable[[Tensor], Any] = Tensor.tolist  # not dispatched, so faster than .item()
    if group:  # whose tensors are of a kind that only the mode computes
        number, predict = Tensor.item, partial(group.predict, evaluated)
    else:
        take_step = exact.compile(take_step)
        predict = partial(evaluated.predict, forward=exact.compile(evaluated.network))
    norm = exact.compile(torch.linalg.vector_norm)
    at = TrainState()
    if checkpoint and checkpoint.saved:
        at = _restore(checkpoint.saved, network, optimizer, schedule, average)

    tqdm.monitor_interval = 0  # else a thread, which never ends, would keep the exact block open
    # No bar where standard error is a file or a pipe, and one for all workers.
    hidden = True if group and group.rank else None
    progress = tqdm(
        initial=schedule.last_epoch, total=steps, unit="step", disable=hidden, leave=False
    )
    with progress:
        while at.epoch <= settings.epochs:
            network.train()
            batches = minibatches(n, settings.batch_size, seed, at.epoch, train.targets.device)
            numbers = None
            if augmented:
                numbers = random.integers((n, 3), seed, "augmentation", at.epoch)
                numbers = numbers.to(train.features.device)
            for batch in itertools.islice(batches, at.step, None):
                loss, right = take_step(batch, numbers)
                schedule.step()
                if average:
                    average.update_parameters(network)

                value = number(loss)
                _require_finite(value, f"step {at.step + 1}", at, lr)
                at.step += 1
                at.examples += len(batch)
                at.loss_sum += value * len(batch)
                at.correct += 0 if right is None else number(right)
                if at.step % NORM_EVERY == 1:
                    for name, layer in watched.items():
                        at.norms.setdefault(name, []).append(_gradient_norm(layer, norm))
                if checkpoint and checkpoint.due():
                    checkpoint.save(*_state(at, network, optimizer, schedule, average))
                progress.update()

            measures = task.measure(predict(validation.features), validation.targets)
            _require_finite(measures["loss"], "in validation", at, lr)
            row = {"epoch": at.epoch, "train_loss": at.loss_sum / n}
            if classify:
                row["train_accuracy"] = at.correct / n
            row |= {f"validation_{key}": value for key, value in measures.items()}
            row |= {f"{NORM}{k}": math.fsum(v) / len(v) for k, v in at.norms.items()}
            at = TrainState(at.epoch + 1, history=[*at.history, row])
            progress.set_postfix(
                {k: f"{v:.4f}" for k, v in row.items() if "loss" in k or "acc" in k}
            )
    if average:
        network.load_state_dict(average.module.state_dict())
    return at.history


def _state(
    at: TrainState,
    network: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    average: AveragedModel | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that the next step depends on: tensors, and what JSON can say."""
    tensors = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    if average:
        tensors |= {f"average/{name}": tensor for name, tensor in average.state_dict().items()}
    tensors["generator/cpu"] = torch.get_rng_state()
    if next(network.parameters()).is_cuda:
        tensors["generator/cuda"] = torch.cuda.get_rng_state()
    others: dict[int, dict[str, Any]] = {}  # what is no tensor
    optimized = optimizer.state_dict()
    for i, state in optimized["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{i}/{key}"] = value
            else:
                others.setdefault(i, {})[key] = value
    return tensors, {
        "at": dataclasses.asdict(at),
        "optimizer": others,
        "groups": optimized["param_groups"],
        "schedule": schedule.state_dict(),
    }


def _restore(
    saved: "Saved",
    network: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    average: AveragedModel | None = None,
) -> TrainState:
    """Bring back what `_state` took, and return where training was."""
    weights: dict[str, Tensor] = {}
    averages: dict[str, Tensor] = {}
    states: dict[int, dict[str, Any]] = {int(i): s for i, s in saved.state["optimizer"].items()}
    for name, tensor in saved.tensors.items():
        match name.split("/"):
            case ["network", key]:
                weights[key] = tensor
            case ["average", key]:
                averages[key] = tensor
            case ["optimizer", index, key]:
                states.setdefault(int(index), {})[key] = tensor
    network.load_state_dict(weights)
    if average:
        average.load_state_dict(averages)
    optimizer.load_state_dict({"state": states, "param_groups": saved.state["groups"]})
    schedule.load_state_dict(saved.state["schedule"])
    torch.set_rng_state(saved.tensors["generator/cpu"])
    if "generator/cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["generator/cuda"])
    return TrainState(**saved.state["at"])


def _require_finite(loss: float, where: str, at: TrainState, lr: float) -> None:
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


def _gradient_norm(layer: nn.Module, norm: Callable[[Tensor], Tensor]) -> float:
    """The Euclidean norm of the gradient of the layer's own parameters together."""
    gradients = [p.grad for p in layer.parameters(recurse=False) if p.grad is not None]
    norms = [norm(gradient).item() for gradient in gradients]
    return math.sqrt(math.fsum(x * x for x in norms))
