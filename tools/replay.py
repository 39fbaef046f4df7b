"""Run a recorded experiment again and compare every byte with what was recorded.

    make replay RUN=3f2a            # or: python -m tools.replay 3f2a

A prefix of the run's id is enough. What is run is the code of the run: its commit and its
patch, in a temporary clone, by the Python that runs this. So replay runs of a store that
you trust. Nothing is recorded but a tag of the run, and nothing in the repository changes.

Exit code 0: identical. 1: different. 2: the run cannot be replayed.
"""

import argparse
import datetime
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import mlflow
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


class Comparison(NamedTuple):
    """A recorded value, and the one of now."""

    name: str
    recorded: str
    found: str


def main() -> None:
    """A run's id in; a table, a verdict and an exit code out."""
    parser = argparse.ArgumentParser(description="Replay a recorded run, compare every byte.")
    parser.add_argument("run", help="the id of an MLflow run, or the beginning of one")
    prefix = parser.parse_args().run
    try:
        with store.one_line_errors("MLflow does not give the run"):
            client = store.connect(create=False)
            run = find(client, prefix)
            name = one_line(run.info.run_name)  # of a store that may be another's
            print(f"replaying run {run.info.run_id} ({name})", file=sys.stderr)
            comparisons = replay(client, run)
            differing = [c for c in comparisons if c.recorded != c.found]
            verdict = "different" if differing else "identical"
            where = f"{verdict} on {platform.platform()}, {datetime.datetime.now().date()}"
            client.set_tag(run.info.run_id, "replayed", where)
    except Exception as error:  # a store of another's may hold anything, and MLflow fail on it
        why = one_line(error) if isinstance(error, (InputError, OSError)) else repr(error)
        print(f"{prefix}: cannot be tried: {one_line(why)}", file=sys.stderr)
        sys.exit(2)
    show(comparisons)
    if differing:
        print(f"\ndifferent: first in {differing[0].name}")
        sys.exit(1)
    print(f"\nidentical: all {len(comparisons)} comparisons")


def find(client: mlflow.MlflowClient, prefix: str) -> Run:
    """The one run whose id begins so. Raises InputError where there is none, or several."""
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(ids, max_results=1000, page_token=token)
        found += [run for run in page if run.info.run_id.startswith(prefix)]
        token = page.token
        if not token:
            break
    if len(found) != 1:
        names = ", ".join(run.info.run_id for run in found[:5])
        raise InputError(f"several runs begin so: {names}" if found else "no run has this id")
    return found[0]


def replay(client: mlflow.MlflowClient, run: Run) -> list[Comparison]:
    """Compare the run's record with the files in the store, and with those of a new run."""
    tags = run.data.tags
    name = client.get_experiment(run.info.experiment_id).name
    digests = {
        Path(tag.removeprefix(SHA256)): digest
        for tag, digest in tags.items()
        if tag.startswith(SHA256)
    }
    # The store may be another's: no path that leads out of the clone, or to other files of it.
    ours = all(
        path.parts[:1] in (("data",), ("results",))
        and ".." not in path.parts
        and re.fullmatch("[0-9a-f]{64}", sha or "")
        for path, sha in digests.items()
    )
    named = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", tags.get("git.commit") or "")
    if not digests or not ours or not named:
        raise InputError("not a run that this pipeline recorded")
    with tempfile.TemporaryDirectory(prefix="replay-") as temporary:
        artifacts, clone = Path(temporary, "artifacts"), Path(temporary, "clone")
        artifacts.mkdir()
        comparisons = stored(client, run, name, digests, artifacts)
        check_out(tags["git.commit"], artifacts / "changes.patch", clone)
        expected, found = digest(artifacts / "params.yaml"), digest(clone / "params.yaml")
        comparisons.append(Comparison("params.yaml of commit and patch", expected, found))
        data = {path: sha for path, sha in digests.items() if path.parts[0] == "data"}
        results = {path: sha for path, sha in digests.items() if path not in data}
        made = make_data(data, clone)
        comparisons += made
        if all(c.recorded == c.found for c in made):
            for stage in (f"train@{name}", f"evaluate@{name}"):
                repro(clone, "--force", "--single-item", stage)
            comparisons += [
                Comparison(path.as_posix(), sha, digest(clone / path))
                for path, sha in in_order(results)
            ]
    return comparisons


