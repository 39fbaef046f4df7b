"""A class is chosen by the name of the file that defines it."""

from pathlib import Path

import pytest

from lab.common.settings import class_named, names_in
from lab.models import Architecture

MODULE = """
from lab.models import Architecture
from lab.models.linear import Linear

class Convolution(Architecture):
    channels: int
"""


def test_a_new_file_is_a_new_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "architectures_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cnn.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    assert names_in(package.name) == ["cnn"]
    # And not a class that the file imports.
    assert class_named(package.name, "cnn", Architecture).__name__ == "Convolution"
    for name in ("mlp", "__init__", "../cnn", ""):
        with pytest.raises(ValueError, match=r"^cnn$"):
            class_named(package.name, name, Architecture)
