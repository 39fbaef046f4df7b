"""Strict settings, and the classes that params.yaml chooses by name."""

import importlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Value = Annotated[float, Field(ge=-1e6, le=1e6)]
Decay = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
# A YAML list becomes a tuple: the container is converted, what it holds is not.
Widths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_536)], ...],
    Field(strict=False, min_length=1, max_length=64),
]


class Strict(BaseModel):
    """Refuses unknown keys, conversions (a bool is no int, a string no number), NaN, infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


_Class = TypeVar("_Class", bound=type)


def names_in(package: str) -> list[str]:
    """The names of the package's modules, each of which holds one class to choose."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def class_named(package: str, name: str, base: _Class) -> _Class:
    """The subclass of `base` that the module `package.name` defines.

    Raises ValueError, with the names there are, where there is no such module.
    """
    names = names_in(package)
    if name not in names:
        raise ValueError(" or ".join(names))
    module = importlib.import_module(f"{package}.{name}")
    found: _Class = next(v for v in vars(module).values() if _is_defined(v, base, module))
    return found


def _is_defined(value: Any, base: type, module: Any) -> bool:
    return (
        isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    )


def flattened(settings: BaseModel) -> dict[str, Any]:
    """The settings by name; those of a named choice, such as an optimiser, below its name."""
    flat: dict[str, Any] = {}
    for key, value in settings:
        if isinstance(value, BaseModel):
            inner = value.model_dump()
            flat[key] = inner.pop("name")
            flat |= {f"{key}.{name}": setting for name, setting in inner.items()}
        else:
            flat[key] = value
    return flat


def by_name(value: object) -> object:
    """A name alone, as in `optimizer: adamw`, as a section with that name and the defaults."""
    return {"name": value} if isinstance(value, str) else value
