"""The data sets: how they are drawn, stored and split. Plain tensors in memory."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import exact
from exact import random
from lab.files import InputError, one_line, read_json, read_tensors, write_json, write_text
from lab.params import CLASSES, FASHION_MNIST, REGRESSION, ModelName, Params, RegressionData

Device = torch.device | str
SPLITS = ("train", "validation", "test")


class Examples(NamedTuple):
    """Features and targets, example by example.

    Features are float32 (N, d). Targets are float32 (N, 1) for regression, and the
    numbers of the classes, int64 (N,), for classification.
    """

    features: Tensor
    targets: Tensor

    def to(self, device: Device) -> "Examples":
        """The same examples, on the device."""
        return Examples(self.features.to(device), self.targets.to(device))


def draw_regression(data: RegressionData, seed: int, split: str) -> Examples:
    """Y = Xw + b + noise, in float64 in a fixed order, then rounded once to float32."""
    n, d = getattr(data, split), len(data.weights)
    features = random.normal((n, d), seed, "regression features", SPLITS.index(split)).float()
    noise = random.normal((n,), seed, "regression noise", SPLITS.index(split))
    targets = noise * data.noise + data.bias
    for feature, weight in zip(features.double().unbind(1), data.weights, strict=True):
        targets = targets + feature * weight  # a matrix product has no fixed order
    return Examples(features, targets.float().unsqueeze(1))


def write_regression(path: Path, examples: Examples) -> None:
    """Write columns x1 … xd, y with the fewest digits that read back to the same float32."""
    import pandas as pd

    columns = {f"x{i}": x.numpy() for i, x in enumerate(examples.features.unbind(1), start=1)}
    table = pd.DataFrame(columns | {"y": examples.targets.squeeze(1).numpy()})
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_truth(path: Path, data: RegressionData) -> None:
    """Write the true weights and bias that the data were drawn with."""
    write_json(path, {"weights": data.weights, "bias": data.bias})


def read_truth(path: Path) -> tuple[list[float], float]:
    """The true weights and bias. Raises InputError for anything but what `write_truth` wrote."""
    truth = read_json(path)
    try:
        weights, bias = [float(weight) for weight in truth["weights"]], float(truth["bias"])
        if not all(map(math.isfinite, [*weights, bias])):
            raise ValueError("a number is NaN or infinite")
        return weights, bias
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: expected weights and bias: {error}") from error


def read_regression(path: Path) -> Examples:
    """Read what `write_regression` wrote. Raises InputError for anything else."""
    import numpy as np
    import pandas as pd

    try:
        with np.errstate(over="ignore"):  # infinite then, which is refused below
            table = pd.read_csv(path, dtype="float32")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected a table of numbers: {one_line(error)}") from error
    expected = [f"x{i}" for i in range(1, len(table.columns))] + ["y"]
    named = isinstance(table.index, pd.RangeIndex)  # else a row is longer than the first
    if list(table.columns) != expected or len(expected) < 2 or table.empty or not named:
        raise InputError(f"{path}: expected columns x1, x2, …, y and at least one row")
    values = torch.from_numpy(table.to_numpy(copy=True))
    if not torch.isfinite(values).all():
        raise InputError(f"{path}: a number is missing, NaN or infinite")
    return Examples(values[:, :-1].contiguous(), values[:, -1:].contiguous())


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 28, 28) and labels int64 (N,). Raises InputError for anything else."""
    tensors, _ = read_tensors(path)
    if tensors.keys() != {"images", "labels"}:
        raise InputError(f"{path}: expected tensors images and labels, found {sorted(tensors)}")
    images, labels = tensors["images"], tensors["labels"]
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or not len(images):
        raise InputError(f"{path}: expected images uint8 (N, 28, 28), found {_form(images)}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(f"{path}: expected labels int64 ({len(images)},), found {_form(labels)}")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise InputError(f"{path}: a label is not a class of 0 … {len(CLASSES) - 1}")
    return images, labels


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _grey_levels(images: Tensor, labels: Tensor, device: Device) -> Examples:
    """Each image as a row of 784 grey levels of [0, 1), multiples of 1/256."""
    return Examples(exact.from_bytes(images.flatten(1).to(device)), labels.to(device))


def load_training(
    model: ModelName, params: Params, device: Device = "cpu"
) -> tuple[Examples, Examples]:
    """Examples to train on, and examples for validation. The test set is not read."""
    if model == "linear_regression":
        train, validation = (
            read_regression(REGRESSION / f"{split}.csv").to(device) for split in SPLITS[:2]
        )
        widths = [examples.features.shape[1] for examples in (train, validation)]
        expected = len(params.regression_data.weights)
        if widths != [expected] * 2:
            raise InputError(
                f"{REGRESSION}: expected {expected} features, train and validation have {widths}"
            )
        return train, validation
    images, labels = read_images(FASHION_MNIST / "train.safetensors")
    order = random.permutation(len(labels), params.seed, "validation split")
    held_out = params.fashion_mnist.validation
    validation, train = (
        _grey_levels(images[part], labels[part], device)
        for part in (order[:held_out], order[held_out:])
    )
    return train, validation


def load_test(model: ModelName, device: Device = "cpu") -> Examples:
    """Examples that no training saw."""
    if model == "linear_regression":
        return read_regression(REGRESSION / "test.csv").to(device)
    return _grey_levels(*read_images(FASHION_MNIST / "test.safetensors"), device)
