"""Training is the algorithm of the book, and the history says what happened."""

import json
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from lab import models, training
from lab.checkpoints import Saved
from lab.datasets import Examples
from lab.files import InputError
from lab.models import Architecture
from lab.params import Training

SETTINGS = Training(epochs=3, batch_size=4, momentum=0.0, weight_decay=0.0, lr_schedule="constant")


def classification(n: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 5, generator=generator)
    return Examples(features, features[:, :3].argmax(1))


def train(
    examples: Examples, settings: Training = SETTINGS, lr: float = 0.1, seed: int = 1,
    hidden: tuple[int, ...] = (),
) -> tuple[models.Network, list[dict[str, float]]]:  # fmt: skip
    model = models.build(Architecture(inputs=5, outputs=3, hidden=hidden), seed)
    return model, training.train(model, examples, classification(20, 9), settings, lr, seed)


def test_the_device_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.cuda.is_available()
    monkeypatch.delenv("DEVICE", raising=False)
    assert training.device().type == ("cuda" if found else "cpu")
    monkeypatch.setenv("DEVICE", "cpu")
    assert training.device().type == "cpu"
    monkeypatch.setenv("DEVICE", "tpu")
    with pytest.raises(InputError, match="DEVICE: expected cpu or cuda, found tpu"):
        training.device()
    if not found:
        monkeypatch.setenv("DEVICE", "cuda")
        with pytest.raises(InputError, match="finds no GPU"):
            training.device()


