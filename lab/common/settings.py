"""Strict settings, and the classes that params.yaml chooses by name."""

import importlib
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lab.common.files import InputError

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
UNKNOWN = "unknown key; accepted here: {accepted}"


class Strict(BaseModel):
    """Refuses unknown keys, conversions (a bool is no int, a string no number), NaN, infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_accepted_keys(cls, section: Any) -> Any:
        """An error that also has the known keys, where pydantic's own has the unknown one alone."""
        for key in section if isinstance(section, dict) else ():
            if isinstance(key, str) and key not in cls.model_fields:
                known = {"key": key, "accepted": ", ".join(cls.model_fields)}
                raise PydanticCustomError("unknown_key", UNKNOWN, known)
        return section


_Class = TypeVar("_Class", bound=type)


def class_named(package: str, name: str, base: _Class) -> _Class:
    """The subclass of `base` that the module `package.name` defines.

    Raises ValueError, with the names there are, for no such module, and InputError for a bad one.
    """
    folder = Path(str(importlib.import_module(package).__file__)).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    if name not in names:
        raise ValueError(" or ".join(names))
    path = f"{package.replace('.', '/')}/{name}.py"
    try:
        module = importlib.import_module(f"{package}.{name}")
    except Exception as error:  # of any code
        raise InputError(f"{path}: cannot be imported: {error!r}") from error
    own = (v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__)
    classes = [value for value in own if isinstance(value, type) and issubclass(value, base)]
    if len(classes) != 1:
        raise InputError(f"{path}: expected one class of {base.__name__}, found {len(classes)}")
    return cast(_Class, classes[0])


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
