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
    from dvc.repo import Repo

    with Repo() as repo:
        progress = Progress(len(repo.index.stages))
    for name in Progress.LOGGERS:
        logging.getLogger(name).addFilter(progress)
    if status := dvc(["repro"]):
        sys.exit(status)
    progress.end_stage()
    print()
    for model in p.models:
        print(result(p, model, progress.seconds))
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
        self.total, self.number = total, 0
        self.seconds: dict[str, float] = {}  # by stage
        self.running: tuple[str, float] | None = None  # the stage, and when it began

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the stage's number before the message."""
        if record.msg in self.MESSAGES:
            self.end_stage()
            self.number += 1
            if record.msg == self.RUNNING and isinstance(record.args, tuple):
                self.running = str(record.args[0]), time.monotonic()
            record.msg = f"[{self.number}/{self.total}] {record.msg}"
        return True

    def end_stage(self) -> None:
        """Note how long the stage took that was running."""
        if self.running:
            stage, began = self.running
            self.seconds[stage] = time.monotonic() - began
            self.running = None


def result(p: Params, model: str, seconds: dict[str, float]) -> str:
    """A line with the model's results on the test set, and how long its stages took."""
    results = figures(files.read_json(schema.results(model) / "metrics.json"))
    took = [time for stage, time in seconds.items() if stage.endswith(f"@{model}")]
    return f"{p.models[model].title:24}{results}, {f'{sum(took):.0f} s' if took else 'unchanged'}"


if __name__ == "__main__":
    command(main)
