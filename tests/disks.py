"""A small disk of its own for a test, whose room can be changed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

UNLIMITED = "1000000 KiB", "1000000 files"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a disk of its own."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root may mount a small disk")
    (folder := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    limit(folder, *UNLIMITED)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def limit(disk: Path, *rooms: str) -> None:
    """Leave this much room, such as "8 KiB" or "3 files"."""
    for room in rooms:
        number, unit, *_ = room.split()
        stat = os.statvfs(disk)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize // 1024
        size, files = f"size={used + int(number)}k", stat.f_files - stat.f_ffree + int(number)
        change = size if unit == "KiB" else f"nr_inodes={files}"
        subprocess.run(["mount", "-o", f"remount,{change}", str(disk)], check=True)
