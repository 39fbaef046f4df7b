"""A full disk, or a folder without write permission: one line of error, and no file is harmed."""

import importlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lab.common import lockfile
from tests.conftest import Clone, Program, contents
from tests.disks import UNLIMITED, limit

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault.with_args, "6. Disk")
OUTPUTS = ("data/**/*", "results/**/*")
CACHE = ".dvc/cache/files/md5/??/*"
TEMPORARY = "KiB for temporary files"
WITH_ROOM = "with more room the same command succeeds"


def stage_of(clone: Clone, name: str) -> Any:
    """The stage's entry in dvc.lock."""
    return YAML(typ="safe").load(clone.folder / "dvc.lock")["stages"][name]


def erase(clone: Clone, stage: str) -> None:
    """Remove the stage's outputs, here and in DVC's cache."""
    for out in stage_of(clone, stage)["outs"]:
        path = clone.folder / out["path"]
        for md5 in map(lockfile.md5, (path, *path.rglob("*"))):
            clone.cached(md5).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(clone.folder / ".dvc/cache/runs")


def assert_one_line(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1 and re.fullmatch("error: .*\n", done.stderr), done.stderr


def assert_dvc_failed_plainly(done: subprocess.CompletedProcess[str]) -> None:
    """The stage prints at most one line, which begins with error; DVC's begin with ERROR."""
    # DVC exits with 0 where it fails to copy a folder's files into its cache.
    assert done.returncode or "ERROR: failed to transfer" in done.stderr, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    dvcs = [line for line in lines if line.startswith(("ERROR: ", "Having any troubles?"))]
    assert lines and len(ours) <= 1 and len(lines) == len(ours) + len(dvcs), done.stderr


@fault(
    "the disk full at some point of `dvc repro`: in the data, DVC's cache, the results, the store"
    " or the artifacts",
    "DVC's error, one line of ours, every file whole or absent; with more room the same dvc.lock,"
    " outputs and cache, and the result recorded once",
    WITH_ROOM,
)
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("stage", "room"),
    [
        # none, half the data, half of DVC's copy
        *(("generate_regression", room) for room in ("0 KiB", "26 KiB", "100 KiB")),
        *(("download_fashion_mnist", room) for room in ("27000 KiB", "81000 KiB")),
        *(("evaluate@mlp", room) for room in ("170 KiB", "500 KiB")),
        *(("record@linear_regression", room) for room in ("300 KiB", "1080 KiB", "1400 KiB")),
    ],
)
def test_dvc_repro_stops_on_a_full_disk_and_completes_with_more_room(
    finished: Clone, disk: Path, tmp_path: Path, stage: str, room: str
) -> None:
    clone = finished.copy(disk / "clone")
    clone.forget_runs()
    erase(clone, stage)
    clone.environment |= {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "TMPDIR": str(tmp_path)}
    before = contents(clone.folder, *OUTPUTS)

    limit(disk, room)
    assert_dvc_failed_plainly(clone.try_("dvc", "repro"))
    left, complete = contents(clone.folder, *OUTPUTS), contents(finished.folder, *OUTPUTS)
    assert before.items() <= left.items() <= complete.items()

    limit(disk, *UNLIMITED)
    clone.run("python", "-m", "tools.repair")
    clone.run("dvc", "repro")
    clone.run("python", "-m", "tools.repair", "--damaged")  # removes DVC's incomplete copies
    everything = ("dvc.lock", *OUTPUTS, CACHE)
    assert contents(clone.folder, *everything) == contents(finished.folder, *everything)
    if stage.startswith("record"):
        assert clone.statuses().count("FINISHED") == 1
        assert "RUNNING" not in clone.statuses()


