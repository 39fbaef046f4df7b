"""Test accuracy of the default parameters over ten seeds, in exact and in native arithmetic.

    python -m benchmarks.seeds

Reads the data that `make repro` has made. Prints the table of the README: the mean ±
the standard deviation of both, and the difference of the means in percentage points.
"""

import statistics

from lab import datasets, models, params, training
from lab.params import Arithmetic, ModelName

SEEDS = range(1, 11)


def accuracy(name: ModelName, arithmetic: Arithmetic, seed: int) -> float:
    """Train with the seed and return the accuracy on the 10,000 test images."""
    p = params.load().model_copy(update={"seed": seed})
    device = training.device()
    train, validation = datasets.load_training(name, p, device)
    model = models.build(models.architecture(name, p), seed)
    test = datasets.load_test(name, device)
    with training.arithmetic(arithmetic):
        training.train(model, train, validation, p.training(name), p.lr, seed)
        return training.accuracy(models.predict(model, test.features), test.targets)


if __name__ == "__main__":
    print(f"| accuracy, {len(SEEDS)} seeds | exact | native | difference |")
    print("| --- | --- | --- | --- |")
    for name in ("softmax_regression", "mlp"):
        exact, native = (
            [accuracy(name, arithmetic, seed) for seed in SEEDS]
            for arithmetic in ("exact", "native")
        )
        columns = [
            f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
            for values in (exact, native)
        ]
        points = 100 * (statistics.mean(exact) - statistics.mean(native))
        print(f"| {name} | {' | '.join(columns)} | {points:+.3f} points |", flush=True)
