"""The processor time that each stage needs for its imports, compared with `import torch`.

    python -m benchmarks.startup

The imports run in turns, and the least time of each counts. Other programs change processor time
less than elapsed time. Exits with 1 where a stage needs more than its bound.
"""

import os
import subprocess
import sys

# The most that a stage may need, in units of what `import torch` needs. `prepare` loads PyTorch
# only when it computes; `record` loads MLflow and Matplotlib as well.
BOUNDS = {"prepare": 0.25, "train": 1.25, "evaluate": 1.25, "record": 2.75}
RUNS = 5


def main() -> None:
    """Print a row for each stage; exit with 1 where one needs more than its bound."""
    imports = {"torch": "import torch"}
    imports |= {stage: f"import stages.{stage}" for stage in BOUNDS}
    runs = [{name: seconds(code) for name, code in imports.items()} for _ in range(RUNS)]
    least = {name: min(run[name] for run in runs) for name in imports}
    print(f"{'import':12}{'processor time':>16}{'of torch':>12}{'bound':>12}")
    for name, time in least.items():
        share = time / least["torch"]
        print(f"{name:12}{time:14.2f} s{share:12.2f}{BOUNDS.get(name, 1):12.2f}")
    if any(least[name] > bound * least["torch"] for name, bound in BOUNDS.items()):
        sys.exit("error: the imports of a stage take longer than its bound")


def seconds(code: str) -> float:
    """The processor time of a Python process that runs the code."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


if __name__ == "__main__":
    main()
