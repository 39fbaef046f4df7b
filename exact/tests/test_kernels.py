"""A kernel's results are the bits of the implementation in PyTorch, or it declines."""

import ctypes
import inspect
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import exact
from exact import kernels, products, registry
from exact.bytes import signed_bytes
from exact.kernels import convolution
from exact.operations.convolution import Windows
from exact.tests.oracle import bits, numbers

# Vector instructions by compiler flags, beside those of this machine.
AVX512 = ("-mavx512f", "-mavx512bw")
OTHERS = {
    "avx2": ("-mavx2", "-mfma"),
    "sse2": (),
    "avx512": AVX512,
    "vnni": (*AVX512, "-mavx512vnni"),
}
CPU = Path("/proc/cpuinfo")
FEATURES = CPU.read_text().replace("_", "") if CPU.exists() else ""
SIZES = st.sampled_from([1, 2, 3, 5, 16, 31, 64, 65])


@pytest.fixture(scope="session", params=["native", *OTHERS])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels, compiled for this machine and for lesser ones."""
    name = request.param
    flags = OTHERS.get(name, ("-march=native",))
    if any(flag.removeprefix("-m") not in FEATURES for flag in flags if name in OTHERS):
        pytest.skip(f"this processor has no {name}")
    try:
        return kernels.build(tmp_path_factory.mktemp("kernels"), flags)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no C compiler: {error}")


def reference(name: str, *args: Any) -> Any:
    implementation = registry.UNSEEDED[registry.named(name)]
    assert implementation
    return implementation(*args)


def kernel(library: ctypes.CDLL, name: str, *args: Any) -> Any:
    found = kernels.registry.KERNELS[registry.named(name)](library, *args)
    return found() if isinstance(found, kernels.KernelCall) else found


def same(library: ctypes.CDLL, name: str, *args: Any) -> bool:
    """Whether the kernel has a result, which must be that of the reference."""
    with torch.no_grad():
        expected, found = reference(name, *args), kernel(library, name, *args)
    if found is None:
        return False
    pair = [x if isinstance(x, tuple) else (x,) for x in (expected, found)]
    assert [(x.shape, x.dtype) for x in pair[0]] == [(x.shape, x.dtype) for x in pair[1]]
    assert bits(pair[0]) == bits(pair[1]), name
    return True


def layouts(x: Tensor, other: int) -> Iterator[Tensor]:
    """The matrix in memory row by row, column by column, or with gaps."""
    yield x
    yield x.t().contiguous().t()
    yield torch.stack([x, x], -1)[..., other % 2]


@settings(max_examples=25, deadline=None)
@given(n=SIZES, k=st.sampled_from([1, 2, 3, 15, 64, 129, 500]), m=SIZES, seed=st.integers(0, 99))
def test_products_are_the_same(library: Any, n: int, k: int, m: int, seed: int) -> None:
    spread = [0, 3, 40, 100][seed % 4]
    a, b, bias = (numbers(shape, spread, seed) for shape in ((n, k), (k, m), (m,)))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (k, m), generator=generator).to(torch.uint8)
    for x in layouts(a, seed):
        for y in [*layouts(b, seed), exact.from_bytes(images)]:
            assert same(library, "mm", x, y)
            assert same(library, "mm", y.t(), x.t())
            assert same(library, "addmm", bias, x, y)


@pytest.mark.parametrize("extreme", [False, True])
def test_long_products_are_the_same(library: Any, extreme: bool) -> None:
    k = 140_000  # more terms than the sums of integers have room for
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(shape, generator=generator) for shape in ((3, k), (k, 17)))
    images = torch.randint(0, 256, (k, 17), generator=generator).to(torch.uint8)
    if extreme:  # numbers on the grid, the lower bytes of which are 127
        for x, n in zip((a, b), products.product_bits(k), strict=True):
            x.fill_((2 ** (n - 1) + 0x7F7F) / 2**n)
        images.fill_(255)
    for y in (b, exact.from_bytes(images)):
        assert same(library, "mm", a, y)
        assert same(library, "mm", y.t(), a.t())


@pytest.mark.parametrize(
    ("left", "right"),
    [((5, 3), (7, 3, 9)), ((7, 1, 2, 33), (4, 33, 5)), ((2, 9, 17), (2, 17, 1)), ((1, 1), (1, 1))],
)
def test_batches_of_products_are_the_same(left: Any, right: Any) -> None:
    if kernels.library() is None:
        pytest.skip("no C compiler")
    a, b = numbers(left, 30, 1), numbers(right, 30, 2)
    for x, y in ((a, b), (b.mT, a.mT), (a.mT.contiguous().mT, b)):
        expected, found = products.matmul(x, y), kernels.multiply(x, y)
        assert found is not None and bits([found]) == bits([expected])
        with products.computed_by(SimpleNamespace(multiply=lambda x, y: -expected)):  # noqa: B023 -- the control
            assert torch.equal(products.matmul(x, y), -expected)


@st.composite
def convolutions(draw: Any) -> tuple[Tensor, Tensor, Tensor | None, list[Any]]:
    """Images, weights, a bias, and stride, padding, dilation, transposed … groups, that fit."""
    dims, groups = draw(st.sampled_from([1, 2, 2])), draw(st.sampled_from([1, 1, 2, 3]))
    transposed, spread, seed = draw(st.booleans()), draw(st.sampled_from([0, 40])), draw(SIZES)
    stride, dilation, kernel, size = (
        [draw(st.sampled_from(sizes)) for _ in range(dims)]
        for sizes in ((1, 1, 2, 3), (1, 1, 2), (1, 2, 3, 5), (1, 4, 13, 30))
    )
    most = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = [draw(st.integers(0, reach)) for reach in most]
    if not transposed:  # the least size that has an output
        size = [max(n, reach - 2 * p + 1) for n, reach, p in zip(size, most, padding, strict=True)]
    else:
        padding = [min(p, reach // 2) for p, reach in zip(padding, most, strict=True)]
    more = [
        draw(st.integers(0, max(s, d) - 1)) if transposed else 0
        for s, d in zip(stride, dilation, strict=True)
    ]
    inputs, outputs = (groups * draw(st.sampled_from([1, 2, 5, 9])) for _ in range(2))
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    x = numbers((draw(st.sampled_from([1, 2, 5])), inputs, *size), spread, seed)
    bias = numbers((outputs,), 3, seed) if draw(st.booleans()) else None
    options = [stride, padding, dilation, transposed, more, groups]
    return x, numbers((*shape, *kernel), spread, seed + 1), bias, options


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_convolutions_are_the_same(library: Any, case: Any) -> None:
    x, weight, bias, options = case
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "library", lambda: library)
        y = reference("convolution", x, weight, bias, *options)
        grad = numbers(tuple(y.shape), 3, 7)
        backward = (grad, x, weight, [y.shape[1]], *options, [True, True, True])
        expected = [y, *reference("convolution_backward", *backward)]
        with products.computed_by(kernels):
            found = [reference("convolution", x, weight, bias, *options)]
            found += reference("convolution_backward", *backward)
        assert [z.shape for z in found] == [z.shape for z in expected]
        assert bits(found) == bits(expected)


def test_a_convolution_is_left_to_the_reference_where_its_numbers_are_too_large(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "library", lambda: library)
    windows = Windows([1, 1], [0, 0], [1, 1])
    for place in range(3):
        x, weight, grad = (numbers(s, 0) for s in ((2, 3, 5, 5), (4, 3, 3, 3), (2, 4, 3, 3)))
        for value in (1.0, math.nan, 2.0**110):  # 1.0: the control
            (x, weight, grad)[place][0, 1, 1, 1] = value
            known = kernels.convolve(x, weight, None, windows, (3, 3)) is not None
            assert known is (value == 1 or place == 2)
            known = kernels.convolve_gradients(grad, x, weight, windows) is not None
            assert known is (value == 1 or place == 1)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 5])] * 2),
    stride=st.tuples(*[st.sampled_from([1, 2, 3])] * 2),
    dilation=st.tuples(*[st.sampled_from([1, 1, 2])] * 2),
    shape=st.tuples(*[st.sampled_from([1, 4, 7, 16, 30])] * 2),
    kind=st.sampled_from(["", "nan", "zeros", "-inf", "ties"]),
)
def test_max_pooling_is_the_same(
    library: Any, sizes: Any, stride: Any, dilation: Any, shape: Any, kind: str
) -> None:
    padding = [k // 2 if d == 1 else 0 for k, d in zip(sizes, dilation, strict=True)]
    reach = zip(shape, padding, dilation, sizes, strict=True)
    assume(all(n + 2 * p > d * (k - 1) for n, p, d, k in reach))
    x = numbers((2, 3, *shape), 3, sum(shape))
    x = {"zeros": x.sign() * 0.0, "-inf": x * math.inf, "ties": x.round()}.get(kind, x)
    if kind == "nan":
        x.view(-1)[:: 1 + sum(sizes)] = math.nan
    options = (list(sizes), list(stride), padding, list(dilation))
    assert same(library, "max_pool2d_with_indices", x, *options)
    y, indices = reference("max_pool2d_with_indices", x, *options)
    grad = numbers(tuple(y.shape), 3, 1)
    grad.view(-1)[0] = -0.0
    overlap = list(dilation) != [1, 1] or any(s < k for s, k in zip(stride, sizes, strict=True))
    backward = (grad, x, *options, False, indices)
    assert same(library, "max_pool2d_with_indices_backward", *backward) is not overlap


@pytest.mark.parametrize("k", [784, 4095, 4096, 4097, 9001])
@pytest.mark.parametrize("byte", [0, 255])
def test_products_of_the_largest_numbers_are_the_same(library: Any, k: int, byte: int) -> None:
    images = exact.from_bytes(torch.full((k, 3), byte, dtype=torch.uint8))
    for number in (-1.0, -2 + 2.0**-23, 2 - 2.0**-23, 1 - 2.0**-12):
        for size in (1.0, 2.0**-126, 2.0**-140, 2.0**108):
            a = torch.full((2, k), number * size)
            assert same(library, "mm", a, images)
            assert same(library, "mm", a, torch.full((k, 3), number))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**110])
def test_numbers_that_are_too_large_are_left_to_the_reference(library: Any, value: float) -> None:
    a, b = numbers((7, 40), 0), numbers((40, 5), 0)
    images = exact.from_bytes(torch.arange(200).view(40, 5).to(torch.uint8))
    assert same(library, "mm", a, b) and same(library, "mm", a, images)  # the control
    a[3, 39] = value
    assert not same(library, "mm", a, b) and not same(library, "mm", b.t(), a.t())
    assert not same(library, "mm", a, images)
    assert not same(library, "sum.dim_IntList", a, [0])
    assert not same(library, "linalg_vector_norm", a)
    assert same(library, "_log_softmax", a, 1, False) is (value == -math.inf)
    assert not same(library, "_log_softmax_backward_data", a, a, 1, torch.float32)


@settings(max_examples=25, deadline=None)
@given(n=SIZES, m=SIZES, seed=st.integers(0, 99))
def test_rectified_numbers_their_gradients_and_counts_are_the_same(
    library: Any, n: int, m: int, seed: int
) -> None:
    x, grad = numbers((n, m), 3, seed).round(), numbers((n, m), 3, seed + 1)
    assert same(library, "argmax", x, 1)  # of several that are the largest, too
    x.view(-1)[0] = grad.view(-1)[-1] = [0.0, -0.0, math.inf, -math.inf, math.nan][seed % 5]
    assert same(library, "relu", x)
    assert same(library, "threshold_backward", grad, x, 0)
    assert not same(library, "threshold_backward", grad, x, 1)
    assert same(library, "argmax", x, -1) is not bool(x.isnan().any())
    labels = torch.arange(n) % 3
    assert same(library, "eq.Tensor", labels, labels.flip(0))
    assert same(library, "sum", labels == labels.flip(0))
    chosen = torch.arange(0, n, 2).flip(0)
    assert same(library, "index_select", labels, 0, chosen)
    assert not same(library, "index_select", x, 0, chosen)
    assert kernel(library, "index_select", labels, 0, chosen + n) is None


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(SIZES, SIZES, SIZES), dim=st.integers(0, 2), seed=st.integers(0, 99))
def test_sums_are_the_same(library: Any, shape: tuple[int, ...], dim: int, seed: int) -> None:
    x = numbers(shape, [0, 3, 40, 140][seed % 4], seed)
    x.view(-1)[0] = [0.0, -0.0, 1e-45][seed % 3]
    assert same(library, "sum.dim_IntList", x, [dim], bool(seed % 2))
    assert same(library, "sum.dim_IntList", x, [dim - 3])
    assert same(library, "mean", x)
    assert same(library, "linalg_vector_norm", x)
    assert same(library, "linalg_vector_norm", x * 0)
    assert not same(library, "linalg_vector_norm", x, 1)
    assert not same(library, "linalg_vector_norm", x, 2, [dim])


def test_the_norm_of_numbers_below_the_grid_is_the_same(library: Any) -> None:
    x = torch.full((2**17,), 2.0**-18.25)
    x[0] = 1
    assert torch.linalg.vector_norm(x) > 1  # without the grid, to which the others are too small
    assert same(library, "linalg_vector_norm", x) and reference("linalg_vector_norm", x) == 1


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 4),
    stride=st.integers(1, 4),
    shape=st.tuples(*[st.integers(4, 9)] * 2),
    divisor=st.sampled_from([None, 3]),
)
def test_average_pooling_is_the_same(
    library: Any, size: int, stride: int, shape: Any, divisor: int | None
) -> None:
    x = numbers((2, 3, *shape), [0, 3, 40, 140][size - 1], stride)
    options = ([size, 1 + size // 2], [stride], [0, 0], False, True, divisor)
    assert same(library, "avg_pool2d", x, *options)
    grad = numbers(tuple(reference("avg_pool2d", x, *options).shape), 3)
    grad.view(-1)[0] = -0.0
    overlap = stride < size or stride < 1 + size // 2
    assert same(library, "avg_pool2d_backward", grad, x, *options) is not overlap
    x[0, 0, :4, :4] = math.nan
    assert not same(library, "avg_pool2d", x, *options)


@settings(max_examples=25, deadline=None)
@given(n=SIZES, m=SIZES, seed=st.integers(0, 99))
def test_functions_and_softmax_are_the_same(library: Any, n: int, m: int, seed: int) -> None:
    x = numbers((n, 2 * m), seed % 30, seed) * [1, 5, 30, 1000][seed % 4]
    x[0, 0] = [0.0, -0.0, 1e-45, 1e30][seed % 4]
    for name in ("exp", "sigmoid", "tanh"):
        for y in (x, x.t(), x[:, ::2]):
            known = torch.empty_like(y).is_contiguous()
            assert same(library, name, y) is known
            changed = y.clone(memory_format=torch.preserve_format)
            assert (kernel(library, f"{name}_", changed) is changed) is known
            assert not known or bits([changed]) == bits([reference(name, y)])
    for name in ("sigmoid", "tanh"):
        y = reference(name, x)
        assert same(library, f"{name}_backward", numbers((n, 2 * m), 3, seed), y)
    x[:, 1] = -math.inf
    assert same(library, "_softmax", x, 1, False) and same(library, "_log_softmax", x, 1, False)
    assert same(library, "_safe_softmax", x, -1)
    y = x.view(n, m, 2)
    assert same(library, "_log_softmax", y, 1, False) or y.isinf().all(1).any()
    x[0] = -math.inf  # of which nothing is left
    assert not same(library, "_safe_softmax", x, -1)
    x[0] = math.nan
    assert not any(same(library, name, x) for name in ("exp", "sigmoid", "tanh"))


@settings(max_examples=25, deadline=None)
@given(n=SIZES, classes=SIZES, seed=st.integers(0, 99))
def test_losses_are_the_same(library: Any, n: int, classes: int, seed: int) -> None:
    x = numbers((n, classes), seed % 5, seed) * [1, 30, 1000, 1e30][seed % 4]
    grad = numbers((n, classes), 20, seed + 1)
    grad[0, 0] = 0
    assert same(library, "_log_softmax", x, 1, False)
    output = reference("_log_softmax", x, 1, False)
    assert same(library, "_log_softmax_backward_data", grad, output, -1, torch.float32)
    assert same(library, "_log_softmax_backward_data", grad, output, 0, torch.float32)
    labels = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    labels[0] = -100 if seed % 2 else 0
    assert same(library, "nll_loss_forward", output, labels, None, 0, -100)
    zero = output.new_zeros(())
    for g in (grad[:, 0], grad[0, :1].expand(n)):
        assert same(library, "nll_loss_backward", g, output, labels, None, 0, -100, zero)
    counted = bool((labels != -100).any())  # else the mean is NaN
    assert same(library, "nll_loss_forward", output, labels, None, 1, -100) is counted
    _, count = reference("nll_loss_forward", output, labels, None, 1, -100)
    for g in grad[:1, 0]:
        assert same(library, "nll_loss_backward", g, output, labels, None, 1, -100, count)
    assert not same(library, "nll_loss_forward", output, labels, None, 2, -100)


def test_a_label_or_an_index_out_of_range_is_left_to_the_reference(library: Any) -> None:
    x, images = numbers((3, 4), 0), exact.from_bytes(torch.zeros(5, 2, dtype=torch.uint8))
    for wrong in (-1, 5, 2**40):
        labels = torch.tensor([0, wrong, 1])
        assert kernel(library, "nll_loss_forward", x, labels, None, 0, -100) is None
        backward = (x[:, 0], x, labels, None, 0, -100, x[0, 0])
        assert kernel(library, "nll_loss_backward", *backward) is None
        assert kernel(library, "index_select", images, 0, labels) is None


@pytest.mark.parametrize("n", [0, 1, 16, 33])
@pytest.mark.parametrize("shape", [(), (1,), (3, 7)])
def test_gathered_bytes_are_the_same_and_marked(library: Any, n: int, shape: Any) -> None:
    images = torch.randint(0, 256, (20, *shape), generator=torch.Generator().manual_seed(n))
    x, index = exact.from_bytes(images.to(torch.uint8)), torch.arange(n) * 7 % 20
    assert same(library, "index_select", x, 0, index)
    expected, found = signed_bytes(x), signed_bytes(kernel(library, "index_select", x, 0, index))
    assert expected is not None and found is not None and torch.equal(found, expected[index])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dampening", [0.0, 0.3])
@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_updates_are_the_same(momentum: float, dampening: float, decay: float) -> None:
    if kernels.library() is None:
        pytest.skip("no C compiler")
    results = []
    for compiled in (False, True):
        weights = [nn.Parameter(numbers(shape, 30, 1)) for shape in ((1,), (7, 5), (50_000,))]
        optimizer = torch.optim.SGD(weights, 0.1, momentum, dampening, decay)
        for number in range(4):
            for i, p in enumerate(weights):
                p.grad = numbers(tuple(p.shape), 30, 10 * number + i)
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
            before = weights[0]._version
            first = momentum and not number  # which makes the buffers
            if not compiled or first:
                assert not first or not kernels.update(optimizer)
                with exact.mode():
                    optimizer.step()
            else:
                assert kernels.update(optimizer)
            assert weights[0]._version > before
        kept = [state.get("momentum_buffer") for state in optimizer.state.values()]
        results.append(bits([p.detach() for p in weights] + [x for x in kept if x is not None]))
    assert results[0] == results[1]


def test_a_subclass_of_sgd_is_updated_by_the_kernel_unless_its_step_is_another() -> None:
    if kernels.library() is None:
        pytest.skip("no C compiler")
    original = inspect.unwrap(torch.optim.SGD.step)
    for step, known in ((torch.no_grad()(original), True), (lambda self: None, False)):
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = type("Mine", (torch.optim.SGD,), {"step": step})([weight], 0.5)
        assert kernels.update(optimizer) is known
        assert weight.tolist() == [0.5 if known else 1.0] * 3


def run(environment: dict[str, str]) -> str:
    code = """
