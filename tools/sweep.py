"""Run many experiments at once, on the cores of this machine or on a cluster of Dask.

    make sweep ARGS="-S 'lr=0.01,0.03,0.1' -S 'seed=range(1,6)'"
    python -m tools.sweep -S 'lr=0.01,0.03,0.1' -S 'seed=range(1,6)' record@mlp
    python -m tools.sweep -S 'seed=range(1,6)' --search 'lr=log(1e-3,1)' --trials 20 --model mlp

Every combination is one DVC experiment, with one run of each model in MLflow. What is known is not
run again: the same command goes on where it was interrupted. Results do not depend on which worker
computed them, nor on how often.
"""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lab import params
from lab.common.files import InputError
from stages import command
from tools.cluster import NAME, Sweep, changed, digest, expand, require_private, require_stages

SEARCHES = Path("searches")


def main() -> None:
    """Parameters in; experiments, runs and a table out. Exits with 1 where an experiment failed."""
    parser = argparse.ArgumentParser(description="Run many experiments at once.")
    parser.add_argument("targets", nargs="*", help="stages, as for dvc exp run; by default all")
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="as for dvc exp run --queue: lr=0.1,0.3 or 'seed=range(1,6)'",
    )
    parser.add_argument(
        "--scheduler",
        default=os.environ.get("DASK_SCHEDULER_ADDRESS"),
        metavar="ADDRESS",
        help="a cluster's, as tls://host:8786; by default processes of this machine",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="by default as cores")
    parser.add_argument(
        "--insecure", action="store_true", help="use a cluster of other machines without TLS"
    )
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="NAME=DISTRIBUTION",
        help="log(1e-3,1), uniform(0,0.5), int(1,9) or choice([256],[512,256])",
    )
    parser.add_argument("--trials", type=int, default=40, help="of a search")
    parser.add_argument("--model", help="the one whose validation result a search improves")
    parser.add_argument("--prune", action="store_true", help="stop trials that are behind")
    arguments = parser.parse_args()
    for name in ("workers", "trials"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: expected 1 or more")
    if arguments.search and not arguments.model:
        parser.error("--search needs --model MODEL, whose validation result it improves")
    if arguments.search and arguments.targets:
        parser.error("a search runs the stages of its --model: expected no other stages")
    if (arguments.model or arguments.prune) and not arguments.search:
        parser.error("--model and --prune are for a search: expected --search NAME=DISTRIBUTION")
    names = [s.partition("=")[0] for s in (*arguments.set_param, *arguments.search)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        parser.error(f"{', '.join(repeated)}: expected once, with all values, as in lr=0.1,0.3")
    if arguments.scheduler:
        require_private(arguments.scheduler, arguments.insecure)
    with contextlib.ExitStack() as stack:
        sweep = Sweep(arguments.scheduler, arguments.workers, stack)
        try:
            (search if arguments.search else grid)(sweep, arguments)
        finally:
            for name, why in sweep.failures.items():
                print(f"failed: {name}: {why}", file=sys.stderr)
    sys.exit(bool(sweep.failures) and not arguments.search)


def grid(sweep: Sweep, arguments: argparse.Namespace) -> None:
    """Run all combinations, and print their results."""
    if not arguments.set_param:
        raise InputError("nothing to vary: expected one or more of -S NAME=VALUES, or --search")
    combinations = expand(arguments.set_param)
    require_stages(arguments.targets)
    runs = sweep.run(sweep.jobs(combinations, arguments.targets))
    if len(runs):
        from tools import compare

        print(compare.readable(compare.compared(runs)).to_string(index=False))
    else:
        print("MLflow's store has no finished run of these experiments; see `dvc exp show`")


def search(sweep: Sweep, arguments: argparse.Namespace) -> None:
    """Run the trials of a search, print them and the best, and save their history.

    Each trial is run with every combination of -S; its value is the mean of theirs.
    """
    p = params.load()
    if arguments.model not in p.models:
        raise InputError(f"--model {arguments.model}: expected of {', '.join(p.models)}")
    model, fixed = arguments.model, arguments.set_param
    import pandas as pd

    from tools import search as searching  # a grid does not need Optuna

    def values(setting: str) -> list[str]:
        return [changes[-1] for changes in expand([setting])]

    distributions = dict(searching.distribution(s, values) for s in arguments.search)
    combinations = expand(fixed) if fixed else [[]]
    whole, *more = {changed(changes).training(model).epochs for changes in combinations}
    if more:
        raise InputError(f"-S {model}.epochs: a search expects one number of epochs")
    others = [setting for setting in fixed if not setting.startswith(f"{model}.epochs=")]
    measure = p.dataset(model).task.measures[0]
    task = searching.Search(
        distributions,
        arguments.trials,
        p.seed,
        measure != "loss",
        whole,
        arguments.prune,
    )

    def evaluate(trials: Sequence[Sequence[str]], epochs: int) -> list[float | None]:
        settings = fixed if epochs == whole else [*others, f"{model}.epochs={epochs}"]
        groups = [sweep.jobs(expand([*settings, *trial]), [f"record@{model}"]) for trial in trials]
        runs = sweep.run([job for group in groups for job in group]).set_index(NAME)
        found = runs.get(f"metrics.validation_{measure}", pd.Series(dtype=float))
        means = [found.reindex([j.name for j in group]).mean(skipna=False) for group in groups]
        return [None if pd.isna(mean) else float(mean) for mean in means]

    study = searching.search(task, evaluate)
    what = [*fixed, *arguments.search, model, str(arguments.trials), str(arguments.prune)]
    folder = SEARCHES / digest(*sweep.code, *what)
    searching.save(study, folder)
    print(searching.history(study).to_string(index=False))
    print(f"\nbest: trial {study.best_trial.number}, validation {measure} {study.best_value:.4f}")
    print(shlex.join(f"-S{change}" for change in study.best_trial.user_attrs["changes"]))
    print(f"{folder}: history.csv and history.png")


if __name__ == "__main__":
    command(main)
