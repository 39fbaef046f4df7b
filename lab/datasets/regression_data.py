"""Synthetic data for linear regression: y = Xw + b + noise (the book, section 3.3)."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from lab.common.files import InputError, read_json, write_json, write_text
from lab.common.settings import Count, Value
from lab.datasets import SPLITS, DataSet, Examples, read_numbers
from lab.tasks import Regression

if TYPE_CHECKING:
    import torch

    from lab.schema import Params


class RegressionData(DataSet):
    """Numbers of examples, the true weights and bias, the standard deviation of the noise."""

    task: ClassVar[Regression] = Regression()

    train: Count
    validation: Count
    test: Count
    weights: Annotated[tuple[Value, ...], Field(strict=False, min_length=1, max_length=100)]
    bias: Value
    noise: Annotated[float, Field(ge=0, le=1e6)]

    @model_validator(mode="after")
    def _determined(self) -> "RegressionData":
        unknowns = len(self.weights) + 1
        if self.train < unknowns:
            raise ValueError(f"train of at least {unknowns}, the number of weights and bias")
        return self

    def prepare(self, folder: Path, params: "Params") -> None:
        """Write train.csv, validation.csv, test.csv and truth.json."""
        for split in SPLITS:
            write_table(folder / f"{split}.csv", self.draw(params.seed, split))
        write_json(folder / "truth.json", {"weights": self.weights, "bias": self.bias})

    def draw(self, seed: int, split: str) -> Examples:
        """Draw one split, in float64 in a fixed order, then rounded once to float32."""
        from exact import random

        n, d, part = getattr(self, split), len(self.weights), SPLITS.index(split)
        features = random.normal((n, d), seed, "regression features", part).float()
        noise = random.normal((n,), seed, "regression noise", part)
        targets = noise * self.noise + self.bias
        for feature, weight in zip(features.double().unbind(1), self.weights, strict=True):
            targets = targets + feature * weight  # a matrix product has no fixed order
        return Examples(features, targets.float().unsqueeze(1))

    def load_training(
        self, folder: Path, seed: int, device: "torch.device | str" = "cpu"
    ) -> tuple[Examples, Examples]:
        """Features (N, d) and targets (N, 1) of train.csv and validation.csv."""
        train, validation = (read_table(folder / f"{split}.csv") for split in SPLITS[:2])
        widths = [examples.features.shape[1] for examples in (train, validation)]
        if widths != [len(self.weights)] * 2:
            raise InputError(
                f"{folder}: expected {len(self.weights)} features,"
                f" train and validation have {widths}"
            )
        return train.to(device), validation.to(device)

    def load_test(self, folder: Path, device: "torch.device | str" = "cpu") -> Examples:
        """Features (N, d) and targets (N, 1) of test.csv."""
        return read_table(folder / "test.csv").to(device)

    def true_weights(self, folder: Path) -> list[float]:
        """The weights and the bias of truth.json. Raises InputError for any other contents."""
        path = folder / "truth.json"
        truth = read_json(path)
        try:
            values = [float(value) for value in (*truth["weights"], truth["bias"])]
            if not all(map(math.isfinite, values)):
                raise ValueError("a number is NaN or infinite")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{path}: expected weights and bias: {error}") from error
        return values


def write_table(path: Path, examples: Examples) -> None:
    """Write columns x1 … xd, y with the fewest digits that read back to the same float32."""
    import pandas as pd

    columns = {f"x{i}": x.numpy() for i, x in enumerate(examples.features.unbind(1), start=1)}
    table = pd.DataFrame(columns | {"y": examples.targets.squeeze(1).numpy()})
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path) -> Examples:
    """Read what `write_table` wrote. Raises InputError for anything else."""
    import torch

    table = read_numbers(path)
    names = [f"x{i}" for i in range(1, len(table.columns))] + ["y"]
    if list(table.columns) != names or len(names) < 2:
        raise InputError(f"{path}: expected columns x1, x2, …, y")
    values = torch.from_numpy(table.to_numpy(copy=True))
    return Examples(values[:, :-1].contiguous(), values[:, -1:].contiguous())
