"""What is recorded says nothing of the machine or the user: no path, name, variable or token.

Everything runs with words in all of these that occur nowhere else, which are then looked for.
"""

import contextlib
import getpass
import socket
import sqlite3
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.clones import ROOT
from lab import integrity
from lab.params import MODELS
from tests.conftest import Clone
from tests.faults.conftest import copy_of

pytestmark = pytest.mark.slow
PART = "12. Leaks"
HELD = "none of the words in an output, dvc.lock, a receipt, the database or an artifact"
CONTROL = "a run by plain `mlflow.start_run` tells the user's name and the script's path"
CANARY = "canary"
VARIABLES = {
    name: f"{CANARY}-{name.lower()}"
    for name in (
        "USER", "LOGNAME", "USERNAME", "HOSTNAME", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN",
        "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "GIT_AUTHOR_NAME",
        "GIT_COMMITTER_NAME", "SOME_VARIABLE",
    )
}  # fmt: skip
VARIABLES |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), f"{CANARY}@example.org")
NAMES = [
    *VARIABLES.values(),
    *(f"{CANARY}-{name}" for name in ("host", "home", "temporary", "git")),
]
# Shorter ones are in fifty megabytes of images by chance, or in the code as words.
NAMES += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 6]
# MLflow's own record of where artifacts lie, which has to be a path.
LOCATIONS = {
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
}


class Found(NamedTuple):
    """A word, and the file, or the table and column, that tells it."""

    where: tuple[str, ...]
    word: str


class Surroundings(NamedTuple):
    """A clone whose folder, home and variables are full of words to look for."""

    clone: Clone
    prefix: list[str]  # for commands, so that the host's name is such a word as well

    def try_(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.clone.try_(*self.prefix, *command)

    def run(self, *command: str) -> str:
        return self.clone.run(*self.prefix, *command)

    def leaks(self, store: str = "mlflow.db", artifacts: str = "mlartifacts") -> list[Found]:
        """Every place that tells a word."""
        root = self.clone.folder
        paths = [CANARY, *map(str, (root, ROOT, sys.prefix, f"{Path.home()}/"))]
        paths.append(self.clone.environment["FASHION_MNIST_MIRROR"])
        with contextlib.chdir(root):
            outputs = [root / path for path in integrity.outputs()]
        assert outputs
        places = [root / "dvc.lock", root / "data", root / "results", root / artifacts, *outputs]
        found = [hit for place in places for hit in in_files(root, place, NAMES + paths)]
        found += in_database(root / store, NAMES, paths)
        # What was deleted from a table may stay in the file.
        return found + list(in_bytes((store,), (root / store).read_bytes(), NAMES))


def in_bytes(where: tuple[str, ...], contents: bytes, words: list[str]) -> Iterator[Found]:
    """The words that the bytes hold, in upper or lower case."""
    lower = contents.lower()
    yield from (Found(where, word) for word in words if word.lower().encode() in lower)


def in_files(root: Path, path: Path, words: list[str]) -> Iterator[Found]:
    """The words in a file, or in all files below a folder, and in their names."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        where = file.relative_to(root).as_posix()
        yield from in_bytes((where,), where.encode(), words)
        if file.is_file():
            contents = file.read_bytes()
            yield from in_bytes((where,), contents + compressed_texts(contents), words)


def compressed_texts(png: bytes) -> bytes:
    """The texts that a picture holds compressed."""
    texts = b""
    at = 8 if png.startswith(b"\x89PNG") else len(png)
    while at + 8 <= len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        chunk = png[at + 8 : at + 8 + size]
        if kind in (b"zTXt", b"iTXt"):
            for start in range(len(chunk)):  # wherever the compressed part begins
                with contextlib.suppress(zlib.error):
                    texts += zlib.decompressobj().decompress(chunk[start:])
        at += 12 + size
    return texts


def in_database(database: Path, names: list[str], paths: list[str]) -> Iterator[Found]:
    """The words in every value of every table; paths are let pass where they have to be."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        for table in tables:
            rows = db.execute(f'SELECT * FROM "{table}"')  # noqa: S608
            columns = [column[0] for column in rows.description]
            for row in rows:
                for column, value in zip(columns, row, strict=True):
                    words = names if (table, column) in LOCATIONS else names + paths
                    contents = value if isinstance(value, bytes) else str(value).encode()
                    yield from in_bytes((table, column), contents, words)


def with_the_host_named(word: str) -> list[str]:
    """What to put before a command so that its host has this name; nothing where one may not."""
    prefix = ["unshare", "--uts", "sh", "-c", f'hostname {word}; exec "$@"', "sh"]
    with contextlib.suppress(OSError):
        asked = subprocess.run([*prefix, "hostname"], check=False, capture_output=True, text=True)
        if asked.stdout.strip() == word:
            return prefix
    return []


@pytest.fixture(scope="module")
def surroundings(
    finished: Clone, tmp_path_factory: pytest.TempPathFactory, full: bool
) -> Surroundings:
    """In which one model, in the long form all, was made anew and all three were recorded."""
    base = tmp_path_factory.mktemp(f"{CANARY}-folder")
    clone = copy_of(finished, base / "clone")
    home, temporary = base / f"{CANARY}-home", base / f"{CANARY}-temporary"
    home.mkdir()
    temporary.mkdir()
    (home / ".gitconfig").write_text(
        f"[user]\nname = {CANARY}-git\nemail = {CANARY}-git@example.org"
    )
    clone.environment |= VARIABLES | {"HOME": str(home), "TMPDIR": str(temporary)}
    clone.run("git", "remote", "set-url", "origin", f"/home/{CANARY}-git/it")
    for receipt in clone.folder.glob("results/*/receipt.json"):
        receipt.unlink()
    surroundings = Surroundings(clone, with_the_host_named(f"{CANARY}-host"))
    surroundings.run("dvc", "repro", "--force", *([] if full else ["record@linear_regression"]))
    surroundings.run("dvc", "repro")
    return surroundings


def runs(surroundings: Surroundings) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(surroundings.clone.folder / "mlflow.db")) as db:
        return list(db.execute("SELECT status, artifact_uri FROM runs ORDER BY start_time"))


