"""A killed training goes on where its checkpoint says, and ends at the same bytes."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import checkpoints, files
from tests.conftest import Clone
from tests.faults.conftest import copy_of

pytestmark = pytest.mark.slow
PART = "2. Exact resume"
CHECKPOINTS = ".dvc/tmp/checkpoints"
OUTPUTS = [f"results/linear_regression/{name}" for name in ("model.safetensors", "history.csv")]

# Trains with a checkpoint after each step, and is killed at the n-th: before it, while it is
# written (half of the bytes are there), or after it.
TRAIN = """
import os, runpy, signal, sys
from pathlib import Path
import safetensors.torch
from lab import checkpoints

n, when = int(sys.argv[1]), sys.argv[2]
saved, save, write = 0, checkpoints.Checkpoint.save, safetensors.torch.save_file

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def save_and_die(self, tensors, state):
    global saved
    saved += 1
    if saved == n and when == "before":
        die()
    save(self, tensors, state)
    if saved == n and when == "after":
        die()

def write_half_and_die(tensors, path, metadata=None):
    write(tensors, path, metadata)
    if saved == n and when == "during":
        os.truncate(path, Path(path).stat().st_size // 2)
        die()

checkpoints.INTERVAL = 0
checkpoints.Checkpoint.save = save_and_die
safetensors.torch.save_file = write_half_and_die
sys.argv = ["stages/train.py", "linear_regression"]
runpy.run_module("stages.train", run_name="__main__", alter_sys=True)
"""

# As if a checkpoint had all but the position: the training begins its examples again.
FORGET = """
import sys
from pathlib import Path
from lab import checkpoints

(path,) = Path(sys.argv[1]).iterdir()
found = checkpoints.Checkpoint(path)
found.save(found.saved.tensors, found.saved.state | {"position": {}})
"""


@pytest.fixture(scope="module")
def trained(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Four epochs of a hundred steps, with momentum and a schedule."""
    clone = copy_of(finished, tmp_path_factory.mktemp("trained") / "copy")
    path = clone.folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    start, end = text.index("linear_regression:"), text.index("softmax_regression:")
    section = "epochs: 4, batch_size: 10, momentum: 0.9, weight_decay: 0.001, lr_schedule: linear"
    text = f"{text[:start]}linear_regression: {{{section}}}\n{text[end:]}"
    path.write_text(text, encoding="utf-8")
    clone.run("python", "-m", "stages.train", "linear_regression")
    return clone


def outputs(clone: Clone) -> list[bytes]:
    return [(clone.folder / name).read_bytes() for name in OUTPUTS]


def kill(clone: Clone, n: int, when: str) -> None:
    done = clone.try_("python", "-c", TRAIN, str(n), when)
    assert done.returncode == -9, done.stderr


def go_on(clone: Clone) -> bool:
    """Train to the end; whether it went on from a checkpoint."""
    done = clone.try_("python", "-m", "stages.train", "linear_regression")
    assert done.returncode == 0, done.stderr
    return "going on from a checkpoint" in done.stderr


@pytest.fixture
def killed(trained: Clone, tmp_path: Path) -> Callable[..., Clone]:
    """A clone whose training was killed at each of these moments, one after the other."""

    def make(*moments: tuple[int, str]) -> Clone:
        clone = copy_of(trained, tmp_path / "copy")
        for name in OUTPUTS:
            (clone.folder / name).unlink()
        for n, when in moments:
            kill(clone, n, when)
            assert not any((clone.folder / name).exists() for name in OUTPUTS)
        return clone

    return make


@pytest.mark.parametrize(
    ("where", "moments"),
    [
        ("in the middle of an epoch", [(137, "after")]),
        ("at the last step of an epoch", [(200, "after")]),
        ("at the first step of an epoch", [(201, "after")]),
        ("at the last step of all", [(400, "after")]),
        ("while the second checkpoint was written", [(2, "during")]),
        ("just before a checkpoint", [(250, "before")]),
        ("five times", [(50, "after"), (50, "during"), (99, "after"), (1, "during"), (9, "after")]),
    ],
)  # fmt: skip
def test_a_killed_training_ends_at_the_same_bytes(
    trained: Clone, killed: Callable[..., Clone], where: str, moments: list[tuple[int, str]],
    tried: Callable[..., None],
) -> None:  # fmt: skip
    clone = killed(*moments)
    assert go_on(clone)
    assert outputs(clone) == outputs(trained)
    # Its own checkpoint is gone; a half-written one stays until it is old.
    assert not list((clone.folder / CHECKPOINTS).glob("*.safetensors"))
    tried(
        PART, f"training killed {where}", "it went on and ended at the same bytes",
        "without the position in the checkpoint the bytes differ",
    )  # fmt: skip


def test_a_training_killed_before_its_first_checkpoint_begins_anew(
    trained: Clone, killed: Callable[..., Clone], tried: Callable[..., None]
) -> None:
    clone = killed((1, "during"))
    assert not go_on(clone)
    assert outputs(clone) == outputs(trained)
    tried(
        PART, "training killed before its first checkpoint was whole", "it began anew: same bytes"
    )


def test_without_the_position_the_bytes_differ(
    trained: Clone, killed: Callable[..., Clone]
) -> None:
    clone = killed((137, "after"))
    clone.run("python", "-c", FORGET, CHECKPOINTS)
    assert go_on(clone)
    assert outputs(clone) != outputs(trained)


@pytest.mark.parametrize("changed", ["code", "parameters", "data"])
def test_a_checkpoint_of_another_training_is_not_used(
    killed: Callable[..., Clone], changed: str, tried: Callable[..., None]
) -> None:
    clone = killed((137, "after"))
    if changed == "code":
        with (clone.folder / "lab/models.py").open("a") as file:
            file.write("# another code\n")
    elif changed == "parameters":
        clone.edit({"lr: 0.03": "lr: 0.031"})
    else:
        clone.edit({"noise: 0.01": "noise: 0.02"})
        clone.run("dvc", "repro", "generate_regression")
        clone.edit({"noise: 0.02": "noise: 0.01"})  # the data alone are others
    assert not go_on(clone)
    tried(
        PART, f"training killed, then other {changed}", "its checkpoint was not used",
        "with the same code, parameters and data it is",
    )  # fmt: skip


@pytest.mark.parametrize("how", ["one byte flipped", "cut short", "another's name"])
def test_a_damaged_checkpoint_is_not_used(
    trained: Clone, killed: Callable[..., Clone], how: str, tried: Callable[..., None]
) -> None:
    clone = killed((137, "after"))
    (path,) = (clone.folder / CHECKPOINTS).iterdir()
    contents = bytearray(path.read_bytes())
    if how == "one byte flipped":
        contents[-3] ^= 1  # in the weights, where safetensors itself does not look
    elif how == "cut short":
        del contents[-1]
    path.write_bytes(contents)
    if how == "another's name":
        other = path.with_name(f"{'0' * 64}.safetensors")
        shutil.copy(path, other)
        assert checkpoints.Checkpoint(path).saved and not checkpoints.Checkpoint(other).saved
    else:
        assert not go_on(clone)
        assert outputs(clone) == outputs(trained)
    tried(PART, f"checkpoint damaged: {how}", "it was not used", "the same, undamaged, is")


def test_checkpoints_that_nobody_went_on_with_are_removed(
    killed: Callable[..., Clone], tried: Callable[..., None]
) -> None:
    clone = killed((137, "during"))
    folder = clone.folder / CHECKPOINTS
    old, young = folder / "old.safetensors", folder / "young.safetensors"
    for path in (old, young):
        path.write_bytes(b"")
    week = young.stat().st_mtime - checkpoints.KEPT - 1
    os.utime(old, (week, week))
    go_on(clone)
    assert young.exists() and not old.exists()
    tried(PART, "checkpoints a week old", "the next training removed them", "younger ones stay")


def test_a_short_training_writes_none(trained: Clone) -> None:
    assert not (trained.folder / CHECKPOINTS).exists()


def test_a_killed_queued_experiment_leaves_its_checkpoint_in_the_main_repository(
    trained: Clone, tmp_path: Path
) -> None:
    aside = copy_of(trained, tmp_path / "aside")
    aside.environment["DVC_ROOT"] = str(tmp_path / "main")
    kill(aside, 137, "after")
    (path,) = (tmp_path / "main" / CHECKPOINTS).iterdir()
    said = json.loads(files.read_tensors(path)[1]["checkpoint"])
    assert json.loads(said["state"])["position"]["step"] == 37
    assert go_on(aside)
