"""The data sets: one class each in the file of that name, whose fields are its parameters.

A data set's name is that of its file, of its section in params.yaml and of its folder in data/.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lab.common.files import InputError, reading
from lab.common.settings import Strict, class_named

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from lab.schema import Params
    from lab.tasks import Task

SPLITS = ("train", "validation", "test")


class Examples(NamedTuple):
    """Features float32 (N, …); targets float32 (N, 1), or classes, int64 (N,)."""

    features: "Tensor"
    targets: "Tensor"

    def to(self, device: "torch.device | str") -> "Examples":
        """The same examples, on the device."""
        return Examples(self.features.to(device), self.targets.to(device))


class DataSet(Strict):
    """One data set; a subclass has its parameters as fields."""

    task: "ClassVar[Task]"

    def prepare(self, folder: Path, params: "Params") -> None:
        """Write the data set's files into its folder. This is what its stage does."""
        raise NotImplementedError

    def load_training(
        self, folder: Path, seed: int, device: "torch.device | str" = "cpu"
    ) -> tuple[Examples, Examples]:
        """Examples to train on and examples for validation. The test set is not read.

        Raises InputError where the files are not what `prepare` writes.
        """
        raise NotImplementedError

    def load_test(self, folder: Path, device: "torch.device | str" = "cpu") -> Examples:
        """Examples that no training sees. Raises InputError as `load_training` does."""
        raise NotImplementedError

    def true_weights(self, folder: Path) -> list[float] | None:
        """The weights and, last, the bias that the data were drawn with, where they are known."""
        return None


def require_valid(examples: Examples, task: "Task", folder: Path) -> None:
    """Raise InputError for no examples, targets that are not of the task, NaN or infinity."""
    features, targets = examples
    if not len(targets) or len(features) != len(targets):
        raise InputError(f"{folder}: expected examples, found {len(features)} and {len(targets)}")
    if not features.isfinite().all() or not targets.isfinite().all():
        raise InputError(f"{folder}: a number is missing, NaN or infinite")
    if task.name == "classification" and not 0 <= targets.min() <= targets.max() < task.outputs:
        raise InputError(f"{folder}: expected classes 0 … {task.outputs - 1} as targets")


def held_out(n: int, validation: int, seed: int, folder: Path) -> "tuple[Tensor, Tensor]":
    """Split the indices 0 … n-1 at random: return those to train on, and `validation` others.

    Raises InputError where no index is left to train on.
    """
    from exact import random

    if validation >= n:
        raise InputError(f"{folder}: expected more than {validation} examples, found {n}")
    order = random.permutation(n, seed, "validation split")
    return order[validation:], order[:validation]


def read_numbers(path: Path) -> "pd.DataFrame":
    """A CSV of numbers with a header, as float32. Raises InputError for any other file."""
    import numpy as np
    import pandas as pd

    # A number that is too large becomes infinite, which is refused below.
    with reading(path, "a table of numbers"), np.errstate(over="ignore"):
        table = pd.read_csv(path, dtype="float32")
    # Else a row is longer than the first.
    if table.empty or not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: expected at least one row, and all as long as the header")
    if not np.isfinite(table.to_numpy()).all():
        raise InputError(f"{path}: a number is missing, NaN or infinite")
    return table


def dataset_class(name: str) -> type[DataSet]:
    """The class in lab/datasets/<name>.py. Raises ValueError, with the data sets there are."""
    return class_named("lab.datasets", name, DataSet)
