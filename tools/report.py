"""What a change does to parameters, metrics and plots, as Markdown, for its pull request.

    make report                    # against main; or: python -m tools.report origin/main

Run it after `make repro`. Plots need the other side's results in DVC's cache.
"""

import argparse
import csv

import numpy as np

from lab import params
from lab.common.commands import output
from lab.common.files import InputError, one_line
from stages import command
from tracking import repository

OUTPUTS = ("dvc.lock", "results")
INPUTS = ("params.yaml", "dvc.yaml", "exact", "lab", "stages", "tracking")


def main() -> None:
    """A revision in, a report on standard output."""
    parser = argparse.ArgumentParser(description="Report what a change does to the results.")
    parser.add_argument("base", nargs="?", default="main", help="compare with this revision")
    base = parser.parse_args().base
    try:
        commit = repository.git("rev-parse", "--verify", f"{base}^{{commit}}").decode().strip()
    except InputError as error:
        raise InputError(f"{base}: no commit of this repository") from error
    print(f"## Results against `{base}` ({commit[:7]})\n")
    print(reproduces(), "\n")
    for what, name in (("params", "Parameters"), ("metrics", "Metrics")):
        table = dvc(what, "diff", commit[:7], "--md").strip()
        rows = table.splitlines()[2:]  # below the header
        print(f"### {name}\n\n{table if rows else 'No change.'}\n")
    print(f"### Plots\n\n{plots(commit[:7])}")


def reproduces() -> str:
    """Whether the results are those of the commit."""
    changed = repository.git("diff", "--stat", "HEAD", "--", *OUTPUTS).decode().strip()
    pending = dvc("status").strip()
    causes = repository.git("diff", "--name-only", "HEAD", "--", *INPUTS).decode().splitlines()
    if changed:
        said = "**Not reproduced.** `make repro` gives other results than the commit:"
        if causes:
            said = "**Not committed:** the results differ, and so do these sources:"
            said += f" {', '.join(f'`{path}`' for path in causes)}"
        return f"{said}\n\n{fenced(changed)}"
    if "up to date" not in pending:
        return f"**Not run.** `make repro` has work to do first:\n\n{fenced(pending)}"
    return "**Reproduced:** `make repro` gives `dvc.lock` byte for byte."


def plots(commit: str) -> str:
    """Draw both sides over each other, and show the validation loss of models that changed."""
    try:
        page = dvc("plots", "diff", commit, "--out", "dvc_plots").strip().splitlines()[-1]
    except (InputError, IndexError) as error:
        return f"Not drawn: {one_line(error)}"
    models = params.load().models.items()
    charts = [validation_loss(model, entry.title, commit) for model, entry in models]
    said = f"All of them: `{page.rpartition('/')[2]}` of the artifact `dvc_plots`."
    return "\n\n".join([*([c for c in charts if c] or ["No curve changed."]), said])


def validation_loss(model: str, title: str, commit: str) -> str | None:
    """Both curves as a chart that GitHub draws; None where they are equal or one is missing."""
    path = f"results/{model}/history.csv"
    sides = [_losses(path, revision) for revision in (commit, None)]
    if sides[0] == sides[1] or not all(sides):
        return None
    lines = "\n".join(f"  line [{', '.join(map(decimal, side))}]" for side in sides)
    epochs = max(map(len, sides))
    return (
        f"{title}, validation loss by epoch; first line: before, second: after\n\n"
        f"```mermaid\nxychart-beta\n  x-axis 1 --> {epochs}\n{lines}\n```"
    )


def decimal(x: float) -> str:
    """Five digits, without the exponent that Mermaid does not read."""
    return np.format_float_positional(x, precision=5, fractional=False)


def _losses(path: str, revision: str | None) -> list[float]:
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        text = dvc.api.read(path, rev=revision)
    except (DvcException, OSError):  # not in the cache, or not in that revision
        return []
    return [float(row["validation_loss"]) for row in csv.DictReader(text.splitlines())]


def dvc(*arguments: str) -> str:
    """What DVC prints. Raises InputError, with its reason, where it fails."""
    return output(["dvc", *arguments]).decode(errors="replace")


def fenced(text: str) -> str:
    """As it was printed."""
    return f"```\n{text}\n```"


if __name__ == "__main__":
    command(main)
