"""Each stage compares what it reads with dvc.lock.

DVC trusts modification times and its cache, so it misses a file that a disk has corrupted.
"""

import hashlib
import json
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lab.common.files import InputError, digest, one_line

LOCK = Path("dvc.lock")


def require_unchanged(*paths: Path) -> None:
    """Raise InputError for a path that dvc.lock lists with another md5."""
    recorded = outputs()
    for path in paths:
        if path in recorded and md5(path) != recorded[path]:
            raise InputError(
                f"{path} is not what dvc.lock says was made: `make repair` removes what is damaged,"
                " `make repro` makes it again (to use it as it is: `dvc commit`)"
            )


def outputs() -> dict[Path, str]:
    """The md5 of each output in dvc.lock, if there is one. Raises InputError if it is damaged."""
    try:
        stages = YAML(typ="safe").load(LOCK.read_text(encoding="utf-8"))["stages"]
        outs = [out for stage in stages.values() for out in stage.get("outs", [])]
        return {Path(out["path"]): out["md5"] for out in outs}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{LOCK} cannot be read ({one_line(error)[:200]}): `make repro` repairs it"
        ) from error


def md5(path: Path) -> str:
    """The digest by which DVC knows a file, or a folder with all its files."""
    if not path.is_dir():
        return digest(path, "md5")
    files = {f.relative_to(path).as_posix(): f for f in path.rglob("*") if f.is_file()}
    listed = [{"md5": digest(files[name], "md5"), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + ".dir"
