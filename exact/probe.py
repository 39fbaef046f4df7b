"""Small trainings that use all of `exact`, and the hash of the weights they end with.

    python -m exact.probe              # FROZEN, on every machine
    python -m exact.probe exact cuda   # and on a GPU
    python -m exact.probe native       # the control: stock float32

Needs torch and the package `exact` alone, so that it runs where the pipeline does not.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator

import torch
import torch._dynamo  # else the first optimiser loads it, which computes, in release 2.8
from torch import Tensor, nn, optim
from torch.nn import functional as F

import exact
from exact import random

# A change of this is a change of every result.
FROZEN = "e799a43b57d0f9c879963cd17494ddc7397d5615b27970dc965265bca63f485d"
STEPS = 10


def perceptron() -> tuple[nn.Module, Tensor]:
    """Bytes to classes."""
    pixels = (random.uniform((300, 200), 1, "pixels") * 256).to(torch.uint8)
    layers = [nn.Linear(200, 64), nn.Tanh(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10)]
    return nn.Sequential(*layers), exact.from_bytes(pixels)


def convolutional() -> tuple[nn.Module, Tensor]:
    """Images to classes."""
    images = random.normal((40, 2, 12, 12), 1, "images").float()
    layers = [
        nn.Conv2d(2, 6, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, 10),
    ]
    return nn.Sequential(*layers), images


def transformer() -> tuple[nn.Module, Tensor]:
    """Words to classes."""
    words = (random.uniform((30, 7), 1, "words") * 20).long()
    encoder = nn.TransformerEncoderLayer(16, 4, 32, 0.1, "gelu", batch_first=True)
    return nn.Sequential(nn.Embedding(20, 16), encoder, nn.Flatten(), nn.Linear(112, 10)), words


def train(
    make: Callable[[], tuple[nn.Module, Tensor]],
    optimizer_of: Callable[[Iterator[nn.Parameter]], optim.Optimizer],
) -> nn.Module:
    """Ten steps on one batch, with clipped gradients."""
    model, x = make()
    targets = torch.arange(len(x)) % 10
    optimizer = optimizer_of(model.parameters())

    @exact.compile
    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), targets, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(STEPS):
        step()
    return model


def digest(arithmetic: str = "exact", device: str = "cpu") -> str:
    """The sha256 of all trained weights."""
    torch.manual_seed(1)  # for native arithmetic
    sha256 = hashlib.sha256()
    block = exact.mode(seed=1) if arithmetic == "exact" else contextlib.nullcontext()
    with torch.device(device), block:
        for model in (
            train(perceptron, lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
            train(convolutional, lambda p: optim.Adam(p, 0.01)),
            train(transformer, lambda p: optim.AdamW(p, 0.01)),
        ):
            for weights in model.parameters():
                numbers = weights.detach().cpu().contiguous().view(torch.uint8)
                sha256.update(bytes(numbers.flatten().tolist()))  # NumPy may not be there
    return sha256.hexdigest()


if __name__ == "__main__":
    found = digest(*sys.argv[1:])
    print(found, torch.__version__, "as expected" if found == FROZEN else "not as expected")
