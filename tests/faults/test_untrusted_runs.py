"""Replay of runs from an untrusted MLflow store: what is malformed is refused, and no code runs."""

import contextlib
import sqlite3
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import Clone, Program
from tests.tools.test_replay import MODEL, runs
from tools import replay

pytestmark = pytest.mark.slow
fault = partial(pytest.mark.fault.with_args, "8. Untrusted files")
REFUSED = "cannot be tried: exit code 2, one line; no code runs, no file is written"
TRIED = "a run with another model, parameter and commit is tried"
HISTORY = f"sha256.results/{MODEL}/history.csv"
TAG = "UPDATE tags SET value = ? WHERE key = ?"
Times = Callable[[int], None]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def recorded(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the finished pipeline. Tests undo their changes."""
    return finished.copy(tmp_path_factory.mktemp("recorded") / "clone")


@pytest.fixture
def refusal(
    recorded: Clone, in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refusal:
    """A function that changes a run, returns why it cannot be replayed, and undoes the change.

    The change is an SQL statement with its values, or contents of artifacts.
    """
    temporary, (run, *_) = tmp_path / "tmp", runs(recorded)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(recorded.folder)

    def listing() -> dict[Path, int]:
        """Times of change of all files but MLflow's database."""
        paths = [path for path in Path().rglob("*") if "mlflow.db" not in path.name]
        return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}

    def refuse(*sql: str, **artifacts: bytes) -> str:
        folder = Path("mlartifacts", MODEL, run, "artifacts")
        files = {folder / name: contents for name, contents in artifacts.items()}
        old = {path: path.read_bytes() for path in files if path.exists()}
        with (
            contextlib.closing(sqlite3.connect(":memory:")) as backup,
            contextlib.closing(sqlite3.connect("mlflow.db")) as db,
        ):
            db.backup(backup)
            if sql:
                assert db.execute(sql[0], sql[1:]).rowcount
                db.commit()
            for path, contents in files.items():
                path.write_bytes(contents)
            before = listing()
            done = in_process(replay, run)
            assert listing() == before and not list(temporary.iterdir())
            backup.backup(db)
        for path in files:
            path.write_bytes(old[path]) if path in old else path.unlink()
        assert done.returncode == 2 and not done.stdout, done
        first, last = done.stderr.splitlines()
        assert first.startswith(f"replaying run {run} ("), first
        assert last.startswith(f"{run}: cannot be tried: ") and len(last) < 1000, last
        assert first.isprintable() and last.isprintable()
        return last

    return refuse


PATHS = [
    "data/../../../evil", "/etc/passwd", "../evil", "lab/files.py", "results/../../evil",
    ".git/hooks/post-checkout", "", ".",
]  # fmt: skip


@fault("a run that names files outside of data and results is replayed", REFUSED, TRIED)
def test_other_files(refusal: Refusal, times: Times) -> None:
    for path in PATHS:
        reason = refusal("UPDATE tags SET key = ? WHERE key = ?", f"sha256.{path}", HISTORY)
        assert "not a run that this pipeline recorded" in reason
    times(len(PATHS))


COMMITS = [
    "--upload-pack=mkdir CANARY", "--output=CANARY", "-h", "--help", "--batch", "--textconv",
    "-e", "--", "", "HEAD; mkdir CANARY", "$(mkdir CANARY)", "HEAD:stages", "^HEAD", "0" * 40,
    "HEAD\n--upload-pack=mkdir CANARY", "HEAD\0",
]  # fmt: skip


@fault(
    "a run whose commit is an option of git, a command, or no commit is replayed", REFUSED,
    "other commands of git run the program that such an option names",
)  # fmt: skip
def test_a_commit_that_is_none(refusal: Refusal, tmp_path: Path, times: Times) -> None:
    canary = tmp_path / "canary"
    for commit in COMMITS:
        reason = refusal(TAG, commit.replace("CANARY", str(canary)), "git.commit")
        assert ("is not in this repository" in reason) == (commit == "0" * 40)
        assert not canary.exists()
    command = ["git", "ls-remote", f"--upload-pack=mkdir {canary};", "."]
    subprocess.run(command, check=False, capture_output=True)
    assert canary.exists()
    times(len(COMMITS))


