"""Under the mode, plain PyTorch is the same in any batch, reproducible, or refused."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import exact
from exact.probe import FROZEN, digest

G = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=G)
Y = torch.randn(7, 5, generator=G)
W = torch.randn(300, 300, generator=G)
LABELS = torch.tensor([0, 1, 2, 3, 3, 0, 1])
CELL = nn.GRUCell(5, 5)
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
        (lambda: torch.digamma(X), "aten.digamma"),
        (lambda: torch.special.bessel_j0(X), "bessel_j0"),
        (lambda: torch.fft.fft(X), "fft"),
        (lambda: torch.linalg.svdvals(X), "svd"),
        (lambda: torch.pdist(X), "aten._pdist_forward"),
        (lambda: X.half() + 1, "float16"),
        (lambda: X.bfloat16(), "bfloat16"),
        (lambda: X.to(torch.complex64), "complex64"),
        (lambda: X.mode(0).values, "aten.mode"),
        (lambda: torch.polygamma(1, X.abs()), "polygamma"),
        (lambda: torch._foreach_add_([X.half()], 1.0), "float16"),
        (lambda: COMPLEX.abs(), "complex64"),
        (lambda: X + SPARSE, "sparse"),
        (lambda: X.to(torch.float8_e4m3fn), "float8"),
    ],
)
def test_what_has_no_exact_implementation_is_refused_by_name(
    operation: Callable[[], Tensor], name: str
) -> None:
    operation()  # the control
    with exact.mode(), pytest.raises(exact.NotExactError, match=name):
        operation()


def test_of_equal_zeros_the_positive_one_is_chosen() -> None:
    zeros = torch.tensor([0.0, -0.0] * 9)
    with exact.mode():
        results = [
            zeros.relu(),
            zeros.clamp(min=0),
            zeros.clamp(max=0),
            torch.maximum(zeros, -zeros),
            torch.minimum(zeros, -zeros),
            zeros.max(),
            zeros.amin(0),
            zeros.max(0).values,
            zeros.clone().relu_(),
        ]
    assert (-zeros).signbit().any()  # the control
    assert not any(bool(result.signbit().any()) for result in results)


def test_of_equal_numbers_the_first_comes_first() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0] * 400)
    largest, smallest = [1, 2, 3, 6, 7, 8, 11], [0, 4, 5, 9, 10, 14, 15]
    with exact.mode():
        assert x.topk(7).indices.tolist() == largest
        assert x.topk(7, largest=False).indices.tolist() == smallest
        assert x.argsort(descending=True)[:7].tolist() == largest
        assert x.sort().indices[:7].tolist() == smallest
        assert torch.tensor(5.0).topk(1).values == 5
    assert x.topk(7).indices.tolist() != largest  # the control


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bool])
def test_memory_that_was_not_written_to_is_the_same_everywhere(dtype: torch.dtype) -> None:
    missing = {torch.float32: float("nan"), torch.int64: -1, torch.uint8: 255, torch.bool: True}
    expected = torch.full((2, 3), missing[dtype], dtype=dtype)
    x = torch.zeros(2, 3, dtype=dtype)
    with exact.mode():
        made = [
            torch.empty(2, 3, dtype=dtype),
            torch.empty_like(x),
            x.new_empty(2, 3),
            torch.empty_strided((2, 3), (1, 2), dtype=dtype),
            x.new_empty_strided((2, 3), (1, 2)),
            x.new_zeros(0).resize_(2, 3),
        ]
        assert x[:1].resize_(2, 3).equal(x)  # which had been written to
        assert x[1:].resize_(4, 3)[0].equal(x[1])
    for each in made:
        torch.testing.assert_close(each, expected, equal_nan=True)


def test_numbers_that_are_no_integers_are_cast_alike_everywhere() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.7, -2.7])
    with exact.mode():
        assert x.long().tolist() == [0, 2**63 - 1024, -(2**63), 2**63 - 1024, -(2**63), 2, -2]
        assert x.int().tolist() == [0, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 2, -2]
        assert x.to(torch.uint8).tolist() == [0, 255, 0, 255, 0, 2, 0]
        assert torch.zeros(7, dtype=torch.int32).copy_(x).tolist() == x.int().tolist()
        assert x.bool().all()


def test_nor_does_a_range_beyond_what_float32_counts() -> None:
    with exact.mode():
        ours = torch.arange(16_777_217.0, 16_777_217.0 + 90_000)
        int64 = torch.arange(16_777_217, 16_777_217 + 90_000)
    assert torch.equal(ours, int64.float())


@pytest.mark.parametrize("step", [1, 2.0, 0.1, -0.25, 0.003])
def test_a_range_is_computed_in_two_operations(step: float) -> None:
    with exact.mode():
        ours = torch.arange(1, 1 + 70 * step, step, dtype=torch.float64)
    assert ours.tolist() == [1 + i * step for i in range(len(ours))]
    torch.testing.assert_close(ours, torch.arange(1, 1 + 70 * step, step, dtype=torch.float64))


WHOLE = torch.tensor([[1, 2, 3]])
ONE = torch.ones(1, 1, dtype=torch.float64)
ZERO = torch.tensor(0.0)
BYTES = torch.full((3,), 100, dtype=torch.int8)
TRUTHS = torch.tensor([True, True])
PROMOTED: dict[str, Callable[[], Tensor]] = {
    "number - integers": lambda: 1.5 - WHOLE,
    "root of integers": lambda: WHOLE**0.5,
    "float power of integers": lambda: WHOLE**2.0,
    "power of integers": lambda: WHOLE**2,
    "product of integers": lambda: WHOLE * 2**22 @ WHOLE.t(),
    "sigmoid of bytes": lambda: torch.sigmoid(WHOLE.to(torch.uint8)),
    "sum as bytes": lambda: BYTES.sum(dtype=torch.int8),
    "sum along, as int32": lambda: WHOLE.sum(1, dtype=torch.int32),
    "sum as a truth": lambda: TRUTHS.sum(dtype=torch.bool),
    "a fraction of float32 for float64": lambda: torch.add(
        ONE * -3e7, torch.tensor([3]), alpha=1e7 + 0.1
    ),
    "index_add of truths": lambda: TRUTHS.index_add(0, torch.tensor([0]), TRUTHS[:1]),
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


WRONG: dict[str, Callable[[], object]] = {
    "a label of -1": lambda: F.cross_entropy(X, LABELS - 1),
    "labels of int32": lambda: F.nll_loss(X, LABELS.int()),
    "too few weights": lambda: F.nll_loss(X, LABELS, torch.ones(4)),
    "weights of float64": lambda: F.nll_loss(X, LABELS, torch.ones(5).double()),
    "mm of two types": lambda: torch.mm(X, Y.t().double()),
    "mm of batches": lambda: torch.mm(X[None], Y.t()[None]),
    "bmm of matrices": lambda: torch.bmm(X, Y.t()),
    "bmm of unlike batches": lambda: torch.bmm(X.expand(1, 7, 5), Y.t().expand(4, 5, 7)),
    "addmm of two types": lambda: torch.addmm(torch.ones(7).double(), X, Y.t()),
    "softmax of integers": lambda: WHOLE.softmax(1),
    "norm of integers": lambda: torch.linalg.vector_norm(WHOLE),
    "gelu of integers": lambda: F.gelu(WHOLE),
    "lerp of integers": lambda: torch.lerp(WHOLE, WHOLE, 0.5),
    "lerp of two types": lambda: torch.lerp(X, Y.double(), 0.5),
    "mse_loss of integers": lambda: F.mse_loss(WHOLE, WHOLE, reduction="sum"),
    "an alpha beyond the type": lambda: torch.add(BYTES, BYTES, alpha=300),
    "fill_ by several": lambda: X.clone().fill_(torch.ones(5)),
    "scatter to another place": lambda: ZERO.scatter(0, torch.tensor(5), ZERO),
    "index_add of too many": lambda: X.index_add(0, torch.tensor([0]), Y),
    "index_add of too wide": lambda: X.index_add(0, LABELS, torch.ones(7, 6)),
    "index_add of turned": lambda: X.index_add(1, torch.tensor([0, 1]), torch.ones(2, 7)),
    "addcdiv of integers": lambda: torch.addcdiv(WHOLE, WHOLE, WHOLE),
    "root of integers in place": lambda: WHOLE.clone().sqrt_(),
    "a fractional alpha for integers": lambda: torch.add(WHOLE, WHOLE, alpha=1.5),
    "layer_norm of integers": lambda: F.layer_norm(WHOLE, (3,)),
    "layer_norm of another shape": lambda: F.layer_norm(X, (4,)),
    "layer_norm by one weight": lambda: F.layer_norm(X, (5,), torch.ones(1)),
    "conv2d of two types": lambda: F.conv2d(X[None, None], torch.ones(2, 1, 2, 2).double()),
    "conv2d by one bias": lambda: F.conv2d(X[None, None], torch.ones(2, 1, 2, 2), torch.ones(1)),
    "bytes of int64": lambda: exact.from_bytes(WHOLE),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_and_shapes_are_errors_as_natively(name: str) -> None:
    with pytest.raises((IndexError, RuntimeError, TypeError)):
        WRONG[name]()
    with exact.mode(), pytest.raises((IndexError, RuntimeError, TypeError)):
        WRONG[name]()


class Subclass(Tensor):
    """A tensor around another."""

    around: Tensor

    @staticmethod
    def __new__(cls, around: Tensor) -> "Subclass":
        x: Subclass = Tensor._make_wrapper_subclass(cls, around.shape)
        x.around = around
        return x

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*(x.around if isinstance(x, Subclass) else x for x in args), **(kwargs or {}))


def test_a_tensor_that_computes_by_itself_is_refused() -> None:
    x = Subclass(torch.ones(3))
    assert torch.equal(x + 1, torch.full((3,), 2.0))  # the control
    with exact.mode(), pytest.raises(exact.NotExactError, match="Subclass"):
        x + 1


def test_a_model_is_exported_outside_of_the_block_alone() -> None:
    model = nn.Linear(5, 3)
    torch.export.export(model, (X,))  # the control
    with exact.mode(), pytest.raises(exact.NotExactError, match="FakeTensor"):
        torch.export.export(model, (X,))


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


def test_blocks_that_overlap_are_refused() -> None:
    def block() -> Generator[Tensor]:
        with exact.mode():
            yield W @ W
            yield W @ W

    first, second = block(), block()
    assert torch.equal(next(first), next(second))
    with pytest.raises(exact.NotExactError, match="overlap"):
        first.close()
    assert torch.equal(next(second), W @ W)  # not exact, hence:
    with pytest.raises(exact.NotExactError, match="overlap"):
        second.close()
    first, second = block(), block()
    next(first), next(second)
    second.close()  # the control: one within the other
    first.close()
    torch.sin(X)


def test_a_block_that_changed_the_machine_is_refused() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        with pytest.raises(exact.MachineError, match="subnormal"), exact.mode():
            torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)


torch.save(X, SAVED := io.BytesIO())
PLAIN: dict[str, Callable[[], Tensor]] = {
    "GRUCell": lambda: CELL(X, Y),
    "load": lambda: torch.load(io.BytesIO(SAVED.getvalue())),
    "nonzero": lambda: (X > 0).nonzero(),
    "masked": lambda: X[X > 0],
    "assignment": lambda: X.clone().index_fill_(0, torch.tensor([1, 2]), 0.0),
    "logical": lambda: torch.logical_xor(X > 0, Y > 0).logical_not_(),
    "repeat": lambda: X.repeat(2, 3).t_().squeeze_(),
    "split": lambda: torch.cat(torch.unsafe_split(X, 2)[1:]),
    "loader": lambda: torch.cat([x for (x,) in DataLoader(TensorDataset(X), 2, num_workers=1)]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_everyday_operations_do_what_they_do_natively(name: str) -> None:
    native = PLAIN[name]()
    with exact.mode(seed=1):  # by which the loader names its workers
        ours = PLAIN[name]()
    torch.testing.assert_close(ours, native)


def test_inference_mode_gives_the_same_bits() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    images = torch.arange(20).to(torch.uint8).view(4, 5)
    with exact.mode(), torch.no_grad():
        expected = [model(X).softmax(1), model(exact.from_bytes(images)[LABELS[:3]])]
    with torch.inference_mode(), exact.mode():
        ours = [model(X).softmax(1), model(exact.from_bytes(images)[LABELS[:3]])]
        with pytest.raises(exact.NotExactError, match="digamma"):
            X.digamma()
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_mode_ends_with_its_block() -> None:
    with exact.mode():
        pass
    torch.sin(X)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_bits_of_the_cpu() -> None:
    assert digest("exact", "cuda") == FROZEN
    assert digest("native", "cuda") != digest("native")  # the control


ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "5"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
]


@pytest.mark.slow
def test_training_gives_the_same_bits_in_other_environments_and_natively_it_does_not(
    run_all: bool,
) -> None:
    def digests(arithmetic: str) -> set[str]:
        command = [sys.executable, "-m", "exact.probe", arithmetic]
        return {
            subprocess.check_output(command, env=os.environ | environment).split()[0].decode()
            for environment in (ENVIRONMENTS if run_all else ENVIRONMENTS[:2])
        }

    assert digests("exact") == {FROZEN}
    assert len(digests("native")) > 1  # the control
