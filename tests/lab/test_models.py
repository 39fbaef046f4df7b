"""Architectures have the layers that params.yaml names, with initial weights as documented."""

import pytest
import torch
from torch import nn

from lab import networks, params
from lab.models.linear import Linear
from lab.models.mlp import MLP
from tests.lab.trainings import build
from tracking.repository import ROOT


def test_the_parameters_become_layers() -> None:
    p = params.load(ROOT / "tests/params.yaml")
    for model, sizes in (
        ("softmax_regression", [(10, 784), (10,)]),
        ("mlp", [(256, 784), (256,), (128, 256), (128,), (10, 128), (10,)]),
    ):
        network = p.architecture(model).build((1, 28, 28), 10)
        assert [tuple(parameter.shape) for parameter in network.parameters()] == sizes
        assert network(torch.ones(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "module"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh)]
)
def test_an_mlp_computes_what_pytorchs_layers_do(name: str, module: type[nn.Module]) -> None:
    model = build(16, 8, activation=name, dropout=0.5)
    plain = nn.Sequential(nn.Linear(5, 16), module(), nn.Linear(16, 8), module(), nn.Linear(8, 3))
    for own, other in zip(model.network.parameters(), plain.parameters(), strict=True):
        other.data.copy_(own.data)
    x = torch.linspace(-3, 3, 100).view(20, 5)
    assert torch.equal(model.predict(x), plain(x))
    outputs = model.network.train()(x.repeat(100, 1))  # with dropout
    assert not torch.equal(outputs[:20], outputs[20:40])


def test_initial_weights_have_the_deviation_that_the_docstrings_name() -> None:
    def deviations(kind: str, architecture: Linear | MLP) -> list[float]:
        model = networks.build(kind, architecture, torch.empty(1, 784), 10, 3)
        parameters = list(model.network.parameters())
        assert not any(bias.any() for bias in parameters[1::2])
        return [weight.std().item() for weight in parameters[::2]]

    assert deviations("linear", Linear()) == pytest.approx([0.01], rel=0.05)
    relu = MLP(hidden=(400, 300), activation="relu", dropout=0.0)
    tanh = relu.model_copy(update={"activation": "tanh"})
    expected = [784**-0.5, 400**-0.5, 300**-0.5]
    assert deviations("mlp", tanh) == pytest.approx(expected, rel=0.05)
    assert deviations("mlp", relu) == pytest.approx([2**0.5 * e for e in expected], rel=0.05)
