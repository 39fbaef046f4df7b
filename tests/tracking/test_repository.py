"""What git says of a result's origin, without a trace in the user's repository."""

from pathlib import Path

import pytest

from lab.common import files
from lab.common.files import InputError
from tests.conftest import Clone
from tracking import repository


def test_the_patch_is_what_the_working_tree_adds(git: Clone) -> None:
    with pytest.raises(InputError, match="git rev-parse"):
        repository.state()  # no commit yet
    for name in ("exact/a.py", "lab/b.py", "params.yaml", "dvc.lock", "results/m"):
        files.write_text(Path(name), "old\n")
    git.commit("first")
    commit = git.run("git", "rev-parse", "HEAD").strip()

    # What the pipeline writes is no change, nor is what is not code and not in git.
    for name in ("dvc.lock", "results/m", "secret.txt"):
        files.write_text(Path(name), "new\n")
    assert repository.state() == (commit, b"")

    files.write_bytes(Path("params.yaml"), b"n\xe9u\n")  # not UTF-8
    for setting in ("color.ui=always", "diff.noprefix=true", "diff.external=true"):
        git.run("git", "config", *setting.split("="))
    new = [Path(folder, "new.py") for folder in ("exact", "lab", "stages", "tracking")]
    for path in new:
        files.write_text(path, "x = 1\n")
    Path("exact/a.py").unlink()
    status = git.run("git", "status", "--porcelain")
    _, patch = repository.state()
    assert git.run("git", "status", "--porcelain") == status  # the user's index is untouched
    assert b"secret" not in patch

    git.run("git", "stash", "--quiet", "--include-untracked")
    files.write_bytes(Path("changes.patch"), patch)
    git.run("git", "apply", "changes.patch")
    assert Path("params.yaml").read_bytes() == b"n\xe9u\n"
    assert all(path.read_text() == "x = 1\n" for path in new)
    assert not Path("exact/a.py").exists()


def test_a_commit_shows_its_files_and_nothing_else(git: Clone) -> None:
    files.write_text(Path("results/m.json"), "old\n")
    git.commit("first")
    files.write_text(Path("results/m.json"), "new\n")
    assert repository.committed(repository.head(), "results/m.json") == "old\n"
    assert repository.committed(repository.head(), "results/n.json") is None
    assert repository.committed("0" * 40, "results/m.json") is None
