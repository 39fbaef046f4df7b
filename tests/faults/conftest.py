"""A pipeline that has run, to be harmed; and the page that says what was tried and what held."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.clones import ROOT
from tests.conftest import Clone, short_trainings

PAGE = ROOT / "docs/reliability.md"


class Tried(NamedTuple):
    """A row of the page."""

    part: str  # its heading
    fault: str  # what was done to the pipeline
    held: str  # what was true afterwards, each time
    control: str  # what fails where the protection is taken out


rows = pytest.StashKey[dict[Tried, int]]()


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Put a fault that a test has tried, and that held, on the page: once more, or `times` more."""
    found = request.config.stash.setdefault(rows, {})

    def add(part: str, fault: str, held: str, control: str = "", times: int = 1) -> None:
        row = Tried(part, fault, held, control)
        found[row] = found.get(row, 0) + times

    return add


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is asked for."""
    return bool(request.config.getoption("--full"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the parts of the page that were run in the long form, where all of it held."""
    config = session.config
    if config.getoption("--full") and not exitstatus:
        old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        PAGE.write_text(page(old, config.stash.get(rows, {})), encoding="utf-8")


def page(old: str, found: dict[Tried, int]) -> str:
    """The page in Markdown, its other parts as they were."""
    _, *sections = old.split("\n## ")
    parts = {section.partition("\n")[0]: f"## {section.strip()}\n" for section in sections}
    for part in {row.part for row in found}:
        table = [
            f"| {row.fault} | {times} | {row.held} | {row.control} |"
            for row, times in found.items()
            if row.part == part
        ]
        lines = [f"## {part}", "", "| what was done | times | what held | control |"]
        parts[part] = "\n".join([*lines, "| --- | --- | --- | --- |", *table]) + "\n"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("dvc", "mlflow", "torch")]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return "\n".join(
        [
            "# What was tried, how often, and what held",
            "",
            "Real processes, signals, files and servers, harmed on purpose by",
            "[`tests/faults`](../tests/faults). `pytest tests/faults --full` does all of it and",
            "writes this page where all of it held (of one file, the parts that it tries);",
            "`make test` does it in a shorter form. The last column is what fails where the",
            f"protection is taken out, tried as well. {machine}; {', '.join(versions)}.",
            "",
            *(parts[part] for part in sorted(parts, key=lambda part: int(part.split(".")[0]))),
        ]
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, mirror: Path) -> Clone:
    """A clone with short trainings in which the whole pipeline has run. Not to be changed."""
    clone = short_trainings(tmp_path_factory.mktemp("finished"), mirror)
    clone.run("dvc", "repro")
    clone.commit("results")
    return clone


def copy_of(finished: Clone, folder: Path) -> Clone:
    """A copy to be harmed: outputs and DVC's cache are there, MLflow's store is not."""
    shutil.copytree(
        finished.folder, folder, symlinks=True, dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", "tmp"),
    )  # fmt: skip
    clone = Clone.__new__(Clone)
    clone.folder, clone.environment = folder, dict(finished.environment)
    return clone


@pytest.fixture
def copy(finished: Clone, tmp_path: Path) -> Clone:
    """A copy for one test."""
    return copy_of(finished, tmp_path / "copy")
