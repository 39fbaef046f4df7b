"""What dvc.lock says of a file is held against the file."""

from pathlib import Path

import pytest

from lab import integrity
from lab.files import InputError

LOCK = """schema: '2.0'
stages:
  make:
    cmd: make
    outs:
    - path: data/set
      hash: md5
      md5: 4a6f36fa1c75a89a8bb7ae3a4c48a1de.dir
      size: 6
      nfiles: 2
    - path: model
      hash: md5
      md5: 900150983cd24fb0d6963f7d28e17f72
      size: 3
  nothing:
    cmd: true
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/set").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "data/set" / name).write_text("abc")
    (tmp_path / "model").write_bytes(b"abc")  # its md5 is in RFC 1321
    text = LOCK.replace("4a6f36fa1c75a89a8bb7ae3a4c48a1de.dir", integrity.md5(Path("data/set")))
    (tmp_path / "dvc.lock").write_text(text)
    return tmp_path


def test_what_was_made_is_let_pass() -> None:
    integrity.require_unchanged(Path("data/set"), Path("model"), Path("unknown"))


@pytest.mark.parametrize("path", ["model", "data/set/b"])
def test_another_byte_is_refused_with_what_to_do(path: str) -> None:
    Path(path).write_bytes(b"abd")
    with pytest.raises(InputError, match=r"not what dvc\.lock says was made: `make mend`") as error:
        integrity.require_unchanged(Path("data/set"), Path("model"))
    assert str(error.value).startswith(path.removesuffix("/b"))


def test_a_file_too_many_or_too_few_is_refused() -> None:
    Path("data/set/c").write_bytes(b"")
    with pytest.raises(InputError, match="data/set is not what"):
        integrity.require_unchanged(Path("data/set"))
    Path("model").unlink()
    with pytest.raises(InputError, match="model: cannot be read: No such file"):
        integrity.require_unchanged(Path("model"))


def test_without_a_lock_nothing_is_known() -> None:
    Path("dvc.lock").unlink()
    Path("model").write_bytes(b"abd")
    integrity.require_unchanged(Path("model"))


@pytest.mark.parametrize(
    "text", ["", "stages: 3", "stages: {a: {outs: [{path: x}]}}", "a: [", "\0"]
)
def test_a_lock_that_cannot_be_read_is_no_leave(text: str) -> None:
    Path("dvc.lock").write_text(text)
    with pytest.raises(
        InputError, match=r"dvc\.lock cannot be read .*: `make repro` mends it"
    ) as e:
        integrity.require_unchanged(Path("model"))
    assert "\n" not in str(e.value)
