"""`params.yaml`, read once into frozen parameters or refused in one line."""

import contextlib
import re
import reprlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.parser import Parser
from ruamel.yaml.reader import ReaderError

from lab import schema
from lab.common.files import InputError, one_line, read_bytes, reading
from lab.schema import Params

PATH = Path("params.yaml")
DEPTH = 5  # lists and sections within each other; ours have 3
LARGEST = 100_000  # bytes of a file of parameters; ours has 5,000
EXPECTED = {  # what pydantic says in words of Python, by its type of error
    "dict_type": "a section of keys and values",
    "model_attributes_type": "a name, or a section with a name",
    "model_type": "a section of keys and values",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "tuple_type": "a list",
    "union_tag_invalid": "{expected_tags}",
    "union_tag_not_found": "a name, or a section with a name",
}
PREFIX = "^(Input should be|(String|Tuple|Dictionary) should have|Value error,) "


class ParamsError(InputError):
    """`params.yaml` asks for something that does not exist or is out of range."""

    exit_code = 2


class _Parser(Parser):
    """Refuses tags, too many levels, and aliases, which may unfold without end."""

    depth = 0

    def get_event(self) -> Any:
        event = super().get_event()
        self.depth += isinstance(event, CollectionStartEvent)
        self.depth -= isinstance(event, CollectionEndEvent)
        problem = ""
        if isinstance(event, AliasEvent):
            problem = f"plain values, found the alias *{_printable(event.anchor)}"
        elif (tag := getattr(event, "tag", None)) is not None and str(tag) != "!":
            problem = f"plain values, found the tag {_printable(str(tag))}"
        elif self.depth > DEPTH:
            problem = f"YAML of at most {DEPTH} levels"
        if problem:
            raise ParamsError(f"line {event.start_mark.line + 1}: expected {problem}")
        return event


class _Constructor(SafeConstructor):
    """Names the line of a value that cannot be read, as 2001-99-99 is no date."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except YAMLError:
            raise
        except Exception as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from error


def load(path: Path = PATH) -> Params:
    """Read and check all parameters. Raises ParamsError, whose message is one line."""
    try:
        with reading(path, "text in UTF-8"):
            text = read_bytes(path, LARGEST).decode()
    except InputError as error:
        raise ParamsError(str(error)) from error
    return parse(text, path)


def parse(text: str, path: Path = PATH) -> Params:
    """Check all parameters. Raises ParamsError, whose message is one line, and names `path`."""
    yaml = YAML(typ="safe", pure=True)  # DVC's own parser: `-S lr=1e-5` is a number to both
    yaml.Parser, yaml.Constructor = _Parser, _Constructor
    try:
        tree = yaml.load(text)
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from error
    except Exception as error:  # beside its own, it has those of whatever it stumbles over
        raise ParamsError(f"{path}: {_yaml_problem(error, text)}") from error
    try:
        return schema.schema_of(tree).model_validate(tree)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_first_problem(error, tree)}") from error


def _yaml_problem(error: Exception, text: str) -> str:
    problem, line = str(error) or type(error).__name__, None
    if isinstance(error, MarkedYAMLError):
        problem = error.problem or "malformed"
        line = error.problem_mark and error.problem_mark.line + 1
    elif isinstance(error, ReaderError):
        problem = f"unacceptable character #x{error.character:04x}"
        line = text.count("\n", 0, error.position) + 1
    return f"{f'line {line}: ' if line else ''}expected YAML: {one_line(problem)}"


def _printable(text: str) -> str:
    """A name as it is, or in short and with escapes where a terminal should not have it."""
    return text if text.isprintable() and len(text) <= 60 else reprlib.repr(text)


def _first_problem(error: ValidationError, tree: Any) -> str:
    # A misspelt key is both unknown and missing: what was typed explains more.
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "unknown_key")
    kind, value, location = (problems[0][part] for part in ("type", "input", "loc"))
    context = problems[0].get("ctx", {})
    keys = []
    for part in location:  # which also has the names of choices, such as an optimiser's
        with contextlib.suppress(LookupError, TypeError):
            tree = tree[part]
            keys.append(part)
    if kind in ("missing", "invalid_key"):
        keys.append(location[-1])
    elif kind == "unknown_key":
        keys.append(context["key"])
    key = ".".join(_printable(str(part)) for part in keys) or "the file"
    if kind == "missing":
        said = f"{key}: this key is missing"
    elif kind == "unknown_key":
        said = f"{key}: {problems[0]['msg']}"
    elif kind == "invalid_key":
        said = f"{key}: expected the name of a parameter as key"
    else:
        found = reprlib.repr(context.get("tag", value))
        found = f" = {found if len(found) <= 60 else found[:57] + '...'}"
        if kind == "value_error" and not isinstance(value, str):
            found = ""  # of several keys together
        message = re.sub(PREFIX, "", problems[0]["msg"]).replace(" after validation,", ",")
        expected = EXPECTED[kind].format(**context) if kind in EXPECTED else message
        if kind == "union_tag_invalid":
            expected = expected.replace("'", "")
        said = f"{key}{found}: expected {expected}"
    return f"{said} (and {len(problems) - 1} more)" if problems[1:] else said
