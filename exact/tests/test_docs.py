"""The pages say what the code does, and their examples print what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exact import process, products
from exact.docs import operations

FOLDER = Path(__file__).parent.parent
README = (FOLDER / "README.md").read_text()
EXAMPLES = sorted((FOLDER / "examples").glob("*.py"))


def block(name: str) -> str:
    """What stands between the two comments of this name in README.md."""
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def printed(code: str, *arguments: str) -> list[str]:
    """The lines that the code prints in a process of its own, warnings being errors."""
    command = [sys.executable, "-W", "error", *arguments, "-c", code]
    return subprocess.check_output(command, cwd=FOLDER.parent, text=True).splitlines()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "code",
    [block("example").split("```python")[1].split("```")[0], *(p.read_text() for p in EXAMPLES)],
    ids=["README", *(path.stem for path in EXAMPLES)],
)
def test_an_example_prints_the_bits_that_it_says(code: str) -> None:
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert expected and printed(code) == expected


def test_the_readme_names_every_change_of_the_process() -> None:
    named = re.findall(r"^\| `(\w+)` \|", block("changes"), re.MULTILINE)
    assert named == [context.__name__ for context in process._PATCHES._contexts]


def test_the_bits_of_a_product_are_those_of_the_code() -> None:
    lines = block("bits").splitlines()
    terms, bits = (lines[i].strip("| ").split(" | ")[1:] for i in (0, 2))
    sizes = [int(re.sub(r"\D", "", cell)) for cell in terms]
    assert bits == ["{} and {}".format(*products.product_bits(n)) for n in sizes]
    n = sizes[0]  # "or fewer": the last with as many bits
    assert products.product_bits(n) == products.product_bits(2) != products.product_bits(n + 1)


def test_the_list_of_operations_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    page = (FOLDER / "docs" / "operations.md").read_text()
    if f"PyTorch {torch.__version__.partition('+')[0]};" not in page:
        pytest.skip("the page was made with another release of PyTorch")
    operations.main()
    assert capsys.readouterr().out == page


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (FOLDER / link).exists()] == []