def test_what_is_made_and_recorded_says_nothing_of_the_machine(
    surroundings: Surroundings, tried: Callable[..., None]
) -> None:
    assert [status for status, _ in runs(surroundings)] == ["FINISHED"] * len(MODELS)
    assert surroundings.leaks() == []
    assert not list(surroundings.clone.folder.glob("mlartifacts/**/*.pyc"))  # which hold paths
    tried(
        PART, "models made and recorded with words to look for as folder, home, user, host, tokens"
        " and git's names", HELD, CONTROL, times=len(MODELS),
    )  # fmt: skip


def test_a_run_of_a_changed_working_tree_keeps_the_changes_and_nothing_of_the_machine(
    surroundings: Surroundings, tried: Callable[..., None]
) -> None:
    folder = surroundings.clone.folder
    surroundings.clone.edit({"lr: 0.03": "lr: 0.04"})
    (folder / "lab/mine.py").write_text("MINE = 1\n")
    surroundings.run("python", "-m", "stages.record", "linear_regression")
    surroundings.run("git", "checkout", "--quiet", "params.yaml")
    (folder / "lab/mine.py").unlink()
    status, artifacts = runs(surroundings)[-1]
    patch = Path(artifacts.removeprefix("file://"), "changes.patch").read_text()
    assert status == "FINISHED" and "+lr: 0.04\n" in patch and "+MINE = 1\n" in patch
    assert "@example.org" not in patch
    assert surroundings.leaks() == []
    tried(
        PART, "the same of a changed working tree, whose changes are kept as a patch",
        HELD, CONTROL,
    )  # fmt: skip


def test_a_failed_run_says_nothing_of_the_machine(
    surroundings: Surroundings, tried: Callable[..., None]
) -> None:
    surroundings.clone.edit({"lr: 0.03": "lr: 1000"})
    done = surroundings.try_("python", "-m", "stages.train", "linear_regression")
    surroundings.run("git", "checkout", "--quiet", "params.yaml")
    assert done.returncode == 1
    assert runs(surroundings)[-1][0] == "FAILED"
    assert surroundings.leaks() == []
    tried(PART, "the same of a training that diverges, recorded as FAILED", HELD, CONTROL)


def test_an_experiment_in_a_folder_of_its_own_says_nothing_of_the_machine(
    surroundings: Surroundings, full: bool, tried: Callable[..., None]
) -> None:
    if not full:
        pytest.skip("in the long form")
    command = ["dvc", "exp", "run", "--temp", "--name", "one-more", "-S", "lr=0.04"]
    surroundings.run(*command, "record@linear_regression")
    assert runs(surroundings)[-1][0] == "FINISHED"
    assert surroundings.leaks() == []
    tried(PART, "the same of an experiment in a temporary folder", HELD, CONTROL)


PLAIN = """
import mlflow
mlflow.set_tracking_uri("sqlite:///plain.db")
with mlflow.start_run():
    mlflow.log_param("lr", 1)
"""


def test_what_mlflow_itself_tells_is_found(surroundings: Surroundings) -> None:
    script = surroundings.clone.folder / f"{CANARY}.py"
    script.write_text(PLAIN)
    surroundings.run("python", str(script))
    script.unlink()
    told = {found.word for found in surroundings.leaks("plain.db") if found.where[0] == "tags"}
    assert {VARIABLES["LOGNAME"], str(surroundings.clone.folder)} <= told


def text_chunk(kind: bytes, text: bytes) -> bytes:
    """A chunk of a picture; readers of texts do not look at its checksum."""
    return struct.pack(">I4s", len(text), kind) + text + b"\0\0\0\0"


@pytest.mark.parametrize("how", ["plain", "upper case", "compressed"])
def test_a_word_put_into_an_artifact_is_found(surroundings: Surroundings, how: str) -> None:
    picture = next(surroundings.clone.folder.glob("mlartifacts/**/curves.png"))
    before = picture.read_bytes()
    word = VARIABLES["GITHUB_TOKEN"].encode()
    chunk = text_chunk(b"zTXt", b"key\0\0" + zlib.compress(word))
    added = {"plain": word, "upper case": word.upper(), "compressed": chunk}[how]
    signature = len(b"\x89PNG\r\n\x1a\n")
    picture.write_bytes(before[:signature] + added + before[signature:])
    where = picture.relative_to(surroundings.clone.folder).as_posix()
    found = surroundings.leaks()
    picture.write_bytes(before)
    assert Found((where,), VARIABLES["GITHUB_TOKEN"]) in found


def test_a_word_put_into_a_column_is_found(surroundings: Surroundings) -> None:
    with contextlib.closing(sqlite3.connect(surroundings.clone.folder / "mlflow.db")) as db:
        (key,) = db.execute("SELECT min(value) FROM tags WHERE key LIKE 'sha256%'").fetchone()
        change = "UPDATE tags SET value = ? WHERE value = ?"
        db.execute(change, (str(surroundings.clone.folder), key))
        db.commit()
        found = surroundings.leaks()
        db.execute(change, (key, str(surroundings.clone.folder)))
        db.commit()
    assert Found(("tags", "value"), CANARY) in found
