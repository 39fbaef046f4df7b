"""All that determines a training names its checkpoint; the rest does not."""

import time
from pathlib import Path

import pytest
import torch

from lab import checkpoints, params
from lab.checkpoints import Checkpoint
from tests.inputs import replaced

MODEL = "linear_regression"
STATE = {"at": {"epoch": 2}, "loss": 0.1 + 0.2}
TENSORS = {"b": torch.arange(3.0), "a": torch.ones(3, 2)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "folder" / "key.safetensors")


def test_one_is_due_when_the_last_is_old_enough(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not checkpoint.due()
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.01)
    time.sleep(0.02)
    assert checkpoint.due()
    checkpoint.save({}, STATE)
    assert not checkpoint.due()


def test_a_folder_that_cannot_be_written_stops_nothing(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.path.parent.write_text("a file where the folder should be")
    checkpoint.save({}, STATE)
    assert "going on without a checkpoint: " in capsys.readouterr().err
    assert Checkpoint(checkpoint.path).saved is None


def test_what_was_saved_comes_back_whole_or_not_at_all(checkpoint: Checkpoint) -> None:
    assert checkpoint.saved is None
    checkpoint.save(TENSORS, STATE)
    saved = Checkpoint(checkpoint.path).saved
    assert saved and saved.state == STATE and saved.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(saved.tensors[name], value) for name, value in TENSORS.items())
    other = checkpoint.path.with_name("other.safetensors")
    other.write_bytes(checkpoint.path.read_bytes())
    assert Checkpoint(other).saved is None
    checkpoint.path.unlink()
    assert Checkpoint(checkpoint.path).saved is None


def key(old: str = "", new: str = "", model: str = MODEL, device: str = "cpu") -> str:
    """The key in the current folder, after a change of tests/params.yaml."""
    return checkpoints.key(model, params.parse(replaced(old, new)), torch.device(device))


def test_parameters_that_determine_the_result_change_the_key_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/faults/test_resume.py changes code and data."""
    monkeypatch.chdir(tmp_path)
    first = key()
    assert key("epochs: 15", "epochs: 1") == key(device="cuda") == first

    native = ("arithmetic: exact", "arithmetic: native")  # depends on the device
    keys = [first, key(model="mlp"), key(*native), key(*native, device="cuda")]
    keys += [key("seed: 1", "seed: 2"), key("lr: 0.03", "lr: 0.04"), key("epochs: 5", "epochs: 6")]
    keys += [key("optimizer: sgd", "optimizer: adam"), key("noise: 0.01", "noise: 0.02")]
    keys.append(key("optimizer: sgd", "optimizer: {name: sgd, momentum: 0.9}"))
    assert len(set(keys)) == 10
