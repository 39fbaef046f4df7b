"""Under the mode, plain PyTorch is the same in any batch, reproducible, or refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import exact
from benchmarks.clones import ROOT
from benchmarks.probe import FROZEN, digest

G = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=G)
Y = torch.randn(7, 5, generator=G)
W = torch.randn(300, 300, generator=G)
LABELS = torch.tensor([0, 1, 2, 3, 3, 0, 1])
COMPLEX, SPARSE = X.to(torch.complex64), X.to_sparse()  # made outside of the block


def test_a_prediction_does_not_depend_on_its_batch_and_natively_it_does() -> None:
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    x = torch.rand(500, 784, generator=torch.Generator().manual_seed(1))

    def alone() -> Tensor:
        return torch.cat([model(row).softmax(1) for row in x.split(1)])

    with torch.no_grad():
        with exact.mode():
            assert torch.equal(model(x).softmax(1), alone())
        assert not torch.equal(model(x).softmax(1), alone())  # the control


def test_nor_does_a_transformer_with_trained_biases() -> None:
    # Its linear layers meet transposed inputs, which PyTorch takes another way than plain
    # ones; with one example or one word the two are the same in memory.
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        words = torch.randn(7, 6, 16, generator=generator)  # (words, examples, features)
        with exact.mode():
            alone = [layer(example) for example in words.split(1, 1)]
            assert torch.equal(layer(words), torch.cat(alone, 1))


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
        (lambda: torch.bincount(LABELS, LABELS.float()), "bincount with weights"),
        (lambda: F.conv1d(X[None], torch.ones(2, 7, 3)), "1-d convolution"),
        (lambda: F.conv_transpose2d(X[None, None], Y[None, None]), "transposed convolution"),
        (lambda: nn.BatchNorm1d(5)(X), "batch_norm"),
        (lambda: torch._foreach_add_([X.half()], 1.0), "float16"),
        (lambda: COMPLEX.abs(), "complex64"),
        (lambda: X + SPARSE, "sparse"),
        (lambda: X.to(torch.float8_e4m3fn), "float8"),
    ],
)
def test_what_has_no_exact_form_is_refused_by_name(
    operation: Callable[[], Tensor], name: str
) -> None:
    operation()  # the control
    with exact.mode(), pytest.raises(exact.NotExactError, match=name):
        operation()


def test_of_equal_zeros_the_positive_one_is_chosen() -> None:
    zeros = torch.tensor([0.0, -0.0] * 9)
    with exact.mode():
        results = [
            zeros.relu(), zeros.clamp(min=0), zeros.clamp(max=0), torch.maximum(zeros, -zeros),
            torch.minimum(zeros, -zeros), zeros.max(), zeros.amin(0), zeros.max(0).values,
            zeros.clone().relu_(),
        ]  # fmt: skip
    assert (-zeros).signbit().any()  # the control
    assert not any(bool(result.signbit().any()) for result in results)


def test_numbers_that_are_no_integers_are_cast_alike_everywhere() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.7, -2.7])
    with exact.mode():
        assert x.long().tolist() == [0, 2**63 - 1024, -(2**63), 2**63 - 1024, -(2**63), 2, -2]
        assert x.int().tolist() == [0, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 2, -2]
        assert x.to(torch.uint8).tolist() == [0, 255, 0, 255, 0, 2, 0]
        assert torch.zeros(7, dtype=torch.int32).copy_(x).tolist() == x.int().tolist()
        assert x.bool().all()


@pytest.mark.parametrize("step", [1, 2.0, 0.1, -0.25, 0.003])
def test_a_range_is_computed_in_two_operations(step: float) -> None:
    with exact.mode():
        ours = torch.arange(1, 1 + 70 * step, step, dtype=torch.float64)
    assert ours.tolist() == [1 + i * step for i in range(len(ours))]
    torch.testing.assert_close(ours, torch.arange(1, 1 + 70 * step, step, dtype=torch.float64))


WHOLE = torch.tensor([[1, 2, 3]])
ONE = torch.ones(1, 1, dtype=torch.float64)
PROMOTED: dict[str, Callable[[], Tensor]] = {
    "number - integers": lambda: 1.5 - WHOLE,
    "root of integers": lambda: WHOLE**0.5,
    "float power of integers": lambda: WHOLE**2.0,
    "power of integers": lambda: WHOLE**2,
    "product of integers": lambda: WHOLE * 2**22 @ WHOLE.t(),
    "sigmoid of bytes": lambda: torch.sigmoid(WHOLE.to(torch.uint8)),
    "sum as integers": lambda: torch.tensor([1.5, 1.5]).sum(dtype=torch.int64),
    "sum of truths": lambda: (WHOLE > 1).sum(dtype=torch.float32),
    "sum with dimensions kept": lambda: torch.sum(WHOLE, None, keepdim=True),
    "sum of a number": lambda: torch.tensor(2.5).sum(0),
    "sum of one float64": lambda: torch.tensor([1 + 2.0**-52], dtype=torch.float64).sum(),
    "sum of a huge float64": lambda: torch.tensor([1e308], dtype=torch.float64).sum(),
    "softmax of a number": lambda: torch.tensor(2.5).softmax(0),
    "range of integers": lambda: torch.arange(5, 0, -1.5, dtype=torch.int64),
    "lerp to the end": lambda: torch.lerp(torch.tensor(1e8), torch.tensor(1.0), 1.0),
    "float64 beyond float32": lambda: torch.tensor([[1e300]], dtype=torch.float64) @ ONE,
    "uint64": lambda: torch.tensor([1e19]).to(torch.uint64),
    "a fraction for integers": lambda: torch.zeros(2).long().fill_(torch.tensor(2.5)),
}


@pytest.mark.parametrize("name", PROMOTED)
def test_types_and_ends_are_those_of_pytorch(name: str) -> None:
    native = PROMOTED[name]()
    with exact.mode():
        ours = PROMOTED[name]()
    assert ours.dtype == native.dtype and ours.shape == native.shape
    torch.testing.assert_close(ours, native)


@pytest.mark.parametrize(
    "operation",
    [
        lambda: F.cross_entropy(X, LABELS - 1),  # a label of -1
        lambda: torch.mm(X, Y.t().double()),
        lambda: WHOLE.softmax(1),
        lambda: torch.linalg.vector_norm(WHOLE),
        lambda: F.gelu(WHOLE),
        lambda: F.layer_norm(WHOLE, (3,)),
        lambda: exact.from_bytes(WHOLE),
    ],
)
def test_wrong_labels_and_types_are_errors(operation: Callable[[], Tensor]) -> None:
    with exact.mode(), pytest.raises((IndexError, RuntimeError, TypeError)):
        operation()


def test_a_block_within_a_block_computes_the_same_with_draws_of_its_own() -> None:
    with exact.mode(seed=1):
        one, product = torch.rand(3), X @ Y.t()
    with exact.mode(seed=2):
        two = torch.rand(3)
        with exact.mode(seed=1):
            assert torch.equal(torch.rand(3), one)
            assert torch.equal(X @ Y.t(), product)
        with exact.mode(), pytest.raises(exact.NotExactError):
            torch.rand(3)
        three = torch.rand(3)
    with exact.mode(seed=2):
        assert torch.equal(torch.cat([torch.rand(3), torch.rand(3)]), torch.cat([two, three]))
    torch.rand(3)  # the control


def test_threads_that_are_started_in_a_block_are_in_it() -> None:
    def computed_by(pool: ThreadPoolExecutor) -> Tensor:
        return pool.submit(lambda: W @ W).result()

    with ThreadPoolExecutor(1) as pool:
        native = computed_by(pool)
        with exact.mode():
            exactly = W @ W
            assert torch.equal(computed_by(pool), native)  # the control: an older thread
    with exact.mode(seed=1), ThreadPoolExecutor(1) as pool:
        assert torch.equal(computed_by(pool), exactly)
        with pytest.raises(exact.NotExactError, match=r"aten\.cumsum"):
            pool.submit(lambda: W.cumsum(0)).result()
        # Whose turn it is to draw would be a matter of time.
        with pytest.raises(exact.NotExactError, match="seed"):
            pool.submit(torch.rand, 3).result()
    assert not torch.equal(exactly, native)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(computed_by(pool), native)


def test_an_optimiser_in_a_thread_outside_the_block_is_left_alone() -> None:
    def step() -> None:
        parameter = nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        optim.Adamax([parameter]).step()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(step).result()
        with exact.mode():
            pool.submit(step).result()
            with pytest.raises(exact.NotExactError, match="Adamax"):  # the control
                step()


def test_inference_mode_gives_the_same_bits() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    images = torch.arange(20).to(torch.uint8).view(4, 5)
    with exact.mode(), torch.no_grad():
        expected = [model(X).softmax(1), model(exact.from_bytes(images)[LABELS[:3]])]
    with torch.inference_mode(), exact.mode():
        ours = [model(X).softmax(1), model(exact.from_bytes(images)[LABELS[:3]])]
        with pytest.raises(exact.NotExactError, match="cumsum"):
            X.cumsum(0)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_mode_ends_with_its_block() -> None:
    with exact.mode():
        pass
    torch.sin(X)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_bits_of_the_cpu() -> None:
    assert digest("exact", "cuda") == FROZEN
    assert digest("native", "cuda") != digest("native")  # the control


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
        command = [sys.executable, "-m", "benchmarks.probe", arithmetic]
        return {
            subprocess.run(
                command, cwd=ROOT, env=os.environ | surroundings, capture_output=True, check=True
            ).stdout.split()[0].decode()
            for surroundings in SURROUNDINGS
        }  # fmt: skip

    assert digests("exact") == {FROZEN}
    assert len(digests("native")) > 1  # the control
