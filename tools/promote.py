"""Make the model of a recorded run the champion in MLflow's registry, if the run replays.

    make promote RUN=3f2a            # or: python -m tools.promote 3f2a
    mlflow models serve --env-manager local -m models:/mlp@champion

The run is replayed as by tools.replay: its own code runs, so promote only from a store you trust.

Exit code 0: promoted. 1: the run does not replay, or MLflow fails. 2: it cannot be replayed.
"""

import argparse
import contextlib

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lab.common.files import InputError
from stages import command
from tools import compare, replay
from tracking import store

CHAMPION = "champion"  # the alias of a model's version


def main() -> None:
    """Replay the run, register its model, and print how to serve it."""
    parser = argparse.ArgumentParser(description="Make a run's model the champion, if it replays.")
    run, differing = replay.replay_and_report(replay.argument(parser))
    if differing:
        raise InputError(f"run {run.info.run_id} is not promoted, as it does not replay")
    with store.one_line_errors("MLflow did not register the model"):
        version, tags = promote(mlflow.MlflowClient(), run.info.run_id)
    print(f"{version.name} version {version.version} is the champion: {described(tags)}")
    if replaced := tags.get("replaces"):
        print(f"It replaces {replaced}.")
    print(f"mlflow models serve --env-manager local -m models:/{version.name}@{CHAMPION}")


def promote(client: mlflow.MlflowClient, run_id: str) -> tuple[ModelVersion, dict[str, str]]:
    """Register the run's model under its experiment's name, as champion; return it and its tags.

    The tags say that it replays, what it was compared by, and which version it replaces. A run
    whose model is registered already gets no second version.
    """
    run = client.get_run(run_id)
    name = client.get_experiment(run.info.experiment_id).name
    with contextlib.suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    # MLflow gives numbers from a file, and text from a server.
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    tags = compared(run) | {key: run.data.tags[key] for key in ("replayed", "fingerprint")}
    champion = versions.get(str(client.get_registered_model(name).aliases.get(CHAMPION)))
    if champion and champion.run_id != run_id:
        tags["replaces"] = f"version {champion.version}, {described(champion.tags)}"
    version = next((v for v in versions.values() if v.run_id == run_id), None)
    if not version:
        model = replay.model_id(run)
        version = client.create_model_version(name, f"models:/{model}", run_id, model_id=model)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    return version, tags


def compared(run: Run) -> dict[str, str]:
    """The first measure by which runs are compared that this one has, and its value."""
    measure = next(name for name in compare.MEASURES if name in run.data.metrics)
    return {"compared_by": measure, measure: str(run.data.metrics[measure])}


def described(tags: dict[str, str]) -> str:
    """The measure and its value, as in "validation_accuracy 0.8931"."""
    measure = tags.get("compared_by", "")
    return f"{measure} {tags.get(measure, 'unknown')}".strip()


if __name__ == "__main__":
    command(main)
