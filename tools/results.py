"""Puts the README's table of results into it, from results/*/metrics.json."""

import argparse
from pathlib import Path

from lab import params, schema
from lab.common import files
from lab.common.files import InputError
from stages import command
from tracking.description import figures

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
        try:
            text = TEXTS[entry.task].format(**metrics)
        except (KeyError, TypeError):  # no distances, or a metric that is undefined
            text = figures(metrics)
        lines.append(f"| {entry.title} | {text} | {metrics['test_loss']:.5f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the table into README.md."""
    argparse.ArgumentParser(description="Put the results into README.md.").parse_args()
    write_between(Path("README.md"), "results", table())


def marks(name: str) -> tuple[str, str]:
    """The comments in HTML before and after the table of this name."""
    return f"<!-- {name} -->\n", f"<!-- /{name} -->\n"


def write_between(page: Path, name: str, text: str) -> None:
    """Replace the text between the marks. Raises InputError where the page has not one of each."""
    begin, end = marks(name)
    old = page.read_text(encoding="utf-8")
    before, _, rest = old.partition(begin)
    _, _, after = rest.partition(end)
    if not old.count(begin) == old.count(end) == rest.count(end) == 1:
        raise InputError(f"{page}: expected {begin.strip()} and {end.strip()} once")
    files.write_text(page, before + begin + text + end + after)


if __name__ == "__main__":
    command(main)
