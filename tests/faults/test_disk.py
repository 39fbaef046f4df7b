"""The disk is full or cannot be written: one line, and what was there stays as it was."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from operator import mul
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Clone
from tests.faults.conftest import copy_of

pytestmark = pytest.mark.slow
PART = "6. Disk"
MODEL = "linear_regression"
RECORD = f"record@{MODEL}"
PLENTY = 1 << 20  # KiB
WITH_ROOM = "with room the same succeeds"


class Disk:
    """A file system in memory, as small as it is told to be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def limit(self, **options: int | str) -> None:
        """Change a limit of tmpfs: size, or the number of files."""
        changed = ",".join(f"{key}={value}" for key, value in options.items())
        subprocess.run(["mount", "-o", f"remount,{changed}", str(self.folder)], check=True)

    def used(self) -> int:
        """KiB."""
        stat = os.statvfs(self.folder)
        return (stat.f_blocks - stat.f_bfree) * stat.f_frsize // 1024

    def leave(self, kibibytes: int) -> None:
        """Room for this much more."""
        self.limit(size=f"{self.used() + kibibytes}k")

    def leave_no_file(self) -> None:
        """Room for contents, and not for a name."""
        stat = os.statvfs(self.folder)
        self.limit(nr_inodes=stat.f_files - stat.f_ffree)

    def grow(self) -> None:
        """Room for all."""
        self.limit(size=f"{PLENTY}k", nr_inodes=1 << 20)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A disk at the folder, while the block runs."""
    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={PLENTY}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


def aside(clone: Clone, folder: Path) -> None:
    """Keep what is no part of the repository in a folder on another disk."""
    folder.mkdir(exist_ok=True)
    clone.environment |= {"DVC_SITE_CACHE_DIR": str(folder / "site"), "TMPDIR": str(folder)}


def not_yet_run(finished: Clone, folder: Path, other_disk: Path) -> Clone:
    """The finished pipeline's repository as it was before it ran, so that dvc.lock will change."""
    clone = Clone.__new__(Clone)
    clone.folder, clone.environment = folder, dict(finished.environment)
    folder.mkdir()
    clone.run("git", "clone", "--quiet", "--shared", str(finished.folder), ".")
    clone.run("git", "reset", "--quiet", "--hard", "HEAD~1")
    aside(clone, other_disk)
    return clone


