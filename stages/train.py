"""Train one model: results/<model>/model.safetensors and history.csv."""

from pathlib import Path

from lab import datasets, files, models, params, training
from stages import model_argument, run


def main() -> None:
    """params.yaml and data/ in, the trained model and its history out."""
    name = model_argument("Train one model on its data set.")
    p = params.load()
    train, validation = datasets.load_training(name, p, training.device())
    model = models.build(models.architecture(name, p), p.seed)
    try:
        with training.arithmetic(p.arithmetic):
            history = training.train(model, train, validation, p.training(name), p.lr, p.seed)
    except training.DivergedError as error:
        raise files.InputError(f"{name}: {error}") from error
    models.save(model, Path("results", name, "model.safetensors"))
    files.write_csv(Path("results", name, "history.csv"), history)


if __name__ == "__main__":
    run(main)
