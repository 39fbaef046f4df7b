"""What `params.yaml` may hold: the parameters that all models share, and a section for each."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model, field_validator, model_validator

from lab.common.files import InputError
from lab.common.settings import Strict, flattened
from lab.datasets import DataSet, dataset_class
from lab.download import Download
from lab.models import Architecture, architecture_class
from lab.optimizers import Training

Arithmetic = Literal["exact", "native"]
Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,49}$")]


class ModelEntry(Strict):
    """A model of the pipeline: what it is called, its architecture, its data set and task."""

    title: Annotated[str, Field(min_length=1, max_length=100)]
    kind: str
    data: str
    task: Literal["regression", "classification"]

    @field_validator("kind")
    @classmethod
    def _kind_exists(cls, kind: str) -> str:
        reserved = {*dir(Training), *Training.model_fields, "seed", "lr", "arithmetic", "kind"}
        if both := sorted(reserved & architecture_class(kind).model_fields.keys()):
            raise InputError(
                f"lab/models/{kind}.py: {both[0]} is a name of all models: choose another"
            )
        return kind

    @field_validator("data")
    @classmethod
    def _data_exists(cls, data: str) -> str:
        dataset_class(data)
        return data

    @model_validator(mode="after")
    def _task_is_that_of_the_data(self) -> "ModelEntry":
        task = dataset_class(self.data).task.name
        if self.task != task:
            raise ValueError(f"{task} as its task, which is the task of {self.data}")
        return self


class Params(Strict):
    """All of `params.yaml`. A subclass has a field for each model and data set."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    lr: Annotated[float, Field(gt=0, le=1e6)]
    arithmetic: Arithmetic
    models: Annotated[dict[Name, ModelEntry], Field(min_length=1, max_length=100)]
    download: Download | None = None

    @model_validator(mode="after")
    def _only_labels_are_smoothed(self) -> "Params":
        for name, entry in self.models.items():
            if entry.task != "classification" and self.training(name).label_smoothing:
                raise ValueError(f"{name}.label_smoothing of 0, as {entry.task} has no labels")
        return self

    def training(self, model: str) -> Training:
        """The model's section: how it is trained."""
        section: Training = getattr(self, model)
        return section

    def architecture(self, model: str) -> Architecture:
        """The model's section: what it is built from."""
        kind = architecture_class(self.models[model].kind)
        section = getattr(self, model)
        return kind.model_construct(**{key: getattr(section, key) for key in kind.model_fields})

    def dataset(self, model: str) -> DataSet:
        """The section of the model's data set."""
        section: DataSet = getattr(self, self.models[model].data)
        return section

    def flat(self, model: str) -> dict[str, Any]:
        """All that the model's result depends on, by the same names for every model."""
        entry = self.models[model]
        flat = {"seed": self.seed, "lr": self.lr, "arithmetic": self.arithmetic, "kind": entry.kind}
        data = flattened(self.dataset(model)).items()
        return flat | flattened(self.training(model)) | {f"{entry.data}.{k}": v for k, v in data}


def folder(data: str) -> Path:
    """Where a data set's files are."""
    return Path("data", data)


def results(model: str) -> Path:
    """Where a model's results are."""
    return Path("results", model)


class _Listed(BaseModel):
    """The part of the file that says which sections it has."""

    models: dict[Name, ModelEntry]

    @model_validator(mode="after")
    def _names_are_free(self) -> "_Listed":
        taken = {entry.data for entry in self.models.values()}
        taken |= {*Params.model_fields, *dir(Params)}  # a field would hide a method of its name
        if both := sorted(taken & self.models.keys()):
            raise ValueError(f"models without the reserved name {both[0]}")
        return self


def schema_of(tree: Any) -> type[Params]:
    """`Params` with sections for the models listed. Raises ValidationError for a bad list."""
    models = _Listed.model_validate(tree).models
    sections: dict[str, Any] = {}
    for name, entry in models.items():
        section = create_model(name, __base__=(architecture_class(entry.kind), Training))
        sections |= {name: (section, ...), entry.data: (dataset_class(entry.data), ...)}
    return create_model("Params", __base__=Params, **sections)
