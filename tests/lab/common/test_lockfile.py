"""Files are compared with the digests in dvc.lock."""

from pathlib import Path

import pytest

from lab.common import lockfile
from lab.common.files import InputError

LOCK = """schema: '2.0'
stages:
  make:
    cmd: make
    outs:
    - path: data/set
      hash: md5
      md5: {folder}
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
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/set").mkdir(parents=True)
    for path in ("data/set/a", "data/set/b", "model"):
        Path(path).write_bytes(b"abc")  # its md5 is in RFC 1321
    Path("dvc.lock").write_text(LOCK.format(folder=lockfile.md5(Path("data/set"))))


def test_a_missing_file_and_one_too_many_are_refused() -> None:
    lockfile.require_unchanged(Path("data/set"), Path("model"), Path("unknown"))
    for path in (Path("data/set/c"), Path("model")):
        path.unlink() if path.exists() else path.touch()
    with pytest.raises(
        InputError, match=r"^data/set is not what dvc\.lock says was made: `make rep"
    ):
        lockfile.require_unchanged(Path("data/set"))
    with pytest.raises(InputError, match=r"^model: cannot be read: No such file"):
        lockfile.require_unchanged(Path("model"))


def test_without_a_lock_file_everything_passes() -> None:
    Path("dvc.lock").unlink()
    Path("model").write_bytes(b"abd")
    lockfile.require_unchanged(Path("model"))


@pytest.mark.parametrize("text", ["stages: 3", "stages: {a: {outs: [{path: x}]}}", "a: [", "\0"])
def test_an_unreadable_lock_file_is_refused(text: str) -> None:
    Path("dvc.lock").write_text(text)
    message = r"dvc\.lock cannot be read .*: `make repro` repairs it"
    with pytest.raises(InputError, match=message) as error:
        lockfile.require_unchanged(Path("model"))
    assert "\n" not in str(error.value)
