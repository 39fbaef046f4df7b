"""Test accuracy of the default parameters over five seeds, as mean ± standard deviation.

    python -m benchmarks.seeds

Reads the data that `make repro` has made.
"""

import statistics

from lab import datasets, models, params, training
from lab.params import ModelName

SEEDS = range(1, 6)


def accuracy(name: ModelName, seed: int) -> float:
    """Train with the seed and return the accuracy on the 10,000 test images."""
    p = params.load().model_copy(update={"seed": seed})
    train, validation = datasets.load_training(name, p)
    model = models.build(models.architecture(name, p), seed)
    test = datasets.load_test(name)
    with training.arithmetic(p.arithmetic):
        training.train(model, train, validation, p.training(name), p.lr, seed)
        return training.accuracy(models.predict(model, test.features), test.targets)


if __name__ == "__main__":
    for name in ("softmax_regression", "mlp"):
        values = [accuracy(name, seed) for seed in SEEDS]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        print(f"{name:20} {mean:.4f} ± {deviation:.4f}  {values}")
