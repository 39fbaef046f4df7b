"""What `stages.train` writes."""

from stages import train


def test_gradient_norms_become_rows() -> None:
    row = {"train_loss": 2.0, "gradient_norm_hidden_1": 0.1, "gradient_norm_output": 0.5}
    expected = [{"layer": "hidden_1", "norm": 0.1}, {"layer": "output", "norm": 0.5}]
    assert train.gradient_norms([{"epoch": epoch} | row for epoch in (1, 2)]) == [
        {"epoch": epoch} | cells for epoch in (1, 2) for cells in expected
    ]
