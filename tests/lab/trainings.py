"""Small trainings for the tests: settings, examples, models, and the state after each step."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from lab import networks, training
from lab.checkpoints import Checkpoint, Saved
from lab.datasets import Examples
from lab.models.linear import Linear
from lab.models.mlp import MLP
from lab.networks import Model
from lab.optimizers import Training
from lab.schema import Arithmetic
from lab.tasks import Classification
from lab.workers import Group

TASK = Classification("abc")


def settings(**changes: Any) -> Training:
    """Three epochs of plain SGD, with changes."""
    plain = {"epochs": 3, "batch_size": 4, "optimizer": "sgd", "lr_schedule": "constant"}
    return Training.model_validate(plain | changes)


def examples(n: int, seed: int = 0) -> Examples:
    """Five features, of which the largest of the first three is the class."""
    features = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return Examples(features, features[:, :3].argmax(1))


def build(*hidden: int, outputs: int = 3, seed: int = 1, **changes: Any) -> Model:
    """A linear model of five features, or an MLP where there are hidden layers."""
    like = torch.empty(1, 5)
    if not hidden:
        return networks.build("linear", Linear(), like, outputs, seed)
    section = {"hidden": hidden, "activation": "relu", "dropout": 0.0} | changes
    return networks.build("mlp", MLP.model_validate(section), like, outputs, seed)


class Recorder(Checkpoint):
    """A checkpoint in memory, with the state after each step."""

    def __init__(self, saved: Saved | None) -> None:
        self.saved, self.steps = saved, list[Saved]()

    def due(self) -> bool:
        return True

    def save(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self.steps.append(Saved(copies, json.loads(json.dumps(state))))


class Trained(NamedTuple):
    """Weights and history of a training as bytes, and its state after each step."""

    result: bytes
    steps: list[Saved]


def train(
    arithmetic: Arithmetic,
    saved: Saved | None = None,
    seed: int = 1,
    group: Group | None = None,
    **changes: Any,
) -> Trained:
    """18 steps with dropout, six in an epoch; or those that are left after a saved one."""
    model, recorder = build(8, dropout=0.5, seed=seed), Recorder(saved)
    data, validation = examples(22), examples(9, 9)
    with training.arithmetic(arithmetic, seed):
        history = training.train(
            model, TASK, data, validation, settings(**changes), 0.1, seed, recorder, group
        )
    weights = [parameter.detach().numpy().tobytes() for parameter in model.network.parameters()]
    return Trained(b"".join(weights) + json.dumps(history).encode(), recorder.steps)


def without(part: str, steps: list[Saved]) -> Saved:
    """The state after the eighth step, with one part as it was after the first."""
    first, (tensors, state) = steps[0], steps[7]
    old = {name: value for name, value in first.tensors.items() if name.startswith(part)}
    return Saved(tensors | old, state | ({part: first.state[part]} if part in state else {}))