@fault(
    "a stage run by hand without room on the disk, for a further file, or for temporary files",
    "one line, exit code 1, the old outputs byte for byte",
    WITH_ROOM,
)
@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("stage", "room"),
    [
        *(("generate_regression", room) for room in ("0 KiB", "8 KiB", "0 files")),
        ("download_fashion_mnist", "30000 KiB"),
        ("train@linear_regression", "3 files"),  # the stage's lock and its folders
        *(("evaluate@linear_regression", room) for room in ("4 KiB", "3 files")),
        *(("record@linear_regression", f"{n} KiB") for n in (0, 400, 1050, 1200, 1350)),
        *(("record@linear_regression", room) for room in ("5 files", f"8 {TEMPORARY}")),
    ],
)
def test_a_stage_on_a_full_disk_fails_in_one_line_and_keeps_the_old_outputs(
    finished: Clone,
    disk: Path,
    tmp_path: Path,
    in_process: Program,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    room: str,
) -> None:
    root, temporary = (tmp_path, disk) if TEMPORARY in room else (disk, tmp_path)
    clone = finished.copy(root / "clone")
    clone.forget_runs()
    monkeypatch.chdir(clone.folder)
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(clone.mirror))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///first.db")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    name, argument = stage_of(clone, stage)["cmd"].split()[2:]
    module = importlib.import_module(name)

    limit(disk, room)
    failed = in_process(module, argument)
    limit(disk, *UNLIMITED)
    assert_one_line(failed)
    assert contents(clone.folder, *OUTPUTS) == contents(finished.folder, *OUTPUTS)

    # Another store, as MLflow in this process may hold connections to a database that failed.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///second.db")
    done = in_process(module, argument)
    assert done.returncode == 0, done.stderr
    assert contents(clone.folder, *OUTPUTS) == contents(finished.folder, *OUTPUTS)


@pytest.fixture
def bound(clone: Clone) -> Clone:
    """The finished pipeline without runs, whose commands obey the permissions of files."""
    clone.forget_runs()
    clone.without_forks()
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv to give up the capability to write everywhere")
        clone.prefix = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    return clone


@fault(
    "data, results, DVC's cache or the store's folder read-only, without the capability to write"
    " there all the same",
    "non-zero exit, one line of ours, nothing lost; with write permission the same dvc.lock and"
    " outputs",
    "with write permission the same command succeeds",
)
@pytest.mark.sample(0)
@pytest.mark.parametrize(
    ("folder", "stage"),
    [
        ("data", "generate_regression"),
        ("results", "train@linear_regression"),
        (".dvc/cache", "generate_regression"),  # which only DVC writes
        (".", "record@linear_regression"),  # where mlflow.db is created
    ],
)
def test_a_read_only_folder_stops_the_pipeline_and_nothing_is_lost(
    bound: Clone, finished: Clone, folder: str, stage: str
) -> None:
    if folder == ".":
        erase(bound, stage)
    if folder == ".dvc/cache":  # or DVC has nothing to add
        for path in (bound.folder / folder).iterdir():
            shutil.rmtree(path)
    before = contents(bound.folder, *OUTPUTS, CACHE)
    place = [str(bound.folder / folder)] if folder == "." else ["-R", str(bound.folder / folder)]
    repro = "dvc", "repro", "--force", "--single-item", stage

    subprocess.run(["chmod", "a-w", *place], check=True)
    if folder != ".dvc/cache":
        assert_one_line(bound.try_(*stage_of(bound, stage)["cmd"].split()))
    done = bound.try_(*repro)
    assert done.returncode
    assert_dvc_failed_plainly(done)
    assert contents(bound.folder, *OUTPUTS, CACHE) == before

    subprocess.run(["chmod", "u+w", *place], check=True)
    bound.run(*repro)
    assert bound.run("git", "status", "--porcelain") == ""
    assert contents(bound.folder, *OUTPUTS) == contents(finished.folder, *OUTPUTS)
    assert contents(bound.folder, CACHE).items() <= contents(finished.folder, CACHE).items()
    if folder == ".":
        assert bound.statuses() == ["FINISHED"]
