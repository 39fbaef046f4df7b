"""Run the pipeline by `dvc repro`, and print its progress and its results.

    make repro      # or: python -m tools.repro

Repairs first what a killed DVC left behind. Exits as `dvc repro` does.
"""

import argparse
import logging
import sys
import time

from lab import schema
from lab.common import files
from lab.common.files import InputError, one_line
from lab.schema import Params
from stages import command
from tools import repair
from tracking.description import figures

NEXT = """
Try next:
  make ui                                          # look at the runs
  make compare                                     # all experiments in one table
  . .venv/bin/activate; dvc exp run -S lr=0.1      # another learning rate
"""


def main() -> None:
    """Repair, run all stages, print the results."""
    argparse.ArgumentParser(description="Run the pipeline.").parse_args()
    p = repair.repair()
    from dvc.cli import main as dvc
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            progress = Progress(len(repo.index.stages))
    except DvcException as error:  # as of a mistake in dvc.yaml
        raise InputError(one_line(error)) from error
    for name in Progress.LOGGERS:
        logging.getLogger(name).addFilter(progress)
    if status := dvc(["repro"]):
        sys.exit(status)
    seconds = progress.seconds()
    print()
    for model in p.models:
        print(result(p, model, seconds))
    print(NEXT, end="")


class Progress(logging.Filter):
    """Numbers what DVC logs of its stages, and takes the time of those that run."""

    LOGGERS = ("dvc.stage", "dvc.stage.cache", "dvc.stage.run")
    RUNNING = "Running stage '%s':"
    MESSAGES = (
        RUNNING,
        "Stage '%s' didn't change, skipping",
        "Stage '%s' is cached - skipping run, checking out outputs",
    )

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.begun: list[tuple[str, float]] = []  # the stage if it runs, and the time

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the stage's number before the message."""
        if record.msg in self.MESSAGES:
            stage = record.getMessage().split("'")[1] if record.msg == self.RUNNING else ""
            self.begun.append((stage, time.monotonic()))
            record.msg = f"[{len(self.begun)}/{self.total}] {record.msg}"
        return True

    def seconds(self) -> dict[str, float]:
        """How long each stage that ran took; the last one until now."""
        ends = [*(began for _, began in self.begun[1:]), time.monotonic()]
        pairs = zip(self.begun, ends, strict=False)
        return {stage: end - began for (stage, began), end in pairs if stage}


def result(p: Params, model: str, seconds: dict[str, float]) -> str:
    """A line with the model's results on the test set, and how long its stages took."""
    results = figures(files.read_json(schema.results(model) / "metrics.json"))
    took = [time for stage, time in seconds.items() if stage.endswith(f"@{model}")]
    return f"{p.models[model].title:23} {results}, {f'{sum(took):.0f} s' if took else 'unchanged'}"


if __name__ == "__main__":
    command(main)
