"""What several tests need: the real images, and a clone in which the pipeline has run."""

import contextlib
import gc
import gzip
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from filelock import FileLock

import stages
from lab import download, params
from lab.common.files import InputError
from tests import preloaded
from tracking import repository
from tracking.repository import ROOT

pytest_plugins = ["tests.disks", "tests.reliability"]

# Changes to tests/params.yaml that make trainings short.
SHORT = {
    "  epochs: 5\n": "  epochs: 1\n",
    "  epochs: 15\n": "  epochs: 1\n",
    "  epochs: 20\n": "  epochs: 1\n",
    "  batch_size: 128": "  batch_size: 500",
    "  batch_size: 256": "  batch_size: 500",
    "  - 256\n  - 128\n": "  - 16\n",
}
# The test modules that take longest, in the order in which they begin.
LONGEST = (
    "test_pipeline.py",
    "test_extending.py",
    "test_kernels.py",
    "test_distributed.py",
    "test_mode.py",
    "test_server.py",
    "test_browser.py",
    "test_sharing.py",
    "test_servers.py",
    "test_killed.py",
    "test_load.py",
    "test_disk.py",
    "test_sweep.py",
    "test_replay.py",
    "test_leaks.py",
)
# The variable with the folder of the commands `python` and `dvc` of tests/preloaded.py.
FORKING = "TESTS_FORKING_COMMANDS"
# Where MLflow's tables say where artifacts are.
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Start the process that commands are forked from, once for all workers."""
    Clone.forks = not config.getoption("--all")
    if hasattr(config, "workerinput") or sys.platform != "linux":
        return
    folder = Path(tempfile.mkdtemp())
    server = preloaded.start(folder)
    os.environ[FORKING] = str(folder)
    if config.getoption("tx", None):
        config.option.tx = [f"{start}//python={folder}/worker" for start in config.option.tx]

    def end() -> None:
        server.communicate()
        shutil.rmtree(folder)

    config.add_cleanup(end)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Draw samples, and order the test modules so that no long one is left for the end.

    Of a test marked `sample(n)`, n cases are drawn, the same ones each time; with --all, all are.
    Some workers begin by making the `finished` pipeline. The others begin with long tests of
    `exact`, which do not need it. The quick modules come last.
    """
    drawn = defaultdict(list)
    for item in items:
        if mark := item.get_closest_marker("sample"):
            drawn[item.nodeid.partition("[")[0], mark.args[0]].append(item)
    if not config.getoption("--all"):
        left_out = {
            item
            for (name, number), cases in drawn.items()
            for item in set(cases) - set(random.Random(name).sample(cases, number))
        }
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = {name: number for number, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        return order.get(item.path.name, len(LONGEST) + (item.path not in slow))

    items.sort(key=place)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the garbage collector the hundreds of thousands of objects that all tests share."""
    gc.freeze()
    session.config.add_cleanup(gc.unfreeze)  # else Triton complains at the end


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores, as many tests wait for a server or a process."""
    return (os.cpu_count() or 1) + 2


@pytest.fixture(scope="session")
def run_all(request: pytest.FixtureRequest) -> bool:
    """Whether a test should try its fault in the long form."""
    return bool(request.config.getoption("--all"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run that all worker processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def mirror(shared_folder: Path) -> Path:
    """A folder with the four real archives."""
    settings = params.load(ROOT / "tests/params.yaml").download
    assert settings
    for place in (os.environ.get("FASHION_MNIST_MIRROR"), ROOT / "../shared/fashion-mnist"):
        if place and all(Path(place, name).exists() for name in settings.archives):
            return Path(place).resolve()
    folder = shared_folder / "mirror"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                contents = download.fetch(settings, "FASHION_MNIST_MIRROR")
            except InputError as error:
                pytest.skip(str(error))
            folder.mkdir()
            for name, data in contents.items():
                (folder / name).write_bytes(gzip.compress(data, 1))
    return folder


@pytest.fixture(scope="session")
def empty_store(shared_folder: Path) -> Path:
    """A database of MLflow without runs, to be copied, which is faster than to create one."""
    import mlflow  # here, as the process that only starts the workers need not load it

    path = shared_folder / "empty.db"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            making = path.with_suffix(".making")
            making.unlink(missing_ok=True)
            mlflow.MlflowClient(f"sqlite:///{making}").search_experiments()
            making.rename(path)
    return path


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """The bytes of all files in the folder, or of those that a pattern fits; hidden files too."""
    paths = (path for pattern in patterns or ["**/*"] for path in folder.glob(pattern))
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.is_file()}


class Clone:
    """A clone of the working tree, in which commands run as a user would run them."""

    forks = True  # in place of processes that load PyTorch and MLflow anew

    def __init__(self, folder: Path, mirror: Path) -> None:
        self.folder, self.mirror = folder, mirror
        self.prefix: tuple[str, ...] = ()  # of every command
        author = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in (("NAME", "A"), ("EMAIL", "a@example.org"))
        }
        self.environment = repository.environment() | author | {"FASHION_MNIST_MIRROR": str(mirror)}
        if self.forks:
            self.with_forks()

    def with_forks(self) -> None:
        """Fork the commands `dvc` and `python -m`, where that is possible."""
        if FORKING in os.environ:
            path = os.environ[FORKING], repository.environment()["PATH"]
            self.environment["PATH"] = os.pathsep.join(path)

    def whole(self) -> dict[str, str]:
        """The environment of whole processes, as a user starts them: of those that are killed."""
        return self.environment | {"PATH": repository.environment()["PATH"]}

    def without_forks(self) -> None:
        """Start whole processes from now on, for tests that limit what these may do."""
        self.environment = self.whole()

    def try_(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        # Not through pipes: DVC's queue workers keep them open, and may outlive their queue.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                [*self.prefix, *command],
                cwd=self.folder,
                env=self.environment | environment,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())

    def run(self, *command: str, **environment: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.try_(*command, **environment)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def commit(self, message: str) -> None:
        """Commit all that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def edit(self, changes: dict[str, str]) -> None:
        """Replace parts of params.yaml."""
        path = self.folder / "params.yaml"
        text = path.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    def copy(self, folder: Path) -> "Clone":
        """A copy, with DVC's cache and MLflow's store."""
        ignore = shutil.ignore_patterns("tmp", "mlflow.db.lock")
        shutil.copytree(self.folder, folder, symlinks=True, ignore=ignore)
        clone = Clone(folder, self.mirror)
        # MLflow keeps absolute paths.
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as db:
            for table, column in ARTIFACT_COLUMNS:
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"  # noqa: S608
                db.execute(change, (self.folder.as_uri(), folder.as_uri()))
            db.commit()
        return clone

    def statuses(self) -> list[str]:
        """The statuses of the runs in MLflow's store, which must be a whole database."""
        with contextlib.closing(sqlite3.connect(self.folder / "mlflow.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            return [status for (status,) in db.execute("SELECT status FROM runs")]

    def cached(self, md5: str) -> Path:
        """An object of DVC's cache."""
        return self.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]

    def forget_runs(self) -> None:
        """Remove MLflow's store."""
        for path in self.folder.glob("mlflow.db*"):
            path.unlink()
        shutil.rmtree(self.folder / "mlartifacts", ignore_errors=True)


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A new repository without a commit, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = Clone(tmp_path, tmp_path)
    git.run("git", "init", "--quiet")
    return git


@pytest.fixture
def database(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty database, which is the store of this process."""
    path = tmp_path / "store/mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    return path


def clone_working_tree(clone: Clone) -> None:
    """Clone this repository, with one commit more that holds the uncommitted changes."""
    repository.clone(clone.folder)
    clone.run("git", "rm", "-r", "--quiet", ".")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (clone.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone.folder / name)
    clone.commit("the working tree")


@pytest.fixture(scope="session")
def finished(shared_folder: Path, mirror: Path) -> Clone:
    """A clone with short trainings in which the whole pipeline has run. Tests work in copies.

    HEAD holds the results; HEAD~1 is what they were made from, and what the runs name as their
    commit. Beside the folder, `repro.log` is what `dvc repro` printed, and `notes` has what each
    stage loaded and read.
    """
    folder, log, notes = (shared_folder / name for name in ("finished", "repro.log", "notes"))
    clone = Clone(folder, mirror)
    with FileLock(f"{folder}.lock"):
        if not log.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            clone_working_tree(clone)
            shutil.copy(folder / "tests/params.yaml", folder / "params.yaml")
            clone.edit(SHORT)
            clone.commit("short trainings")
            notes.mkdir(exist_ok=True)
            noting = str(ROOT / "tests/noting")
            printed = clone.run("dvc", "repro", PYTHONPATH=noting, NOTES=str(notes))
            clone.commit("results")
            log.write_text(printed)
    return clone


@pytest.fixture
def clone(finished: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A copy of the finished pipeline for one test, which is the current folder."""
    clone = finished.copy(tmp_path / "clone")
    monkeypatch.chdir(clone.folder)
    return clone


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limits memory to half a GiB more than is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 2**29
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Program]:
    """A function that does the work of `python -m stages.train mlp` in this process.

    Called as in_process(train, "mlp"), it runs in the current folder, by the code of the working
    tree. It saves the seconds that a process needs to load torch and MLflow.
    """
    import mlflow

    sigterm = signal.getsignal(signal.SIGTERM)
    if Clone.forks and FORKING in os.environ:  # for the processes that it starts
        monkeypatch.setattr(sys, "executable", f"{os.environ[FORKING]}/python")

    def run(module: ModuleType, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [str(module.__file__), *arguments])
        monkeypatch.delenv("DVC_STAGE", raising=False)
        capsys.readouterr()
        environment = dict(os.environ)
        start = stages.run if module.__name__.startswith("stages.") else stages.command
        code: Any = 0
        try:
            start(module.main)
        except SystemExit as end:
            code = end.code
        finally:  # MLflow keeps the store in a variable, and in the environment
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
            os.environ.clear()
            os.environ.update(environment)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess([module.__name__, *arguments], code, out, err)

    yield run
    signal.signal(signal.SIGTERM, sigterm)
