"""A killed training continues from its checkpoint and produces the same bytes."""

import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
from ruamel.yaml import YAML

import stages
from lab import checkpoints, params, training
from stages import train

if TYPE_CHECKING:  # the forkserver needs no MLflow
    from tests.conftest import Clone, Program

pytestmark = pytest.mark.slow
fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "2. Exact resume")
MODEL: params.ModelName = "linear_regression"
OUTPUTS = [Path("results", MODEL, name) for name in ("model.safetensors", "history.csv")]
CHECKPOINTS = Path(".dvc/tmp/checkpoints")
Finish = Callable[[], tuple[bool, bool]]
MID_EPOCH = (27, "after")  # an epoch has 20 steps


def train_and_die(folder: Path, n: int, when: str, environment: dict[str, Any]) -> None:
    """Train with a checkpoint at every step, and die before, during or after the n-th.

    "During" means that half of the bytes are written. With n = 0, train undisturbed.
    """
    save, write, patch = (
        checkpoints.Checkpoint.save,
        safetensors.torch.save_file,
        pytest.MonkeyPatch(),
    )
    number = itertools.count(1)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save_and_die(checkpoint: checkpoints.Checkpoint, *state: Any) -> None:
        last = next(number) == n
        if last and when == "during":
            patch.setattr(safetensors.torch, "save_file", write_half_and_die)
        if not (last and when == "before"):
            save(checkpoint, *state)
        if last:
            die()

    def write_half_and_die(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        write(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        die()

    if n:
        patch.setattr(checkpoints, "INTERVAL", 0)
        patch.setattr(checkpoints.Checkpoint, "save", save_and_die)
    patch.setattr("sys.argv", ["train.py", MODEL])
    os.environ.update(environment)
    os.chdir(folder)
    stages.run(train.main)


def exit_code(folder: Path, n: int, when: str = "", **environment: Any) -> int | None:
    """Run `train_and_die` in a new process, forked from one that has loaded torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", __name__])
    process = context.Process(target=train_and_die, args=(folder, n, when, environment))
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def trained(finished: "Clone", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of an undisturbed training of four epochs, with momentum."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("exact", "lab", "stages", "data/regression"):
        shutil.copytree(finished.folder / name, folder / name)
    parameters = YAML().load(finished.folder / "params.yaml")
    parameters[MODEL] |= {"epochs": 4, "batch_size": 50, "momentum": 0.9, "weight_decay": 0.001}
    parameters[MODEL]["lr_schedule"] = "linear"
    YAML().dump(parameters, folder / "params.yaml")
    assert exit_code(folder, 0) == 0
    return folder


@pytest.fixture
def finish(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: "Program"
) -> Finish:
    """A function that trains to the end, in a copy of the folder without results.

    Returns whether it continued from a checkpoint, and whether the bytes are those of `trained`.
    """
    shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("results"))
    monkeypatch.chdir(tmp_path / "copy")

    def finish() -> tuple[bool, bool]:
        done = in_process(train, MODEL)
        assert done.returncode == 0, done.stderr
        same = all(path.read_bytes() == (trained / path).read_bytes() for path in OUTPUTS)
        return "going on from a checkpoint" in done.stderr, same

    return finish


def kill(*moment: Any, **environment: Any) -> None:
    """Train until the process is killed."""
    assert exit_code(Path.cwd(), *moment, **environment) == -signal.SIGKILL
    assert not any(path.exists() for path in OUTPUTS)


@fault(
    "training killed {where}",
    "it continued, or without a complete checkpoint started again, and produced the same bytes",
    "without the position in the checkpoint the bytes differ",
)
@pytest.mark.parametrize(
    ("where", "moments"),
    [
        ("before its first checkpoint was complete", [(1, "during")]),
        ("in the middle of an epoch", [MID_EPOCH]),
        ("at the last step of an epoch", [(40, "after")]),
        ("at the first step of an epoch", [(41, "after")]),
        ("at the last step of all", [(80, "after")]),
        ("while the second checkpoint was written", [(2, "during")]),
        ("just before a checkpoint", [(50, "before")]),
        ("five times", [(10, "after"), (10, "during"), (19, "after"), (1, "during"), (9, "after")]),
    ],
)
def test_a_killed_training_produces_the_same_bytes(
    finish: Finish, where: str, moments: list[tuple[int, str]]
) -> None:
    for moment in moments:
        kill(*moment)
    assert finish() == (moments != [(1, "during")], True)
    # Its own checkpoint is removed. A half-written one stays until it is a week old.
    assert not list(CHECKPOINTS.glob("*.safetensors"))


def test_without_the_position_the_bytes_differ(finish: Finish) -> None:
    kill(*MID_EPOCH)
    (path,) = CHECKPOINTS.iterdir()
    checkpoint = checkpoints.Checkpoint(path)
    assert checkpoint.saved
    checkpoint.save(checkpoint.saved.tensors, checkpoint.saved.state | {"position": {}})
    assert finish() == (True, False)


def edit(name: str, old: str, new: str) -> None:
    """Replace a part of a file."""
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new, 1))


@fault(
    "training killed, then {change}",
    "the checkpoint was not used: the training started again",
    "unchanged, it is used",
)
@pytest.mark.parametrize(
    "change",
    [
        "the code changed",
        "the data changed",
        "the parameters changed",
        "the parameters changed and the checkpoint renamed accordingly",
        "one byte of the checkpoint flipped",
        "the checkpoint cut short",
    ],
)
def test_an_unfit_checkpoint_is_not_used(finish: Finish, change: str) -> None:
    kill(*MID_EPOCH)
    (path,) = CHECKPOINTS.iterdir()
    contents = bytearray(path.read_bytes())
    if "code" in change:
        edit("lab/models.py", '"""', '"""Other code. ')
    elif "data" in change:
        edit("data/regression/train.csv", "0.", "1.")
    elif "parameters" in change:
        edit("params.yaml", "lr: 0.03", "lr: 0.031")
        if "renamed" in change:
            path.rename(checkpoints.find(MODEL, params.load(), training.device()).path)
    elif "flipped" in change:
        contents[-3] ^= 1  # in the weights, which safetensors does not check
        path.write_bytes(contents)
    else:
        path.write_bytes(contents[:-1])
    assert finish() == (False, "data" not in change and "parameters" not in change)


@fault("checkpoints a week old", "the next training removed them", "younger ones stay")
def test_old_checkpoints_are_removed(finish: Finish) -> None:
    CHECKPOINTS.mkdir(parents=True)
    old, young = CHECKPOINTS / "old.safetensors", CHECKPOINTS / "young.safetensors"
    for path in (old, young):
        path.write_bytes(b"")
    week_ago = young.stat().st_mtime - checkpoints.KEPT - 1
    os.utime(old, (week_ago, week_ago))
    assert finish() == (False, True)
    assert list(CHECKPOINTS.iterdir()) == [young]  # so a short training writes none


def test_an_experiment_leaves_its_checkpoint_in_the_main_repository(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(*MID_EPOCH, DVC_ROOT=str(tmp_path))
    (path,) = (tmp_path / CHECKPOINTS).iterdir()
    saved = checkpoints.Checkpoint(path).saved
    assert saved and saved.state["position"]["step"] == 7
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert finish() == (True, True)
