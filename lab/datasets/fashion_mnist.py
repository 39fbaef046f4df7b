"""Fashion-MNIST: 70,000 grey images of clothes, in ten classes (Xiao, Rasul and Vollgraf 2017)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lab.common.files import InputError, read_tensors, write_tensors
from lab.datasets import DataSet, Examples, held_out
from lab.tasks import Classification

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lab.schema import Params

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ARCHIVES = {"train": "train", "test": "t10k"}  # what the split's archives are called


class FashionMNIST(DataSet):
    """How many of the 60,000 training images are set aside for validation."""

    task: ClassVar[Classification] = Classification(CLASSES)

    validation: Annotated[int, Field(ge=1, le=59_999)]

    def prepare(self, folder: Path, params: "Params") -> None:
        """Download train.safetensors and test.safetensors."""
        import torch

        from lab import download

        if params.download is None:
            raise InputError("params.yaml: download: this section is missing")
        contents = download.fetch(params.download, "FASHION_MNIST_MIRROR")
        for split, prefix in ARCHIVES.items():
            names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
            for name in names:
                if name not in contents:
                    raise InputError(f"params.yaml: download.archives: expected {name} among them")
            # The sha256 has been checked. The numbers follow a header of 16 or 8 bytes.
            images, labels = (
                torch.frombuffer(bytearray(contents[name]), dtype=torch.uint8, offset=header)
                for name, header in zip(names, (16, 8), strict=True)
            )
            tensors = {"images": images.view(-1, 28, 28), "labels": labels.long()}
            write_tensors(folder / f"{split}.safetensors", tensors)

    def load_training(
        self, folder: Path, seed: int, device: "torch.device | str" = "cpu"
    ) -> tuple[Examples, Examples]:
        """Features (N, 1, 28, 28) and classes (N,); the seed decides which are for validation."""
        images, labels = read_images(folder / "train.safetensors")
        parts = held_out(len(labels), self.validation, seed, folder)
        train, validation = (_examples(images[part], labels[part], device) for part in parts)
        return train, validation

    def load_test(self, folder: Path, device: "torch.device | str" = "cpu") -> Examples:
        """Features (N, 1, 28, 28) and classes (N,) of the 10,000 test images."""
        return _examples(*read_images(folder / "test.safetensors"), device)


def read_images(path: Path) -> "tuple[Tensor, Tensor]":
    """Images uint8 (N, 28, 28) and labels int64 (N,). Raises InputError for anything else."""
    import torch

    tensors, _ = read_tensors(path)
    if tensors.keys() != {"images", "labels"}:
        raise InputError(f"{path}: expected tensors images and labels, found {sorted(tensors)}")
    images, labels = tensors["images"], tensors["labels"]
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or not len(images):
        found = f"{images.dtype} {tuple(images.shape)}"
        raise InputError(f"{path}: expected images uint8 (N, 28, 28), found {found}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{labels.dtype} {tuple(labels.shape)}"
        raise InputError(f"{path}: expected labels int64 ({len(images)},), found {found}")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise InputError(f"{path}: a label is not a class of 0 … {len(CLASSES) - 1}")
    return images, labels


def _examples(images: "Tensor", labels: "Tensor", device: "torch.device | str") -> Examples:
    """Grey levels of [0, 1), multiples of 1/256: (N, 28, 28) to (N, 1, 28, 28)."""
    import exact

    return Examples(exact.from_bytes(images.unsqueeze(1).to(device)), labels.to(device))
