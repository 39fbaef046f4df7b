"""Evaluate one trained model on its test set: metrics.json, predictions.csv and tables."""

from pathlib import Path

import torch

from lab import datasets, evaluation, files, models, params, training
from stages import model_argument, run


def main() -> None:
    """The model and data/ in, metrics and tables out."""
    name = model_argument("Evaluate one trained model on its test set.")
    folder = Path("results", name)
    test = datasets.load_test(name, training.device())
    model = models.load(folder / "model.safetensors").to(test.features.device)
    metrics: dict[str, float | None]
    with training.arithmetic(params.load().arithmetic):
        outputs = models.predict(model, test.features)
        metrics = {f"test_{k}": v for k, v in training.measure(outputs, test.targets).items()}
        if name == "linear_regression":
            metrics |= evaluate_regression(folder, model, outputs, test)
        else:
            evaluate_classification(folder, outputs, test)
    files.write_json(folder / "metrics.json", metrics)


def evaluate_regression(
    folder: Path, model: models.Network, outputs: torch.Tensor, test: datasets.Examples
) -> dict[str, float | None]:
    """Write predictions.csv and solution.csv; return R² and the distances between solutions."""
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
    files.write_csv(folder / "predictions.csv", evaluation.predicted_values(outputs, test.targets))
    files.write_csv(folder / "solution.csv", evaluation.solutions(learned, analytic, true))
    return {
        "test_r2": evaluation.r_squared(outputs, test.targets),
        "distance_learned_analytic": evaluation.distance(learned, analytic),
        "distance_analytic_true": evaluation.distance(analytic, true),
        "distance_learned_true": evaluation.distance(learned, true),
    }


def evaluate_classification(folder: Path, outputs: torch.Tensor, test: datasets.Examples) -> None:
    """Write predictions.csv and confusion.csv."""
    counts = evaluation.confusion(outputs, test.targets)
    files.write_csv(folder / "predictions.csv", evaluation.predicted_classes(outputs, test.targets))
    files.write_csv(folder / "confusion.csv", evaluation.confusion_table(counts))


if __name__ == "__main__":
    run(main)
