"""What a killed training continues from, kept outside the outputs that DVC removes first.

Its name is the digest of all that determines the result, so a stale checkpoint is never loaded.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from lab import schema
from lab.common import files, workspace
from lab.common.files import InputError
from lab.schema import Params

INTERVAL = 10.0  # seconds between two checkpoints: a shorter training writes none
MAX_AGE = 7 * 24 * 3600  # seconds, after which an unused checkpoint is deleted


class Saved(NamedTuple):
    """What was saved: tensors, and what JSON can say."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoint:
    """One training's checkpoint; `saved` is what an earlier process left there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved = self._load()
        self.writes = True  # of several workers one
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is for this process to write, and the last one is old enough for another."""
        return self.writes and time.monotonic() - self._last >= INTERVAL

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the file by this state. A full disk does not stop the training."""
        text = json.dumps(state)
        metadata = json.dumps({"sha256": self._digest(tensors, text), "state": text})
        try:
            files.write_tensors(self.path, tensors, ("checkpoint", metadata))
        except OSError as error:
            print(f"going on without a checkpoint: {files.one_line(error)}", file=sys.stderr)
        self._last = time.monotonic()

    def _load(self) -> Saved | None:
        with contextlib.suppress(InputError, ValueError, LookupError, TypeError, RecursionError):
            tensors, metadata = files.read_tensors(self.path)
            saved = json.loads(metadata["checkpoint"])
            if saved["sha256"] == self._digest(tensors, saved["state"]):
                return Saved(tensors, json.loads(saved["state"]))
        return None  # missing or damaged: the training begins anew, and will replace it

    def _digest(self, tensors: Mapping[str, Tensor], text: str) -> str:
        """Over name, state and tensors, since safetensors has no check of its own."""
        contents = f"{self.path.name} {text} ".encode() + save(dict(tensors))
        return hashlib.sha256(contents).hexdigest()


def find(model: str, params: Params, device: torch.device) -> Checkpoint:
    """This training's checkpoint, in the main repository; old ones of any training are removed."""
    folder = workspace.main_root() / workspace.NOTES / "checkpoints"
    if folder.exists():
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - path.stat().st_mtime > MAX_AGE:
                    path.unlink()
    return Checkpoint(folder / f"{key(model, params, device)}.safetensors")


def key(model: str, params: Params, device: torch.device) -> str:
    """A sha256 over parameters, code, data, PyTorch's release, and for native the machine."""
    data = schema.folder(params.models[model].data)
    code = [path for folder in workspace.CODE for path in Path(folder).rglob("*")]
    read = [path for path in code if path.suffix in (".py", ".c")]
    read += [path for path in data.rglob("*") if path.is_file()]
    native = params.arithmetic == "native"
    machine = [str(device), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    key_parts = {
        "model": model,
        "params": params.flat(model),
        "files": {path.as_posix(): files.sha256(path) for path in sorted(read)},
        "torch": torch.__version__,
        "machine": [*machine, workers] if native else None,
    }
    return hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()
