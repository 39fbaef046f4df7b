"""What is recorded tells nothing of the machine or the user: no path, name, variable or token.

The pipeline runs in an environment where all of these hold words that occur nowhere else. Then
these words are searched for.
"""

import contextlib
import getpass
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import ARTIFACT_COLUMNS, Clone
from tests.servers import MODELS
from tracking.repository import ROOT

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault.with_args, "12. Leaks")
RECORD = "record@linear_regression"
CANARY = "canary"
USER = ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME")
TOKENS = ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MLFLOW_TRACKING_TOKEN", "SOME_VARIABLE")
VARIABLES = (*USER, *TOKENS, "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "MLFLOW_TRACKING_PASSWORD")
WORDS = {name: f"{CANARY}-{name.lower()}" for name in (*VARIABLES, "HOST", "HOME", "TMPDIR", "GIT")}
NAMES = list(WORDS.values())
# Shorter names occur in fifty megabytes of images by chance, or in the code as words.
NAMES += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 6]

# Runs stages as `python -m` does, with torch and MLflow loaded once: those of the command line,
# `record` in a changed working tree, and a training that diverges. Then MLflow without our code.
PROGRAM = """
import contextlib, pathlib, runpy, sys
import mlflow

def run(stage):
    name, *sys.argv[1:] = stage.split()
    runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)

for stage in sys.argv[1:]:
    run(stage)
params, module = pathlib.Path("params.yaml"), pathlib.Path("lab/mine.py")
text = params.read_text()
params.write_text(text.replace("lr: 0.03", "lr: 0.04"))
module.write_text("MINE = 1\\n")
run("record linear_regression")
module.unlink()
params.write_text(text.replace("lr: 0.03", "lr: 1000"))
with contextlib.suppress(SystemExit):
    run("train linear_regression")
params.write_text(text)
mlflow.set_tracking_uri("sqlite:///plain.db")
with mlflow.start_run():
    mlflow.log_param("lr", 1)
"""
STAGES = ["prepare regression_data", "train linear_regression", "evaluate linear_regression"]
STAGES += [f"record {model}" for model in MODELS]
Found = tuple[str, str]  # the file, and the word that it holds


def in_bytes(where: str, contents: bytes, words: list[str]) -> Iterator[Found]:
    """The words in the bytes, in upper or lower case."""
    lower = contents.lower()
    yield from ((where, word) for word in words if word.lower().encode() in lower)


