"""Every operation is right forward and backward, in any layout, and in any order of summation."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import exact
from exact.tests.oracle import bits, relaid, true_gradients, value_and_gradients

G = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=G)
Y = torch.randn(7, 5, generator=G)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
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
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log1p": lambda x: torch.log1p(x.abs()),
    "log2": lambda x: torch.log2(x.abs() + 0.1),
    "log10": lambda x: torch.log10(x.abs() + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "sin": lambda x: torch.sin(9 * x),
    "cos": lambda x: torch.cos(9 * x),
    "tan": torch.tan,
    "asin": lambda x: torch.asin(x / 4),
    "acos": lambda x: torch.acos(x / 4),
    "atan": torch.atan,
    "atan2": lambda x: torch.atan2(x, Y.to(x.dtype)),
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x.abs() + 1.1),
    "atanh": lambda x: torch.atanh(x / 4),
    "erfc": torch.erfc,
    "erfinv": lambda x: torch.erfinv(x / 4),
    "logit": lambda x: torch.logit(torch.sigmoid(x)),
    "sinc": torch.sinc,
    "xlogy": lambda x: torch.xlogy(x, Y.to(x.dtype).abs()),
    "logaddexp": lambda x: torch.logaddexp(x, Y.to(x.dtype)),
    "hypot": lambda x: torch.hypot(x, Y.to(x.dtype)),
    "power of a number": lambda x: 1.7**x,
    "power by a tensor": lambda x: (x.abs() + 0.1) ** Y.to(x.dtype),
    "power 0.3": lambda x: (x.abs() + 0.1) ** 0.3,
    "remainder": lambda x: torch.remainder(x, 3.7),
    "fmod": lambda x: torch.fmod(x, Y.to(x.dtype).abs() + 3),
    "lerp by a tensor": lambda x: torch.lerp(x, Y.to(x.dtype), Y.to(x.dtype)),
    "std": lambda x: x.std(0),
    "var": lambda x: torch.var(x, (0, 1), correction=0),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "cumsum": lambda x: x.cumsum(0),
    "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "prod": lambda x: torch.prod(x.abs() + 0.5),
    "prod of rows": lambda x: x.prod(1),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1, 1),
    "norm 3": lambda x: torch.linalg.vector_norm(x, 3),
    "norm inf": lambda x: torch.linalg.vector_norm(x, math.inf, 0),
    "mv": lambda x: x @ Y.to(x.dtype)[0],
    "dot": lambda x: torch.dot(x[0], Y.to(x.dtype)[1]),
    "baddbmm": lambda x: torch.baddbmm(
        x[:, :2], x.expand(2, 7, 5), x[:5, :2].expand(2, 5, 2), beta=0.3, alpha=2
    ),
    "addmv": lambda x: torch.addmv(x[:, 0], x, Y.to(x.dtype)[0], beta=0.5),
    "addr": lambda x: torch.addr(x, x[:, 0], x[0]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, Y.to(x.dtype)),
    "bilinear": lambda x: F.bilinear(x, x, Y.to(x.dtype).view(1, 7, 5)[:, :5]),
    "scatter_reduce mean": lambda x: x.scatter_reduce(
        0, LABELS.unsqueeze(1).expand(7, 5), x.sin(), "mean"
    ),
    "scatter_reduce prod": lambda x: x.scatter_reduce(
        0, LABELS.unsqueeze(1).expand(7, 5), x.sin(), "prod"
    ),
    "scatter_reduce amax": lambda x: x.scatter_reduce(
        0, LABELS.unsqueeze(1).expand(7, 5), x.sin(), "amax", include_self=False
    ),
    "median": lambda x: x.median(0).values,
    "kthvalue": lambda x: x.kthvalue(2, 0).values,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": lambda x: F.softplus(x, 3, 2),
    "logsigmoid": F.logsigmoid,
    "hardswish": lambda x: F.hardswish(3 * x),
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 20),
    "glu": lambda x: F.glu(x[:6], 0),
    "prelu": lambda x: F.prelu(x, Y.to(x.dtype)[0]),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, Y.to(x.dtype), beta=0.7),
    "huber": lambda x: F.huber_loss(x, Y.to(x.dtype), delta=0.7),
    "soft_margin": lambda x: F.soft_margin_loss(x, Y.to(x.dtype).sign()),
    "l1": lambda x: F.l1_loss(x, Y.to(x.dtype), reduction="sum"),
    "bce": lambda x: F.binary_cross_entropy(x.sigmoid(), Y.to(x.dtype).sigmoid()),
    "bce, weights": lambda x: F.binary_cross_entropy(
        x.sigmoid(), (Y > 0).to(x.dtype), WEIGHT.to(x.dtype), reduction="none"
    ),
    "bce with logits": lambda x: F.binary_cross_entropy_with_logits(
        x, Y.to(x.dtype).sigmoid(), pos_weight=WEIGHT.to(x.dtype)
    ),
    "multi_margin": lambda x: F.multi_margin_loss(x, LABELS, p=2, weight=WEIGHT.to(x.dtype)),
    "multilabel_margin": lambda x: F.multilabel_margin_loss(
        x, torch.tensor([0, 3, -1, 1, 2]).expand(7, 5)
    ),
    "kl_div": lambda x: F.kl_div(x, Y.to(x.dtype).softmax(1), reduction="batchmean"),
    "poisson_nll": lambda x: F.poisson_nll_loss(x, Y.to(x.dtype).abs(), full=True),
    "gaussian_nll": lambda x: F.gaussian_nll_loss(x, Y.to(x.dtype), x.abs() + 0.1),
    "cosine_embedding": lambda x: F.cosine_embedding_loss(
        x, Y.to(x.dtype), torch.ones(7, dtype=x.dtype)
    ),
    "triplet_margin": lambda x: F.triplet_margin_loss(x, Y.to(x.dtype), x.flip(0), margin=3),
    "cross_entropy of images": lambda x: F.cross_entropy(
        x.reshape(1, 5, 7, 1), LABELS.view(1, 7, 1), WEIGHT.to(x.dtype)
    ),
    "square": torch.square,
    "cube": lambda x: x**3,
    "power 16": lambda x: x**16,
    "power -3.5": lambda x: (x.abs() + 0.1) ** -3.5,
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
    "gather": lambda x: x.gather(1, LABELS.unsqueeze(1).expand(7, 3)),
    "linear, batches": lambda x: F.linear(
        x.expand(2, 7, 5).transpose(0, 1), Y.to(x.dtype), LABELS.to(x.dtype)
    ),
    "index": lambda x: x[LABELS],
    "index_select": lambda x: x.index_select(0, LABELS),
    "sort": lambda x: torch.sort(x, 0).values * Y.to(x.dtype),
    "topk": lambda x: x.topk(3, 1, largest=False).values,
    "max of rows": lambda x: x.max(1).values,
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


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_true_ones(name: str) -> None:
    with exact.mode():
        ours = value_and_gradients(CASES[name], X)
    for own, true in zip(ours, value_and_gradients(CASES[name], X.double()), strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own.double(), true, rtol=5e-6, atol=5e-6)


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "linspace": lambda x: torch.linspace(-1, 2.7, 36, dtype=x.dtype),
    "linspace of one": lambda x: torch.linspace(3, 4, 1, dtype=x.dtype),
    "logspace": lambda x: torch.logspace(-1, 2, 35, 3, dtype=x.dtype),
    "index_copy": lambda x: x.index_copy(0, LABELS[:5], x[:5] * 2),
    "scatter_reduce amin": lambda x: x.scatter_reduce(
        0, LABELS.unsqueeze(1).expand(7, 5), x, "amin", include_self=True
    ),
    "put": lambda x: x.put(LABELS, x[:, 0], accumulate=True),
    "scatter, number": lambda x: x.scatter(0, LABELS.view(7, 1), 0.3, reduce="multiply"),
    "nansum": lambda x: torch.where(x > 1, math.nan, x).nansum(0),
    "trace": torch.trace,
    "var_mean": lambda x: torch.stack(torch.var_mean(x, 1)),
    "std_mean": lambda x: torch.stack(torch.std_mean(x, 0)),
    "dist": lambda x: torch.dist(x, Y.to(x.dtype), 3),
    "bincount": lambda x: torch.bincount(LABELS, x[:, 0]),
    "floor division": lambda x: x // 0.3,
    "truncated division": lambda x: torch.div(x, Y.to(x.dtype), rounding_mode="trunc"),
    "floor division by a tensor": lambda x: torch.div(x, Y.to(x.dtype), rounding_mode="floor"),
    "remainder by a tensor": lambda x: torch.remainder(x, Y.to(x.dtype)),
    "ldexp": lambda x: torch.ldexp(x, LABELS[:5] - 2),
    "round to decimals": lambda x: torch.round(x, decimals=2),
    "ndtri": lambda x: torch.special.ndtri(x.sigmoid()),
    "entr": lambda x: torch.special.entr(x.abs()),
    "logaddexp2": lambda x: torch.logaddexp2(x, Y.to(x.dtype)),
    "xlog1py": lambda x: torch.special.xlog1py(x, Y.to(x.dtype).abs()),
    "median": torch.median,
    "nanmedian": lambda x: torch.where(x > 1, math.nan, x).nanmedian(1).values,
    "unique": lambda x: torch.unique(x.round()),
    "addbmm": lambda x: torch.addbmm(x[:5, :5], x.expand(2, 7, 5).mT, x.expand(2, 7, 5)),
    "norm": lambda x: torch.norm(x, 3),
    "norm of rows": lambda x: torch.norm(x, 1, 1),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_without_gradient_are_the_true_ones(name: str) -> None:
    with exact.mode():
        ours = VALUES[name](X)
        for x in relaid(X):
            assert bits([VALUES[name](x)]) == bits([ours])
    true = VALUES[name](X.double())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), true, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("exponent", [-16, -3.5, -0.5, 3, 8, 16])
def test_a_power_is_within_one_unit_in_the_last_place(exponent: float) -> None:
    x = torch.linspace(0.5, 2, 5000)
    true = (x.double() ** exponent).float()
    with exact.mode():
        ours = x**exponent
    assert ((ours.view(torch.int32) - true.view(torch.int32)).abs() <= 1).all()


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    with exact.mode():
        true_gradients(CASES[name], X.double())


@pytest.mark.parametrize("name", CASES)
def test_the_layout_in_memory_does_not_matter(name: str) -> None:
    with exact.mode():
        expected = value_and_gradients(CASES[name], X)
        for x in relaid(X):
            assert bits(value_and_gradients(CASES[name], x)) == bits(expected)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.0, 1.0, 2.0])])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("labels", [[-100, 1, 2, 0], [-100] * 4])
def test_ignored_examples_count_for_nothing(
    labels: list[int], reduction: str, weight: Tensor | None
) -> None:
    """Also where their loss would be infinite, and where all are ignored."""
    x = torch.tensor([[-math.inf, 0.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, 1.0, 1.0]])

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(x, torch.tensor(labels), weight, reduction=reduction)

    with exact.mode():
        ours = value_and_gradients(loss, x)
    for own, native in zip(ours, value_and_gradients(loss, x), strict=True):
        torch.testing.assert_close(own, native, equal_nan=True)


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "softmax of one": lambda x: F.softmax(x, 1)[:, 0] * 0 + F.softmax(x, 1).amax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1).amax(1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]).amax(1),
    "product": lambda x: x @ x.t(),
    "mse_loss": lambda x: F.mse_loss(x, 0 * x),
    "var": lambda x: x.var(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "prod": lambda x: x.sign().mul(x.abs() ** (1 / x.shape[1])).prod(1),
    "norm 3": lambda x: torch.linalg.vector_norm(x / 1e15, 3, 1),
    "mean pooling": lambda x: F.avg_pool1d(x.unsqueeze(1), x.shape[1]),
    "batch_norm": lambda x: F.batch_norm(torch.cat([x, x], 1).t(), None, None, training=True).amax(
        0
    ),
    "dot": lambda x: torch.dot(x[0], x[0]),
    "scatter mean": lambda x: torch.zeros(3, 1).scatter_reduce(
        1, torch.zeros_like(x, dtype=torch.int64), x, "mean"
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@settings(max_examples=15, deadline=None)
@given(
    k=st.sampled_from([1, 2, 3, 50, 784, 4097]),
    scale=st.sampled_from([1e-30, 1.0, 1e15]),
    seed=st.integers(0, 99),
)
def test_the_order_of_summation_does_not_matter(name: str, k: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, k, generator=generator) * scale
    order = torch.randperm(k, generator=generator)
    with exact.mode():
        assert bits([REDUCTIONS[name](x)]) == bits([REDUCTIONS[name](x[:, order])])


def test_natively_the_order_of_summation_does_matter() -> None:
    x = torch.randn(3, 4097, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(4097, generator=torch.Generator().manual_seed(1))
    different = [name for name, f in REDUCTIONS.items() if bits([f(x)]) != bits([f(x[:, order])])]
    assert "sum" in different and "product" in different


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1), (2, 65_536)])
@pytest.mark.parametrize("name", ["sum", "mean", "product", "mse_loss", "softmax", "linear"])
def test_shapes_from_empty_to_large(name: str, shape: tuple[int, int]) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: F.softmax(x, 0),
        "linear": lambda x: F.linear(x, x, None),
    }
    function = (functions | REDUCTIONS)[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with exact.mode():
        ours = value_and_gradients(function, x)
    k = max(shape) + 1  # numbers in a sum, whose bits are fewer for it
    for own, native in zip(ours, value_and_gradients(function, x.double()), strict=True):
        torch.testing.assert_close(own.double(), native, rtol=1e-4, atol=1e-6 * k, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e15, 1e37])
def test_extreme_scales(scale: float) -> None:
    x = X * scale
    with exact.mode():
        ours = [x.sum(), x.mean(1), torch.linalg.vector_norm(x), x @ Y.t()]
    y, z = x.double(), Y.double()
    true = [y.sum(), y.mean(1), torch.linalg.vector_norm(y), y @ z.t()]
    for own, value in zip(ours, true, strict=True):
        # A subnormal number has fewer bits: its last place is 1.4e-45.
        tolerance = 1e-6 * float(value.abs().max()) + 2e-45
        assert float((own.double() - value.float().double()).abs().max()) <= tolerance
