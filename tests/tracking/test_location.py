"""Where MLflow's store is, also for an experiment in another folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from tracking import location
from tracking.repository import ROOT


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///runs/my.db", "sqlite:///{root}/runs/my.db"),
        ("sqlite:////elsewhere/my.db", "sqlite:////elsewhere/my.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_where_the_store_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir("/")  # as the folder of a queued experiment is another
    assert location.store_uri() == expected.format(root=tmp_path)


def test_workers_of_a_sweep_start_without_loading_mlflow() -> None:
    code = "import sys, tools.sweep; print({'mlflow', 'pandas', 'torch'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"
