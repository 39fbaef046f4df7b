"""How long the stages take to start: what each imports, against PyTorch alone.

    python -m benchmarks.startup

Processor time, which a busy machine changes less than the time that passes: the least of several
runs, taken in turns. Exits with 1 where a stage imports more than its bound allows.
"""

import os
import subprocess
import sys

# The most that a stage may need, as a share of what `import torch` needs. `prepare` loads PyTorch
# when it has something to compute; `record` loads MLflow and Matplotlib as well.
BOUNDS = {"prepare": 0.25, "train": 1.25, "evaluate": 1.25, "record": 2.75}
RUNS = 5


def main() -> None:
    """Print a row for each stage; exit with 1 where a bound is not kept."""
    imports = {"torch": "import torch"}
    imports |= {stage: f"import stages.{stage}" for stage in BOUNDS}
    runs = [{name: seconds(code) for name, code in imports.items()} for _ in range(RUNS)]
    least = {name: min(run[name] for run in runs) for name in imports}
    print(f"{'import':12}{'processor time':>16}{'of torch':>12}{'at most':>12}")
    for name, time in least.items():
        share = time / least["torch"]
        print(f"{name:12}{time:14.2f} s{share:12.2f}{BOUNDS.get(name, 1):12.2f}")
    if any(least[name] > bound * least["torch"] for name, bound in BOUNDS.items()):
        sys.exit("error: a stage imports more than its bound allows")


def seconds(code: str) -> float:
    """The processor time of a Python process that runs the code."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


if __name__ == "__main__":
    main()
