"""The worked examples of the book's first chapters, as facts that run.

Dive into Deep Learning, chapters linear regression, softmax regression and multilayer
perceptron, as common notes tell them; where such notes err, the truth.
"""

import pytest
import torch
from torch import nn

from lab.tasks import Classification, Regression, correct


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_mm_multiplies_matrices_and_mul_elements() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert torch.mm(a, b).tolist() == [[19, 22], [43, 50]]
    assert torch.mul(a, b).tolist() == [[5, 12], [21, 32]]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    assert torch.mul(torch.ones(2, 3), torch.ones(3)).shape == (2, 3)  # mul broadcasts


def test_manual_seed_repeats_the_draws() -> None:
    assert torch.equal(normal(3, seed=1), normal(3, seed=1))
    assert not torch.equal(normal(3, seed=1), normal(3, seed=2))


def test_gradients_add_up_without_zero_grad() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    for expected in (6.0, 12.0):  # d/dx x² = 2x = 6, and 6 once more
        (x**2).backward()
        assert x.grad is not None and x.grad.item() == expected
    optimizer.zero_grad()
    (x**2).backward()
    assert x.grad.item() == 6.0


def test_view_shares_memory_and_needs_contiguous_rows_where_reshape_copies() -> None:
    x = torch.arange(6)
    x.view(2, 3)[0, 0] = 7
    assert x[0] == 7
    transposed = x.view(2, 3).t()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        transposed.view(6)
    assert transposed.reshape(6).tolist() == [7, 3, 1, 4, 2, 5]
    assert x.view(-1, 2).shape == (3, 2)


def test_half_squared_loss() -> None:
    predictions = torch.tensor([[2.33], [1.07], [1.23]])
    targets = torch.tensor([[3.14], [0.98], [1.32]])
    mean = Regression().losses(predictions, targets).mean().item()
    assert mean == pytest.approx(0.11205, abs=1e-7)
    assert nn.MSELoss()(predictions, targets).item() == pytest.approx(2 * mean)  # lacks the ½
    assert (predictions - torch.zeros(3)).shape == (3, 3)  # why the loss checks the shapes


def test_cross_entropy_picks_the_probability_of_each_label_and_accuracy_the_largest() -> None:
    probabilities = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]])
    labels, logits = torch.tensor([0, 2]), probabilities.log()
    picked = probabilities.gather(1, labels.view(-1, 1)).flatten()
    assert picked.tolist() == pytest.approx([0.1, 0.5])
    losses = Classification("abc").losses(logits, labels)
    assert losses.tolist() == pytest.approx((-picked.log()).tolist())
    assert correct(probabilities, labels) == 1


def test_backward_with_v_is_the_gradient_of_the_sum_of_y_times_v() -> None:
    """A vector-Jacobian product: vᵀJ."""
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    v = torch.tensor([0.1, 1.0, 10.0])

    def y(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[0] * x[1], x[1] ** 2, x.sum()])

    (product,) = torch.autograd.grad(y(x), x, v)
    (gradient,) = torch.autograd.grad((y(x) * v).sum(), x)
    assert torch.equal(product, gradient)
    assert torch.allclose(product, v @ torch.autograd.functional.jacobian(y, x))
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        y(x).backward()


def test_softmax_is_unchanged_by_a_constant_and_changed_by_scaling_the_weights() -> None:
    """The factor is an inverse temperature: above 1 it sharpens, below 1 it flattens."""
    features = torch.tensor([[1.0, -2.0], [0.5, 1.5]])
    weights = torch.tensor([[1.0, -1.0, 0.5], [0.2, 0.4, -0.3]])
    plain = (features @ weights).softmax(1)
    for constant in (1.0, -5.0, 100.0):
        torch.testing.assert_close(
            (features @ weights + constant).softmax(1), plain, atol=1e-5, rtol=0
        )
    sharp, flat = ((features @ (factor * weights)).softmax(1) for factor in (10.0, 0.1))
    assert not torch.allclose(sharp, plain, atol=0.1)
    assert (sharp.amax(1) > plain.amax(1)).all() and (plain.amax(1) > flat.amax(1)).all()
    for scaled in (sharp, flat):  # only the largest stays where it was
        assert torch.equal(scaled.argmax(1), plain.argmax(1))


def test_without_an_activation_two_layers_are_one() -> None:
    first, second = normal(2, 4, 4)
    x = torch.linspace(-1, 1, 20).view(5, 4)
    torch.testing.assert_close(x @ first @ second, x @ (first @ second))
    assert not torch.allclose((x @ first).relu() @ second, x @ (first @ second))


def test_the_largest_slope_of_an_activation() -> None:
    """Why gradients vanish: sigmoid's slope is 1/4 at the most, and 0 far from 0."""
    for activation, largest in ((torch.relu, 1.0), (torch.sigmoid, 0.25), (torch.tanh, 1.0)):
        x = torch.linspace(-8, 8, 1601, requires_grad=True)
        (slope,) = torch.autograd.grad(activation(x).sum(), x)
        assert slope.max().item() == pytest.approx(largest, abs=1e-4)
        assert slope[0].item() == pytest.approx(0, abs=1e-3)


def test_equal_weights_stay_equal_so_an_mlp_cannot_start_at_zero() -> None:
    x, y = normal(8, 4), torch.arange(8) // 3
    for start in (torch.zeros(3, 4), normal(3, 4)):
        model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 3))
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        rows = next(model.parameters())
        rows.data.copy_(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert not torch.equal(rows, start)
        assert torch.allclose(rows[0], rows[1]) == (not start.any())
