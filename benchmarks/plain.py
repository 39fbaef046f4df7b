"""The work of the whole pipeline in one plain process: no DVC, no MLflow, one import of torch."""

import sys

from lab.params import MODELS
from stages import download_fashion_mnist, evaluate, generate_regression, train


def main() -> None:
    """params.yaml in; data/ and results/ out, below the current folder."""
    generate_regression.main()
    download_fashion_mnist.main()
    for model in MODELS:
        sys.argv = ["plain", model]
        train.main()
        evaluate.main()


if __name__ == "__main__":
    main()
