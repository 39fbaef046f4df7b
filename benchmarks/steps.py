"""Milliseconds of a training step of six models: natively, in exact mode, and compiled.

    python -m benchmarks.steps

The three run in turns, so that a slow moment of the machine meets all.
"""

import contextlib
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import exact

ROUNDS, STEPS = 5, 4
TOKENS, LENGTH, WIDTH = 100, 32, 64

Step = Callable[[Tensor, Tensor], Tensor]


class GPT(nn.Module):
    """A transformer of two layers that predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, TOKENS)
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.register_buffer("mask", mask)
        self.register_buffer("place", torch.arange(LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the next token (N, TOKENS, LENGTH) for tokens (N, LENGTH)."""
        hidden = self.layers(
            self.tokens(x) + self.places(self.place), mask=self.mask, is_causal=True
        )
        scores: Tensor = self.output(hidden).transpose(1, 2)
        return scores


class GRU(nn.Module):
    """A recurrent network that predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.output = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.layer = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """As GPT's."""
        scores: Tensor = self.output(self.layer(self.tokens(x))[0]).transpose(1, 2)
        return scores


def lenet() -> nn.Module:
    """The book's LeNet (chapter 7)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    """The convolutional network of docs/extending.md."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


def images(*shape: int) -> tuple[Tensor, Tensor]:
    """Random images and classes."""
    return torch.randn(shape), torch.randint(10, shape[:1])


def text() -> tuple[Tensor, Tensor]:
    """Random tokens (N, LENGTH), and the next of each."""
    tokens = torch.randint(TOKENS, (16, LENGTH + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "CNN of extending.md, 64 images": (cnn, lambda: images(64, 1, 28, 28)),
    "LeNet, 64 images": (lenet, lambda: images(64, 1, 28, 28)),
    "squeezenet1_1, 8 images of 64 x 64": (
        lambda: torchvision.models.squeezenet1_1(num_classes=10),
        lambda: images(8, 3, 64, 64),
    ),
    "vit_b_16, 4 images of 32 x 32": (
        lambda: torchvision.models.vit_b_16(num_classes=10, image_size=32),
        lambda: images(4, 3, 32, 32),
    ),
    "GPT of two layers": (GPT, text),
    "GRU language model": (GRU, text),
}


def stepper(build: Callable[[], nn.Module]) -> Step:
    """A training step of a new model."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def milliseconds(
    step: Step, block: contextlib.AbstractContextManager[None], *data: Tensor
) -> float:
    """The median of STEPS steps, after three that warm up or are recorded."""
    times = []
    with block:
        for _ in range(3 + STEPS):
            started = time.perf_counter()
            step(*data)
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def main() -> None:
    """Print a row for each model, and the median of the last column."""
    print("| milliseconds a step | native | exact mode | compiled | compiled / native |")
    print("| --- | --- | --- | --- | --- |")
    ratios = []
    for name, (build, draw) in MODELS.items():
        torch.manual_seed(1)
        native, mode, plain = (stepper(build) for _ in range(3))
        compiled, data = exact.compile(plain), draw()
        rounds = [
            (
                milliseconds(native, contextlib.nullcontext(), *data),
                milliseconds(mode, exact.mode(seed=1), *data),
                milliseconds(compiled, exact.mode(seed=1), *data),
            )
            for _ in range(ROUNDS)
        ]
        columns = [statistics.median(side) for side in zip(*rounds, strict=True)]
        ratios.append(columns[2] / columns[0])
        print(
            f"| {name} | {' | '.join(f'{x:.1f}' for x in columns)} | {ratios[-1]:.1f} |", flush=True
        )
    print(f"median of the last column: {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
