"""Examples are checked before a model is trained or evaluated on them."""

from pathlib import Path

import pytest
import torch

from lab.common.files import InputError
from lab.datasets import Examples, held_out, read_numbers, require_valid
from lab.tasks import Classification, Regression

FOLDER = Path("data/own")
NUMBERS = torch.tensor([[1.0], [2.0]])


def test_examples_are_finite_and_of_their_task() -> None:
    two = Classification(["a", "b"])
    require_valid(Examples(NUMBERS, NUMBERS), Regression(), FOLDER)
    require_valid(Examples(NUMBERS, torch.tensor([0, 1])), two, FOLDER)
    for features, targets, task, reason in (
        (NUMBERS / 0, NUMBERS, Regression(), "a number is missing, NaN or infinite"),
        (NUMBERS, NUMBERS * float("nan"), Regression(), "a number is missing, NaN or infinite"),
        (NUMBERS, torch.tensor([0, 2]), two, "expected classes 0 … 1 as targets"),
        (NUMBERS, torch.tensor([-1, 1]), two, "expected classes 0 … 1 as targets"),
        (NUMBERS, NUMBERS[:1], Regression(), "expected examples, found 2 and 1"),
        (NUMBERS[:0], NUMBERS[:0], Regression(), "expected examples, found 0 and 0"),
    ):
        with pytest.raises(InputError, match=f"^data/own: {reason}"):
            require_valid(Examples(features, targets), task, FOLDER)


def test_what_is_held_out_leaves_the_rest_for_training() -> None:
    train, validation = held_out(10, 4, 1, FOLDER)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(10))
    assert len(validation) == 4 and held_out(10, 4, 2, FOLDER)[1].tolist() != validation.tolist()
    with pytest.raises(InputError, match="expected more than 10 examples, found 10"):
        held_out(10, 10, 1, FOLDER)


def test_a_csv_of_numbers_is_read_and_any_other_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("a,b\n1,2\n")
    assert read_numbers(path).to_numpy().tolist() == [[1.0, 2.0]]
    for text in ("", "a,b\n", "a,b\n1,x\n", "a;b\n1;2\n", "a,b\n1,2,3\n", "a,b\n1,\n", "a\n1e99\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"own\.csv: "):
            read_numbers(path)
