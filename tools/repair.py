"""Make the repository fit to run again after a kill, a full disk or a lost byte.

    make repro      # runs this first
    make repair     # or: python -m tools.repair --damaged

Repairs DVC's own files where a kill left them half-written. With --damaged also removes outputs
and objects of DVC's cache that are not what their name or dvc.lock says.
"""

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from lab import params
from lab.common import files, lockfile, workspace
from lab.common.files import InputError
from lab.schema import Params
from stages import command
from tracking import repository

RWLOCK = workspace.NOTES / "rwlock"


def main() -> None:
    """Print what was repaired, in one line each."""
    parser = argparse.ArgumentParser(description="Repair what a kill or a lost byte damaged.")
    parser.add_argument("--damaged", action="store_true", help="also remove damaged outputs")
    damaged = parser.parse_args().damaged
    repair()
    if damaged:
        refuse_beside_dvc("look for damage")
        # Temporary files first: they would change the digest of their folder.
        removed = [*remove(temporary_files()), *remove(damaged_files())]
        print("`make repro` makes again what is missing" if removed else "nothing is damaged")


def remove(paths: Iterable[Path]) -> list[Path]:
    """Remove files and folders; return and print which."""
    removed = list(paths)
    for path in removed:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        print(f"removed {path}, which was damaged or never complete")
    return removed


def repair() -> Params:
    """Repair DVC's own files, and return the parameters. Raises InputError if they are wrong."""
    p = params.load()
    repair_rwlock()
    repair_lock()
    return p


def repair_rwlock() -> None:
    """Remove DVC's note of who uses which file where it is no JSON, which stops every command."""
    with contextlib.suppress(InputError):
        if not RWLOCK.exists() or isinstance(files.read_json(RWLOCK), dict):
            return
    refuse_beside_dvc(f"remove {RWLOCK}")
    RWLOCK.unlink(missing_ok=True)
    print(f"removed {RWLOCK}, which a killed DVC left half-written")


def repair_lock() -> None:
    """Restore dvc.lock as committed, or remove it, where DVC was stopped while it wrote it.

    Raises InputError where another DVC is running.
    """
    lock = lockfile.LOCK
    if not lock.exists():
        return
    text = lock.read_text(encoding="utf-8", errors="replace")
    committed = repository.committed("HEAD", f"./{lock}")
    if text == committed or is_lock(text):
        return
    refuse_beside_dvc(f"restore {lock}")
    if committed is None:
        lock.unlink()
        print(f"removed {lock}, which was half-written")
    else:
        files.write_text(lock, committed)
        print(f"restored {lock} as committed, as it was half-written")


def is_lock(text: str) -> bool:
    """Whether DVC takes this for a dvc.lock, and for more than an empty one."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    try:
        return bool(COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text)))
    except (YAMLError, Invalid):
        return False


def refuse_beside_dvc(what: str) -> None:
    """Raise InputError where another process of DVC is running in this repository."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, folder = process.info["cmdline"] or [], process.info["cwd"]
        here = folder and Path(folder).is_relative_to(Path.cwd())
        if here and is_dvc(words) and process.pid != os.getpid():
            raise InputError(f"cannot {what}: DVC is at work here as process {process.pid}")


def is_dvc(words: list[str]) -> bool:
    """Whether this is the command line of DVC, of a worker of its queue, or of `make repro`."""
    return any(Path(word).name in ("dvc", "tools.repro") for word in words[:4])


def temporary_files() -> Iterator[Path]:
    """What killed stages left of outputs that were not complete."""
    for folder in ("data", "results"):
        yield from (path for path in Path(folder).glob("*/.*") if path.is_file())


def damaged_files() -> Iterator[Path]:
    """Objects of DVC's cache and outputs that are not what their name or dvc.lock says."""
    from dvc.config import Config

    cache = Path(os.path.relpath(Config(".dvc")["cache"].get("dir", ".dvc/cache")))
    for path in sorted((cache / "files/md5").glob("??/*")):
        md5 = (path.parent.name + path.name).removesuffix(".dir")
        if files.digest(path, "md5") != md5:
            yield path
    for path, md5 in lockfile.outputs().items():
        if path.exists() and lockfile.md5(path) != md5:
            yield path


if __name__ == "__main__":
    command(main)