PARAMETERS = [
    "!!python/object/apply:os.mkdir [CANARY]", "a: [1", "\0", "", "1", "seed: 2001-99-99",
    "a: &a [1, 1]\nb: [*a, *a]", "a:\n" + "".join(" " * i + "a:\n" for i in range(1, 900)),
    "seed: 1\nseed: 2\n", "seed: " + "9" * 10_000, "\ud800",
]  # fmt: skip


@fault(
    "a run whose parameters are not YAML, contain a command, or expand is replayed", REFUSED,
    "an unsafe parser runs the command",
)  # fmt: skip
def test_malformed_parameters(refusal: Refusal, tmp_path: Path, times: Times) -> None:
    canary = tmp_path / "canary"
    for text in PARAMETERS:
        contents = text.replace("CANARY", str(canary)).encode("utf-8", "surrogatepass")
        assert "params.yaml: " in refusal(**{"params.yaml": contents})
        assert not canary.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        YAML(typ="unsafe", pure=True).load(PARAMETERS[0].replace("CANARY", str(canary)))
    assert canary.exists()
    times(len(PARAMETERS))


def new_file(path: str, mode: str = "100644", line: str = "x") -> str:
    """A patch that makes a file."""
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n"
        f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{line}\n"
    )


OUTSIDE = new_file("../../evil")
LINK = new_file("data/link", "120000", "TMP") + "\\ No newline at end of file\n"
PATCHES = [
    "\0\1 junk", "", OUTSIDE, new_file(".git/config"), LINK + new_file("data/link/evil"),
    new_file(".git/hooks/post-checkout", "100755", "#!/bin/sh"),
    new_file("GIT~1/hooks/post-checkout", "100755", "#!/bin/sh"),  # the name on Windows
]  # fmt: skip


@fault(
    "a run whose patch is malformed or writes outside of the clone is replayed", REFUSED,
    "without git's check a file outside is written",
)  # fmt: skip
def test_malformed_patches(refusal: Refusal, tmp_path: Path, times: Times) -> None:
    for text in PATCHES:
        patch = {"changes.patch": text.replace("TMP", str(tmp_path)).encode()}
        assert "cannot be tried: git " in refusal(TAG, "true", "git.dirty", **patch)
        assert not list(tmp_path.rglob("evil"))
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    command = ["git", "apply", "--unsafe-paths"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, input=OUTSIDE.encode())
    assert (tmp_path / "evil").exists()
    times(len(PATCHES))


MALFORMED = [
    "UPDATE tags SET value = 'true' WHERE key = 'git.dirty'",  # without a patch
    "UPDATE tags SET value = NULL WHERE key = 'git.commit'",
    "DELETE FROM tags WHERE key = 'git.commit'",
    "UPDATE tags SET value = NULL WHERE key LIKE '%history.csv'",
    "UPDATE tags SET value = 'missing' WHERE key LIKE '%history.csv'",
    "DELETE FROM tags WHERE key LIKE 'sha256.%'",
    "UPDATE runs SET artifact_uri = NULL",
    "UPDATE runs SET artifact_uri = 'junk://x'",
    "UPDATE runs SET artifact_uri = 'junk://x', name = 'identical\n\x1b[2J'",
    "UPDATE runs SET artifact_uri = 'http://127.0.0.1:9/x'",
    "UPDATE logged_models SET artifact_location = 'junk://x'",
    "UPDATE logged_models SET artifact_location = 'http://127.0.0.1:9/x'",  # nothing listens there
    "UPDATE logged_models SET status = 77",
]


@fault("a run with malformed entries in the store is replayed", REFUSED, TRIED)
def test_malformed_entries(refusal: Refusal, times: Times) -> None:
    for statement in MALFORMED:
        refusal(statement)
    times(len(MALFORMED))
