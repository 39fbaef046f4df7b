"""The models: the architecture of each kind, one class in the file of that name.

`models` in params.yaml names the kind; the section of the model has the class's fields.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lab.common.settings import Strict, class_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn


class Architecture(Strict):
    """What a model of one kind is built from; a subclass has these settings as its fields."""

    def build(self, inputs: tuple[int, ...], outputs: int) -> "nn.Module":
        """A network for examples of shape `inputs`, which returns (N, outputs).

        It is built under `exact.mode(seed=…)`, so PyTorch's initialisers draw the same bits on
        every machine. A loaded model is built on the device "meta", where they do nothing.
        """
        raise NotImplementedError

    def figures(self, weights: "Mapping[str, Tensor]", title: str) -> "dict[str, Figure]":
        """Figures of the trained weights for the run in MLflow, by file name."""
        return {}


def architecture_class(kind: str) -> type[Architecture]:
    """The class in lab/models/<kind>.py. Raises ValueError, with the kinds there are."""
    return class_named("lab.models", kind, Architecture)
