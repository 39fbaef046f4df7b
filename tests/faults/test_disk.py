"""A full disk, or a folder without write permission: one line of error, and no file is harmed."""

import contextlib
import importlib
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lab.common import lockfile
from tests.conftest import Clone, Program

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault.with_args, "6. Disk")
OUTPUTS = ("data/**/*", "results/**/*")
CACHE = ".dvc/cache/files/md5/??/*"
UNLIMITED = "1000000 KiB", "1000000 files"
TEMPORARY = "KiB for temporary files"
WITH_ROOM = "with more room the same command succeeds"
NOBODY = 65534  # a user id
DATA = {"generate_regression": "regression_data", "download_fashion_mnist": "fashion_mnist"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a disk of its own."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root may mount a small disk")
    (folder := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    limit(folder, *UNLIMITED)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def limit(disk: Path, *rooms: str) -> None:
    """Leave this much room, such as "8 KiB" or "3 files"."""
    for room in rooms:
        number, unit, *_ = room.split()
        stat = os.statvfs(disk)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize // 1024
        size, files = f"size={used + int(number)}k", stat.f_files - stat.f_ffree + int(number)
        change = size if unit == "KiB" else f"nr_inodes={files}"
        subprocess.run(["mount", "-o", f"remount,{change}", str(disk)], check=True)


def contents(clone: Clone, *patterns: str) -> dict[str, bytes]:
    """The bytes of the files, hidden files too."""
    paths = (path for pattern in patterns for path in clone.folder.glob(pattern))
    return {str(p.relative_to(clone.folder)): p.read_bytes() for p in paths if p.is_file()}


def statuses(clone: Clone) -> list[str]:
    """The statuses of the runs in the store, which must be a sound database."""
    with contextlib.closing(sqlite3.connect(clone.folder / "mlflow.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [status for (status,) in db.execute("SELECT status FROM runs")]


def words(stage: str) -> tuple[str, str]:
    """The module and the argument of a stage, such as evaluate@mlp."""
    name, _, argument = stage.partition("@")
    return (f"stages.{name}", argument) if argument else ("stages.prepare", DATA[stage])


def erase(clone: Clone, stage: str) -> None:
    """Remove the stage's outputs, here and in DVC's cache, and make its entry in dvc.lock stale."""
    lock, cache = clone.folder / "dvc.lock", clone.folder / ".dvc/cache"
    text = lock.read_text(encoding="utf-8")
    for out in YAML(typ="safe").load(text)["stages"][stage]["outs"]:
        path = clone.folder / out["path"]
        for md5 in map(lockfile.md5, (path, *path.rglob("*"))):
            (cache / "files/md5" / md5[:2] / md5[2:]).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(cache / "runs")
    line = f"cmd: python -m {' '.join(words(stage))}\n"
    assert line in text
    lock.write_text(text.replace(line, line.replace("python", "python3")), encoding="utf-8")


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


def cases(rooms: dict[str, str]) -> pytest.MarkDecorator:
    """Parametrise a test by stage and room on the disk."""
    pairs = [(stage, room) for stage, listed in rooms.items() for room in listed.split(", ")]
    return pytest.mark.parametrize(("stage", "room"), pairs)


@fault(
    "the disk full at some point of `dvc repro`: in the data, DVC's cache, the results, the store"
    " or the artifacts",
    "DVC's error, one line of ours, every file whole or absent; with more room the same dvc.lock,"
    " outputs and cache, and the result recorded once",
    WITH_ROOM,
)
@pytest.mark.sample(2)
@cases(
    {
        "generate_regression": "0 KiB, 26 KiB, 100 KiB",  # none, half the data, half of DVC's copy
        "download_fashion_mnist": "27000 KiB, 81000 KiB",
        "evaluate@mlp": "170 KiB, 500 KiB",
        "record@linear_regression": "300 KiB, 1080 KiB, 1400 KiB",
    }
)
def test_dvc_repro_stops_on_a_full_disk_and_completes_with_more_room(
    finished: Clone, disk: Path, tmp_path: Path, stage: str, room: str
) -> None:
    clone = finished.copy(disk / "clone")
    clone.forget_runs()
    erase(clone, stage)
    clone.environment |= {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "TMPDIR": str(tmp_path)}
    before = contents(clone, *OUTPUTS)

    limit(disk, room)
    assert_dvc_failed_plainly(clone.try_("dvc", "repro"))
    left, complete = contents(clone, *OUTPUTS), contents(finished, *OUTPUTS)
    assert before.items() <= left.items() <= complete.items()

    limit(disk, *UNLIMITED)
    clone.run("python", "-m", "tools.repair")
    clone.run("dvc", "repro")
    clone.run("python", "-m", "tools.repair", "--damaged")  # removes DVC's incomplete copies
    everything = ("dvc.lock", *OUTPUTS, CACHE)
    assert contents(clone, *everything) == contents(finished, *everything)
    if stage.startswith("record"):
        assert statuses(clone).count("FINISHED") == 1
        assert "RUNNING" not in statuses(clone)


@fault(
    "a stage run by hand without room on the disk, for a further file, or for temporary files",
    "one line, exit code 1, the old outputs byte for byte",
    WITH_ROOM,
)
@pytest.mark.sample(5)
@cases(
    {
        "generate_regression": "0 KiB, 8 KiB, 0 files",
        "download_fashion_mnist": f"0 KiB, 30000 KiB, 8 {TEMPORARY}",
        "train@linear_regression": "0 KiB, 3 files",  # the stage's lock and its folders
        "evaluate@linear_regression": "0 KiB, 4 KiB, 3 files",
        "record@linear_regression": "0 KiB, 400 KiB, 1050 KiB, 1200 KiB, 1350 KiB, 5 files,"
        f" 8 {TEMPORARY}",
    }
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
    name, argument = words(stage)
    module = importlib.import_module(name)

    limit(disk, room)
    failed = in_process(module, argument)
    limit(disk, *UNLIMITED)
    assert_one_line(failed)
    assert contents(clone, *OUTPUTS) == contents(finished, *OUTPUTS)

    # Another store, as MLflow in this process may hold connections to a database that failed.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///second.db")
    done = in_process(module, argument)
    assert done.returncode == 0, done.stderr
    assert contents(clone, *OUTPUTS) == contents(finished, *OUTPUTS)


class User(Clone):
    """A clone whose commands run as a user other than root."""

    prefix: tuple[str, ...] = ()

    def try_(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return super().try_(*self.prefix, *command, **environment)


@pytest.fixture
def user(finished: Clone) -> Iterator[User]:
    """With the finished pipeline, without runs."""
    with tempfile.TemporaryDirectory() as home:  # other users cannot read pytest's folders
        finished.copy(Path(home, "clone")).forget_runs()
        user = User(Path(home, "clone"), finished.mirror)
        user.environment |= {"HOME": home, "TMPDIR": home, "DVC_SITE_CACHE_DIR": f"{home}/site"}
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip("no setpriv to become another user")
            Path(home).chmod(0o755)
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", home], check=True)
            options = f"--reuid={NOBODY} --regid={NOBODY} --clear-groups"
            # Python may be in root's own folder: the user may read all files.
            for kind in ("inh", "ambient"):
                options += f" --{kind}-caps=-all,+dac_read_search"
            user.prefix = ("setpriv", *options.split())
        able = user.try_("python", "-c", "import pydantic")
        if able.returncode:
            pytest.skip(f"another user cannot run this Python: {able.stderr.strip()[-200:]}")
        yield user


@fault(
    "data, results, DVC's cache or the store's folder read-only, for a user other than root",
    "non-zero exit, one line of ours, nothing lost; with write permission the same dvc.lock and"
    " outputs",
    "with write permission the same command succeeds",
)
@pytest.mark.sample(2)
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
    user: User, finished: Clone, folder: str, stage: str
) -> None:
    if folder == ".":
        erase(user, stage)
    if folder == ".dvc/cache":  # or DVC has nothing to add
        for path in (user.folder / folder).iterdir():
            shutil.rmtree(path)
    before = contents(user, *OUTPUTS, CACHE)
    place = [str(user.folder / folder)] if folder == "." else ["-R", str(user.folder / folder)]
    repro = "dvc", "repro", "--force", "--single-item", stage

    subprocess.run(["chmod", "a-w", *place], check=True)
    if folder != ".dvc/cache":
        assert_one_line(user.try_("python", "-m", *words(stage)))
    done = user.try_(*repro)
    assert done.returncode
    assert_dvc_failed_plainly(done)
    assert contents(user, *OUTPUTS, CACHE) == before

    subprocess.run(["chmod", "u+w", *place], check=True)
    user.run(*repro)
    assert user.run("git", "status", "--porcelain") == ""
    assert contents(user, *OUTPUTS) == contents(finished, *OUTPUTS)
    assert contents(user, CACHE).items() <= contents(finished, CACHE).items()
    if folder == ".":
        assert statuses(user) == ["FINISHED"]
