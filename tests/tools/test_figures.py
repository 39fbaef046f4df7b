"""The figures of the book follow from the results, and from nothing else."""

import pytest

from lab.common import files
from tests.conftest import Clone, contents
from tools import figures
from tracking.repository import ROOT

pytestmark = pytest.mark.slow


def test_the_same_results_give_the_same_bytes(clone: Clone) -> None:
    drawn = []
    for _ in range(2):
        figures.main()
        drawn.append(contents(clone.folder / figures.FOLDER))
    assert drawn[0] == drawn[1]
    assert all(b"<svg" in data and len(data) < 100_000 for data in drawn[0].values())
    committed = contents(ROOT / figures.FOLDER)
    assert drawn[0].keys() == committed.keys()
    same = {name for name in committed if drawn[0][name] == committed[name]}
    assert same == {"activations.svg"}  # the results of short trainings are others

    history = clone.folder / "results/mlp/history.csv"
    files.write_text(history, history.read_text().replace(",0.", ",0.1"))
    figures.main()
    changed = contents(clone.folder / figures.FOLDER)
    assert {name for name in changed if changed[name] != drawn[0][name]} == {"accuracies.svg"}
