"""The parameters: `params.yaml`, parsed once into frozen values or refused in one line."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lab.files import InputError

ModelName = Literal["linear_regression", "softmax_regression", "mlp"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
REGRESSION = Path("data/regression")
FASHION_MNIST = Path("data/fashion_mnist")

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
        return parse(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: expected text in UTF-8, found other bytes") from error


def parse(text: str, path: Path = Path("params.yaml")) -> Params:
    """Check all parameters. Raises ParamsError, whose message is one line, and names `path`."""
    try:
        # ruamel.yaml is DVC's own parser: `-S lr=1e-5` is a number to both.
        tree = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError, ValueError) as error:
        raise ParamsError(f"{path}: {_yaml_problem(error)}") from error
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_first_problem(error)}") from error


def _yaml_problem(error: Exception) -> str:
    if not isinstance(error, MarkedYAMLError):
        return (
            f"expected YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
    problem = " ".join((error.problem or "malformed").split())
    mark = error.problem_mark
    return (
        f"line {mark.line + 1}: expected YAML: {problem}" if mark else f"expected YAML: {problem}"
    )


def _first_problem(error: ValidationError) -> str:
    # A misspelt key is both unknown and missing: what was typed explains more.
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    key = ".".join(map(str, first["loc"])) or "the file"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    found = repr(first["input"])
    found = found if len(found) <= 60 else found[:57] + "..."
    message = first["msg"].replace("Input should be ", "")
    match first["type"]:
        case "missing":
            return f"{key}: this key is missing{more}"
        case "extra_forbidden":
            return f"{key}: unknown key; accepted here: {', '.join(_siblings(first['loc']))}{more}"
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
