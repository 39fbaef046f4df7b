"""The work of the whole pipeline in one plain process: no DVC, no MLflow, one import of torch."""

import sys
from collections.abc import Callable

from lab import params
from stages import evaluate, prepare, train


def main() -> None:
    """params.yaml in; data/ and results/ out, below the current folder."""
    models = params.load().models
    for data in dict.fromkeys(entry.data for entry in models.values()):
        run(prepare.main, data)
    for model in models:
        run(train.main, model)
        run(evaluate.main, model)


def run(stage: Callable[[], None], argument: str) -> None:
    """Run a stage in this process."""
    sys.argv = ["plain", argument]
    stage()


if __name__ == "__main__":
    main()
