"""Loads a model for `mlflow.pyfunc.load_model`; MLflow stores this package with each model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import exact
from lab import networks


class Served:
    """A trained model behind MLflow's interface."""

    def __init__(self, model: networks.Model) -> None:
        self.model = model

    def predict(
        self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Features (N, *inputs) to outputs (N, outputs): predictions, or logits of the classes."""
        with exact.mode():  # so that a prediction depends on neither the machine nor the batch
            outputs = self.model.predict(torch.from_numpy(model_input))
        return np.asarray(outputs.numpy())


def _load_pyfunc(path: str) -> Served:  # the name that MLflow looks for
    return Served(networks.load(Path(path)))
