"""A trained model as MLflow logs it: the safetensors file, a loader, and no pickle."""

import importlib.metadata
import tempfile
import warnings
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from lab.networks import Shape

SOURCE = "stages/record.py"
REQUIREMENTS = ("mlflow", "numpy", "pydantic", "ruamel.yaml", "safetensors", "torch")


def log_model(client: mlflow.MlflowClient, run_id: str, path: Path, shape: Shape) -> None:
    """Log the safetensors file as a model that `mlflow.pyfunc.load_model` loads anywhere."""
    number = np.dtype(np.float32)
    run = client.get_run(run_id)
    # Not by log_model: that adds the user's name, the script's path, git's remote and the store's
    # path, and asks a server that hangs once more.
    model = client.create_logged_model(
        run.info.experiment_id, "model", run_id, {"mlflow.source.name": SOURCE}, run.data.params
    )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no input example
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            mlflow_model=Model("model", run_id, model_uuid=model.model_id, model_id=model.model_id),
            loader_module="tracking.serving",
            data_path=path.as_posix(),
            code_paths=["exact", "lab", "tracking"],
            signature=ModelSignature(
                Schema([TensorSpec(number, (-1, *shape.inputs))]),
                Schema([TensorSpec(number, (-1, shape.outputs))]),
            ),
            pip_requirements=versions,
        )
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")
