"""The model as MLflow serves it: this file and the safetensors file, and no pickle.

MLflow stores this code with each logged model and runs it in `mlflow.pyfunc.load_model`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel, PythonModelContext  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Served(PythonModel):  # type: ignore[misc]
    """Features float32 (N, inputs) to outputs float32 (N, outputs), logits for the classifiers."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights."""
        # Here and not above: MLflow runs this file to log a model, too, which needs no torch.
        from lab import models

        self.model = models.load(Path(context.artifacts["model"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: "NDArray[np.float32]",
        params: dict[str, Any] | None = None,
    ) -> "NDArray[np.float32]":
        """What the safetensors file predicts."""
        import torch

        from lab import models

        outputs = models.predict(self.model, torch.from_numpy(model_input))
        return outputs.numpy()


mlflow.models.set_model(Served())
