"""A sweep against `dvc exp run`, one experiment after the other, and what a cluster needs itself.

    python -m benchmarks.sweep           # experiments of linear regression, which take no time
    python -m benchmarks.sweep 12 240    # how the time grows with their number

Each side runs in a fresh clone of the commit, so no experiment is known. Only the first number of
experiments also runs one by one, which takes as long for each experiment however many there are.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from lab.common.commands import output
from tools.cluster import Sweep
from tracking import repository

TARGET = "record@linear_regression"


def main() -> None:
    """Print the seconds of both sides, and of the start of a cluster, and its memory."""
    parser = argparse.ArgumentParser(description="Time sweeps.")
    parser.add_argument("numbers", nargs="*", type=int, default=[12])
    numbers = parser.parse_args().numbers
    seconds, memory = start()
    print(f"{os.cpu_count()} cores; a cluster starts in {seconds:.1f} s, {memory:.0f} MiB\n")
    columns = f"{'sweep':>14}{'per experiment':>18}{'one by one':>14}{'ratio':>8}"
    print(f"{'experiments':>11}{columns}", flush=True)
    for number in numbers:
        swept = timed(
            [[sys.executable, "-m", "tools.sweep", f"-Sseed=range(1,{number + 1})", TARGET]]
        )
        row = f"{number:11}{swept:12.1f} s{swept / number:16.2f} s"
        if number == numbers[0]:
            seeds = range(1, number + 1)
            alone = timed([["dvc", "exp", "run", f"-Sseed={n}", TARGET] for n in seeds])
            row += f"{alone:12.1f} s{swept / alone:8.2f}"
        print(row, flush=True)


def start() -> tuple[float, float]:
    """The seconds until a local cluster is ready, and the memory of its processes in MiB."""
    cores = os.cpu_count() or 1
    began = time.monotonic()
    with ExitStack() as stack:
        Sweep(None, cores, stack).client.wait_for_workers(cores)
        seconds = time.monotonic() - began
        # Memory that several processes share is divided among them.
        children = psutil.Process().children(recursive=True)
        used = [process.memory_full_info().pss for process in children]
    return seconds, sum(used) / 2**20


def timed(commands: list[list[str]]) -> float:
    """The seconds that the commands take in a fresh clone whose data is prepared."""
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary, "clone")
        repository.clone(clone)
        environment = repository.environment()
        output(["dvc", "repro", "--quiet", TARGET], clone, environment)
        output(["git", "checkout", "--quiet", "--force", "HEAD"], clone, environment)
        began = time.monotonic()
        for command in commands:
            output(command, clone, environment)
        return time.monotonic() - began


if __name__ == "__main__":
    main()
