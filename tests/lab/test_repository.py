"""What git says of a result's origin, without a trace in the user's repository."""

import os
import subprocess
from pathlib import Path

import pytest

from lab import files, repository
from lab.files import InputError


def git(*arguments: str) -> str:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return done.stdout


def test_the_patch_is_what_the_working_tree_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    with pytest.raises(InputError, match="git rev-parse"):
        repository.state()  # no commit yet
    for name in ("exact/a.py", "lab/b.py", "stages/c.py", "params.yaml", "dvc.lock", "results/m"):
        files.write_text(Path(name), "old\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD").strip()

    # What the pipeline writes is no change, nor is what is not code and not in git.
    for name in ("dvc.lock", "results/m", "secret.txt"):
        files.write_text(Path(name), "new\n")
    assert repository.state() == (commit, b"")

    files.write_bytes(Path("params.yaml"), b"n\xe9u\n")  # not UTF-8
    for setting in ("color.ui=always", "diff.noprefix=true", "diff.external=true"):
        git("config", *setting.split("="))
    files.write_bytes(Path("lab/new.py"), b"x = 1\n")
    Path("exact/a.py").unlink()
    status = git("status", "--porcelain")
    _, patch = repository.state()
    assert git("status", "--porcelain") == status  # the user's index is untouched
    assert b"secret" not in patch

    git("stash", "--quiet", "--include-untracked")
    files.write_bytes(Path("changes.patch"), patch)
    git("apply", "changes.patch")
    assert Path("params.yaml").read_bytes() == b"n\xe9u\n"
    assert Path("lab/new.py").read_text() == "x = 1\n"
    assert not Path("exact/a.py").exists()


def test_a_commit_shows_its_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    files.write_text(Path("results/m.json"), "old\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    files.write_text(Path("results/m.json"), "new\n")
    assert repository.committed(repository.head(), "results/m.json") == "old\n"
    assert repository.committed(repository.head(), "results/n.json") is None
    assert repository.committed("0" * 40, "results/m.json") is None
