"""A batch divided between workers gives the bits of the whole one, or is refused by name."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn import functional as F

import exact
from exact.tests import test_layers, test_operations
from exact.tests.oracle import bits, value_and_gradients
from exact.tests.test_operations import LABELS, WEIGHT, X, Y
from exact.tests.workers import on_workers

Case = tuple[Callable[..., Tensor], list[Tensor], int]
WORDS = torch.tensor([[1, 2, 1], [0, 1, 3], [4, 4, 4], [1, 0, 2], [3, 3, 1], [2, 2, 4], [0, 0, 0]])


def cross_entropy(**options: Any) -> Callable[..., Tensor]:
    def loss(x: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        constant = None if weight is None else weight.detach()
        losses = F.cross_entropy(x, labels.long(), constant, **options)
        for other in (labels, weight):  # so that there is a gradient for it
            losses = losses if other is None else losses + 0 * other.sum()
        return losses

    return loss


# A function, its inputs, and how many of them are batches; the others all workers have.
CASES: dict[str, Case] = {
    **{name: (function, [X], 1) for name, function in test_operations.CASES.items()},
    **{
        name: (function, inputs, 3 if "attention" in name else 1)
        for name, (function, inputs) in test_layers.CASES.items()
        if "embedding" not in name
    },
    "embedding": (
        lambda i, w: F.embedding(i.long(), w) + i.unsqueeze(-1),
        [WORDS.float(), test_layers.draw(5, 4)],
        1,
    ),
    "mse_loss of batches": (F.mse_loss, [X, Y], 2),
    "mse_loss of batches, sum": (lambda x, y: F.mse_loss(x, y, reduction="sum"), [X, Y], 2),
    "mse_loss of batches, none": (lambda x, y: F.mse_loss(x, y, reduction="none"), [X, Y], 2),
    "product over the examples": (lambda x, y: x.t() @ y, [X, Y], 2),
    "product of float64 over them": (lambda x, y: x.double().t() @ y.double(), [X, Y], 2),
    "products over the examples": (
        lambda x, y: torch.bmm(x.t().expand(2, 5, 7), y.expand(2, 7, 5)),
        [X, Y],
        2,
    ),
    "cross_entropy of batches": (cross_entropy(label_smoothing=0.1), [X, LABELS.float()], 2),
    "cross_entropy of batches, sum": (cross_entropy(reduction="sum"), [X, LABELS.float()], 2),
    "cross_entropy of batches, none": (cross_entropy(reduction="none"), [X, LABELS.float()], 2),
    "cross_entropy of batches, ignored": (cross_entropy(ignore_index=1), [X, LABELS.float()], 2),
    "cross_entropy of batches, weights": (cross_entropy(), [X, LABELS.float(), WEIGHT], 2),
    "dropout": (lambda x: F.dropout(x, 0.4), [X], 1),
    "dropout that all share": (lambda x, y: x + F.dropout(y, 0.4), [X, Y], 1),
    "noise": (lambda x: x + torch.randn_like(x) * torch.rand_like(x), [X], 1),
    "uniform_": (lambda x: x * torch.zeros_like(x).uniform_(1, 3), [X], 1),
    "count": (lambda x: x * (x > 0).sum(), [X], 1),
    "accuracy": (lambda x: x * (x.argmax(1) == 1).sum(), [X], 1),
    "largest of columns": (lambda x: x.amax(0), [X], 1),
    "difference from the reverse": (lambda x: x.flip(0) - x, [X], 1),
}
REFUSED = {  # and by which operation
    "prod": "aten.prod.default",
    "norm inf": "aten.linalg_vector_norm.default",
    "addr": "aten.mv.default",
    "bilinear": "aten._trilinear.default",
    **dict.fromkeys(
        ("scatter_reduce mean", "scatter_reduce prod", "scatter_reduce amax"),
        "aten.scatter_reduce.two",
    ),
    "logsigmoid": "aten.log_sigmoid_forward.default",
    **{
        name: f"aten.{name}_backward.default"
        for name in ("hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink")
    },
    "prelu": "aten._prelu_kernel_backward.default",
    "smooth_l1": "aten.smooth_l1_loss.default",
    "huber": "aten.huber_loss.default",
    "soft_margin": "aten.soft_margin_loss.default",
    "bce": "aten.binary_cross_entropy.default",
    "bce with logits": "aten.binary_cross_entropy_with_logits.default",
    "multi_margin": "aten.multi_margin_loss.default",
    "multilabel_margin": "aten.multilabel_margin_loss_forward.default",
    "gaussian_nll": "aten.any.default",
    "cross_entropy of images": "aten.view.default",
    "cross_entropy, sum": "aten.nll_loss_forward.default",  # of labels that are no DTensor
    "mse_loss": "aten.mse_loss.default",
    "mse_loss, sum": "aten.mse_loss.default",
    "layer_norm, whole": "aten.native_layer_norm.default",
    "local_response_norm": "aten.avg_pool3d_backward.default",
    "avg_pool1d": "aten.avg_pool2d_backward.default",
    "avg_pool2d": "aten.avg_pool2d_backward.default",
    "avg_pool2d, divisor": "aten.avg_pool2d_backward.default",
    "avg_pool3d": "aten.avg_pool3d_backward.default",
    "lp_pool2d": "aten.avg_pool2d_backward.default",
    "adaptive_avg_pool3d": "aten._adaptive_avg_pool3d_backward.default",
    "adaptive_max_pool2d": "aten.adaptive_max_pool2d_backward.default",
    "max_pool3d": "aten.max_pool3d_with_indices.default",
    "pad, reflect": "aten.reflection_pad2d.default",
    "pad, replicate": "aten.replication_pad2d.default",
    "unfold": "aten.im2col.default",
    "fold": "aten.col2im.default",
    "weight_norm": "aten._weight_norm_interface_backward.default",
    "affine_grid": "aten.affine_grid_generator.default",
    **dict.fromkeys(
        ("cdist", "cdist, sum", "cdist, cubes", "cdist, largest"), "aten._cdist_forward.default"
    ),
    "qr": "aten.linalg_qr.default",
    "solve_triangular, right": "aten.linalg_solve_triangular.default",
    "cholesky_solve": "aten.cholesky_solve.default",
    "matmul, batched": "aten.view.default",
    "largest of columns": "aten.amax.default",
}


def distribute(mesh: DeviceMesh, x: Tensor, divided: bool) -> DTensor:
    placement = Shard(0) if divided else Replicate()
    return distribute_tensor(x, mesh, [placement], src_data_rank=None)


def compare(mesh: DeviceMesh, names: list[str]) -> dict[str, str]:
    """Of each case with one of the names: nothing, or what is refused or differs."""
    found = {}
    for name in names:
        function, inputs, batches = CASES[name]
        with exact.mode(seed=1):
            expected = value_and_gradients(function, *inputs)
        parts = [distribute(mesh, x, i < batches) for i, x in enumerate(inputs)]
        try:
            with exact.mode(seed=1), implicit_replication():
                results = value_and_gradients(function, *parts)
                whole = [cast(DTensor, x).full_tensor() for x in results]
            found[name] = "" if bits(whole) == bits(expected) else "other bits"
        except exact.NotExactError as error:
            found[name] = str(error).partition(" ")[0]
    return found


@pytest.mark.sample(1)
@pytest.mark.parametrize("n", [5, 3])  # of which 3, the quicker one, is drawn
def test_each_operation_has_the_same_bits_or_is_refused(n: int, run_all: bool) -> None:
    names = list(CASES)[:: 1 if run_all else 3]
    first, *others = on_workers(partial(compare, names=names), n)
    # Its three examples cannot be divided evenly between five.
    refused = REFUSED | ({"instance_norm": "aten.view.default"} if n == 5 else {})
    assert first == {name: refused.get(name, "") for name in names}
    assert all(other == first for other in others)


IMAGES = torch.randn(4, 7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def train(mesh: DeviceMesh | None, arithmetic: str = "exact") -> bytes:
    """Four steps of a network on batches of seven, divided where there is a mesh."""
    torch.manual_seed(1)  # for native arithmetic
    with exact.mode(seed=1) if arithmetic == "exact" else contextlib.nullcontext():
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.LayerNorm(36),
            nn.Linear(36, 9),
            nn.Tanh(),
            nn.Linear(9, 3),
        )
        if arithmetic == "exact":
            network.insert(5, nn.Dropout(0.3))
        if mesh:
            distribute_module(network, mesh)
        optimizer = optim.AdamW(network.parameters(), 0.01)
        for step in range(4):
            x, y = IMAGES[step], LABELS % 3
            if mesh:
                x, y = distribute(mesh, x, divided=True), distribute(mesh, y, divided=True)
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in network.parameters()]
    return b"".join(bits([w.detach() for w in weights]))


def test_a_training_has_the_same_bits_and_natively_it_has_others() -> None:
    assert on_workers(train, 3) == [train(None)] * 3
    natively = on_workers(partial(train, arithmetic="native"), 3)
    assert natively[0] == natively[1] != train(None, "native")


def refusal(mesh: DeviceMesh) -> str:
    encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    x = distribute(mesh, X[:, None].expand(7, 3, 5).repeat(1, 1, 2)[..., :8], divided=True)
    with exact.mode(seed=1), pytest.raises(exact.NotExactError) as error:
        distribute_module(encoder, mesh)(x)
    return str(error.value)


def test_what_would_be_in_another_order_is_refused_by_name() -> None:
    """Of a transformer, which lays words before sentences, each has rows of all sentences."""
    for message in on_workers(refusal, 2):
        assert message.startswith("aten._unsafe_view.default of tensors divided between workers")
