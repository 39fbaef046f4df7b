"""Run everything as other machines would compute it, and compare every output's hash.

    make verify-exact                                # all of it, with the committed dvc.lock
    python -m benchmarks.environments --short        # one epoch of training, with the first run

Environment variables make one CPU pass for several: fewer vector instructions, other numbers of
threads, other code paths of the libraries. Native arithmetic is the control: it runs too until it
has differed. Exits with 1 if exact arithmetic differs or native does not.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from lab.common import lockfile
from tracking import repository
from tracking.repository import ROOT, clone

ENVIRONMENTS = {
    "as this machine is": {},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "5 threads": {"OMP_NUM_THREADS": "5"},
    "no AVX in PyTorch": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 in PyTorch": {"ATEN_CPU_CAPABILITY": "avx2"},
    "AVX-512 in PyTorch": {"ATEN_CPU_CAPABILITY": "avx512"},
    "compatible MKL": {"MKL_CBWR": "COMPATIBLE"},
    "SSE4.2 in MKL": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "SSE4.1 in oneDNN": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
}


Outputs = list[tuple[str, str]]  # path and md5


def committed() -> Outputs:
    """What dvc.lock says of all outputs but the receipts of MLflow runs."""
    stages = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]
    return [
        (output["path"], output["md5"])
        for name, stage in sorted(stages.items())
        if not name.startswith("record@")
        for output in stage["outs"]
    ]


def made(arithmetic: str, short: bool, settings: dict[str, str]) -> Outputs:
    """The same of what a fresh clone makes."""
    with tempfile.TemporaryDirectory() as folder:
        clone(Path(folder))
        Path(folder, "dvc.lock").unlink()  # or a stage would refuse results other than these
        params = Path(folder, "params.yaml")
        text = params.read_text(encoding="utf-8")
        text = re.sub(r"^arithmetic: \w+", f"arithmetic: {arithmetic}", text, flags=re.MULTILINE)
        if short:
            text = re.sub(r"^  epochs: \d+", "  epochs: 1", text, flags=re.MULTILINE)
        params.write_text(text, encoding="utf-8")
        plain, env = [sys.executable, "-m", "benchmarks.plain"], repository.environment() | settings
        subprocess.run(plain, cwd=folder, check=True, env=env)
        return [(path, lockfile.md5(Path(folder, path))) for path, _ in committed()]


def digits(outputs: Outputs) -> str:
    """The first digits of a sha256 of them all."""
    return hashlib.sha256(repr(outputs).encode()).hexdigest()[:10]


def main() -> None:
    """Print a row for each environment, with the digits of its results."""
    parser = argparse.ArgumentParser(description="Compare all outputs in changed environments.")
    parser.add_argument("--short", action="store_true", help="train for one epoch")
    short = parser.parse_args().short
    print(f"{'environment':22} {'exact':12} native")
    found: dict[str, list[Outputs]] = {"exact": [], "native": []}
    for name, settings in ENVIRONMENTS.items():
        print(f"{name:22}", end="", flush=True)
        for arithmetic, column in found.items():
            if arithmetic == "native" and any(outputs != column[0] for outputs in column):
                continue  # the control has differed
            column.append(made(arithmetic, short, settings))
            print(f" {digits(column[-1]):12}", end="", flush=True)
        print()
    expected = found["exact"][0] if short else committed()
    same = all(outputs == expected for outputs in found["exact"])
    control = any(outputs != found["native"][0] for outputs in found["native"])
    print(f"exact: {'the same bytes everywhere' if same else 'DIFFERENT'}", end="")
    print("" if short else f", committed is {digits(expected)}")
    print(f"native: {'differs, as a control must' if control else 'DOES NOT DIFFER'}")
    sys.exit(0 if same and control else 1)


if __name__ == "__main__":
    main()
