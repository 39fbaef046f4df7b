"""The multilayer perceptron (the book, chapter 5)."""

import math
from typing import TYPE_CHECKING, Literal

from lab.common.settings import Share, Widths
from lab.models import Architecture

if TYPE_CHECKING:
    from torch import nn


class MLP(Architecture):
    """Layers of weights with an activation function, and dropout, between them."""

    hidden: Widths
    activation: Literal["relu", "sigmoid", "tanh"]
    dropout: Share

    def build(self, inputs: tuple[int, ...], outputs: int) -> "nn.Module":
        """Biases are 0. The variance of the weights keeps the signal's from layer to layer.

        It is 2 / inputs for ReLU (He et al. 2015), which passes on half of what it gets, and
        1 / inputs for tanh (LeCun et al. 1998) and sigmoid.
        """
        from torch import nn

        activation = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}[self.activation]
        network = nn.Sequential()
        network.add_module("flatten", nn.Flatten())
        width = math.prod(inputs)
        for i, hidden in enumerate(self.hidden, start=1):
            network.add_module(f"hidden_{i}", nn.Linear(width, hidden))
            network.add_module(f"activation_{i}", activation())
            network.add_module(f"dropout_{i}", nn.Dropout(self.dropout))
            width = hidden
        network.add_module("output", nn.Linear(width, outputs))
        for layer in network:
            if isinstance(layer, nn.Linear):
                relu = self.activation == "relu"
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if relu else "linear")
                nn.init.zeros_(layer.bias)
        return network
