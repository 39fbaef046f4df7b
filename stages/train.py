"""Train one model: results/<model>/model.safetensors and history.csv."""

import os
import sys
from pathlib import Path

import torch

from lab import checkpoints, datasets, files, integrity, models, params, training
from stages import model_argument, run


def main() -> None:
    """params.yaml and data/ in, the trained model and its history out."""
    name = model_argument("Train one model on its data set.")
    p = params.load()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            1
        )  # models this small gain little by more, and lose on a busy machine
    integrity.require_unchanged(params.DATA[name])
    device = training.device()
    train, validation = datasets.load_training(name, p, device)
    model = models.build(models.architecture(name, p), p.seed)
    checkpoint = checkpoints.find(name, p, device)
    if checkpoint.saved:
        print("going on from a checkpoint of this very training", file=sys.stderr)
    try:
        with training.arithmetic(p.arithmetic):
            history = training.train(
                model, train, validation, p.training(name), p.lr, p.seed, checkpoint
            )
    except training.DivergedError as error:
        record_failure(name, p, error)
        raise files.InputError(f"{name}: {error}") from error
    models.save(model, Path("results", name, "model.safetensors"))
    files.write_csv(Path("results", name, "history.csv"), history)
    checkpoint.remove()


def record_failure(name: params.ModelName, p: params.Params, error: training.DivergedError) -> None:
    """Leave a FAILED run in MLflow: no later stage sees a training that gave no model."""
    from lab import tracking  # only here: training that goes well needs no MLflow

    try:
        tracking.record_failure(name, params=p.seen_by(name), history=error.history, why=str(error))
    except (files.InputError, OSError) as why:
        print(f"the failed run is not in MLflow: {files.one_line(why)}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
