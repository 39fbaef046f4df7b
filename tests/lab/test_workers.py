"""A training on any number of workers produces the bytes of one on a single process."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

from exact.tests.workers import on_workers
from lab import workers
from lab.checkpoints import Checkpoint, Saved
from lab.common.files import InputError
from lab.schema import Arithmetic
from lab.workers import Group
from tests.lab.trainings import train

SIZES = (4, 7, 22)  # of a batch; the last batches of an epoch have 2, 1 and 22 examples
CHANGES: dict[str, Any] = {
    "optimizer": {"name": "adam", "weight_decay": 0.01},
    "label_smoothing": 0.1,
    "weight_averaging": 0.9,
}


def results(mesh: DeviceMesh | None, arithmetic: Arithmetic = "exact") -> list[bytes]:
    group = Group(mesh) if mesh else None
    return [train(arithmetic, group=group, batch_size=size, **CHANGES).result for size in SIZES]


@pytest.mark.sample(1)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_any_number_of_workers_produces_the_same_bytes(n: int) -> None:
    assert on_workers(results, n) == [results(None)] * n


def test_natively_the_bytes_depend_on_the_number_of_workers() -> None:
    native = partial(results, arithmetic="native")
    assert on_workers(native, 3)[0] != native(None)


def saved(mesh: DeviceMesh) -> list[Saved]:
    return train("exact", group=Group(mesh)).steps


def resume(mesh: DeviceMesh | None, step: Saved) -> bytes:
    return train("exact", step, group=Group(mesh) if mesh else None).result


def test_a_checkpoint_of_three_workers_serves_one_or_two() -> None:
    whole, steps = train("exact"), on_workers(saved, 3)[0]
    alone = whole.steps[7]
    assert steps[7].state == alone.state and steps[7].tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(x, alone.tensors[key]) for key, x in steps[7].tensors.items())
    assert resume(None, steps[7]) == whole.result
    assert on_workers(partial(resume, step=steps[7]), 2) == [whole.result] * 2


def agreed(mesh: DeviceMesh, folder: Path, key: str) -> tuple[bool, bool, str]:
    """Whether a worker continues from the checkpoint, whether it writes, and the error."""
    group = Group(mesh)
    mine = folder / str(group.rank) / f"{key if group.rank else 'aa'}.safetensors"
    if group.rank == 0:
        Checkpoint(mine).save({"x": torch.arange(3.0)}, {"step": 7})
    checkpoint = Checkpoint(mine)
    try:
        group.agree(checkpoint)
    except InputError as error:
        return False, False, str(error)
    found = checkpoint.saved
    return bool(found and found.tensors["x"][2] == found.state["step"] - 5), checkpoint.writes, ""


def test_all_continue_from_the_checkpoint_of_worker_0_if_they_train_the_same(
    tmp_path: Path,
) -> None:
    same = on_workers(partial(agreed, folder=tmp_path, key="aa"), 3)
    assert same == [(True, True, ""), (True, False, ""), (True, False, "")]
    for _, _, message in on_workers(partial(agreed, folder=tmp_path, key="ab"), 2):
        assert message.startswith("worker 1 has other parameters, code, data")


def test_the_number_of_workers_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("", 1), ("1", 1), ("12", 12)):
        monkeypatch.setenv("WORKERS", text)
        assert workers.number() == expected
    for text in ("0", "-1", "two", "1.5", "257", "٣"):
        monkeypatch.setenv("WORKERS", text)
        with pytest.raises(InputError, match=f"WORKERS: expected a number .* found {text}"):
            workers.number()
    assert "WORLD_SIZE" not in os.environ and not workers.is_worker()


def test_a_worker_is_one_whose_environment_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = {"RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**complete, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert workers.is_worker()
    for name, value in (("RANK", ""), ("RANK", "x"), ("MASTER_ADDR", ""), ("WORLD_SIZE", "two")):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=r"^WORLD_SIZE=.*RANK"):
            patch.setenv(name, value)
            workers.is_worker()
