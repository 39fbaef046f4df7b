"""Python runs this file first in every process whose PYTHONPATH has this folder.

When a stage ends, it writes to the folder NOTES which files of the repository the stage loaded, and
which parameters it read.
"""

import atexit
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))
from lab import params
from lab.common.settings import Strict

read: set[str] = set()
get, iterate, parse = Strict.__getattribute__, Strict.__iter__, params.parse


def note(settings: Strict, *names: str) -> None:
    """Note that these were read, if they are parameters."""
    kind = type(settings)
    section = kind.__module__.rpartition(".")[2]
    section = section if "datasets" in kind.__module__ else kind.__name__
    read.update(f"{section}.{name}" for name in names if name in kind.model_fields)


def get_and_note(settings: Strict, name: str) -> Any:
    """An attribute."""
    note(settings, name)
    return get(settings, name)


def iterate_and_note(settings: Strict) -> Iterator[Any]:
    """All attributes."""
    note(settings, *type(settings).model_fields)
    return iterate(settings)


def parse_unnoted(*arguments: Any) -> Any:
    """The parameters, which are checked here: reading them for that is not noted."""
    before = set(read)
    parsed = parse(*arguments)
    read.intersection_update(before)
    return parsed


def write() -> None:
    """Write the notes, if this process is a stage."""
    if "stages" not in sys.modules:
        return
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    files = {Path(path) for path in paths if path}
    root = Path.cwd()
    names = [str(file.relative_to(root)) for file in files if file.is_relative_to(root)]
    notes = json.dumps({"files": names, "read": sorted(read)})
    Path(os.environ["NOTES"], os.environ["DVC_STAGE"]).write_text(notes)


Strict.__getattribute__ = get_and_note  # type: ignore[assignment,method-assign]
Strict.__iter__ = iterate_and_note  # type: ignore[assignment,method-assign]
params.parse = parse_unnoted  # type: ignore[assignment]
atexit.register(write)
