"""The README's table of results, from results/*/metrics.json.

python -m benchmarks.results           # print it
python -m benchmarks.results --write   # put it into README.md
"""

import re
import sys
from pathlib import Path

from lab import files

README = Path("README.md")
MARKS = "<!-- results -->\n", "<!-- /results -->\n"
REGRESSION = (
    "R² {test_r2:.6f}; weights within {distance_learned_true:.4f} of the true ones,"
    " {distance_learned_analytic:.4f} of the analytic solution"
)
ACCURACY = "accuracy **{test_accuracy:.4f}**"
ROWS = {
    "linear_regression": ("Linear regression", REGRESSION),
    "softmax_regression": ("Softmax regression", ACCURACY),
    "mlp": ("Multilayer perceptron", ACCURACY),
}


def table() -> str:
    """The table in Markdown."""
    lines = ["| model | on the test set | loss |", "| --- | --- | --- |"]
    for model, (title, text) in ROWS.items():
        metrics = files.read_json(Path("results", model, "metrics.json"))
        lines.append(f"| {title} | {text.format(**metrics)} | {metrics['test_loss']:.5f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or replace what is between the marks in README.md."""
    if "--write" not in sys.argv:
        print(table(), end="")
        return
    begin, end = MARKS
    pattern = f"(?<={re.escape(begin)}).*(?={re.escape(end)})"
    text = README.read_text(encoding="utf-8")
    new, count = re.subn(pattern, lambda _: table(), text, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"error: {README} should hold {begin.strip()} and {end.strip()} once")
    files.write_text(README, new)


if __name__ == "__main__":
    main()
