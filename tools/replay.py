"""Run a recorded experiment again and compare every byte with what was recorded.

    make replay RUN=3f2a            # or: python -m tools.replay 3f2a

It executes the run's own code, its commit and patch, in a temporary clone: replay only runs of a
store that you trust. It changes nothing but a tag of the run.

Exit code 0: identical. 1: different. 2: the run cannot be replayed.
"""

import argparse
import datetime
import functools
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import mlflow
import pandas as pd
from mlflow.entities import Run
from ruamel.yaml import YAML

from lab import params
from lab.common import files
from lab.common.commands import output
from lab.common.files import InputError, one_line
from stages import command
from tracking import repository, store
from tracking.description import plain
from tracking.run import fingerprint

SHA256 = "sha256."  # what the tags of digests begin with
MISSING = "missing"
OUTPUT_ORDER = ["model.safetensors", "history.csv", "gradients.csv", "predictions.csv"]


class Comparison(NamedTuple):
    """A recorded value, and the one of now."""

    name: str
    recorded: str
    found: str


def main() -> None:
    """A run's id in; a table, a verdict and an exit code out."""
    parser = argparse.ArgumentParser(description="Replay a recorded run, compare every byte.")
    _, differing = replay_and_report(argument(parser))
    sys.exit(bool(differing))


def argument(parser: argparse.ArgumentParser) -> str:
    """The one argument of the command line: the beginning of a run's id."""
    parser.add_argument("run", help="the id of an MLflow run, or the beginning of one")
    return str(parser.parse_args().run)


def replay_and_report(prefix: str) -> tuple[Run, list[Comparison]]:
    """Replay the run, print what was compared, and tag the run; return it and what differs.

    Exits with 2 where the run cannot be replayed.
    """
    try:
        with store.one_line_errors("MLflow does not give the run"):
            client = store.connect(create=False)
            run = find(prefix)
            name = one_line(run.info.run_name)  # of a store that may be another's
            print(f"replaying run {run.info.run_id} ({name})", file=sys.stderr)
            comparisons = replay(client, run)
    except Exception as error:  # a store of another's may hold anything, and MLflow fail on it
        why = one_line(error) if isinstance(error, (InputError, OSError)) else repr(error)
        print(f"{prefix}: cannot be replayed: {one_line(why)}", file=sys.stderr)
        sys.exit(2)
    rows = [
        (one_line(name), one_line(old[:12]), new[:12], "same" if old == new else "DIFFERENT")
        for name, old, new in comparisons
    ]
    table = pd.DataFrame(rows, columns=["", "recorded", "found", "verdict"])
    print(table.to_markdown(index=False, tablefmt="plain", disable_numparse=True))
    same = f"identical: all {len(comparisons)} comparisons"
    differing = [c for c in comparisons if c.recorded != c.found]
    print(f"\ndifferent: first in {differing[0].name}" if differing else f"\n{same}", flush=True)
    verdict = "different" if differing else "identical"
    where = f"{verdict} on {platform.platform()}, {datetime.datetime.now().date()}"
    with store.one_line_errors("MLflow did not take the tag `replayed`"):
        client.set_tag(run.info.run_id, "replayed", where)
    return run, differing


def find(prefix: str) -> Run:
    """The one run whose id begins so. Raises InputError where there is none, or several."""
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    found = [run for run in runs if run.info.run_id.startswith(prefix)]
    if len(found) != 1:
        names = ", ".join(run.info.run_id for run in found[:5])
        raise InputError(f"several runs begin so: {names}" if found else "no run has this id")
    return found[0]


