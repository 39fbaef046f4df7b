"""Training is the algorithm of the book, and the history says what happened."""

import json
import math
import threading
from typing import Any

import pytest
import torch
from torch import nn, optim
from tqdm import tqdm

import exact
from lab import networks, training
from lab.checkpoints import Saved
from lab.common.files import InputError
from lab.datasets import Examples
from lab.models.linear import Linear
from lab.networks import Model, layers
from lab.schema import Arithmetic
from lab.tasks import Regression
from tests.lab.trainings import TASK, build, examples, settings, train, without

STATEFUL: dict[str, Any] = {
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "lr_schedule": "linear",
    "weight_averaging": 0.5,
}
arithmetics = pytest.mark.parametrize("arithmetic", ["exact", "native"])


def test_the_device_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.cuda.is_available()
    for name, expected in (("", "cuda" if found else "cpu"), ("cpu", "cpu")):
        monkeypatch.setenv("DEVICE", name)
        assert training.device().type == expected
    for name in ("tpu",) if found else ("tpu", "cuda"):
        monkeypatch.setenv("DEVICE", name)
        with pytest.raises(InputError, match=f"DEVICE: expected cpu.* found {name}"):
            training.device()


@arithmetics
def test_random_numbers_follow_from_the_seed_and_settings_are_restored(
    arithmetic: Arithmetic,
) -> None:
    def draw(seed: int) -> list[float]:
        with training.arithmetic(arithmetic, seed):
            assert torch.are_deterministic_algorithms_enabled() == (arithmetic == "native")
            return torch.rand(8).tolist()

    before = torch.get_rng_state()
    first = draw(1)
    assert first == draw(1) and first != draw(2)
    with exact.mode(seed=1):  # as the initial weights are drawn
        assert torch.rand(8).tolist() != first
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_an_exact_form_is_an_input_error() -> None:
    with training.arithmetic("native"):
        torch.linalg.svd(torch.eye(2))  # the control
    refused = pytest.raises(InputError, match=r"exact arithmetic: aten.* has no exact")
    with refused, training.arithmetic("exact"):
        torch.linalg.svd(torch.eye(2))


def test_a_training_leaves_no_thread_and_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm, "monitor", None)  # which a download may have started
    before = threading.active_count()
    with training.arithmetic("exact"):
        assert not torch.backends.cuda.flash_sdp_enabled()  # the control
    train("exact")
    assert threading.active_count() == before
    assert torch.backends.cuda.flash_sdp_enabled()


def test_minibatches_cover_each_example_once_in_another_order_each_epoch() -> None:
    first, again, second = (list(training.minibatches(22, 4, 1, epoch)) for epoch in (1, 1, 2))
    assert [len(batch) for batch in first] == [4, 4, 4, 4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(22))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_training_is_sgd_with_momentum_weight_decay_and_a_schedule() -> None:
    """The same updates written out by hand, the gradient of softmax regression included."""
    data = examples(22)  # six steps an epoch, the last with 2 examples
    sgd = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01}
    model, start = build(), build()
    chosen = settings(optimizer=sgd, lr_schedule="linear")
    training.train(model, TASK, data, examples(20, 9), chosen, 0.1, 1)

    w, b = (parameter.detach().double() for parameter in start.network.parameters())
    velocity_w, velocity_b = torch.zeros_like(w), torch.zeros_like(b)
    step = 0
    for epoch in (1, 2, 3):
        for batch in training.minibatches(22, 4, 1, epoch):
            x, y = data.features[batch].double(), data.targets[batch]
            error = (x @ w.T + b).softmax(1) - torch.eye(3)[y]  # (batch, 3)
            velocity_w = 0.9 * velocity_w + error.T @ x / len(batch) + 0.01 * w
            velocity_b = 0.9 * velocity_b + error.sum(0) / len(batch) + 0.01 * b
            lr = 0.1 * (1 - step / 18)
            w, b, step = w - lr * velocity_w, b - lr * velocity_b, step + 1
    for learned, expected in zip(model.network.parameters(), (w, b), strict=True):
        torch.testing.assert_close(learned.double(), expected, atol=1e-6, rtol=1e-5)


def test_the_history_of_one_step_is_the_state_before_and_after_it() -> None:
    data, validation = examples(20), examples(20, 9)
    model, start = build(6), build(6)
    one = settings(epochs=1, batch_size=20)
    (row,) = training.train(model, TASK, data, validation, one, 0.1, 1)

    outputs = start.network(data.features)
    TASK.losses(outputs, data.targets).mean().backward()
    before = TASK.measure(outputs.detach(), data.targets)
    after = TASK.measure(model.predict(validation.features), validation.targets)
    expected = {"epoch": 1} | {f"train_{key}": value for key, value in before.items()}
    expected |= {f"validation_{key}": value for key, value in after.items()}
    for name, layer in layers(start.network).items():
        gradient = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
        expected[f"gradient_norm_{name}"] = gradient.norm().item()
    assert row == pytest.approx(expected, rel=1e-5)
    assert list(row) == list(expected)


