"""The folder that a stage runs in: a lock against a second process, and its internal files."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NOTES = Path(".dvc/tmp")  # git ignores it, and DVC keeps its own temporary files there
CODE = ("exact", "lab", "stages")  # the folders whose code decides a result
STORE = "WORKERS_STORE"  # set in workers that a stage started: the file by which they meet


def main_root() -> Path:
    """The main repository, also within a queued or temporary DVC experiment."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


@contextlib.contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """Run the block while no other process runs one of this name in this folder.

    DVC can be killed while its stage goes on. The next `dvc repro` would then start a second
    writer of the same outputs: it waits here until the first one has ended itself.
    """
    if STORE in os.environ or os.environ.get("RANK", "0") != "0":
        yield  # one of several workers: another process holds the lock for all
        return
    if "DVC_STAGE" in os.environ:  # else started by hand: it may outlive its shell
        end_with_parent()
    folder = NOTES / "stages"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another {name}, which is at work in this folder", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def end_with_parent() -> None:
    """End this process by SIGTERM within a second after the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
