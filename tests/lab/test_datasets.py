"""Data are what they are said to be, and read back as they were written."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torchvision.datasets import FashionMNIST

from benchmarks.clones import ROOT
from lab import datasets, files, params
from lab.datasets import Examples

P = params.load(ROOT / "tests/params.yaml")
DATA = P.regression_data


def test_regression_targets_are_xw_plus_b_plus_noise() -> None:
    data = DATA.model_copy(update={"train": 20_000, "noise": 0.5})
    x, y = datasets.draw_regression(data, 7, "train")
    assert x.shape == (20_000, 2) and y.shape == (20_000, 1)
    assert x.dtype == y.dtype == torch.float32
    noise = y.double().squeeze(1) - (x.double() @ torch.tensor(data.weights).double() + data.bias)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 0.5) < 0.01
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.01
    assert abs((x[:, 0] * x[:, 1]).mean()) < 0.03  # features are independent of each other
    assert abs((x[:, 0] * noise).mean()) < 0.02  # and of the noise


def test_without_noise_the_targets_lie_on_the_plane() -> None:
    data = DATA.model_copy(update={"noise": 0.0})
    x, y = datasets.draw_regression(data, 1, "test")
    plane = x.double() @ torch.tensor(data.weights, dtype=torch.float64) + data.bias
    assert (y.squeeze(1) - plane).abs().max() < 1e-6  # a float32 of this size has steps of 5e-7


def test_splits_and_seeds_differ() -> None:
    draws = [
        datasets.draw_regression(DATA, seed, split).features[:100]
        for seed in (1, 2)
        for split in datasets.SPLITS
    ]
    assert len({draw.numpy().tobytes() for draw in draws}) == 6


def test_regression_csv_reads_back_to_the_same_numbers(tmp_path: Path) -> None:
    examples = datasets.draw_regression(DATA, 1, "train")
    path = tmp_path / "train.csv"
    datasets.write_regression(path, examples)
    back = datasets.read_regression(path)
    assert torch.equal(back.features, examples.features)
    assert torch.equal(back.targets, examples.targets)
    # Also for a reader who knows nothing of float32.
    assert torch.equal(torch.tensor(pd.read_csv(path)["y"].tolist()), examples.targets.squeeze(1))
    assert b"\r" not in path.read_bytes()


def test_the_truth_reads_back(tmp_path: Path) -> None:
    datasets.write_truth(tmp_path / "truth.json", DATA)
    assert datasets.read_truth(tmp_path / "truth.json") == ([2.0, -3.4], 4.2)
    for text in ("{}", "[]", '{"weights": 1, "bias": 2}', '{"weights": ["x"], "bias": 2}'):
        (tmp_path / "truth.json").write_text(text)
        with pytest.raises(files.InputError, match="expected weights and bias"):
            datasets.read_truth(tmp_path / "truth.json")


@pytest.mark.parametrize(
    "text",
    ["", "x1,y\n", "x1,y\n1,\n", "x1,y\n1,nan\n", "x1,y\n1,inf\n", "x1,y\n1,two\n", "y,x1\n1,2\n",
     "y\n1\n", "x1,y\n1,2,3\n4,5,6\n", "\x00\x01\x02", "x1,x3,y\n1,2,3\n"],
)  # fmt: skip
def test_other_tables_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(files.InputError, match=r"t\.csv: "):
        datasets.read_regression(tmp_path / "t.csv")


def test_images_read_back(tmp_path: Path) -> None:
    tensors = _images(5)
    files.write_tensors(tmp_path / "i", tensors)
    images, labels = datasets.read_images(tmp_path / "i")
    assert torch.equal(images, tensors["images"]) and torch.equal(labels, tensors["labels"])


def _images(n: int) -> dict[str, torch.Tensor]:
    return {
        "images": torch.arange(n * 784).remainder(256).to(torch.uint8).view(n, 28, 28),
        "labels": torch.arange(n) % 10,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.zeros(5, 28, 28)},
        {"images": torch.zeros(5, 28, 27, dtype=torch.uint8)},
        {"images": torch.zeros(0, 28, 28, dtype=torch.uint8), "labels": torch.zeros(0).long()},
        {"labels": torch.zeros(4, dtype=torch.int64)},
        {"labels": torch.zeros(5)},
        {"labels": torch.full((5,), 10)},
        {"labels": torch.full((5,), -1)},
    ],
)
def test_other_images_are_refused(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    files.write_tensors(tmp_path / "i", _images(5) | change)
    with pytest.raises(files.InputError, match=r"/i: "):
        datasets.read_images(tmp_path / "i")


def test_truncated_and_missing_images_are_refused(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "i", _images(5))
    (tmp_path / "i").write_bytes((tmp_path / "i").read_bytes()[:-1])
    for name in ("i", "none"):
        with pytest.raises(files.InputError, match=f"/{name}: "):
            datasets.read_images(tmp_path / name)


def test_training_and_validation_images_are_a_split_of_the_training_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each image says by its pixels which one it is; the test set is not there to be read.
    n = 300
    images = torch.zeros(n, 28, 28, dtype=torch.uint8)
    images[:, 0, 0], images[:, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    monkeypatch.setattr(datasets, "FASHION_MNIST", tmp_path)
    files.write_tensors(
        tmp_path / "train.safetensors", {"images": images, "labels": torch.arange(n) % 10}
    )

    def split(seed: int) -> tuple[list[int], list[int]]:
        update = {"seed": seed, "fashion_mnist": params.FashionMNIST(validation=100)}
        parts = datasets.load_training("mlp", P.model_copy(update=update))
        return tuple(_numbers(part) for part in parts)  # type: ignore[return-value]

    train, validation = split(1)
    assert len(validation) == 100 and sorted(train + validation) == list(range(n))
    assert split(1) == (train, validation)
    assert split(2) != (train, validation)


def _numbers(examples: Examples) -> list[int]:
    pixels = (examples.features[:, :2] * 256).round().long()
    numbers = (pixels[:, 0] * 256 + pixels[:, 1]).tolist()
    assert examples.targets.tolist() == [number % 10 for number in numbers]
    return [int(number) for number in numbers]


def test_the_classes_are_torchvisions() -> None:
    assert list(params.CLASSES) == FashionMNIST.classes
