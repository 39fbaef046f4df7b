"""Record one trained and evaluated model as an MLflow run: results/<model>/receipt.json.

The receipt names what was recorded by its contents alone, so it is the same wherever the result is.
"""

import math
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter

from lab import networks, params, schema
from lab.common import files, lockfile
from stages import argument, run
from tracking import figures
from tracking.run import Result, fingerprint, recorded

TABLES = ("history.csv", "gradients.csv", "predictions.csv", "breakdown.csv", "metrics.json")
METRICS = TypeAdapter(dict[str, FiniteFloat | None])


def main() -> None:
    """All that the other stages wrote for the model in, one MLflow run and its receipt out."""
    p = params.load()
    name = argument("Record one model's results as an MLflow run.", "model", p.models)
    data, folder = schema.folder(p.models[name].data), schema.results(name)
    outputs = [folder / file for file in (*TABLES, "model.safetensors")]
    lockfile.require_unchanged(data, *outputs)
    inputs = sorted(path for path in data.rglob("*") if path.is_file())
    digests = {path: files.sha256(path) for path in (*inputs, *outputs)}
    history, metrics = read_history(folder), read_metrics(folder / "metrics.json")
    model = networks.load(folder / "model.safetensors")
    drawn = figures.draw(name, p, model, history)
    receipt = {path.as_posix(): digest for path, digest in digests.items()}
    with recorded(Result(name, p, model.shape, history, metrics, digests, drawn)):
        files.write_json(
            folder / "receipt.json", {"fingerprint": fingerprint(digests), "sha256": receipt}
        )


def read_history(folder: Path) -> list[dict[str, float]]:
    """Measures and gradient norms of each epoch. Raises InputError for files with anything else."""
    path = folder / "history.csv"
    history = files.read_csv(path)
    epochs = [row.get("epoch") for row in history]
    losses = [row.get(f"{p}_loss", math.nan) for row in history for p in ("train", "validation")]
    finite = losses and all(map(math.isfinite, losses))
    if not finite or epochs != list(range(1, len(history) + 1)):
        raise files.InputError(f"{path}: expected a row for each epoch from 1, with finite losses")
    path = folder / "gradients.csv"
    with files.reading(path, "epoch, layer and norm in each row", LookupError):
        for row in files.read_rows(path):
            history[int(row["epoch"]) - 1][f"{networks.NORM}{row['layer']}"] = float(row["norm"])
    return history


def read_metrics(path: Path) -> dict[str, float | None]:
    """Finite numbers by name, None where one is undefined. Raises InputError for anything else."""
    with files.reading(path, "finite numbers by name"):
        return METRICS.validate_python(files.read_json(path), strict=True)


if __name__ == "__main__":
    run(main)
