"""`params.yaml`, read once into frozen parameters or refused in one line."""

import contextlib
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
from ruamel.yaml.reader import ReaderError

from lab import schema
from lab.common.files import InputError, one_line, read_bytes
from lab.schema import Params

PATH = Path("params.yaml")
DEPTH = 5  # lists and sections within each other; ours have 3
LARGEST = 100_000  # bytes of a file of parameters; ours has 5,000


class ParamsError(InputError):
    """`params.yaml` asks for something that does not exist or is out of range."""

    exit_code = 2


def load(path: Path = PATH) -> Params:
    """Read and check all parameters. Raises ParamsError, whose message is one line."""
    try:
        return parse(read_bytes(path, LARGEST).decode(), path)
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: expected text in UTF-8, found other bytes") from error
    except ParamsError:
        raise
    except InputError as error:
        raise ParamsError(str(error)) from error


def parse(text: str, path: Path = PATH) -> Params:
    """Check all parameters. Raises ParamsError, whose message is one line, and names `path`."""
    try:
        _require_plain(text, path)
        # ruamel.yaml is DVC's own parser: `-S lr=1e-5` is a number to both.
        tree = YAML(typ="safe", pure=True).load(text)
    except ParamsError:
        raise
    except Exception as error:  # beside its own, it has those of whatever it stumbles over
        raise ParamsError(f"{path}: {_yaml_problem(error, text)}") from error
    kind: type[Params] = Params
    try:
        kind = schema.schema_of(tree)
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_first_problem(error, kind)}") from error


def _require_plain(text: str, path: Path) -> None:
    """Raise ParamsError for aliases, which may unfold without end, for tags, and for depths."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        problem = ""
        if isinstance(event, AliasEvent):
            problem = f"expected plain values, found the alias *{_printable(event.anchor)}"
        elif (tag := getattr(event, "tag", None)) is not None and str(tag) != "!":
            problem = f"expected plain values, found the tag {_printable(str(tag))}"
        elif depth > DEPTH:
            problem = f"expected YAML of at most {DEPTH} levels"
        if problem:
            line = event.start_mark.line + 1
            raise ParamsError(f"{path}: line {line}: {problem}")


def _yaml_problem(error: Exception, text: str) -> str:
    problem, line = one_line(error) or type(error).__name__, None
    if isinstance(error, MarkedYAMLError):
        problem = one_line(error.problem or "malformed")
        line = error.problem_mark and error.problem_mark.line + 1
    elif isinstance(error, ReaderError):
        problem = f"unacceptable character #x{error.character:04x}"
        line = text.count("\n", 0, error.position) + 1
    else:
        with contextlib.suppress(Exception):
            line = next(_lines_that_fail(text), None)
    return f"line {line}: expected YAML: {problem}" if line else f"expected YAML: {problem}"


def _lines_that_fail(text: str) -> Iterator[int]:
    """The lines of values that cannot be read, as 2001-99-99 is no date."""
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, ScalarEvent) and not event.style:  # what is quoted is text
            try:
                YAML(typ="safe", pure=True).load(event.value)
            except Exception:
                yield event.start_mark.line + 1


def _printable(text: str) -> str:
    """A name as it is, or in short and with escapes where a terminal should not have it."""
    return text if text.isprintable() and len(text) <= 60 else reprlib.repr(text)


def _first_problem(error: ValidationError, kind: type[Params]) -> str:
    # A misspelt key is both unknown and missing: what was typed explains more.
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    keys, accepted = _located(first["loc"], kind)
    key = ".".join(_printable(str(part)) for part in keys) or "the file"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    found = reprlib.repr(first["input"])  # short, also of aliases that unfold without end
    found = found if len(found) <= 60 else found[:57] + "..."
    message = re.sub("^(Input should be|(String|Tuple|Dictionary) should have) ", "", first["msg"])
    match first["type"]:
        case "missing":
            return f"{key}: this key is missing{more}"
        case "extra_forbidden":
            return f"{key}: unknown key; accepted here: {', '.join(accepted)}{more}"
        case "invalid_key":
            return f"{key}: expected the name of a parameter as key{more}"
        case "value_error":
            said = message.removeprefix("Value error, ")
            if isinstance(first["input"], str):
                return f"{key} = {found}: expected {said}{more}"
            return f"{key}: expected {said}{more}"
        case "union_tag_invalid":
            found = reprlib.repr(first["ctx"]["tag"])
            message = first["ctx"]["expected_tags"].replace("'", "")
        case "union_tag_not_found" | "model_attributes_type":
            message = "a name, or a section with a name"
        case "model_type" | "dict_type":
            message = "a section of keys and values"
        case "tuple_type":
            message = "a list"
        case "too_short" | "too_long":
            message = message.replace(" after validation,", ",")
        case "string_pattern_mismatch":
            message = f"a text that matches {first['ctx']['pattern']}"
    return f"{key} = {found}: expected {message}{more}"


def _located(location: tuple[Any, ...], kind: Any) -> tuple[list[Any], list[str]]:
    """The keys of the file that lead to a problem, and those that are accepted at its place.

    Pydantic's location also has the names of choices, such as an optimiser's, and "[key]" after
    a key that is wrong.
    """
    keys: list[Any] = []
    accepted = list(Params.model_fields)
    for part in location:
        fields = getattr(kind, "model_fields", {})
        accepted = list(fields) or accepted
        if part == "[key]":
            continue
        if kind and not fields and part in (choices := dict(_choices(kind))):
            kind = choices[part]
            continue
        keys.append(part)
        if part in fields:
            kind = fields[part].annotation
            if (optional := get_args(kind)) and optional[-1] is NoneType:
                kind = optional[0]
        else:  # of a dict or a tuple, what it holds
            kind = get_args(kind)[-1] if get_args(kind) else None
    return keys, accepted


def _choices(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The classes of a union, by the name that chooses each."""
    for part in get_args(annotation):
        if "name" in getattr(part, "model_fields", {}):
            yield get_args(part.model_fields["name"].annotation)[0], part
        else:
            yield from _choices(part)
