"""Evaluate one trained model on its test set: metrics.json, predictions.csv and tables."""

from pathlib import Path

import torch

from lab import datasets, evaluation, files, integrity, models, params, training
from stages import model_argument, run


def main() -> None:
    """The model and data/ in, metrics and tables out."""
    name = model_argument("Evaluate one trained model on its test set.")
    folder = Path("results", name)
    integrity.require_unchanged(params.DATA[name], folder / "model.safetensors")
    test = datasets.load_test(name, training.device())
    model = models.load(folder / "model.safetensors").to(test.features.device)
    outputs_expected = 1 if test.targets.is_floating_point() else len(params.CLASSES)
    if model.architecture.outputs != outputs_expected:
        raise files.InputError(
            f"{folder}/model.safetensors: expected {outputs_expected} outputs,"
            f" the model has {model.architecture.outputs}"
        )
    metrics: dict[str, float | None]
    with training.arithmetic(params.load().arithmetic):
        outputs = models.predict(model, test.features)
        if not torch.isfinite(outputs).all():
            raise files.InputError(f"{folder}/model.safetensors: its outputs are not all finite")
        metrics = {f"test_{k}": v for k, v in training.measure(outputs, test.targets).items()}
        if name == "linear_regression":
            distances, tables = evaluate_regression(model, outputs, test)
            metrics |= distances
        else:
            tables = evaluate_classification(outputs, test)
    files.write_json(folder / "metrics.json", metrics)  # first, as it refuses NaN and infinity
    for file, rows in tables.items():
        files.write_csv(folder / file, rows)


def evaluate_regression(
    model: models.Network, outputs: torch.Tensor, test: datasets.Examples
) -> tuple[dict[str, float | None], dict[str, evaluation.Rows]]:
    """R² and the distances between solutions; predictions.csv and solution.csv."""
    weights, bias = datasets.read_truth(params.REGRESSION / "truth.json")
    true = [*weights, bias]
    analytic = evaluation.analytic_solution(
        datasets.read_regression(params.REGRESSION / "train.csv")
    )
    layer = models.linear_layers(model)["output"]
    learned = [*layer.weight.flatten().tolist(), *layer.bias.tolist()]
    if not len(true) == len(analytic) == len(learned):
        raise files.InputError(
            f"{params.REGRESSION}: truth.json has {len(true)} parameters, train.csv"
            f" {len(analytic)}, the model {len(learned)}"
        )
    distances = {
        "test_r2": evaluation.r_squared(outputs, test.targets),
        "distance_learned_analytic": evaluation.distance(learned, analytic),
        "distance_analytic_true": evaluation.distance(analytic, true),
        "distance_learned_true": evaluation.distance(learned, true),
    }
    return distances, {
        "predictions.csv": evaluation.predicted_values(outputs, test.targets),
        "solution.csv": evaluation.solutions(learned, analytic, true),
    }


def evaluate_classification(
    outputs: torch.Tensor, test: datasets.Examples
) -> dict[str, evaluation.Rows]:
    """predictions.csv and confusion.csv."""
    return {
        "predictions.csv": evaluation.predicted_classes(outputs, test.targets),
        "confusion.csv": evaluation.confusion_table(evaluation.confusion(outputs, test.targets)),
    }


if __name__ == "__main__":
    run(main)
