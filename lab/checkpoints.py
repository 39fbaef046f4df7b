"""What a killed training continues from.

A checkpoint lies outside DVC's outputs, which DVC removes before a stage runs. Its name is the
digest of all that determines the result, so that code, data or parameters other than those
that wrote it never meet it.
"""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab import files, workspace
from lab.params import DATA, ModelName, Params

INTERVAL = 10.0  # seconds from one to the next: a shorter training writes none
KEPT = 7 * 24 * 3600  # seconds that a training which nobody went on with is kept for


class Saved(NamedTuple):
    """What was saved: tensors, and what JSON can say."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoint:
    """The place of one training's checkpoint; `saved` is what an earlier process left there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved = self._load()
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the last one is old enough for another."""
        return time.monotonic() - self._last >= INTERVAL

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the file at once by this state. A full disk does not stop the training."""
        text = json.dumps(state)
        said = json.dumps({"sha256": self._digest(tensors, text), "state": text})
        try:
            files.write_tensors(self.path, tensors, ("checkpoint", said))
        except OSError as error:
            print(f"going on without a checkpoint: {files.one_line(error)}", file=sys.stderr)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Forget it: the training is complete."""
        self.path.unlink(missing_ok=True)

    def _load(self) -> Saved | None:
        if not self.path.exists():
            return None
        try:
            tensors, metadata = files.read_tensors(self.path)
            said = json.loads(metadata["checkpoint"])
            if said["sha256"] == self._digest(tensors, said["state"]):
                return Saved(tensors, json.loads(said["state"]))
        except (files.InputError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None  # damaged: the training begins anew, and will replace it

    def _digest(self, tensors: Mapping[str, Tensor], text: str) -> str:
        """Over name, state and tensors, since safetensors has no check of its own."""
        digest = hashlib.sha256(f"{self.path.name} {text}".encode())
        for name in sorted(tensors):
            digest.update(f" {name} ".encode())
            digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def find(model: ModelName, params: Params, device: torch.device) -> Checkpoint:
    """The checkpoint of this very training, in the main repository; old ones of any are removed."""
    folder = workspace.main_root() / workspace.NOTES / "checkpoints"
    if folder.exists():
        for path in folder.iterdir():
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink(missing_ok=True)
    return Checkpoint(folder / f"{key(model, params, device)}.safetensors")


def key(model: ModelName, params: Params, device: torch.device) -> str:
    """A sha256 over parameters, code, data, PyTorch's release, and where it matters the machine."""
    read = [path for folder in workspace.CODE for path in Path(folder).rglob("*.py")]
    read += [path for path in DATA[model].rglob("*") if path.is_file()]
    native = params.arithmetic == "native"
    determines = {
        "model": model,
        "params": params.seen_by(model),
        "files": {path.as_posix(): files.sha256(path) for path in sorted(read)},
        "torch": torch.__version__,
        "machine": [str(device), platform.processor(), torch.get_num_threads()] if native else None,
    }
    return hashlib.sha256(json.dumps(determines).encode()).hexdigest()
