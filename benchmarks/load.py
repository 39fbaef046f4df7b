"""How long trainings take beside each other, and beside programs that burn the processor.

    python -m benchmarks.load                            # as this repository runs them
    OMP_NUM_THREADS=2 python -m benchmarks.load          # with two threads each

Each training is a process of its own, as in DVC's queue. Run `make repro` first, for the data.
"""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lab import params
from tracking import repository
from tracking.repository import ROOT

ROUNDS = 2
EPOCHS = re.compile(r"^  epochs: \d+", re.MULTILINE)  # replaced by five, as all takes minutes
CASES = {  # trainings and burners
    "alone": (1, 0),
    "two at once": (2, 0),
    "three at once": (3, 0),
    "four at once": (4, 0),
    "five at once": (5, 0),
    "beside four burners": (1, 4),
}
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def main() -> None:
    """Print the seconds until all have ended, and how many times one alone that is."""
    settings = " ".join(f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ)
    print(f"{os.cpu_count()} cores, {settings}, median of {ROUNDS}\n")
    _, *models = params.load(ROOT / "params.yaml").models  # the first starts longer than it trains
    print(f"{'':20}" + "".join(f"{model:>22}" for model in models))
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for case, (trainings, burners) in CASES.items():
            for model in models:
                with burning(burners):
                    taken.setdefault((case, model), []).append(seconds(model, trainings))
    median = {key: statistics.median(times) for key, times in taken.items()}
    for case in CASES:
        cells = (
            f"{median[case, m]:.1f} s {median[case, m] / median['alone', m]:6.1f} x" for m in models
        )
        print(f"{case:20}" + "".join(f"{cell:>22}" for cell in cells))


def seconds(model: str, trainings: int) -> float:
    """The time until this many trainings, which start together, have all ended."""
    command = [sys.executable, "-m", "stages.train", model]
    environment = repository.environment() | {"PYTHONPATH": str(ROOT)}
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(number)) for number in range(trainings)]
        for folder in folders:
            folder.mkdir()
            (folder / "data").symlink_to(ROOT / "data")
            (folder / "params.yaml").write_text(EPOCHS.sub("  epochs: 5", text), encoding="utf-8")
        began = time.monotonic()
        processes = [subprocess.Popen(command, cwd=folder, env=environment) for folder in folders]
        failed = [process for process in processes if process.wait()]
        if failed:
            sys.exit(f"error: `{' '.join(command)}` failed")
        return time.monotonic() - began


@contextlib.contextmanager
def burning(number: int) -> Iterator[None]:
    """Run this many processes that do nothing but use the processor."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