def contents(folder: Path, *parts: str) -> dict[str, bytes]:
    """Every file below these parts of the folder, hidden ones too."""
    found = (path for part in parts for path in (folder / part).rglob("*"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found if p.is_file()}


def results(clone: Clone) -> dict[str, bytes]:
    """What the pipeline made: dvc.lock, data, results, and the names in DVC's cache."""
    made = contents(clone.folder, "data", "results")
    made["dvc.lock"] = (clone.folder / "dvc.lock").read_bytes()
    return made | dict.fromkeys(contents(clone.folder, ".dvc/cache/files"), b"")


def statuses(clone: Clone) -> list[str]:
    """Of the runs in the store, which has to be whole."""
    with contextlib.closing(sqlite3.connect(clone.folder / "mlflow.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [status for (status,) in db.execute("SELECT status FROM runs")]


def assert_told_in_lines(done: subprocess.CompletedProcess[str]) -> None:
    """A stage says one line that begins with error, DVC its own with ERROR, and no one more."""
    assert done.returncode != 0, done.stdout
    said = [line for line in done.stderr.splitlines() if line.strip()]
    ours = [line for line in said if line.startswith("error: ")]
    others = [
        line for line in said if not line.startswith(("error: ", "ERROR: ", "Having any troubles?"))
    ]
    assert said and len(ours) <= 1 and not others, done.stderr


class Undisturbed(NamedTuple):
    """What a run with enough room leaves, and the KiB that it takes for each part."""

    target: tuple[str, ...]
    results: dict[str, bytes]
    sizes: tuple[int, ...]
    recorded: int


def size(folder: Path) -> int:
    """KiB, in whole blocks."""
    return sum(path.stat().st_blocks for path in folder.rglob("*")) // 2


@pytest.fixture(scope="module")
def undisturbed(
    finished: Clone, tmp_path_factory: pytest.TempPathFactory, full: bool
) -> Undisturbed:
    """All of the pipeline in the long form, one model of it in the short one."""
    target = () if full else (RECORD,)
    base = tmp_path_factory.mktemp("undisturbed")
    with mounted(base / "disk") as disk:
        clone = not_yet_run(finished, disk.folder / "clone", base / "other")
        clone.run("dvc", "repro", *target)
        if full:
            assert results(clone)["dvc.lock"] == results(finished)["dvc.lock"]
        parts = "data/regression", "data/fashion_mnist", "results", "mlartifacts"
        regression, images, outputs, artifacts = (size(clone.folder / part) for part in parts)
        store = (clone.folder / "mlflow.db").stat().st_blocks // 2
        sizes = regression, images, outputs, store, artifacts
        return Undisturbed(target, results(clone), sizes, len(statuses(clone)))


# How often there is room for the regression data, the images, the results, the store's tables and
# the artifacts. The first three are needed twice, in the workspace and in DVC's cache.
LEVELS = {
    "nothing": (0, 0, 0, 0, 0),
    "half the regression data": (0.5, 0, 0, 0, 0),
    "half of DVC's copy of them": (1.5, 0, 0, 0, 0),
    "half the images": (2.2, 0.5, 0, 0, 0),
    "half of DVC's copy of them, too": (2.2, 1.5, 0, 0, 0),
    "half the results": (2.2, 2, 0.5, 0, 0),
    "half of DVC's copy of the results": (2.2, 2, 1.5, 0, 0),
    "a third of the store": (2.2, 2, 2, 0.3, 0),
    "a third of the artifacts": (2.2, 2, 2, 1.05, 0.3),
    "nine tenths of the artifacts": (2.2, 2, 2, 1.05, 0.9),
}
SHORT_LEVELS = "half the regression data", "half the results", "a third of the artifacts"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All levels and cases in the long form, some in the short one."""
    full = metafunc.config.getoption("--full")
    if "level" in metafunc.fixturenames:
        metafunc.parametrize("level", LEVELS if full else SHORT_LEVELS)
    if "case" in metafunc.fixturenames:
        cases = CASES if full else SHORT_CASES
        metafunc.parametrize("case", cases, ids=[f"{stage}, {left}" for stage, left in cases])


def test_a_full_disk_stops_repro_and_with_more_room_it_comes_to_the_same_bytes(
    finished: Clone, undisturbed: Undisturbed, disk: Disk, tmp_path: Path, level: str,
    tried: Callable[..., None],
) -> None:  # fmt: skip
    clone = not_yet_run(finished, disk.folder / "clone", tmp_path / "other")
    before = results(clone)
    disk.leave(int(sum(map(mul, LEVELS[level], undisturbed.sizes))))
    assert_told_in_lines(clone.try_("dvc", "repro", *undisturbed.target))
    for path, found in contents(clone.folder, "data", "results").items():
        assert found in (before.get(path), undisturbed.results.get(path)), path
    disk.grow()
    clone.run("python", "-m", "tools.mend")
    clone.run("dvc", "repro", *undisturbed.target)
    # DVC leaves what it was copying in its cache; this is the command that removes it.
    clone.run("python", "-m", "tools.mend", "--damaged")
    assert results(clone) == undisturbed.results
    assert statuses(clone).count("FINISHED") == undisturbed.recorded
    assert "RUNNING" not in statuses(clone)
    tried(
        PART, "the disk full at some point of `dvc repro`: in the data, the cache, the results,"
        " the store or the artifacts",
        "non-zero exit, one line of ours, every file whole or absent; with more room the same"
        " dvc.lock, outputs and cache, and each result recorded once", WITH_ROOM,
    )  # fmt: skip


# The stage, and what the disk has room for: KiB, no further file, or nothing for temporary files.
CASES: list[tuple[str, int | str]] = [
    ("generate_regression", 0), ("generate_regression", 8), ("generate_regression", "no file"),
    ("download_fashion_mnist", 0), ("download_fashion_mnist", 30_000),
    ("download_fashion_mnist", "nowhere"),
    ("train", 0), ("train", "no file"),
    ("evaluate", 0), ("evaluate", 4), ("evaluate", "no file"),
    ("record", 0), ("record", 400), ("record", 1200), ("record", 1250), ("record", 1350),
    ("record", "no file"), ("record", "nowhere"),
]  # fmt: skip
SHORT_CASES: list[tuple[str, int | str]] = [("train", 0), ("evaluate", "no file"), ("record", 1350)]


def command(stage: str) -> list[str]:
    """Of a stage, for one model where it is for one."""
    models = [MODEL] if stage in ("train", "evaluate", "record") else []
    return ["python", "-m", f"stages.{stage}", *models]


@pytest.fixture(scope="module")
def on_a_disk(
    finished: Clone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Disk, Clone]]:
    """A disk with the finished pipeline on it."""
    base = tmp_path_factory.mktemp("small")
    with mounted(base / "disk") as disk:
        clone = copy_of(finished, disk.folder / "clone")
        aside(clone, base / "other")
        yield disk, clone


def test_a_stage_on_a_full_disk_says_so_in_one_line_and_leaves_the_old_outputs(
    on_a_disk: tuple[Disk, Clone], case: tuple[str, int | str], tried: Callable[..., None]
) -> None:
    disk, clone = on_a_disk
    stage, left = case
    for path in clone.folder.glob("*mlflow.db*"):
        path.unlink()
    shutil.rmtree(clone.folder / "mlartifacts", ignore_errors=True)
    before = contents(clone.folder, "data", "results")
    disk.leave(left if isinstance(left, int) else 0 if left == "nowhere" else PLENTY)
    if left == "no file":
        disk.leave_no_file()
    environment = {"TMPDIR": str(disk.folder)} if left == "nowhere" else {}
    done = clone.try_(*command(stage), **environment)
    disk.grow()
    assert_one_line(done)
    assert contents(clone.folder, "data", "results") == before
    clone.run(*command(stage))
    assert contents(clone.folder, "data", "results") == before
    tried(
        PART, "a stage run by hand on a disk that is full, or has no room for one more file",
        "one line, exit code 1, the old outputs to the byte", WITH_ROOM,
    )  # fmt: skip


def assert_one_line(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr


class User:
    """Runs commands as a user who has to ask before writing, in a folder that is theirs."""

    def __init__(self, clone: Clone, home: Path) -> None:
        self.clone = clone
        self.prefix: list[str] = []
        for name in ("home", "other"):
            (home / name).mkdir()
        clone.environment["HOME"] = str(home / "home")
        aside(clone, home / "other")
        if os.geteuid() == 0:
            home.chmod(0o755)
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)
            self.prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            # Where Python is in root's own folder: may read all that root may, and write nothing.
            reads = "-all,+dac_read_search"
            self.prefix += [f"--inh-caps={reads}", f"--ambient-caps={reads}"]

    def try_(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.clone.try_(*self.prefix, *command)

    def run(self, *command: str) -> str:
        return self.clone.run(*self.prefix, *command)


NOBODY = 65534


@pytest.fixture
def user(finished: Clone) -> Iterator[User]:
    """With the finished pipeline; not in pytest's folders, which are closed to others."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("no setpriv to become another user")
    with tempfile.TemporaryDirectory() as folder:
        user = User(copy_of(finished, Path(folder, "clone")), Path(folder))
        able = user.try_("python", "-c", "import torch")
        if able.returncode:
            pytest.skip(f"another user cannot run this Python: {able.stderr.strip()[-200:]}")
        yield user


class Place(NamedTuple):
    """A folder that may not be written, and the stage that then fails when run by hand."""

    folder: str
    all_below: bool
    stage: str | None


PLACES = [
    Place("data", True, "generate_regression"),
    Place("results", True, "train"),
    Place(".dvc/cache", True, None),  # which only DVC writes
    Place(".", False, "record"),  # where mlflow.db is to be
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.folder)
def test_a_folder_that_may_not_be_written_stops_repro_and_costs_nothing(
    user: User, finished: Clone, place: Place, full: bool, tried: Callable[..., None]
) -> None:
    folder = user.clone.folder
    if place.folder == ".dvc/cache":
        for path in (folder / place.folder).iterdir():  # or DVC has nothing to add to it
            shutil.rmtree(path)
    for path in folder.glob(f"results/{MODEL}/receipt.json"):
        path.unlink()
    before = contents(folder, "data", "results", ".dvc/cache")
    everything = ["-R"] if place.all_below else []
    subprocess.run(["chmod", *everything, "a-w", str(folder / place.folder)], check=True)
    try:
        if place.stage:
            assert_one_line(user.try_(*command(place.stage)))
        force = ["--force"] if place.all_below else []
        assert_told_in_lines(user.try_("dvc", "repro", *force, RECORD))
        assert contents(folder, "data", "results", ".dvc/cache") == before
    finally:
        subprocess.run(["chmod", *everything, "u+w", str(folder / place.folder)], check=True)
    user.run("dvc", "repro", *(["--force"] if full else []), RECORD)
    assert not user.run("git", "status", "--porcelain")
    assert contents(folder, "data", "results") == contents(finished.folder, "data", "results")
    assert contents(folder, ".dvc/cache/files").items() <= cached(finished).items()
    assert statuses(user.clone) == ["FINISHED"]
    tried(
        PART, "data, results, the cache or the store's folder read-only, for a user who is not"
        " root", "non-zero exit, one line of ours, nothing lost; with the right to write the same"
        " dvc.lock and outputs", "with the right to write the same succeeds",
    )  # fmt: skip


def cached(clone: Clone) -> dict[str, bytes]:
    return contents(clone.folder, ".dvc/cache/files")
