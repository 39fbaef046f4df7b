"""Puts the README's table of results into it, from results/*/metrics.json."""

import re
import sys
from pathlib import Path

from lab import params, schema
from lab.common import files
from stages import command

TEXTS = {
    "regression": "R² {test_r2:.6f}; weights within {distance_learned_true:.4f} of the true ones,"
    " {distance_learned_analytic:.4f} of the analytic solution",
    "classification": "accuracy **{test_accuracy:.4f}**",
}


def table() -> str:
    """The table in Markdown."""
    lines = ["| model | on the test set | loss |", "| --- | --- | --- |"]
    for model, entry in params.load().models.items():
        metrics = files.read_json(schema.results(model) / "metrics.json")
        text = TEXTS[entry.task].format(**metrics)
        lines.append(f"| {entry.title} | {text} | {metrics['test_loss']:.5f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the table into README.md."""
    write_between(Path("README.md"), "results", table())


def marks(name: str) -> tuple[str, str]:
    """What a table of this name stands between."""
    return f"<!-- {name} -->\n", f"<!-- /{name} -->\n"


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of this name; exit where they are not there once."""
    begin, end = marks(name)
    pattern = f"(?<={re.escape(begin)}).*(?={re.escape(end)})"
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(pattern, lambda _: text, old, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"error: {page} should hold {begin.strip()} and {end.strip()} once")
    files.write_text(page, new)


if __name__ == "__main__":
    command(main)
