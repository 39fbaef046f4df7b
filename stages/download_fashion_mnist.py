"""Download Fashion-MNIST: train.safetensors and test.safetensors."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from lab import download, files
from stages import no_arguments, run

FOLDER = Path("data/fashion_mnist")


def main() -> None:
    """The archives of the first source that delivers in, data/fashion_mnist/ out."""
    no_arguments("Download Fashion-MNIST.")
    names = [name for name, _ in FashionMNIST.resources]
    contents = download.fetch(names, FashionMNIST.mirrors)
    train_images, train_labels, test_images, test_labels = (contents[name] for name in names)
    for split, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        tensors = {
            "images": parse(images, read_image_file),
            "labels": parse(labels, read_label_file),
        }
        files.write_tensors(FOLDER / f"{split}.safetensors", tensors)


def parse(contents: bytes, reader: Callable[[str], Tensor]) -> Tensor:
    """What torchvision's reader of files makes of the bytes."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(contents)
        file.flush()
        return reader(file.name)


if __name__ == "__main__":
    run(main)