def test_native_arithmetic_leaves_torchs_settings_as_they_were() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with training.arithmetic("native"):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_minibatches_cover_each_example_once_in_another_order_each_epoch() -> None:
    first, second = (list(training.minibatches(22, 4, 1, epoch)) for epoch in (1, 2))
    assert [len(batch) for batch in first] == [4, 4, 4, 4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(22))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    assert torch.equal(torch.cat(first), torch.cat(list(training.minibatches(22, 4, 1, 1))))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_training_is_sgd_with_momentum_and_weight_decay(schedule: str) -> None:
    """The same updates written out by hand, the gradient of softmax regression included."""
    examples = classification(22)  # six steps an epoch, the last with 2 examples
    settings = SETTINGS.model_copy(
        update={"momentum": 0.9, "weight_decay": 0.01, "lr_schedule": schedule}
    )
    model, _ = train(examples, settings)

    start = models.build(Architecture(inputs=5, outputs=3), 1)
    layer = models.linear_layers(start)["output"]
    w, b = layer.weight.detach().double(), layer.bias.detach().double()
    velocity_w, velocity_b = torch.zeros_like(w), torch.zeros_like(b)
    step = 0
    for epoch in (1, 2, 3):
        for batch in training.minibatches(22, 4, 1, epoch):
            x, y = examples.features[batch].double(), examples.targets[batch]
            error = (x @ w.T + b).softmax(1) - torch.eye(3)[y]  # (batch, 3)
            gradient_w = error.T @ x / len(batch) + 0.01 * w
            gradient_b = error.sum(0) / len(batch) + 0.01 * b
            velocity_w = 0.9 * velocity_w + gradient_w
            velocity_b = 0.9 * velocity_b + gradient_b
            lr = 0.1 * (1 - step / 18) if schedule == "linear" else 0.1
            w, b, step = w - lr * velocity_w, b - lr * velocity_b, step + 1
    learned = models.linear_layers(model)["output"]
    torch.testing.assert_close(learned.weight.double(), w, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(learned.bias.double(), b, atol=1e-6, rtol=1e-5)


def test_the_history_of_one_step_is_the_state_before_and_after_it() -> None:
    examples = classification(20)
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch_size": 20})
    model, (row,) = train(examples, settings, hidden=(6,))

    start = models.build(Architecture(inputs=5, outputs=3, hidden=(6,)), 1)
    outputs = start(examples.features)
    loss = torch.nn.functional.cross_entropy(outputs, examples.targets)
    loss.backward()
    expected = {
        "epoch": 1,
        "train_loss": loss.item(),
        "train_accuracy": training.accuracy(outputs, examples.targets),
    }
    validation = classification(20, 9)
    measured = training.measure(models.predict(model, validation.features), validation.targets)
    expected |= {f"validation_{key}": value for key, value in measured.items()}
    for name, layer in models.linear_layers(start).items():
        gradient = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
        expected[f"gradient_norm_{name}"] = gradient.norm().item()
    assert row == pytest.approx(expected, rel=1e-5)
    assert list(row) == list(expected)


def test_a_regression_has_no_accuracy() -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    examples = Examples(x, x.sum(1, keepdim=True))
    model = models.build(Architecture(inputs=5, outputs=1), 1)
    history = training.train(model, examples, examples, SETTINGS, 0.1, 1)
    assert list(history[0]) == ["epoch", "train_loss", "validation_loss", "gradient_norm_output"]
    assert history[-1]["validation_loss"] < 0.1 * history[0]["train_loss"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    settings = SETTINGS.model_copy(update={"epochs": 2})

    def bits(seed: int) -> bytes:
        architecture = Architecture(inputs=5, outputs=3, hidden=(8,), dropout=0.5)
        model = models.build(architecture, seed)
        training.train(model, classification(30), classification(9), settings, 0.1, seed)
        return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    assert bits(1) == bits(1)
    assert bits(1) != bits(2)


class Stopped(Exception):  # noqa: N818
    """Ends a training as a kill would."""


class Notebook:
    """A checkpoint in memory that is due after each step, and stops the training at the n-th."""

    def __init__(self, stop: int | None = None, saved: Saved | None = None) -> None:
        self.stop, self.saved, self.count = stop, saved, 0

    def due(self) -> bool:
        return True

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.count += 1
        if self.count == self.stop:
            copied = {name: tensor.clone() for name, tensor in tensors.items()}
            self.saved = Saved(copied, json.loads(json.dumps(state)))
            raise Stopped


def result(notebook: Notebook | None, arithmetic: Literal["exact", "native"]) -> tuple[bytes, str]:
    """Weights and history of a training with all that has a state: momentum, schedule, dropout."""
    settings = SETTINGS.model_copy(update={"momentum": 0.9, "lr_schedule": "linear"})
    model = models.build(Architecture(inputs=5, outputs=3, hidden=(8,), dropout=0.5), 1)
    examples, validation = classification(22), classification(9)
    with training.arithmetic(arithmetic):
        history = training.train(
            model, examples, validation, settings, 0.1, 1, notebook,  # type: ignore[arg-type]
        )  # fmt: skip
    bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return bits, json.dumps(history)


@pytest.mark.parametrize("arithmetic", ["exact", "native"])
def test_a_training_goes_on_from_any_step_to_the_same_bits(
    arithmetic: Literal["exact", "native"],
) -> None:
    whole = result(None, arithmetic)
    for stop in range(1, 19):  # three epochs of six steps
        notebook = Notebook(stop)
        with pytest.raises(Stopped):
            result(notebook, arithmetic)
        assert result(Notebook(saved=notebook.saved), arithmetic) == whole, stop


@pytest.mark.parametrize("forgotten", ["position", "momentum", "schedule", "groups", "model"])
def test_without_a_part_of_the_state_the_bits_differ(forgotten: str) -> None:
    notebook = Notebook(8)
    with pytest.raises(Stopped):
        result(notebook, "native")
    fresh = Notebook(1)
    with pytest.raises(Stopped):
        result(fresh, "native")
    assert notebook.saved and fresh.saved
    tensors, state = notebook.saved
    if forgotten in state:
        state[forgotten] = {} if forgotten == "position" else fresh.saved.state[forgotten]
    tensors |= {k: v for k, v in fresh.saved.tensors.items() if k.startswith(forgotten)}
    assert result(Notebook(saved=notebook.saved), "native") != result(None, "native")


def test_a_diverging_training_says_where_and_what_may_help() -> None:
    x = torch.full((20, 5), 1e3)
    examples = Examples(x, x.sum(1, keepdim=True))
    model = models.build(Architecture(inputs=5, outputs=1), 1)
    message = r"the loss is (inf|nan) in epoch \d, step \d; a learning rate below lr = 1000"
    with pytest.raises(training.DivergedError, match=message) as error:
        training.train(model, examples, examples, SETTINGS, 1000.0, 1)
    (begun,) = error.value.history
    assert begun["epoch"] == 1 and math.isfinite(begun["train_loss"])


def test_sigmoid_layers_pass_on_less_gradient_than_relu() -> None:
    def ratio(activation: str) -> float:
        architecture = Architecture(
            inputs=5, outputs=3, hidden=(32, 32, 32, 32), activation=activation  # type: ignore[arg-type]
        )  # fmt: skip
        model = models.build(architecture, 1)
        history = training.train(model, classification(40), classification(9), SETTINGS, 0.01, 1)
        first, last = (history[0][f"gradient_norm_{name}"] for name in ("hidden_1", "output"))
        return float(first / last)

    assert ratio("sigmoid") < 0.1 * ratio("relu")


def test_losses_are_dispatched_by_the_kind_of_target() -> None:
    values = training.losses(torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]]))
    assert values.tolist() == [2.0, 0.0]
    uniform = training.losses(torch.zeros(2, 4), torch.tensor([0, 3]))
    assert uniform.tolist() == pytest.approx([math.log(4)] * 2)


@pytest.mark.parametrize("targets", [torch.zeros(3), torch.zeros(1, 3), torch.zeros(2, 1)])
def test_the_squared_loss_does_not_broadcast(targets: Tensor) -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        training.squared_loss(torch.zeros(3, 1), targets)