def replay(client: mlflow.MlflowClient, run: Run) -> list[Comparison]:
    """Compare the run's record with the files in the store, and with those of a new run."""
    tags = run.data.tags
    name = client.get_experiment(run.info.experiment_id).name
    shas = [(Path(t.removeprefix(SHA256)), sha) for t, sha in tags.items() if t.startswith(SHA256)]
    order = {name: number for number, name in enumerate(OUTPUT_ORDER)}
    digests = dict(sorted(shas, key=lambda item: order.get(item[0].name, len(OUTPUT_ORDER))))
    # The store may be another's: no path that leads out of the clone, or to other files of it.
    ours = all(
        path.parts[:1] in (("data",), ("results",))
        and ".." not in path.parts
        and re.fullmatch("[0-9a-f]{64}", sha or "")
        for path, sha in digests.items()
    )
    named = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", tags.get("git.commit") or "")
    if not digests and run.info.status != "FINISHED":
        raise InputError(f"the run is {run.info.status}: it has no results")
    if not digests or not ours or not named:
        raise InputError("not a run that this pipeline recorded")
    with tempfile.TemporaryDirectory(prefix="replay-") as temporary:
        artifacts, clone = Path(temporary, "artifacts"), Path(temporary, "clone")
        artifacts.mkdir()
        comparisons = stored(client, run, name, digests, artifacts)
        check_out(tags["git.commit"], artifacts / "changes.patch", clone)
        expected, found = digest(artifacts / "params.yaml"), digest(clone / "params.yaml")
        comparisons.append(Comparison("params.yaml of commit and patch", expected, found))

        def compared(folder: str) -> list[Comparison]:
            return [
                Comparison(path.as_posix(), sha, digest(clone / path))
                for path, sha in digests.items()
                if path.parts[0] == folder
            ]

        make_data({path: sha for path, sha in digests.items() if path.parts[0] == "data"}, clone)
        data = compared("data")
        if any(c.recorded != c.found for c in data):
            return comparisons + data
        for stage in (f"train@{name}", f"evaluate@{name}"):
            repro(clone, "--force", "--single-item", stage)
        return comparisons + data + compared("results")


def stored(
    client: mlflow.MlflowClient, run: Run, name: str, digests: dict[Path, str], folder: Path
) -> list[Comparison]:
    """Compare the run's tags, parameters and files in the store with each other."""
    results = {path.name: sha for path, sha in digests.items() if path.parts[0] == "results"}
    patch = ["changes.patch"] if run.data.tags.get("git.dirty") == "true" else []
    for file in ["params.yaml", *patch, *results]:
        if not file.endswith(".safetensors"):
            client.download_artifacts(run.info.run_id, file, str(folder))
        else:
            source = f"{client.get_logged_model(model_id(run)).artifact_location}/data/{file}"
            mlflow.artifacts.download_artifacts(source, dst_path=str(folder))
    p = params.load(folder / "params.yaml")
    if name not in p.models:
        raise InputError(f"not a run that this pipeline recorded: it has no model {name}")
    # Not the parameters that today's code has beyond the run's: they have their defaults there.
    settings = plain(p.flat(name))
    return [
        Comparison("fingerprint", run.data.tags.get("fingerprint", ""), fingerprint(digests)),
        *(
            Comparison(f"parameter {k}", v, settings.get(k, MISSING))
            for k, v in sorted(run.data.params.items())
        ),
        *(Comparison(f"{k} in the store", v, digest(folder / k)) for k, v in results.items()),
    ]


def model_id(run: Run) -> str:
    """The id of the run's model in MLflow. Raises InputError where it has none."""
    if not run.outputs or not run.outputs.model_outputs:
        raise InputError("the run has no model")
    return str(run.outputs.model_outputs[0].model_id)


def check_out(commit: str, patch: Path, clone: Path) -> None:
    """The commit, and on it the patch where there is one, in a clone that shares its objects."""
    root = repository.git("rev-parse", "--show-toplevel").decode().rstrip("\n")
    try:
        repository.git("cat-file", "-e", f"{commit}^{{commit}}")
    except InputError as error:
        raise InputError(f"commit {commit} is not in this repository: fetch it first") from error
    git = functools.partial(repository.git, environment=repository.environment())
    git("clone", "--quiet", "--shared", "--no-checkout", root, str(clone))
    git("-C", str(clone), "checkout", "--quiet", "--detach", commit)
    if patch.exists():
        git("-C", str(clone), "apply", "--whitespace=nowarn", str(patch.absolute()))


def make_data(digests: dict[Path, str], clone: Path) -> None:
    """The data set in the clone: from here if these are the recorded bytes, else made again."""
    for path, sha in digests.items():
        if path.exists() and digest(path) == sha:
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, clone / path)
    stages = YAML(typ="safe").load(clone / "dvc.yaml")["stages"]
    folders = {path.parent.as_posix() for path in digests}
    # An output with options is a mapping with one key.
    if names := [n for n in stages if folders & set(map("".join, stages[n].get("outs", [])))]:
        repro(clone, *names)  # without names it would run every stage


def repro(clone: Path, *arguments: str) -> None:
    """Run stages in the clone, nothing taken from a cache and nothing left in one."""
    words = ["dvc", "repro", "--no-run-cache", "--no-commit", *arguments]
    print(" ".join(words), file=sys.stderr)
    output(words, clone, repository.environment())


def digest(path: Path) -> str:
    """The file's sha256, or that it is missing."""
    return files.sha256(path) if path.exists() else MISSING


if __name__ == "__main__":
    command(main)
