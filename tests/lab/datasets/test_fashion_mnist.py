"""The images and labels of Fashion-MNIST are checked, and split by the seed."""

import gzip
import hashlib
from pathlib import Path

import pytest
import torch
import torchvision.datasets

from lab import params
from lab.common import files
from lab.common.files import InputError
from lab.datasets.fashion_mnist import CLASSES, FashionMNIST, read_images
from lab.download import Archive
from tests.inputs import settings
from tracking.repository import ROOT

P = params.load(ROOT / "tests/params.yaml")
N = 300


def numbered() -> dict[str, torch.Tensor]:
    """Images that say by their first two pixels which ones they are."""
    images = torch.zeros(N, 28, 28, dtype=torch.uint8)
    images[:, 0, 0], images[:, 0, 1] = torch.arange(N) // 256, torch.arange(N) % 256
    return {"images": images, "labels": torch.arange(N) % 10}


def test_prepare_says_what_the_section_of_the_download_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    (tmp_path / "x").write_bytes(gzip.compress(b"x"))
    archive = Archive(bytes=1, sha256=hashlib.sha256(b"x").hexdigest())
    other = settings(str(tmp_path), archives={"x": archive})
    missing = "download: this section is missing"
    for download, message in ((None, missing), (other, r"download\.archives: expected train-im")):
        with pytest.raises(InputError, match=rf"^params\.yaml: {message}"):
            FashionMNIST(validation=1).prepare(
                tmp_path, P.model_copy(update={"download": download})
            )


def test_test_images_read_back_as_multiples_of_a_256th(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "test.safetensors", numbered())
    features, targets = FashionMNIST(validation=1).load_test(tmp_path)
    assert features.shape == (N, 1, 28, 28) and features.dtype == torch.float32
    assert torch.equal(features.squeeze(1) * 256, numbered()["images"].float())
    assert torch.equal(targets, numbered()["labels"])


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.zeros(N, 28, 28)},
        {"images": torch.zeros(N, 28, 27, dtype=torch.uint8)},
        {"images": torch.zeros(0, 28, 28, dtype=torch.uint8), "labels": torch.zeros(0).long()},
        {"labels": torch.zeros(4, dtype=torch.int64)},
        {"labels": torch.zeros(N)},
        {"labels": torch.full((N,), 10)},
        {"more": torch.zeros(1)},
    ],
)
def test_other_images_are_refused(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    files.write_tensors(tmp_path / "i", numbered() | change)
    with pytest.raises(InputError, match=r"/i: (expected|a label)"):
        read_images(tmp_path / "i")


def test_training_and_validation_images_are_a_split_of_the_training_set(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "train.safetensors", numbered())  # there is no test set

    def split(seed: int) -> list[list[int]]:
        parts = []
        for features, targets in FashionMNIST(validation=100).load_training(tmp_path, seed):
            pixels = (features[:, 0, 0, :2] * 256).long()
            numbers = pixels[:, 0] * 256 + pixels[:, 1]
            assert torch.equal(targets, numbers % 10)
            parts.append(numbers.tolist())
        return parts

    train, validation = split(1)
    assert len(validation) == 100 and sorted(train + validation) == list(range(N))
    assert split(1) == [train, validation]
    assert split(2) != [train, validation]


def test_the_classes_are_those_of_torchvision() -> None:
    assert list(CLASSES) == torchvision.datasets.FashionMNIST.classes
