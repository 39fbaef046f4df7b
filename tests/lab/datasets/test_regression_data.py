"""The regression data follow their parameters, and read back as they were written."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from lab import params
from lab.common.files import InputError
from lab.datasets import SPLITS
from lab.datasets.regression_data import RegressionData, read_table
from tracking.repository import ROOT

P = params.load(ROOT / "tests/params.yaml")
DATA = RegressionData.model_validate(P.dataset("linear_regression"))


def test_targets_are_xw_plus_b_plus_noise() -> None:
    data = DATA.model_copy(update={"train": 20_000, "noise": 0.5})
    x, y = data.draw(7, "train")
    assert x.shape == (20_000, 2) and y.shape == (20_000, 1)
    assert x.dtype == y.dtype == torch.float32
    noise = y.double().squeeze(1) - (x.double() @ torch.tensor(data.weights).double() + data.bias)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 0.5) < 0.01
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.01
    assert abs((x[:, 0] * x[:, 1]).mean()) < 0.03  # features are independent of each other
    assert abs((x[:, 0] * noise).mean()) < 0.02  # and of the noise


def test_splits_and_seeds_differ() -> None:
    draws = {
        DATA.draw(n, split).features[:100].numpy().tobytes() for n in (1, 2) for split in SPLITS
    }
    assert len(draws) == 6


def test_prepared_files_read_back_to_the_same_numbers(tmp_path: Path) -> None:
    DATA.prepare(tmp_path, P)
    loaded = (*DATA.load_training(tmp_path, P.seed), DATA.load_test(tmp_path))
    for split, examples in zip(SPLITS, loaded, strict=True):
        drawn = DATA.draw(P.seed, split)
        assert torch.equal(examples.features, drawn.features), split
        assert torch.equal(examples.targets, drawn.targets), split
    # Also for a reader who knows nothing of float32.
    y = torch.tensor(pd.read_csv(tmp_path / "test.csv")["y"].tolist())
    assert torch.equal(y, loaded[2].targets.squeeze(1))
    assert b"\r" not in (tmp_path / "test.csv").read_bytes()
    assert DATA.true_weights(tmp_path) == [2.0, -3.4, 4.2]
    wider = DATA.model_copy(update={"weights": (1.0, 2.0, 3.0)})
    with pytest.raises(
        InputError, match=r"expected 3 features, train and validation have \[2, 2\]"
    ):
        wider.load_training(tmp_path, P.seed)


@pytest.mark.parametrize(
    "text", ["{}", '{"weights": ["x"], "bias": 2}', '{"weights": [NaN], "bias": 2}']
)
def test_other_true_weights_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(InputError, match="expected weights and bias"):
        DATA.true_weights(tmp_path)


@pytest.mark.parametrize("text", ["y,x1\n1,2\n", "y\n1\n", "x1,x3,y\n1,2,3\n", "x1,y\n1,4e38\n"])
def test_other_tables_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=r"t\.csv: "):
        read_table(tmp_path / "t.csv")
