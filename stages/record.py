"""Record one trained and evaluated model as an MLflow run: results/<model>/receipt.json.

The only stage with an effect outside its outputs. The receipt says what was recorded
by its contents, not by time or run, so it is the same wherever the result is.
"""

import math
from pathlib import Path
from typing import Any

from lab import datasets, files, integrity, notes, params, pictures, tracking
from stages import model_argument, run


def main() -> None:
    """All that the other stages wrote for the model in, one MLflow run and its receipt out."""
    name = model_argument("Record one model's results as an MLflow run.")
    p = params.load()
    folder = Path("results", name)
    if name == "linear_regression":
        table = "solution.csv"
        data = [params.REGRESSION / f"{split}.csv" for split in datasets.SPLITS]
        inputs = [*data, params.REGRESSION / "truth.json"]
    else:
        table = "confusion.csv"
        inputs = data = [params.FASHION_MNIST / f"{s}.safetensors" for s in ("train", "test")]
    model, history, metrics = (
        folder / f for f in ("model.safetensors", "history.csv", "metrics.json")
    )
    tables = [history, folder / "predictions.csv", folder / table]
    integrity.require_unchanged(params.DATA[name], *tables, metrics, model)
    digests = {path: files.sha256(path) for path in (*inputs, *tables, metrics, model)}
    epochs, results = read_history(history), read_metrics(metrics)
    receipt = {path.as_posix(): digest for path, digest in digests.items()}
    with tracking.recorded(
        name,
        params=p.seen_by(name),
        history=epochs,
        metrics=results,
        digests=digests,
        data=data,
        artifacts=[*tables, metrics, Path("params.yaml")],
        model=model,
        shape=p.shape(name),
        pictures=pictures.draw(name, folder, epochs),
        description=lambda run: notes.describe(name, p, epochs, results, run),
    ):
        files.write_json(
            folder / "receipt.json",
            {"fingerprint": tracking.fingerprint(digests), "sha256": receipt},
        )


def read_history(path: Path) -> list[dict[str, float]]:
    """One row per epoch, 1 to n, with finite losses. Raises InputError for anything else."""
    history = files.read_csv(path)
    epochs = [row.get("epoch") for row in history]
    losses = [row.get(f"{part}_loss", math.nan) for row in history for part in datasets.SPLITS[:2]]
    finite = losses and all(map(math.isfinite, losses))
    if not finite or epochs != list(range(1, len(history) + 1)):
        raise files.InputError(f"{path}: expected a row for each epoch from 1, with finite losses")
    return history


def read_metrics(path: Path) -> dict[str, float | None]:
    """Finite numbers by name, None where one is undefined. Raises InputError for anything else."""
    metrics: Any = files.read_json(path)
    if not isinstance(metrics, dict) or not all(
        value is None or (type(value) in (int, float) and math.isfinite(value))
        for value in metrics.values()
    ):
        raise files.InputError(f"{path}: expected finite numbers by name")
    return metrics


if __name__ == "__main__":
    run(main)
