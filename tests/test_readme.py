"""The README says what is there."""

import re
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.clones import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_results_is_that_of_the_metrics() -> None:
    begin, end = results.marks("results")
    assert README.split(begin)[1].split(end)[0] == results.table()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_and_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE):
        assert target in targets, target
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in path or (page.parent / path).exists(), path
    for module in re.findall(r"python -m ([a-z.]+)", text):
        assert Path(ROOT, *module.split(".")).with_suffix(".py").exists(), module


def test_every_direct_dependency_is_pinned_and_in_the_lock() -> None:
    lock = (ROOT / "requirements.txt").read_text()
    lines = (ROOT / "requirements.in").read_text().splitlines()
    pins = [pin for line in lines if (pin := line.split("#")[0].strip())]
    assert len(pins) > 15
    for pin in pins:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9.]+(post[0-9]+)?", pin), pin
        assert f"\n{pin.replace('ruamel.', 'ruamel-')} \\\n    --hash=sha256:" in lock, pin
