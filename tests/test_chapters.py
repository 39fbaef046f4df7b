"""The chapters of docs/book: their code prints what they show, in English as in Chinese."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from tools import figures
from tracking.repository import ROOT

BOOK = ROOT / "docs/book"
CHAPTERS = {path.name: path.read_text(encoding="utf-8") for path in sorted(BOOK.glob("*.md"))}
CHINESE = {name: (BOOK / "zh" / name).read_text(encoding="utf-8") for name in CHAPTERS}
PAGES = [*CHAPTERS.values(), *CHINESE.values()]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# A formula in a line: some renderers want a space or ASCII punctuation on its outer sides.
FORMULA = re.compile(r"(?:^|(?<=[ (]))\$(?! )[^$\n]+(?<! )\$(?=$|[ .,:;)?])", re.MULTILINE)

every_chapter = pytest.mark.parametrize("name", CHAPTERS)


def differing(text: str) -> list[str]:
    """Run the Python blocks in order; return those that print something else than is shown."""
    names: dict[str, Any] = {}
    found, blocks = [], FENCED.findall(text)
    for (kind, source), (next_kind, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(source, names)  # noqa: S102 -- a block of our own pages
            if printed.getvalue() != (shown if next_kind == "text" else ""):
                found.append(source)
    return found


@every_chapter
def test_every_block_prints_what_the_chapter_shows(name: str) -> None:
    assert not differing(CHAPTERS[name])


def test_a_block_that_prints_something_else_is_noticed() -> None:
    page = "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n{}\n```\n"
    assert differing(page.format(1)) == [] and differing(page.format(2)) == ["print(x)\n"]
    assert differing("```python\nprint(3)\n```\n") == ["print(3)\n"]


@every_chapter
def test_the_chinese_page_has_the_same_code_formulas_figures_and_files(name: str) -> None:
    english, chinese = CHAPTERS[name], CHINESE[name]
    assert FENCED.findall(english) == FENCED.findall(chinese)
    for pattern in (r"^#+", r"(?<=/)[\w-]+\.(?:svg|png|py)", r"\$[^$\n]+\$", r"\d\.\d{4,}"):
        found = [re.findall(pattern, text, flags=re.MULTILINE) for text in (english, chinese)]
        assert set(found[0]) == set(found[1]) != set(), pattern


@pytest.mark.parametrize("text", PAGES)
def test_every_formula_is_set_apart_and_its_braces_are_in_pairs(text: str) -> None:
    prose = re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))
    formulas = FORMULA.findall(prose)
    assert "$" not in FORMULA.sub("", prose) and formulas
    assert "$" in FORMULA.sub("", "权重$w$是")  # the control
    for formula in [
        *formulas,
        *(source for kind, source in FENCED.findall(text) if kind == "math"),
    ]:
        bare = re.sub(r"\\[{}]", "", formula)
        for opening, closing in (
            (r"\{", r"\}"),
            (r"\\left\b", r"\\right\b"),
            (r"\\begin", r"\\end"),
        ):
            counts = [len(re.findall(mark, bare)) for mark in (opening, closing)]
            assert counts[0] == counts[1], formula


@pytest.mark.parametrize("text", PAGES)
def test_every_figure_names_the_command_that_draws_it(text: str) -> None:
    below = re.findall(
        r"^!\[[^\]]+\]\((\S+)\)\n\n\*([^*]+)\*$", text, flags=re.DOTALL | re.MULTILINE
    )
    assert len(below) == text.count("![") > 0
    drawn = {f"{figure.__name__}.svg": "tools.figures" for figure in figures.FIGURES}
    for path, caption in below:
        tool = drawn.get(Path(path).name, "tools.studies --write")
        assert f"`python -m {tool}`" in caption


def test_every_figure_that_is_drawn_is_in_a_chapter() -> None:
    names = {path.name for path in (BOOK / "figures").iterdir()}
    assert names == {f"{figure.__name__}.svg" for figure in figures.FIGURES}
    text = "".join(CHAPTERS.values())
    assert all(f"](figures/{name})" in text for name in names)


@pytest.mark.parametrize("text", PAGES)
def test_every_exercise_is_one_line_with_its_answer_folded_below(text: str) -> None:
    exercises = re.findall(
        r"^\*\*\d\.\*\* [^\n]+\n\n```sh\ndvc exp run [^\n]+\n```\n\n<details><summary>[^\n]+\n\n.+?"
        r"\n\n</details>$",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    assert len(exercises) == text.count("dvc exp run") == text.count("<details>") >= 3
