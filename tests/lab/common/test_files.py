"""A file is whole or absent, whatever happens while it is written."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.common import files

KILLED = """
import os, sys, signal, pathlib
from lab.common import files
with files.atomic(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half of the ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(RecursionError), files.atomic(path) as temporary:
        temporary.write_text("half of the ne")
        raise RecursionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def write(contents: bytes) -> None:
        with files.atomic(tmp_path / "file"), Path("/dev/full").open("wb") as full:
            full.write(contents)

    write(b"")
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path}/file'")):
        write(b"contents")


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        files.write_text(tmp_path / "new" / "folder" / "file", "x")
    finally:
        os.umask(umask)
    assert (tmp_path / "new/folder/file").stat().st_mode & 0o777 == 0o644


def test_numbers_read_back_to_the_same_values(tmp_path: Path) -> None:
    rows = [{"epoch": 1.0, "loss": 0.1 + 0.2}, {"epoch": 2.0, "loss": 1e-310}]
    files.write_csv(tmp_path / "t.csv", rows)
    assert files.read_csv(tmp_path / "t.csv") == rows
    files.write_json(tmp_path / "t.json", rows)
    assert files.read_json(tmp_path / "t.json") == rows
    with pytest.raises(files.InputError, match="NaN or infinite"):
        files.write_json(tmp_path / "t.json", {"loss": float("nan")})
    assert files.read_json(tmp_path / "t.json") == rows