def stored(
    client: mlflow.MlflowClient, run: Run, name: str, digests: dict[Path, str], folder: Path
) -> list[Comparison]:
    """Compare the run's tags, parameters and files in the store with each other."""
    recorded = run.data.tags.get("fingerprint", "")
    comparisons = [Comparison("fingerprint", recorded, fingerprint(digests))]
    fetch(client, run, "params.yaml", folder)
    if run.data.tags.get("git.dirty") == "true":
        fetch(client, run, "changes.patch", folder)
    p = params.load(folder / "params.yaml")
    if name not in p.models:
        raise InputError(f"not a run that this pipeline recorded: it has no model {name}")
    comparisons += [
        Comparison(f"parameter {key}", run.data.params.get(key, MISSING), value)
        for key, value in plain(p.flat(name)).items()
    ]
    models = run.outputs.model_outputs if run.outputs else []
    for path, sha in in_order(digests):
        if path.parts[0] == "data":
            continue  # of data the store has only the digests
        if path.suffix == ".safetensors":
            if not models:
                raise InputError("the run has no model")
            location = client.get_logged_model(models[0].model_id).artifact_location
            source = f"{location}/data/{path.name}"
            mlflow.artifacts.download_artifacts(source, dst_path=str(folder))
        else:
            fetch(client, run, path.name, folder)
        comparisons.append(Comparison(f"{path.name} in the store", sha, digest(folder / path.name)))
    return comparisons


def fetch(client: mlflow.MlflowClient, run: Run, name: str, folder: Path) -> None:
    """Bring one artifact of the run into the folder."""
    client.download_artifacts(run.info.run_id, name, str(folder))


def check_out(commit: str, patch: Path, clone: Path) -> None:
    """The commit, and on it the patch where there is one, in a clone that shares its objects."""
    root = repository.git("rev-parse", "--show-toplevel").decode().rstrip("\n")
    try:
        repository.git("cat-file", "-e", f"{commit}^{{commit}}")
    except InputError as error:
        raise InputError(f"commit {commit} is not in this repository: fetch it first") from error
    repository.git("clone", "--quiet", "--shared", "--no-checkout", root, str(clone))
    repository.git("-C", str(clone), "checkout", "--quiet", "--detach", commit)
    if patch.exists():
        repository.git("-C", str(clone), "apply", "--whitespace=nowarn", str(patch.absolute()))


def make_data(digests: dict[Path, str], clone: Path) -> list[Comparison]:
    """The data set in the clone: from here if these are the recorded bytes, else made again."""
    for path, sha in digests.items():
        if path.exists() and digest(path) == sha:
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, clone / path)
    stages = YAML(typ="safe").load(clone / "dvc.yaml")["stages"]
    folders = {path.parent.as_posix() for path in digests}
    repro(clone, *(name for name in stages if folders & set(stages[name].get("outs", []))))
    return [Comparison(p.as_posix(), sha, digest(clone / p)) for p, sha in digests.items()]


def repro(clone: Path, *arguments: str) -> None:
    """Run stages in the clone, nothing taken from a cache and nothing left in one."""
    words = ["dvc", "repro", "--no-run-cache", "--no-commit", *arguments]
    print(" ".join(words), file=sys.stderr)
    output(words, clone, repository.environment())


def in_order(digests: dict[Path, str]) -> list[tuple[Path, str]]:
    """As the pipeline makes them: what is trained before what is evaluated."""
    made = ["model.safetensors", "history.csv", "gradients.csv", "predictions.csv"]
    order = {name: number for number, name in enumerate(made)}
    return sorted(digests.items(), key=lambda item: order.get(item[0].name, len(order)))


def digest(path: Path) -> str:
    """The file's sha256, or that it is missing."""
    return files.sha256(path) if path.exists() else MISSING


def show(comparisons: list[Comparison]) -> None:
    """Print a line for each."""
    width = max(len(c.name) for c in comparisons)
    print(f"{'':{width}}  {'recorded':12}  {'found':12}")
    for name, recorded, found in comparisons:
        mark = "same" if recorded == found else "DIFFERENT"
        shown = one_line(recorded[:12])
        print(f"{one_line(name):{width}}  {shown:12}  {found[:12]:12}  {mark}")


if __name__ == "__main__":
    command(main)