@arithmetics
def test_training_repeats_and_resumes_to_the_same_bits(arithmetic: Arithmetic) -> None:
    result, steps = train(arithmetic, **STATEFUL)
    assert train(arithmetic, **STATEFUL).result == result
    assert train(arithmetic, seed=2, **STATEFUL).result != result
    assert len(steps) == 18
    for saved in steps:
        assert train(arithmetic, saved, **STATEFUL).result == result, saved.state["at"]
    parts = ("at", "optimizer", "schedule", "groups", "network", "average", "generator")
    for part in parts:  # the controls
        assert train(arithmetic, without(part, steps), **STATEFUL).result != result, part


def images(n: int, seed: int = 0) -> Examples:
    """Images of 2 x 3 x 4, in three classes."""
    pixels = torch.rand(n, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    return Examples(pixels, torch.arange(n) % 3)


def test_an_image_is_shifted_and_mirrored_as_its_numbers_say() -> None:
    (first, second), _ = images(2)
    chosen = settings(shift=1, flip=True)
    # Of three places, number 1 is where the image was; odd numbers mirror.
    numbers = torch.tensor([[4, 1, 2], [0, 2, 3]])
    same, changed = training.augment(torch.stack([first, second]), chosen, numbers)
    assert torch.equal(same, first)
    expected = torch.zeros(2, 3, 4)
    mirrored = second.flip(2)  # and then down by one row and by one column to the right
    expected[:, 1:, 1:] = mirrored[:, :-1, :-1]
    assert torch.equal(changed, expected)
    still = training.augment(torch.stack([first, second]), settings(flip=True), numbers)
    assert torch.equal(still[1], mirrored)


def test_shifted_images_are_other_ones_in_each_epoch_and_follow_from_the_seed() -> None:
    data, shape = images(22), images(1).features

    def history(seed: int, **changes: Any) -> list[dict[str, Any]]:
        model = networks.build("linear", Linear(), shape, 3, 1)
        still = settings(batch_size=22, optimizer={"name": "sgd"}, **changes)
        with training.arithmetic("exact", seed):
            return training.train(model, TASK, data, data, still, 1e-9, seed)

    augmented = [row["train_loss"] for row in history(1, shift=1, flip=True)]
    assert augmented == [row["train_loss"] for row in history(1, shift=1, flip=True)]
    assert augmented != [row["train_loss"] for row in history(2, shift=1, flip=True)]
    plain = [row["train_loss"] for row in history(1)]
    assert max(plain) - min(plain) < 1e-6 < max(augmented) - min(augmented)
    with pytest.raises(InputError, match=r"shift and flip are for images; .* shape \(5,\)"):
        training.train(build(), TASK, examples(9), examples(9), settings(flip=True), 0.1, 1)


def test_the_averaged_weights_are_the_running_mean_of_those_after_each_step() -> None:
    data, share = examples(20), 0.75

    def trained(steps: int, **changes: Any) -> tuple[Model, float]:
        model = build()
        chosen = settings(epochs=steps, batch_size=20, **changes)
        *_, row = training.train(model, TASK, data, data, chosen, 0.1, 1)
        return model, row["validation_loss"]

    expected, *later = ([*trained(steps)[0].network.parameters()] for steps in (1, 2, 3, 4))
    for weights in later:
        pairs = zip(expected, weights, strict=True)
        expected = [nn.Parameter(share * mean + (1 - share) * new) for mean, new in pairs]
    model, loss = trained(4, weight_averaging=share)
    for mean, found in zip(expected, model.network.parameters(), strict=True):
        torch.testing.assert_close(found, mean)
    assert loss == TASK.measure(model.predict(data.features), data.targets)["loss"]
    assert loss != trained(4)[1]  # the control


def test_a_checkpoint_holds_whatever_an_optimiser_keeps() -> None:
    weight = nn.Parameter(torch.ones(2))
    keeping, empty = (optim.SGD([weight], 0.1) for _ in range(2))
    keeping.state[weight] = {"count": 3, "mean": torch.ones(2)}
    module, schedule = nn.Module(), settings().schedule(keeping, 1)
    module.register_parameter("weight", weight)
    tensors, state = training._state(training.TrainState(), module, keeping, schedule)
    saved = Saved(tensors, json.loads(json.dumps(state)))
    training._restore(saved, module, empty, schedule)
    assert empty.state[weight].keys() == {"count", "mean"} and empty.state[weight]["count"] == 3


def test_a_diverging_training_says_where_and_what_may_help() -> None:
    x = torch.full((20, 5), 1e3)
    data = Examples(x, x.sum(1, keepdim=True))
    message = r"the loss is (inf|nan) in epoch \d, step \d; a learning rate below lr = 1000"
    with pytest.raises(training.DivergedError, match=message) as error:
        training.train(build(outputs=1), Regression(), data, data, settings(), 1000.0, 1)
    (begun,) = error.value.history
    assert begun["epoch"] == 1 and math.isfinite(begun["train_loss"])
