"""Replay of runs from an untrusted MLflow store: what is malformed is refused, and no code runs."""

import contextlib
import re
import sqlite3
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests import servers
from tests.conftest import Clone, Program
from tools import replay

pytestmark = pytest.mark.slow
MODEL = "linear_regression"
# Changes of a run: an SQL statement with its values, and the contents of artifacts.
# TMP stands for a folder in which no file named canary may be made.
Change = tuple[tuple[str, ...], dict[str, str]]
RENAME = "UPDATE tags SET key = ? WHERE key = ?"
TAG = "UPDATE tags SET value = ? WHERE key = ?"


@pytest.fixture(scope="module")
def recorded(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the finished pipeline. Tests undo their changes."""
    return finished.copy(tmp_path_factory.mktemp("recorded") / "clone")


@pytest.fixture
def refusal(
    recorded: Clone, in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Change], str]:
    """A function that changes a run, returns why it cannot be replayed, and undoes the change."""
    run = servers.runs(f"sqlite:///{recorded.folder}/mlflow.db", MODEL)[0].info.run_id
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(recorded.folder)

    def listing() -> dict[Path, int]:
        """Times of change of all files but MLflow's database."""
        paths = [path for path in Path().rglob("*") if "mlflow.db" not in path.name]
        return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}

    def refuse(change: Change) -> str:
        sql, artifacts = change
        folder = Path("mlartifacts", MODEL, run, "artifacts")
        files = {folder / name: contents for name, contents in artifacts.items()}
        old = {path: path.read_bytes() for path in files if path.exists()}
        with (
            contextlib.closing(sqlite3.connect(":memory:")) as backup,
            contextlib.closing(sqlite3.connect("mlflow.db")) as db,
        ):
            db.backup(backup)
            if sql:
                values = [value.replace("TMP", str(tmp_path)) for value in sql[1:]]
                assert db.execute(sql[0], values).rowcount
                db.commit()
            for path, text in files.items():
                contents = text.replace("TMP", str(tmp_path))
                path.write_bytes(contents.encode("utf-8", "surrogatepass"))
            before = listing()
            done = in_process(replay, run)
            assert listing() == before and not list(temporary.iterdir())
            backup.backup(db)
        for path in files:
            path.write_bytes(old[path]) if path in old else path.unlink()
        assert done.returncode == 2 and not done.stdout, done
        first, last = done.stderr.splitlines()
        assert first.startswith(f"replaying run {run} ("), first
        assert last.startswith(f"{run}: cannot be replayed: ") and len(last) < 1000, last
        assert first.isprintable() and last.isprintable()
        return last

    return refuse


def new_file(path: str, mode: str = "100644", line: str = "x") -> str:
    """A patch that makes a file."""
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n"
        f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{line}\n"
    )


