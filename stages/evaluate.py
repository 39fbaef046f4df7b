"""Evaluate one trained model on its test set: metrics.json, predictions.csv, breakdown.csv."""

import torch
from torch import nn

from lab import networks, params, schema, training
from lab.common import files, lockfile
from lab.datasets import require_valid
from lab.networks import Model
from lab.tasks import Regression
from stages import argument, run


def main() -> None:
    """The model and data/ in, metrics and tables out."""
    p = params.load()
    name = argument("Evaluate one trained model on its test set.", "model", p.models)
    entry, dataset = p.models[name], p.dataset(name)
    data, results = schema.folder(entry.data), schema.results(name)
    path = results / "model.safetensors"
    lockfile.require_unchanged(data, path)
    device = training.device()
    test = dataset.load_test(data, device)
    require_valid(test, dataset.task, data)
    model = networks.load(path)
    model.network.to(device)
    if model.shape.outputs != dataset.task.outputs:
        raise files.InputError(
            f"{path}: expected {dataset.task.outputs} outputs, the model has {model.shape.outputs}"
        )
    with training.arithmetic(p.arithmetic):
        outputs = model.predict(test.features)
        if not torch.isfinite(outputs).all():
            raise files.InputError(f"{path}: its outputs are not all finite")
        if isinstance(dataset.task, Regression):
            train, _ = dataset.load_training(data, p.seed)
            evaluation = dataset.task.evaluate(
                outputs, test, train, weights(model), dataset.true_weights(data)
            )
        else:
            evaluation = dataset.task.evaluate(outputs, test)
    files.write_json(results / "metrics.json", evaluation.metrics)  # it refuses NaN and infinity
    files.write_csv(results / "predictions.csv", evaluation.predictions)
    files.write_csv(results / "breakdown.csv", evaluation.breakdown)


def weights(model: Model) -> list[float] | None:
    """The weights and, last, the bias of a model that is one linear layer, else None."""
    match list(networks.layers(model.network).values()):
        case [nn.Linear(bias=torch.Tensor()) as layer]:
            return [*layer.weight.flatten().tolist(), *layer.bias.tolist()]
    return None


if __name__ == "__main__":
    run(main)
