"""A killed training continues from its checkpoint and produces the same bytes."""

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lab import checkpoints, params, schema, training
from lab.common import workspace
from stages import train
from tests.conftest import Clone, Program, contents
from tracking.repository import ROOT

pytestmark = pytest.mark.slow
fault: Callable[..., pytest.MarkDecorator] = partial(pytest.mark.fault, "2. Exact resume")
MODEL = "linear_regression"
DATA = schema.folder("regression_data")
RESULTS = schema.results(MODEL)
CHECKPOINTS = Path(".dvc/tmp/checkpoints")
Finish = Callable[[], tuple[bool, bool]]
MID_EPOCH = (27, "after")  # an epoch has 20 steps


# Trains with a checkpoint at every step, and dies before, during or after the n-th. "During" means
# that half of the bytes are written. With n = 0, it trains undisturbed.
PROGRAM = f"""
import itertools, os, signal, sys
import stages
from lab import checkpoints
from stages import train

n, when = int(sys.argv[1]), sys.argv[2]
save, number = checkpoints.Checkpoint.save, itertools.count(1)

def save_and_die(checkpoint, *state):
    last = next(number) == n
    if last and when == "during":
        os.fsync = halve_and_die  # which ends the writing
    if not (last and when == "before"):
        save(checkpoint, *state)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)

def halve_and_die(descriptor):
    os.truncate(f"/proc/self/fd/{{descriptor}}", os.fstat(descriptor).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)

if n:
    checkpoints.INTERVAL, checkpoints.Checkpoint.save = 0, save_and_die
sys.argv = ["train.py", "{MODEL}"]
stages.run(train.main)
"""


def exit_code(folder: Path, n: int, when: str = "") -> int:
    """Run the program in the folder."""
    clone = Clone(folder, folder)
    clone.with_forks()
    (folder / "dying.py").write_text(PROGRAM)
    root = {name: os.environ[name] for name in ["DVC_ROOT"] if name in os.environ}
    return clone.try_("python", "-m", "dying", str(n), when, **root).returncode


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of an undisturbed training of four epochs, with momentum."""
    folder = tmp_path_factory.mktemp("trained")
    for name in workspace.CODE:
        shutil.copytree(ROOT / name, folder / name)
    parameters = YAML().load(ROOT / "tests/params.yaml")
    sgd = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.001}
    parameters[MODEL] |= {"epochs": 4, "batch_size": 50, "optimizer": sgd, "lr_schedule": "linear"}
    YAML().dump(parameters, folder / "params.yaml")
    p = params.load(folder / "params.yaml")
    p.dataset(MODEL).prepare(folder / DATA, p)
    assert exit_code(folder, 0) == 0
    return folder


@pytest.fixture
def finish(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Program
) -> Finish:
    """A function that trains to the end, in a copy of the folder without results.

    Returns whether it continued from a checkpoint, and whether the bytes are those of `trained`.
    """
    shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("results"))
    monkeypatch.chdir(tmp_path / "copy")

    def finish() -> tuple[bool, bool]:
        done = in_process(train, MODEL)
        assert done.returncode == 0, done.stderr
        same = contents(RESULTS) == contents(trained / RESULTS)
        return "continuing from a checkpoint" in done.stderr, same

    return finish


def kill(n: int, when: str) -> None:
    """Train until the process is killed."""
    assert exit_code(Path.cwd(), n, when) == -signal.SIGKILL
    assert not RESULTS.exists()


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
    checkpoint.save(checkpoint.saved.tensors, checkpoint.saved.state | {"at": {}})
    assert finish() == (True, False)


def other_lr(text: bytes) -> bytes:
    return text.replace(b"0.03", b"0.04", 1)


@fault(
    "training killed, then {change}",
    "the checkpoint was not used: the training started again",
    "unchanged, it is used",
)
@pytest.mark.parametrize(
    ("change", "path", "edit"),
    [
        ("the code changed", "lab/networks.py", lambda old: b"# other code\n" + old),
        ("the data changed", DATA / "train.csv", lambda old: old.replace(b"0.", b"1.", 1)),
        ("the parameters changed", "params.yaml", other_lr),
        ("the checkpoint renamed as for other parameters", "params.yaml", other_lr),
        # In a tensor, which safetensors does not check.
        ("one byte of the checkpoint flipped", "", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        ("the checkpoint cut short", "", lambda old: old[:-1]),
    ],
)
def test_an_unfit_checkpoint_is_not_used(
    finish: Finish, change: str, path: Path | str, edit: Callable[[bytes], bytes]
) -> None:
    kill(*MID_EPOCH)
    (checkpoint,) = CHECKPOINTS.iterdir()
    path = Path(path or checkpoint)
    path.write_bytes(edit(path.read_bytes()))
    if "renamed" in change:
        checkpoint.rename(checkpoints.find(MODEL, params.load(), training.device()).path)
    assert finish() == (False, path.name not in ("train.csv", "params.yaml"))


@fault("checkpoints a week old", "the next training removed them", "younger ones stay")
def test_old_checkpoints_are_removed(finish: Finish) -> None:
    CHECKPOINTS.mkdir(parents=True)
    old, young = CHECKPOINTS / "old.safetensors", CHECKPOINTS / "young.safetensors"
    for path in (old, young):
        path.write_bytes(b"")
    week_ago = young.stat().st_mtime - checkpoints.MAX_AGE - 1
    os.utime(old, (week_ago, week_ago))
    assert finish() == (False, True)
    assert list(CHECKPOINTS.iterdir()) == [young]  # so a short training writes none


def test_an_experiment_leaves_its_checkpoint_in_the_main_repository(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    kill(*MID_EPOCH)
    (path,) = (tmp_path / CHECKPOINTS).iterdir()
    saved = checkpoints.Checkpoint(path).saved
    assert saved and saved.state["at"]["step"] == 7
    assert finish() == (True, True)
