"""The worked examples of the book's first chapters, as facts that run.

Dive into Deep Learning, chapters linear regression, softmax regression and multilayer
perceptron, as common notes tell them; where such notes err, the truth.
"""

import pytest
import torch
from torch import nn

from lab import training


def test_data_iter_minibatches_of_4_from_20_shuffled_examples() -> None:
    batches = list(training.minibatches(20, 4, seed=1, epoch=1))
    assert [len(batch) for batch in batches] == [4] * 5
    order = torch.cat(batches).tolist()
    assert sorted(order) == list(range(20))
    assert order != list(range(20))


def test_mm_multiplies_matrices_and_mul_elements() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert torch.mm(a, b).tolist() == [[19, 22], [43, 50]]
    assert torch.mul(a, b).tolist() == [[5, 12], [21, 32]]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    assert torch.mul(torch.ones(2, 3), torch.ones(3)).shape == (2, 3)  # mul broadcasts


def test_manual_seed_repeats_the_draws() -> None:
    draws = [torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


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
    mean = training.squared_loss(predictions, targets).mean().item()
    assert mean == pytest.approx(0.11205, abs=1e-7)
    assert nn.MSELoss()(predictions, targets).item() == pytest.approx(2 * mean)  # lacks the ½


def test_subtracting_a_row_from_a_column_makes_a_matrix() -> None:
    assert (torch.zeros(3, 1) - torch.zeros(3)).shape == (3, 3)  # why squared_loss checks


PROBABILITIES = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]])
CLASS = torch.tensor([0, 2])


def test_gather_picks_the_probability_of_each_label() -> None:
    picked = PROBABILITIES.gather(1, CLASS.view(-1, 1))
    assert picked.flatten().tolist() == pytest.approx([0.1, 0.5])
    # Cross-entropy is the mean of -log of these; a softmax of their logs gives them back.
    logits = PROBABILITIES.log()
    expected = (-picked.log()).flatten().tolist()
    assert training.cross_entropy(logits, CLASS).tolist() == pytest.approx(expected)


def test_accuracy_is_the_share_of_rows_whose_largest_entry_is_the_label() -> None:
    assert training.accuracy(PROBABILITIES, CLASS) == 0.5


def test_backward_with_v_is_the_gradient_of_the_sum_of_y_times_v() -> None:
    """A vector-Jacobian product: vᵀJ."""
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    v = torch.tensor([0.1, 1.0, 10.0])

    def y(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[0] * x[1], x[1] ** 2, x.sum()])

    (product,) = torch.autograd.grad(y(x), x, v)
    (gradient,) = torch.autograd.grad((y(x) * v).sum(), x)
    jacobian = torch.autograd.functional.jacobian(y, x)
    assert torch.equal(product, gradient)
    assert torch.allclose(product, v @ jacobian)
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        y(x).backward()


LOGITS = torch.tensor([[1.0, 2.0, 4.0], [0.5, -1.0, 0.0]])


def test_softmax_is_unchanged_when_a_constant_is_added_to_all_logits() -> None:
    for constant in (1.0, -5.0, 100.0):
        torch.testing.assert_close((LOGITS + constant).softmax(1), LOGITS.softmax(1))


def test_softmax_is_changed_by_scaling_the_weights_and_only_the_argmax_stays() -> None:
    """The factor is an inverse temperature: above 1 it sharpens, below 1 it flattens."""
    features = torch.tensor([[1.0, -2.0], [0.5, 1.5]])
    weights = torch.tensor([[1.0, -1.0, 0.5], [0.2, 0.4, -0.3]])
    plain = (features @ weights).softmax(1)
    sharp, flat = ((features @ (factor * weights)).softmax(1) for factor in (10.0, 0.1))
    assert not torch.allclose(sharp, plain, atol=0.1)
    assert (sharp.amax(1) > plain.amax(1)).all() and (plain.amax(1) > flat.amax(1)).all()
    assert torch.equal(sharp.argmax(1), plain.argmax(1))
    assert torch.equal(flat.argmax(1), plain.argmax(1))


def test_without_an_activation_two_layers_are_one() -> None:
    first, second = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-1, 1, 20).view(5, 4)
    torch.testing.assert_close(x @ first @ second, x @ (first @ second))
    bent = (x @ first).relu() @ second
    assert not torch.allclose(bent, x @ (first @ second))


@pytest.mark.parametrize(
    ("activation", "largest"), [(torch.relu, 1.0), (torch.sigmoid, 0.25), (torch.tanh, 1.0)]
)
def test_the_largest_slope_of_an_activation(activation: object, largest: float) -> None:
    """Why gradients vanish: sigmoid's slope is 1/4 at the most, and 0 far from 0."""
    assert callable(activation)
    x = torch.linspace(-8, 8, 1601, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    assert slope.max().item() == pytest.approx(largest, abs=1e-4)
    assert slope[0].item() == pytest.approx(0, abs=1e-3)


def test_equal_weights_stay_equal_so_an_mlp_cannot_start_at_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    rows = model[0].weight
    assert isinstance(rows, torch.Tensor) and torch.equal(rows[0], rows[1])
