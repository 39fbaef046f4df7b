"""Counts the faults that the tests try, and writes docs/reliability.md.

A test says what it tries by `@pytest.mark.fault(part, what, held, control)`. It counts once when it
passes, or as often as it tells the `times` fixture. `{name}` in `what` stands for the test's
parameter of that name.
"""

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PAGE = Path(__file__).parent.parent / "docs/reliability.md"
HEAD = """# Fault-injection tests

The tests in [`tests/faults`](../tests/faults) harm real processes, files and servers.
`make test-all` injects every fault below, and writes this page if all tests pass.
`make test` injects a sample. The control is what fails without the protection, which
the tests try as well."""


class Row(NamedTuple):
    """A row of the page."""

    part: str  # heading, which begins with a number
    what: str  # what was done to the pipeline
    held: str  # what was true afterwards, each time
    control: str = ""  # what fails where the protection is taken out


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --all."""
    parser.addoption(
        "--all",
        action="store_true",
        help="every case of every test, each fault in its long form; writes docs/reliability.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Count where the reports of all worker processes arrive."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Counts(), "fault counts")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Put the rows into the test's report, as marks do not leave their worker process."""
    for mark in item.iter_markers("fault"):
        row = Row(*mark.args)
        if "{" in row.what:
            row = row._replace(what=row.what.format(**item.callspec.params))  # type: ignore[attr-defined]
        item.user_properties.append(("fault", list(row)))  # xdist sends no other class


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """A function by which a test says how often it tried its fault."""
    return lambda number: request.node.user_properties.append(("times", number))


class Counts:
    """How often each fault was tried."""

    def __init__(self) -> None:
        self.times: Counter[Row] = Counter()
        self.lines: dict[Row, int] = {}  # of the first test that tries it

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the faults of a test that passed."""
        if report.when != "call" or not report.passed:
            return
        properties: list[tuple[str, Any]] = report.user_properties
        times = sum(value for key, value in properties if key == "times") or 1
        for row in (Row(*value) for key, value in properties if key == "fault"):
            self.times[row] += times
            line = report.location[1] or 0
            self.lines[row] = min(line, self.lines.get(row, line))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the parts that were tried in full, if all tests passed."""
        options = session.config.option
        chosen = options.keyword or options.markexpr or "::" in "".join(options.file_or_dir)
        if options.all and not exitstatus and not chosen:
            rows = sorted(self.times.items(), key=lambda item: self.lines[item[0]])
            PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


def page(old: str, rows: list[tuple[Row, int]]) -> str:
    """The page in Markdown. Parts without a row stay as they were."""
    _, *sections = old.split("\n## ")
    parts = {section.split("\n")[0]: f"## {section.strip()}\n" for section in sections}
    for part in {row.part for row, _ in rows}:
        lines = [f"## {part}", "", "| fault | times | verified result | control |"]
        lines += ["| --- | --- | --- | --- |"]
        lines += [
            f"| {row.what} | {times} | {row.held} | {row.control} |"
            for row, times in rows
            if row.part == part
        ]
        parts[part] = "\n".join(lines) + "\n"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("dvc", "mlflow", "torch")]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    in_order = sorted(parts, key=lambda part: int(part.split(".")[0]))
    texts = [parts[part] for part in in_order]
    return "\n".join([HEAD, f"{machine}; {', '.join(versions)}.", "", *texts])
