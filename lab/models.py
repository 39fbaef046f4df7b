"""The three models as one family: layers of weights with an activation between them.

Without a hidden layer and with one output it is linear regression; without a
hidden layer and with ten outputs, softmax regression; else a multilayer perceptron.
A model's file is complete: it holds the architecture beside the weights.
"""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from exact import random
from lab.files import InputError, one_line, read_tensors, write_tensors
from lab.params import Activation, ModelName, Params, Share, Strict, Widths

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Architecture(Strict):
    """What a model computes, without its weights."""

    inputs: Annotated[int, Field(ge=1, le=65_536)]
    outputs: Annotated[int, Field(ge=1, le=65_536)]
    hidden: Annotated[Widths, Field(min_length=0)] = ()
    activation: Activation = "relu"
    dropout: Share = 0.0


def architecture(name: ModelName, params: Params) -> Architecture:
    """What the parameters ask of a model."""
    inputs, outputs = params.shape(name)
    if name != "mlp":
        return Architecture(inputs=inputs, outputs=outputs)
    layers = params.mlp.model_dump(include={"hidden", "activation", "dropout"})
    return Architecture(inputs=inputs, outputs=outputs, **layers)


class Dropout(nn.Module):
    """Silences each unit with probability p while training, and scales the others by 1/(1-p).

    The mask of the n-th call follows from (seed, layer, n) alone.
    """

    def __init__(self, p: float, seed: int, layer: int) -> None:
        super().__init__()
        self.p, self.seed, self.layer, self.calls = p, seed, layer, 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        if not self.training or self.p == 0:
            return x
        kept = random.bernoulli(
            1 - self.p, tuple(x.shape), self.seed, "dropout", self.layer, self.calls
        )
        self.calls += 1
        return x * kept.to(x.device) * (1 / (1 - self.p))


class Linear(nn.Linear):
    """nn.Linear without values: torch's own initialisation draws from the global generator."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class Network(nn.Sequential):
    """Maps features (N, inputs) to outputs (N, outputs): predictions, or logits of the classes.

    Its weights have no values yet: `build` draws them, `load` reads them.
    """

    def __init__(self, architecture: Architecture, seed: int, device: str = "cpu") -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = architecture.inputs
        for i, hidden in enumerate(architecture.hidden, start=1):
            layers[f"hidden_{i}"] = Linear(width, hidden, device=device)
            layers[f"activation_{i}"] = ACTIVATIONS[architecture.activation]()
            layers[f"dropout_{i}"] = Dropout(architecture.dropout, seed, i)
            width = hidden
        layers["output"] = Linear(width, architecture.outputs, device=device)
        super().__init__(layers)
        self.architecture = architecture


def build(architecture: Architecture, seed: int) -> Network:
    """A model before training: weights drawn, biases 0.

    As in the book, weights of a model without hidden layers have standard deviation
    0.01. In a deeper one that would make signal and gradient shrink from layer to
    layer, so there it is sqrt(2 / inputs) for ReLU (He et al. 2015), which passes on
    half of what it gets, and sqrt(1 / inputs) for tanh and sigmoid (LeCun et al. 1998).
    """
    model = Network(architecture, seed)
    gain = math.sqrt(2) if architecture.activation == "relu" else 1.0
    for i, layer in enumerate(linear_layers(model).values()):
        shape, key = tuple(layer.weight.shape), (seed, "initial weights", i)
        if architecture.hidden:
            weights = random.kaiming_normal(shape, *key, gain=gain)
        else:
            weights = random.normal(shape, *key) * 0.01
        layer.weight.data.copy_(weights)
        layer.bias.data.zero_()
    return model


def linear_layers(model: Network) -> dict[str, Linear]:
    """The layers that have weights, by name, first to last."""
    return {name: layer for name, layer in model.named_children() if isinstance(layer, Linear)}


def save(model: Network, path: Path) -> None:
    """Write the model to one safetensors file; the same model gives the same bytes."""
    architecture = model.architecture.model_dump_json()
    write_tensors(path, model.state_dict(), ("architecture", architecture))


def load(path: Path) -> Network:
    """Read a model, ready for prediction. Raises InputError for anything but a whole one."""
    tensors, metadata = read_tensors(path)
    try:
        architecture = Architecture.model_validate_json(metadata["architecture"])
        # Without memory of its own, whatever sizes a stranger's file may claim.
        model = Network(architecture, seed=0, device="meta").eval()
        model.load_state_dict(tensors, assign=True)
    except (KeyError, ValidationError, RuntimeError) as error:
        raise InputError(f"{path}: not a model of this project: {one_line(error)}") from error
    for name, tensor in model.state_dict().items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} should be finite float32 numbers")
    return model


def predict(model: Network, features: Tensor) -> Tensor:
    """The outputs for features (N, inputs), without gradients. Raises InputError otherwise."""
    inputs, found = model.architecture.inputs, tuple(features.shape[1:])
    if found != (inputs,):
        raise InputError(f"the model takes examples of shape {(inputs,)}, the data have {found}")
    model.eval()
    with torch.no_grad():
        outputs: Tensor = model(features)
    return outputs
