"""The sections of params.yaml follow from the models, data sets and optimisers that it names."""

import pytest

from lab import params
from lab.common.files import InputError
from lab.datasets import fashion_mnist, regression_data
from lab.models import linear, mlp
from tests.inputs import GOOD, replaced

ENTRY = (
    "  small:\n    title: Small\n    kind: mlp\n    data: regression_data\n    task: regression\n"
)
SECTION = """
small:
  epochs: 2
  batch_size: 7
  optimizer: {name: adamw, betas: [0.8, 0.9]}
  lr_schedule: step
  hidden: [3]
  activation: tanh
  dropout: 0.5
"""


def test_a_model_is_added_by_an_entry_and_a_section() -> None:
    p = params.parse(replaced("models:\n", f"models:\n{ENTRY}") + SECTION)
    assert [p.models[name].kind for name in p.models] == ["mlp", "linear", "linear", "mlp"]
    assert p.architecture("small") == mlp.MLP(hidden=(3,), activation="tanh", dropout=0.5)
    assert p.architecture("linear_regression") == linear.Linear()
    assert type(p.dataset("small")) is regression_data.RegressionData
    assert p.dataset("mlp") == fashion_mnist.FashionMNIST(validation=5000)
    flat = p.flat("small")
    assert list(flat)[:6] == ["seed", "lr", "arithmetic", "kind", "epochs", "batch_size"]
    chosen = {key: value for key, value in flat.items() if key.startswith(("optim", "lr_s"))}
    assert chosen == {
        "optimizer": "adamw",
        "optimizer.betas": (0.8, 0.9),
        "optimizer.eps": 1e-8,
        "optimizer.weight_decay": 0.01,
        "lr_schedule": "step",
        "lr_schedule.epochs": 10,
        "lr_schedule.factor": 0.1,
    }
    assert list(flat)[13:] == [
        *("label_smoothing", "weight_averaging", "shift", "flip"),
        *("hidden", "activation", "dropout"),
        *(f"regression_data.{key}" for key in regression_data.RegressionData.model_fields),
    ]


def test_only_labels_are_smoothed() -> None:
    smoothed = SECTION + "  label_smoothing: 0.1\n"
    as_regression = replaced("models:\n", f"models:\n{ENTRY}")
    with pytest.raises(InputError, match=r"small\.label_smoothing of 0, as regression has no labe"):
        params.parse(as_regression + smoothed)
    as_classification = as_regression.replace(
        "    data: regression_data\n    task: regression\n",
        "    data: fashion_mnist\n    task: classification\n",
        1,
    )
    p = params.parse(as_classification + smoothed)  # the control
    assert p.training("small").label_smoothing == 0.1


def test_a_kind_has_no_parameter_of_a_name_that_all_models_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("lr", "seed", "epochs", "schedule", "model_dump"):
        fields = {**mlp.MLP.model_fields, name: linear.Linear.model_fields}
        monkeypatch.setattr(mlp.MLP, "__pydantic_fields__", fields)
        with pytest.raises(InputError, match=rf"^lab/models/mlp.py: {name} is a name of all mod"):
            params.parse(GOOD)
        monkeypatch.undo()
    params.parse(GOOD)  # the control
