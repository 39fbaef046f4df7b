"""What several tests need: the real images, and a clone to run the pipeline in."""

import gzip
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from benchmarks import clones
from benchmarks.clones import ROOT
from lab import download, repository
from lab.files import InputError

SMALL = {
    "  epochs: 5\n": "  epochs: 1\n",
    "  epochs: 15\n": "  epochs: 1\n",
    "  epochs: 20\n": "  epochs: 1\n",
    "  batch_size: 128": "  batch_size: 500",
    "  batch_size: 256": "  batch_size: 500",
    "  - 256\n  - 128\n": "  - 16\n",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true",
        help="the faults of tests/faults in their long form; writes docs/reliability.md",
    )  # fmt: skip


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four real archives."""
    for place in (os.environ.get("FASHION_MNIST_MIRROR"), ROOT / "../shared/fashion-mnist"):
        if place and all(Path(place, name).exists() for name in download.CONTENTS):
            return Path(place).resolve()
    try:
        contents = download.fetch(list(download.CONTENTS), [])
    except InputError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("mirror")
    for name, data in contents.items():
        (folder / name).write_bytes(gzip.compress(data, 1))
    return folder


class Clone:
    """A clone of the working tree in which commands run as a user would run them."""

    def __init__(self, folder: Path, mirror: Path) -> None:
        self.folder = folder
        self.environment = repository.environment() | {
            "FASHION_MNIST_MIRROR": str(mirror),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
        }  # fmt: skip
        clones.clone(folder)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            (folder / name).unlink(missing_ok=True)
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.commit("the working tree")

    def try_(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever comes of it."""
        # Not through pipes: DVC's queue workers keep them open, and may outlive their queue.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment | environment, check=False,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True,
            )  # fmt: skip
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


def short_trainings(folder: Path, mirror: Path) -> Clone:
    """A clone with short trainings, nothing run yet."""
    clone = Clone(folder, mirror)
    shutil.copy(clone.folder / "tests/params.yaml", clone.folder / "params.yaml")
    clone.edit(SMALL)
    clone.commit("short trainings")
    return clone


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, mirror: Path) -> Clone:
    """A clone with short trainings, nothing run yet."""
    return short_trainings(tmp_path_factory.mktemp("clone"), mirror)
