"""A model with its weights. Its file is complete: it also holds kind, settings and shape."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import exact
from lab.common.files import InputError, one_line, read_tensors, write_tensors
from lab.common.settings import Strict
from lab.models import Architecture, architecture_class

NORM = "gradient_norm_"  # before a layer's name: its column of the history
BATCH = 1000  # examples at once: a convolution needs a hundred times their memory
Size = Annotated[int, Field(ge=1, le=65_536)]


class Shape(Strict):
    """What one example and one output of a model look like."""

    inputs: Annotated[tuple[Size, ...], Field(strict=False, min_length=1, max_length=4)]
    outputs: Size


class Model(NamedTuple):
    """A network, and what it was built from. It maps (N, *inputs) to (N, outputs)."""

    kind: str
    architecture: Architecture
    shape: Shape
    network: nn.Module

    def save(self, path: Path) -> None:
        """Write the model to one safetensors file; the same model gives the same bytes."""
        description = {
            "kind": self.kind,
            "architecture": self.architecture.model_dump(),
            "shape": self.shape.model_dump(),
        }
        write_tensors(path, self.network.state_dict(), ("model", json.dumps(description)))

    def predict(
        self, features: Tensor, forward: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Outputs (N, outputs) for features (N, *inputs). Raises InputError for another shape.

        `forward` computes the outputs of a batch. By default it is the network.
        """
        inputs, found = self.shape.inputs, tuple(features.shape[1:])
        if found != inputs:
            raise InputError(f"the model takes examples of shape {inputs}, the data have {found}")
        self.network.eval()
        with torch.no_grad():
            return torch.cat([(forward or self.network)(batch) for batch in features.split(BATCH)])


@contextlib.contextmanager
def exactly(seed: int | None = None, advice: str = "") -> Iterator[None]:
    """Compute exactly within the block; PyTorch's random operations follow from the seed.

    Raises InputError where an operation or the machine is not exact, the former with the advice.
    """
    try:
        with exact.mode(seed=seed):
            yield
    except exact.NotExactError as error:
        raise InputError(f"exact arithmetic: {error}{advice}") from error
    except exact.MachineError as error:
        raise InputError(f"exact arithmetic: {error}") from error


def build(
    kind: str, architecture: Architecture, features: Tensor, outputs: int, seed: int
) -> Model:
    """A model before training, for examples like these; the seed decides its weights.

    Raises InputError where the architecture does not fit the examples.
    """
    inputs = tuple(features.shape[1:])
    try:
        with exactly(seed):
            network = architecture.build(inputs, outputs)
        with torch.no_grad():
            found = network.eval()(features[:1].cpu()).shape
        if found != (1, outputs):
            raise ValueError(f"it returns {tuple(found)} for one example, not {(1, outputs)}")
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise InputError(
            f"{kind} does not fit examples of shape {inputs}: {one_line(error)}"
        ) from error
    return Model(kind, architecture, Shape(inputs=inputs, outputs=outputs), network)


def load(path: Path) -> Model:
    """Read a model, ready for prediction. Raises InputError if the file is damaged or no model."""
    tensors, metadata = read_tensors(path)
    try:
        description = json.loads(metadata["model"])
        kind = str(description["kind"])
        architecture = architecture_class(kind).model_validate(description["architecture"])
        shape = Shape.model_validate(description["shape"])
        # Without memory, whatever sizes an untrusted file may claim.
        with torch.device("meta"), _NoRandomInit():
            network = architecture.build(shape.inputs, shape.outputs).eval()
        network.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RecursionError, RuntimeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InputError(f"{path}: not a model of this project: {one_line(reason)}") from error
    for name, tensor in network.state_dict().items():
        floats = tensor.is_floating_point()
        if floats and (tensor.dtype != torch.float32 or not torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} should be finite float32 numbers")
    return Model(kind, architecture, shape, network)


class _NoRandomInit(TorchFunctionMode):
    """`normal_` does nothing. On the device "meta" it would load PyTorch's compiler."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """The modules that have parameters of their own, by name, in the order of the network."""
    return {
        name.replace(".", "_") or "network": module
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
