"""The data sets: one class each in the file of that name, whose fields are its parameters.

A data set's name is that of its file, of its section in params.yaml and of its folder in data/.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lab.common.settings import Strict, class_named

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lab.schema import Params
    from lab.tasks import Task

SPLITS = ("train", "validation", "test")


class Examples(NamedTuple):
    """Features and targets, example by example.

    Features are float32 (N, …). Targets are float32 (N, 1) for regression, and the
    numbers of the classes, int64 (N,), for classification.
    """

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


def dataset_class(name: str) -> type[DataSet]:
    """The class in lab/datasets/<name>.py. Raises ValueError, with the data sets there are."""
    return class_named("lab.datasets", name, DataSet)
