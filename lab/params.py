"""The parameters: `params.yaml`, parsed once into frozen values or refused in one line."""

import contextlib
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    ScalarEvent,
)
from ruamel.yaml.reader import ReaderError

from lab.files import InputError, one_line

ModelName = Literal["linear_regression", "softmax_regression", "mlp"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
REGRESSION = Path("data/regression")
FASHION_MNIST = Path("data/fashion_mnist")
DATA: dict[ModelName, Path] = {
    "linear_regression": REGRESSION,
    "softmax_regression": FASHION_MNIST,
    "mlp": FASHION_MNIST,
}

Arithmetic = Literal["exact", "native"]
Activation = Literal["relu", "sigmoid", "tanh"]
Examples = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Value = Annotated[float, Field(ge=-1e6, le=1e6)]
# A YAML list becomes a tuple: the container is converted, what it holds is not.
Widths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_536)], ...],
    Field(strict=False, min_length=1, max_length=64),
]
Weights = Annotated[tuple[Value, ...], Field(strict=False, min_length=1, max_length=100)]
DEPTH = 5  # lists and sections within each other; ours have 3
LARGEST = 100_000  # characters of a file of parameters; ours has 3,000
PIXELS = 28 * 28
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class ParamsError(InputError):
    """`params.yaml` asks for something that does not exist or is out of range."""

    exit_code = 2


class Strict(BaseModel):
    """Refuses unknown keys, conversions (a bool is no int, a string no number), NaN, infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class RegressionData(Strict):
    """The synthetic data set y = Xw + b + noise."""

    train: Examples
    validation: Examples
    test: Examples
    weights: Weights
    bias: Value
    noise: Annotated[float, Field(ge=0, le=1e6)]

    @model_validator(mode="after")
    def _determined(self) -> "RegressionData":
        unknowns = len(self.weights) + 1
        if self.train < unknowns:
            raise ValueError(f"train of at least {unknowns}, the number of weights and bias")
        return self


class FashionMNIST(Strict):
    """How the 60,000 training images of Fashion-MNIST are split."""

    validation: Annotated[int, Field(ge=1, le=59_999)]


class Training(Strict):
    """Mini-batch stochastic gradient descent."""

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Examples
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    lr_schedule: Literal["constant", "linear"]


class MLP(Training):
    """A multilayer perceptron and its training."""

    hidden: Widths
    activation: Activation
    dropout: Share


class Params(Strict):
    """All of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    lr: Annotated[float, Field(gt=0, le=1e6)]
    arithmetic: Arithmetic
    regression_data: RegressionData
    fashion_mnist: FashionMNIST
    linear_regression: Training
    softmax_regression: Training
    mlp: MLP

    def training(self, model: ModelName) -> Training:
        """The section of one model."""
        section: Training = getattr(self, model)
        return section

    def shape(self, model: ModelName) -> tuple[int, int]:
        """The model's number of inputs and outputs."""
        if model == "linear_regression":
            return len(self.regression_data.weights), 1
        return PIXELS, len(CLASSES)

    def seen_by(self, model: ModelName) -> dict[str, Any]:
        """All that the model's result depends on, by the same names for every model."""
        section = "regression_data" if model == "linear_regression" else "fashion_mnist"
        data = getattr(self, section).model_dump()
        return (
            {"seed": self.seed, "lr": self.lr, "arithmetic": self.arithmetic}
            | self.training(model).model_dump()
            | {f"{section}.{key}": value for key, value in data.items()}
        )


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check all parameters. Raises ParamsError, whose message is one line."""
    try:
        if path.is_fifo():  # whose other end may never come
            raise ParamsError(f"{path}: cannot be read: expected a file, found a named pipe")
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ParamsError(f"{path}: expected at most {LARGEST} characters")
        return parse(text, path)
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: expected text in UTF-8, found other bytes") from error


def parse(text: str, path: Path = Path("params.yaml")) -> Params:
    """Check all parameters. Raises ParamsError, whose message is one line, and names `path`."""
    try:
        _require_plain(text, path)
        # ruamel.yaml is DVC's own parser: `-S lr=1e-5` is a number to both.
        tree = YAML(typ="safe", pure=True).load(text)
    except ParamsError:
        raise
    except Exception as error:  # beside its own, it has those of whatever it stumbles over
        raise ParamsError(f"{path}: {_yaml_problem(error, text)}") from error
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_first_problem(error)}") from error


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


def _first_problem(error: ValidationError) -> str:
    # A misspelt key is both unknown and missing: what was typed explains more.
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    key = ".".join(_printable(str(part)) for part in first["loc"]) or "the file"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    found = reprlib.repr(first["input"])  # short, also of aliases that unfold without end
    found = found if len(found) <= 60 else found[:57] + "..."
    message = first["msg"].replace("Input should be ", "")
    match first["type"]:
        case "missing":
            return f"{key}: this key is missing{more}"
        case "extra_forbidden":
            return f"{key}: unknown key; accepted here: {', '.join(_siblings(first['loc']))}{more}"
        case "invalid_key":
            return f"{key}: expected the name of a parameter as key{more}"
        case "value_error":
            return f"{key}: expected {message.removeprefix('Value error, ')}{more}"
        case "model_type":
            message = "a section of keys and values"
        case "tuple_type":
            message = "a list"
        case "too_short" | "too_long":
            message = message.replace("Tuple should have ", "").replace(" after validation,", ",")
    return f"{key} = {found}: expected {message}{more}"


def _siblings(location: tuple[Any, ...]) -> list[str]:
    section: Any = Params
    for key in location[:-1]:
        section = section.model_fields[key].annotation
    return list(section.model_fields)
