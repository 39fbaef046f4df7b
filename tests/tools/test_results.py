"""A table is put between its marks, and nowhere else."""

from pathlib import Path

import pytest

from lab.common.files import InputError
from tools import results

PAGE = "before\n<!-- x -->\nold\n<!-- /x -->\nafter\n"


def test_the_text_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    results.write_between(page, "x", r"new \1" + "\n")
    assert page.read_text() == PAGE.replace("old", r"new \1")


@pytest.mark.parametrize("text", ["", PAGE * 2, PAGE.replace("/", ""), "<!-- /x -->\n<!-- x -->\n"])
def test_a_page_without_one_pair_of_marks_is_refused_and_left_alone(
    text: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(InputError, match="expected <!-- x --> and <!-- /x --> once"):
        results.write_between(page, "x", "new\n")
    assert page.read_text() == text