PATHS = ["data/../../../evil", "/etc/passwd", "../evil", "lab/common/files.py", "", "."]
PATHS += ["results/../../evil", ".git/hooks/post-checkout"]
UPLOAD = "--upload-pack=mkdir TMP/canary"
COMMITS = [UPLOAD, "--output=TMP/canary", "-h", "--help", "--batch", "--textconv", "-e", "--"]
COMMITS += ["HEAD; mkdir TMP/canary", "$(mkdir TMP/canary)", "HEAD:stages", "^HEAD", "0" * 40]
COMMITS += [f"HEAD\n{UPLOAD}", "HEAD\0", ""]
COMMAND = "!!python/object/apply:os.mkdir [TMP/canary]"
PARAMETERS = [COMMAND, "a: [1", "\0", "", "1", "seed: 2001-99-99", "seed: " + "9" * 10_000]
PARAMETERS += ["a: &a [1, 1]\nb: [*a, *a]", "seed: 1\nseed: 2\n", "\ud800"]
PARAMETERS += ["a:\n" + "".join(" " * i + "a:\n" for i in range(1, 900))]
OUTSIDE = new_file("../../canary")
LINK = new_file("data/link", "120000", "TMP") + "\\ No newline at end of file\n"
PATCHES = ["\0\1 junk", "", OUTSIDE, new_file(".git/config"), LINK + new_file("data/link/canary")]
PATCHES += [new_file(".git/hooks/post-checkout", "100755", "#!/bin/sh")]
PATCHES += [new_file("GIT~1/hooks/post-checkout", "100755", "#!/bin/sh")]  # the name on Windows
MALFORMED = [
    "UPDATE tags SET value = 'true' WHERE key = 'git.dirty'",  # without a patch
    "UPDATE tags SET value = NULL WHERE key = 'git.commit'",
    "UPDATE tags SET value = NULL WHERE key LIKE '%history.csv'",
    "UPDATE tags SET value = 'missing' WHERE key LIKE '%history.csv'",
    "DELETE FROM tags WHERE key LIKE 'sha256.%'",
    "UPDATE runs SET artifact_uri = NULL",
    "UPDATE runs SET artifact_uri = 'junk://x', name = 'identical\n\x1b[2J'",
    "UPDATE runs SET artifact_uri = 'http://127.0.0.1:9/x'",
    "UPDATE logged_models SET artifact_location = 'junk://x'",
    "UPDATE logged_models SET artifact_location = 'http://127.0.0.1:9/x'",  # nothing listens there
    "UPDATE logged_models SET status = 77",
]


def run_by_git(folder: Path) -> None:
    command = ["git", "ls-remote", UPLOAD.replace("TMP", str(folder)) + ";", "."]
    subprocess.run(command, check=False, capture_output=True)


def run_by_yaml(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        YAML(typ="unsafe", pure=True).load(COMMAND.replace("TMP", str(folder)))


def write_by_git(folder: Path) -> None:
    inner = folder / "a/b"
    inner.mkdir(parents=True)
    command = ["git", "apply", "--unsafe-paths"]
    subprocess.run(command, cwd=inner, check=True, capture_output=True, input=OUTSIDE.encode())


Control = Callable[[Path], None]
CASES: dict[str, tuple[list[Change], str, Control | None]] = {
    "that names files outside of data and results": (
        [((RENAME, f"sha256.{path}", f"sha256.results/{MODEL}/history.csv"), {}) for path in PATHS],
        "not a run that this pipeline recorded",
        None,
    ),
    "whose commit is an option of git, a command, or no commit": (
        [((TAG, commit, "git.commit"), {}) for commit in COMMITS],
        "not a run that this pipeline recorded|0{40} is not in this repository",
        run_by_git,
    ),
    "whose parameters are not YAML, contain a command, or expand": (
        [((), {"params.yaml": text}) for text in PARAMETERS],
        "params.yaml: ",
        run_by_yaml,
    ),
    "whose patch is malformed or writes outside of the clone": (
        [((TAG, "true", "git.dirty"), {"changes.patch": text}) for text in PATCHES],
        "cannot be replayed: git ",
        write_by_git,
    ),
    "with malformed entries in the store": ([((text,), {}) for text in MALFORMED], "", None),
}


@pytest.mark.fault(
    "8. Untrusted files",
    "a run {what} is replayed",
    "cannot be replayed: exit code 2, one line; no code runs, no file is written",
    "a run with another model, parameter and commit is tried; other commands of git, an unsafe"
    " parser of YAML and git without its check run the command or write the file",
)
@pytest.mark.parametrize("what", CASES)
def test_a_malformed_run_is_refused(
    refusal: Callable[[Change], str], tmp_path: Path, times: Callable[[int], None], what: str
) -> None:
    changes, reason, control = CASES[what]
    for change in changes:
        assert re.search(reason, refusal(change))
        assert not list(tmp_path.rglob("canary"))
    if control:
        control(tmp_path)
        assert (tmp_path / "canary").exists()
    times(len(changes))
