"""Files: written atomically, read with checks, and their digests."""

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


HEADER = 1 << 20  # the largest header of a safetensors file, in bytes; ours have a few hundred
LONGEST = 8000  # characters of a message


class InputError(Exception):
    """What the stage was given is wrong; the message says what, where and what is expected."""

    exit_code = 1


def one_line(error: object) -> str:
    """What the error says, shortened, without line breaks and control characters."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, BaseException):  # as of running out of memory
        text = type(error).__name__
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:LONGEST])
    return shown + ("…" if len(text) > LONGEST else "")


def root_cause(error: BaseException) -> str:
    """What the innermost error says, without the wrapping of the libraries between."""
    while cause := getattr(error, "reason", None) or error.__cause__ or error.__context__:
        if not isinstance(cause, BaseException):
            break
        error = cause
    return one_line(error)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` at once when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp grants nothing to others
        temporary.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # as on a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, contents: bytes) -> None:
    """Replace the file at once."""
    with atomic(path) as temporary:
        temporary.write_bytes(contents)


def write_text(path: Path, text: str) -> None:
    """Replace the file at once, in UTF-8, with line ends as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once. Raises InputError where a number is NaN or infinite."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path}: not written, as a number is NaN or infinite") from error
    write_text(path, text + "\n")


@contextlib.contextmanager
def reading(path: Path, expected: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn OSError, ValueError and the given errors into InputError, which names the file."""
    other_contents: tuple[type[Exception], ...] = (ValueError, *errors)
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except other_contents as error:
        raise InputError(f"{path}: expected {expected}: {one_line(error)}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The contents. Raises InputError for a larger file and a named pipe, which may block."""
    with reading(path, "a file"):
        if path.is_fifo():
            raise InputError(f"{path}: cannot be read: expected a file, found a named pipe")
        with path.open("rb") as file:
            contents = file.read(limit + 1)
    if len(contents) > limit:
        raise InputError(f"{path}: expected at most {limit:,} bytes")
    return contents


def read_json(path: Path) -> Any:
    """What the file holds. Raises InputError where it cannot be read or is not JSON."""
    with reading(path, "JSON", RecursionError):
        return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the file at once; each row has the keys of the first, numbers read back the same."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as text. Raises InputError where it cannot be read or is ragged."""
    with reading(path, "a table", csv.Error), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row is longer or shorter than the header")
    return rows


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a table of numbers. Raises InputError for anything else."""
    with reading(path, "a table of numbers"):
        return [{key: float(value) for key, value in row.items()} for row in read_rows(path)]


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: tuple[str, str] | None = None
) -> None:
    """Replace the file at once, in the safetensors format; the same tensors give the same bytes.

    One pair of metadata at the most: safetensors writes several in random order.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file(dict(tensors), temporary, dict([metadata]) if metadata else None)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written: {one_line(error)}") from error


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors and metadata. Raises InputError for a file that is cut or has duplicate keys."""
    from safetensors import SafetensorError, safe_open

    with reading(path, "a whole safetensors file", SafetensorError, TypeError, RuntimeError):
        with path.open("rb") as start:
            size = int.from_bytes(start.read(8), "little")
            json.loads(start.read(min(size, HEADER)), object_pairs_hook=_without_duplicates)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise ValueError where the header has a key twice: readers differ in which they take."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key of the header is there twice")
    return found


def sha256(path: Path) -> str:
    """The digest of the contents, as hexadecimal digits. Raises InputError without a file."""
    return digest(path, "sha256")


def digest(path: Path, algorithm: Literal["sha256", "md5"]) -> str:
    """The same by another algorithm."""
    with reading(path, "a file"), path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
