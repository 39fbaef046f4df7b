"""A run's model becomes the champion if the run replays; real runs in a real registry."""

import contextlib
import sqlite3

import pytest
from mlflow import MlflowClient

from stages import record
from tests import servers
from tests.conftest import Clone, Program
from tools import promote

pytestmark = pytest.mark.slow
MODEL = "linear_regression"  # the fastest


def test_a_run_that_does_not_replay_is_refused_and_nothing_is_registered(
    clone: Clone, in_process: Program
) -> None:
    store = f"sqlite:///{clone.folder}/mlflow.db"
    (run,) = servers.runs(store, MODEL)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
        db.execute("UPDATE params SET value = '0.5' WHERE key = 'lr'")
        db.commit()
    done = in_process(promote, run.info.run_id)
    assert done.returncode == 1
    refused = f"error: run {run.info.run_id} is not promoted, as it does not replay"
    assert done.stderr.splitlines()[-1] == refused
    assert not MlflowClient(store).search_registered_models()


def test_a_new_champion_says_which_it_replaces_and_a_run_is_registered_once(
    clone: Clone, in_process: Program
) -> None:
    store = f"sqlite:///{clone.folder}/mlflow.db"
    assert in_process(record, MODEL).returncode == 0
    first, second = servers.runs(store, MODEL)
    done = in_process(promote, first.info.run_id)
    assert done.returncode == 0, done.stderr
    assert "replaces" not in done.stdout
    client = MlflowClient(store)
    client.set_tag(second.info.run_id, "replayed", "identical on another machine")
    _, tags = promote.promote(client, second.info.run_id)
    loss = first.data.metrics["validation_loss"]
    assert tags["replaces"] == f"version 1, validation_loss {loss}"

    promote.promote(client, first.info.run_id)
    champion = client.get_model_version_by_alias(MODEL, "champion")
    assert champion.run_id == first.info.run_id and str(champion.version) == "1"
    assert champion.tags["replaces"].startswith("version 2, ")
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 2
