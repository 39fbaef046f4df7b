"""Under the mode, plain PyTorch is right, the same in any batch and order, or refused."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exact

G = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=G)
Y = torch.randn(7, 5, generator=G)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
POSITIVE = X.abs() + 0.1
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "add with alpha": lambda x: torch.add(x, Y.to(x.dtype), alpha=0.3),
    "sub with alpha": lambda x: torch.sub(x, Y.to(x.dtype), alpha=0.3),
    "rsub": lambda x: 1 - x,
    "mul": lambda x: x * Y.to(x.dtype) * 0.7,
    "div by a number": lambda x: x / 3,
    "div by a tensor": lambda x: x / (Y.to(x.dtype).abs() + 1),
    "number by tensor": lambda x: 2 / (x.abs() + 1),
    "addcmul": lambda x: torch.addcmul(x, x, Y.to(x.dtype), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, Y.to(x.dtype).abs() + 1, value=0.5),
    "lerp": lambda x: torch.lerp(x, Y.to(x.dtype), 0.3),
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs() + 0.1),
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "square": torch.square,
    "cube": lambda x: x**3,
    "power 0": lambda x: x**0 * x,
    "root by pow": lambda x: (x.abs() + 0.1) ** 0.5,
    "sum": torch.sum,
    "sum of rows": lambda x: x.sum(1),
    "mean": torch.mean,
    "mean of columns": lambda x: x.mean(0, keepdim=True),
    "norm": torch.linalg.vector_norm,
    "norm of rows": lambda x: torch.linalg.vector_norm(x, dim=1),
    "mm": lambda x: x @ Y.to(x.dtype).t(),
    "bmm": lambda x: torch.bmm(x.expand(2, 7, 5), Y.to(x.dtype).t().expand(2, 5, 7)),
    "linear": lambda x: F.linear(x, Y.to(x.dtype), LABELS.to(x.dtype)),
    "softmax": lambda x: F.softmax(x, 1),
    "log_softmax": lambda x: F.log_softmax(x, 0),
    "cross_entropy": lambda x: F.cross_entropy(x, LABELS),
    "cross_entropy, none": lambda x: F.cross_entropy(x, LABELS, reduction="none"),
    "cross_entropy, sum": lambda x: F.cross_entropy(x, LABELS, reduction="sum"),
    "cross_entropy, weights": lambda x: F.cross_entropy(x, LABELS, WEIGHT.to(x.dtype)),
    "cross_entropy, ignored": lambda x: F.cross_entropy(x, LABELS, ignore_index=1),
    "mse_loss": lambda x: F.mse_loss(x, Y.to(x.dtype)),
    "mse_loss, none": lambda x: F.mse_loss(x, Y.to(x.dtype), reduction="none"),
    "mse_loss, sum": lambda x: F.mse_loss(x, Y.to(x.dtype), reduction="sum"),
}


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).view(y.shape) / y.numel()
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_true_ones(name: str) -> None:
    """Against float64 arithmetic of PyTorch itself."""
    with exact.mode():
        y, gradient = value_and_gradient(CASES[name], X)
    true_y, true_gradient = value_and_gradient(CASES[name], X.double())
    assert y.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(y.double(), true_y, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "cross_entropy", "tanh", "mse_loss"])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    with exact.mode():
        x = X.double().requires_grad_()
        _, gradient = value_and_gradient(CASES[name], x.detach())
        step = 1e-5
        y, _ = value_and_gradient(CASES[name], x.detach())
        weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).view(y.shape) / y.numel()
        for i, j in ((0, 0), (3, 2), (6, 4)):
            shift = torch.zeros_like(X.double())
            shift[i, j] = step
            up, down = (CASES[name](x.detach() + s * shift) for s in (1, -1))
            slope = ((up - down) * weights).sum().item() / (2 * step)
            assert gradient[i, j].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def steps(
    context: contextlib.AbstractContextManager[None], settings: dict[str, Any]
) -> list[Tensor]:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5))
    for i, p in enumerate(model.parameters()):
        p.data.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape) * (i + 1) / 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    with context:
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(X), LABELS).backward()
            optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.01},
     {"momentum": 0.9, "dampening": 0.1, "maximize": True},
     {"momentum": 0.9, "weight_decay": 0.01, "foreach": True}],
)  # fmt: skip
def test_sgd_does_what_it_does_natively(settings: dict[str, Any]) -> None:
    ours, theirs = steps(exact.mode(), settings), steps(contextlib.nullcontext(), settings)
    for own, native in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, native, rtol=1e-5, atol=1e-6)


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
        (lambda: F.dropout(X, 0.5), "aten"),
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
