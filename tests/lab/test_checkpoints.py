"""All that determines a training names its checkpoint; the rest does not."""

import shutil
import time
from pathlib import Path

import pytest
import torch

from benchmarks.clones import ROOT
from lab import checkpoints, params, workspace
from lab.checkpoints import Checkpoint

CPU = torch.device("cpu")
STATE = {"position": {"epoch": 2}, "loss": 0.1 + 0.2}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "folder" / "key.safetensors")


def tensors() -> dict[str, torch.Tensor]:
    return {"b": torch.arange(3.0), "a": torch.ones(2, 3).t()}


def test_what_was_saved_comes_back_until_it_is_removed(checkpoint: Checkpoint) -> None:
    assert checkpoint.saved is None
    checkpoint.save({k: v.contiguous() for k, v in tensors().items()}, STATE)
    saved = Checkpoint(checkpoint.path).saved
    assert saved and saved.state == STATE
    assert all(torch.equal(saved.tensors[name], value) for name, value in tensors().items())
    checkpoint.remove()
    assert Checkpoint(checkpoint.path).saved is None


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


def test_a_digest_holds_name_state_and_tensors_together(checkpoint: Checkpoint) -> None:
    checkpoint.save(tensors() | {"a": torch.ones(3, 2)}, STATE)
    contents = checkpoint.path.read_bytes()
    for place in range(0, len(contents), 7):
        damaged = bytearray(contents)
        damaged[place] ^= 1
        checkpoint.path.write_bytes(damaged)
        assert Checkpoint(checkpoint.path).saved is None, place
    other = checkpoint.path.with_name("other.safetensors")
    other.write_bytes(contents)
    assert Checkpoint(other).saved is None
    checkpoint.path.write_bytes(contents)
    assert Checkpoint(checkpoint.path).saved


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """That of the linear regression, in a folder of its own with the project's code."""
    for folder in workspace.CODE:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / params.REGRESSION).mkdir(parents=True)
    (tmp_path / params.REGRESSION / "train.csv").write_text("x1,y\n1,2\n")
    return checkpoints.key("linear_regression", asked(), CPU)


def asked(old: str = "seed: 1", new: str = "seed: 1") -> params.Params:
    text = (ROOT / "tests/params.yaml").read_text(encoding="utf-8")
    assert old in text
    return params.parse(text.replace(old, new, 1))


def test_code_data_and_parameters_change_the_key(key: str) -> None:
    changed = {key, checkpoints.key("mlp", asked(), CPU)}
    for old, new in (("seed: 1", "seed: 2"), ("epochs: 5", "epochs: 6"), ("lr: 0.03", "lr: 0.04")):
        changed.add(checkpoints.key("linear_regression", asked(old, new), CPU))
    for path in (Path("exact/grid.py"), params.REGRESSION / "train.csv"):
        with path.open("a") as file:
            file.write("\n")
        changed.add(checkpoints.key("linear_regression", asked(), CPU))
    assert len(changed) == 7


def test_what_does_not_determine_the_result_does_not(key: str) -> None:
    Path("README.md").write_text("else")
    Path("exact/notes.txt").write_text("else")
    assert checkpoints.key("linear_regression", asked(), torch.device("cuda")) == key
    assert checkpoints.key("linear_regression", asked("epochs: 15", "epochs: 1"), CPU) == key
    # The last bits of native arithmetic are the device's.
    native = asked("arithmetic: exact", "arithmetic: native")
    keys = {checkpoints.key("linear_regression", native, torch.device(d)) for d in ("cpu", "cuda")}
    assert len(keys) == 2
