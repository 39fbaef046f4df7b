"""Test accuracy of the default parameters over ten seeds, in exact and in native arithmetic.

    python -m benchmarks.seeds

Run `make repro` first, for the data.
"""

import statistics
from typing import get_args

from lab import networks, params, schema, training
from lab.schema import Arithmetic, Params

SEEDS = range(1, 11)


def accuracy(p: Params, name: str, arithmetic: Arithmetic, seed: int) -> float:
    """Train with the seed and return the accuracy on the test images."""
    entry, dataset, device = p.models[name], p.dataset(name), training.device()
    folder, task = schema.folder(entry.data), dataset.task
    train, validation = dataset.load_training(folder, seed, device)
    architecture = p.architecture(name)
    model = networks.build(entry.kind, architecture, train.features, task.outputs, seed)
    test = dataset.load_test(folder, device)
    with training.arithmetic(arithmetic, seed):
        training.train(model, task, train, validation, p.training(name), p.lr, seed)
        return task.measure(model.predict(test.features), test.targets)["accuracy"]


def main() -> None:
    """Print a row for each classifier."""
    p = params.load()
    print(f"| accuracy, {len(SEEDS)} seeds | exact | native | difference |")
    print("| --- | --- | --- | --- |")
    for name, entry in p.models.items():
        if entry.task != "classification":
            continue
        values = [[accuracy(p, name, kind, s) for s in SEEDS] for kind in get_args(Arithmetic)]
        means = [statistics.mean(column) for column in values]
        cells = [f"{statistics.mean(v):.4f} ± {statistics.stdev(v):.4f}" for v in values]
        points = 100 * (means[0] - means[1])
        print(f"| {name} | {' | '.join(cells)} | {points:+.3f} points |", flush=True)


if __name__ == "__main__":
    main()
