"""Train one model: results/<model>/model.safetensors, history.csv and gradients.csv.

WORKERS in the environment divides each batch between so many processes; the outputs are the same.
"""

import os
import sys
from typing import Any

import torch

from lab import checkpoints, networks, params, schema, training, workers
from lab.common import files, lockfile
from lab.datasets import require_valid
from lab.networks import NORM
from lab.schema import Params
from stages import argument, run


def main() -> None:
    """params.yaml and data/ in, the trained model and its history out."""
    p = params.load()
    name = argument("Train one model on its data set.", "model", p.models)
    if (n := workers.number()) > 1 and not workers.is_worker():
        workers.launch([sys.executable, "-m", "stages.train", name], n)
        return
    if "OMP_NUM_THREADS" not in os.environ:
        # Models this small gain little by more threads, and lose on a busy machine.
        torch.set_num_threads(1)
    entry, dataset = p.models[name], p.dataset(name)
    data, results = schema.folder(entry.data), schema.results(name)
    lockfile.require_unchanged(data)
    device = training.device()
    train, validation = dataset.load_training(data, p.seed, device)
    architecture, task = p.architecture(name), dataset.task
    for examples in (train, validation):
        require_valid(examples, task, data)
    model = networks.build(entry.kind, architecture, train.features, task.outputs, p.seed)
    checkpoint = checkpoints.find(name, p, device)
    with workers.joined(device) as group:
        if group:
            group.agree(checkpoint)
        first = not (group and group.rank)  # of the workers, which writes for all
        if checkpoint.saved and first:
            print("continuing from a checkpoint of this training", file=sys.stderr)
        try:
            with training.arithmetic(p.arithmetic, p.seed):
                history = training.train(
                    model,
                    task,
                    train,
                    validation,
                    p.training(name),
                    p.lr,
                    p.seed,
                    checkpoint,
                    group,
                )
        except training.DivergedError as error:
            if first:
                record_failure(name, p, error)
            raise files.InputError(f"{name}: {error}") from error
    if not first:
        return
    model.save(results / "model.safetensors")
    measures = [{k: v for k, v in row.items() if not k.startswith(NORM)} for row in history]
    files.write_csv(results / "history.csv", measures)
    files.write_csv(results / "gradients.csv", gradient_norms(history))
    checkpoint.path.unlink(missing_ok=True)


def gradient_norms(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each epoch and layer with the norm of the gradient."""
    return [
        {"epoch": row["epoch"], "layer": key.removeprefix(NORM), "norm": value}
        for row in history
        for key, value in row.items()
        if key.startswith(NORM)
    ]


def record_failure(name: str, p: Params, error: training.DivergedError) -> None:
    """Leave a FAILED run in MLflow: no later stage sees a training that gave no model."""
    from tracking import run  # only here: training that goes well needs no MLflow

    try:
        run.record_failure(name, p, error.history, why=str(error))
    except (files.InputError, OSError) as why:
        print(f"the failed run is not in MLflow: {files.one_line(why)}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
