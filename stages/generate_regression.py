"""Draw the synthetic regression data: train.csv, validation.csv, test.csv, and truth.json."""

from lab import datasets, params
from stages import no_arguments, run


def main() -> None:
    """params.yaml in, data/regression/ out."""
    no_arguments("Draw the synthetic regression data.")
    p = params.load()
    for split in datasets.SPLITS:
        examples = datasets.draw_regression(p.regression_data, p.seed, split)
        datasets.write_regression(params.REGRESSION / f"{split}.csv", examples)
    datasets.write_truth(params.REGRESSION / "truth.json", p.regression_data)


if __name__ == "__main__":
    run(main)