def in_files(root: Path, path: Path, words: list[str]) -> Iterator[Found]:
    """The words in a file, or in all files below a folder, and in their names."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        where = file.relative_to(root).as_posix()
        texts = [where.encode(), file.read_bytes() if file.is_file() else b""]
        if file.suffix == ".png":
            with Image.open(file) as image:
                image.load()
                texts.append(str(image.info).encode())  # which may be compressed in the file
        yield from in_bytes(where, b" ".join(texts), words)


def in_database(database: Path, paths: list[str]) -> Iterator[Found]:
    """The words in every value of every table; paths are allowed where MLflow needs them."""
    with (
        contextlib.closing(sqlite3.connect(database)) as db,
        contextlib.closing(sqlite3.connect(":memory:")) as copy,
    ):
        db.backup(copy)
        for table, column in ARTIFACT_COLUMNS:
            copy.execute(f"UPDATE {table} SET {column} = ''")  # noqa: S608
        yield from in_bytes(database.name, "".join(copy.iterdump()).encode(), NAMES + paths)
    # A value that was deleted from a table may remain in the file.
    yield from in_bytes(database.name, database.read_bytes(), NAMES)


def private_paths(clone: Clone) -> list[str]:
    folders = (clone.folder, clone.mirror, ROOT, sys.prefix, f"{Path.home()}/")
    return [CANARY, *map(str, folders)]


def leaks(clone: Clone, root: Path) -> list[Found]:
    """Every word in the outputs, dvc.lock and the store, in the clone or in a copy of it."""
    paths = private_paths(clone)
    places = [root / name for name in ("dvc.lock", "data", "results", "mlartifacts")]
    found = [hit for place in places for hit in in_files(root, place, NAMES + paths)]
    return found + list(in_database(root / "mlflow.db", paths))


@pytest.fixture(scope="module")
def canary(finished: Clone, tmp_path_factory: pytest.TempPathFactory, run_all: bool) -> Clone:
    """A clone after all runs in the environment full of words. Tests do not change it.

    In the short form one model is made again, and all three are recorded.
    """
    base = tmp_path_factory.mktemp(f"{CANARY}-folder")
    clone = finished.copy(base / "clone")
    clone.without_forks()  # they would have the host's real name
    clone.forget_runs()
    home, temporary = base / WORDS["HOME"], base / WORDS["TMPDIR"]
    home.mkdir()
    temporary.mkdir()
    author = f"[user]\nname = {WORDS['GIT']}\nemail = {WORDS['GIT']}@example.org"
    (home / ".gitconfig").write_text(author)
    clone.environment |= {"HOME": str(home), "TMPDIR": str(temporary)}
    clone.environment |= {name: WORDS[name] for name in VARIABLES}
    clone.run("git", "remote", "set-url", "origin", f"/home/{WORDS['GIT']}/it")
    named = ["unshare", "--uts", "sh", "-c", f'hostname {WORDS["HOST"]} && exec "$@"', "sh"]
    if not shutil.which("unshare") or clone.try_(*named, "true").returncode:
        named = []  # only root may name the host
    if run_all:
        clone.run(*named, "dvc", "repro", "--force")
    program = clone.folder / f"{CANARY}.py"
    program.write_text(PROGRAM)
    clone.run(*named, "python", str(program), *([] if run_all else STAGES))
    program.unlink()
    if run_all:
        options = "--temp", "--name", "one-more", "-S", "lr=0.04"
        clone.run(*named, "dvc", "exp", "run", *options, RECORD)
    return clone


# What was done; the status and the name of its runs, and their number.
RUNS = {
    "models trained, evaluated and recorded": ("FINISHED", "baseline %", len(MODELS)),
    "a changed working tree recorded, its changes as a patch": ("FINISHED", "%, changed", 1),
    "a training that diverges, recorded as FAILED": ("FAILED", "%, failed", 1),
    "an experiment in a temporary folder": ("FINISHED", "one-more", 1),
}


@pytest.fixture(scope="module")
def found(canary: Clone) -> list[Found]:
    return leaks(canary, canary.folder)


@fault(
    "{what}, with words to search for as folder, home, user, host, tokens and git's names",
    "none of the words in an output, dvc.lock, a receipt, the database or an artifact",
    "a run by plain `mlflow.start_run` tells the user's name and the script's path",
)
@pytest.mark.parametrize("what", RUNS)
def test_a_run_tells_nothing_of_the_machine(
    canary: Clone, found: list[Found], run_all: bool, times: Callable[[int], None], what: str
) -> None:
    status, name, number = RUNS[what]
    if name == "one-more" and not run_all:
        pytest.skip("runs with --all")
    with contextlib.closing(sqlite3.connect(canary.folder / "mlflow.db")) as db:
        query = "SELECT count(*) FROM runs WHERE status = ? AND name LIKE ?"
        assert db.execute(query, [status, name]).fetchone() == (number,)
    assert found == [], what
    times(number)


def test_artifacts_hold_the_patch_and_no_compiled_code(canary: Clone) -> None:
    artifacts = canary.folder / "mlartifacts"
    patches = [path.read_text() for path in artifacts.glob("*/*/artifacts/changes.patch")]
    (patch,) = (patch for patch in patches if "+MINE = 1\n" in patch)
    assert "+lr: 0.04\n" in patch and "@example.org" not in patch
    assert not list(artifacts.rglob("*.pyc"))  # which hold paths


def test_the_search_finds_a_word_in_any_place(canary: Clone, tmp_path: Path) -> None:
    hits = [*in_database(canary.folder / "plain.db", private_paths(canary))]
    assert {("plain.db", word) for word in (WORDS["LOGNAME"], str(canary.folder))} <= {*hits}
    copy = tmp_path / "copy"
    shutil.copytree(canary.folder, copy, ignore=shutil.ignore_patterns("data", ".dvc", ".git"))
    token = WORDS["GITHUB_TOKEN"]
    images = plain, upper, compressed = sorted(copy.glob("mlartifacts/**/*.png"))[:3]
    plain.write_bytes(plain.read_bytes() + token.encode())
    upper.write_bytes(upper.read_bytes() + token.upper().encode())
    text = PngInfo()
    text.add_text("key", token, zip=True)
    Image.new("L", (1, 1)).save(compressed, pnginfo=text)
    named, lock = copy / "results" / token, copy / "dvc.lock"
    named.touch()
    lock.write_text(f"{lock.read_text()}# {token}\n")
    with contextlib.closing(sqlite3.connect(copy / "mlflow.db")) as db:
        value = f"{canary.folder} {token}"
        db.execute("UPDATE tags SET value = ? WHERE key = 'fingerprint'", [value])
        db.commit()
    hits = leaks(canary, copy)
    places = {path.relative_to(copy).as_posix() for path in (*images, named, lock)}
    places.add("mlflow.db")
    assert {where for where, _ in hits} == places
    assert {where for where, word in hits if word == token} == places
    assert ("mlflow.db", str(canary.folder)) in hits
