"""Draw the synthetic regression data: train.csv, validation.csv, test.csv, and truth.json."""

from lab import datasets, params
from stages import run


def main() -> None:
    """params.yaml in, data/regression/ out."""
    p = params.load()
    for split in datasets.SPLITS:
        examples = datasets.draw_regression(p.regression_data, p.seed, split)
        datasets.write_regression(datasets.REGRESSION / f"{split}.csv", examples)
    datasets.write_truth(datasets.REGRESSION / "truth.json", p.regression_data)


if __name__ == "__main__":
    run(main)
