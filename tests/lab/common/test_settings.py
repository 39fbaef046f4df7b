"""A class is chosen by the name of the file that defines it."""

import sys
from pathlib import Path

import pytest

from lab.common.files import InputError
from lab.common.settings import class_named
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
    # And not a class that the file imports.
    assert class_named(package.name, "cnn", Architecture).__name__ == "Convolution"
    for name in ("mlp", "__init__", "../cnn", ""):
        with pytest.raises(ValueError, match=r"^cnn$"):
            class_named(package.name, name, Architecture)
    for text, reason in (
        ("import none_such", "cannot be imported: ModuleNotFoundError"),
        ("class A(", "cannot be imported: SyntaxError"),
        ("from lab.models import Architecture", "expected one class of Architecture, found 0"),
        (MODULE + "class Other(Linear): ...", "expected one class of Architecture, found 2"),
    ):
        (package / "bad.py").write_text(text)
        with pytest.raises(InputError, match=f"^architectures_of_a_test/bad.py: {reason}"):
            class_named(package.name, "bad", Architecture)
        sys.modules.pop(f"{package.name}.bad", None)
