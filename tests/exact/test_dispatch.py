"""Under the mode, plain PyTorch is the same in any batch, reproducible, or refused."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exact

G = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=G)
Y = torch.randn(7, 5, generator=G)


def test_a_prediction_does_not_depend_on_its_batch_and_natively_it_does() -> None:
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    x = torch.rand(500, 784, generator=torch.Generator().manual_seed(1))

    def alone() -> Tensor:
        return torch.cat([model(row).softmax(1) for row in x.split(1)])

    with torch.no_grad():
        with exact.mode():
            assert torch.equal(model(x).softmax(1), alone())
        assert not torch.equal(model(x).softmax(1), alone())  # the control


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda: torch.randn(3), "aten.randn"),
        (lambda: torch.cumsum(X, 0), "aten.cumsum"),
        (lambda: torch.sin(X), "aten.sin"),
        (lambda: torch.fft.fft(X), "fft"),
        (lambda: X.abs() ** 1.3, "exponent 1.3"),
        (lambda: torch.linalg.vector_norm(X, 3), "order 3"),
        (lambda: torch.addmm(Y[0], X, Y.t()[:, :5], alpha=2.0), "addmm"),
        (lambda: X.half() + 1, "float16"),
        (lambda: X.bfloat16(), "bfloat16"),
        (lambda: X.to(torch.complex64), "complex64"),
        (lambda: torch.std(X), "aten.std"),
        (lambda: F.conv1d(X[None], torch.ones(2, 7, 3)), "1-d convolution"),
        (lambda: F.conv_transpose2d(X[None, None], Y[None, None]), "transposed convolution"),
        (lambda: nn.BatchNorm1d(5)(X), "batch_norm"),
        (lambda: torch._foreach_add_([X.half()], 1.0), "float16"),
    ],
)
def test_what_has_no_exact_form_is_refused_by_name(
    operation: Callable[[], Tensor], name: str
) -> None:
    operation()  # the control
    with exact.mode(), pytest.raises(exact.NotExactError, match=name):
        operation()


def test_the_mode_ends_with_its_block() -> None:
    with exact.mode():
        pass
    torch.sin(X)


SCRIPT = """
import hashlib, torch
from torch.nn import functional as F
import contextlib, sys, exact
from exact import random
model = torch.nn.Sequential(torch.nn.Linear(200, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))
for i, p in enumerate(model.parameters()):
    p.data.copy_(random.normal(tuple(p.shape), 1, "weights", i) * 0.1)
x, y = random.normal((300, 200), 1, "x").float(), torch.arange(300) % 10
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
with exact.mode() if sys.argv[1] == "exact" else contextlib.nullcontext():
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print(hashlib.sha256(bits).hexdigest())
"""
# A change of this is a change of every result in dvc.lock.
FROZEN = "c56a1742a0ceaa0010b925d8fba62271a6b1497cfc08c6e13ef06b06a97fdd95\n"
SURROUNDINGS: list[dict[str, str]] = [
    {},
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "5"},
    {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
]


@pytest.mark.slow
def test_training_gives_the_same_bits_in_changed_surroundings_and_natively_it_does_not() -> None:
    def digests(arithmetic: str) -> set[str]:
        command = [sys.executable, "-c", SCRIPT, arithmetic]
        return {
            subprocess.run(
                command, env=os.environ | surroundings, capture_output=True, check=True
            ).stdout.decode()
            for surroundings in SURROUNDINGS
        }

    assert digests("exact") == {FROZEN}
    assert len(digests("native")) > 1  # the control
