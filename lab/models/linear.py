"""Linear regression and softmax regression: Xw + b (the book, chapters 3 and 4)."""

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from lab.models import Architecture

if TYPE_CHECKING:
    from torch import nn


class Linear(Architecture):
    """One layer of weights. The softmax of softmax regression is part of the loss."""

    def build(self, inputs: tuple[int, ...], outputs: int) -> "nn.Module":
        """Weights of standard deviation 0.01 and biases of 0, as in the book."""
        from torch import nn

        output = nn.Linear(math.prod(inputs), outputs)
        nn.init.normal_(output.weight, std=0.01)
        nn.init.zeros_(output.bias)
        return nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=output))