import torch, exact
from exact import kernels
x, w = torch.ones(3, 4), torch.ones(4, 2, requires_grad=True)
@exact.compile
def step(x):
    (x @ w).sum().backward()
    return x @ w
with exact.mode():
    for _ in range(4):
        w.grad = None
        y = step(x)
print(kernels.library() is not None, y.tolist() == [[4.0, 4.0]] * 3)
"""
    command = [sys.executable, "-c", code]
    env = os.environ | environment
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip() + done.stderr.strip()


def test_without_a_compiler_a_step_works_and_says_so_once(tmp_path: Path) -> None:
    found = run({"CC": "/nowhere/cc", "XDG_CACHE_HOME": str(tmp_path)})
    assert found.startswith("False True") and found.count("without compiled kernels") == 1
    assert run({"EXACT_KERNELS": "0", "XDG_CACHE_HOME": str(tmp_path)}) == "False True"


def test_kernels_are_compiled_once_by_any_number_of_processes(
    tmp_path: Path, run_all: bool
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    env = {"XDG_CACHE_HOME": str(folder)}
    if not run(env).startswith("True"):
        pytest.skip("no C compiler")
    (compiled,) = (folder / "exact-torch").iterdir()
    written = compiled.stat().st_mtime_ns
    assert run(env) == "True True"
    assert compiled.stat().st_mtime_ns == written
    if run_all:  # where the cache cannot be written, a temporary folder takes its place
        compiled.unlink()
        assert run({"XDG_CACHE_HOME": os.devnull}) == "True True"
