"""Retrain everything as other machines would compute, and compare every output's hash.

    make verify-exact                                # all of it, against the committed dvc.lock
    python -m benchmarks.surroundings --short        # one epoch each, against the first run

Environment variables make one CPU pass for several: fewer vector instructions, other
numbers of threads, other code paths of the libraries. Native arithmetic runs beside
it until it has differed: that is the control, without which nothing was put to the test. Exits
with 1 where exact arithmetic differs or native does not.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.clones import ROOT, clone
from lab import repository

SURROUNDINGS = {
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


def lock(arithmetic: str, short: bool, surroundings: dict[str, str]) -> bytes:
    """The dvc.lock that a fresh clone comes to, its trainings and evaluations run anew."""
    with tempfile.TemporaryDirectory() as folder:
        clone(Path(folder))
        params = Path(folder, "params.yaml")
        text = params.read_text(encoding="utf-8")
        text = re.sub(r"^arithmetic: \w+", f"arithmetic: {arithmetic}", text, flags=re.MULTILINE)
        if short:
            text = re.sub(r"^  epochs: \d+", "  epochs: 1", text, flags=re.MULTILINE)
        params.write_text(text, encoding="utf-8")
        subprocess.run(
            ["dvc", "repro", "--quiet"], cwd=folder, check=True, stdin=subprocess.DEVNULL,
            env=repository.environment() | surroundings,
        )  # fmt: skip
        return Path(folder, "dvc.lock").read_bytes()


def results(lock: bytes) -> str:
    """The first digits of a sha256 of what a dvc.lock says of all outputs but the records."""
    stages = YAML(typ="safe").load(lock)["stages"]
    outputs = [
        (output["path"], output["md5"])
        for name, stage in sorted(stages.items())
        if not name.startswith("record@")
        for output in stage["outs"]
    ]
    return hashlib.sha256(repr(outputs).encode()).hexdigest()[:10]


def main() -> None:
    """Print a row for each of the surroundings, with the digits of its results."""
    parser = argparse.ArgumentParser(description="Compare dvc.lock in changed surroundings.")
    parser.add_argument("--short", action="store_true", help="train for one epoch")
    short = parser.parse_args().short
    print(f"{'surroundings':22} {'exact':12} native")
    digests: dict[str, list[str]] = {"exact": [], "native": []}
    locks: dict[str, list[bytes]] = {"exact": [], "native": []}
    for name in SURROUNDINGS:
        print(f"{name:22}", end="", flush=True)
        for arithmetic, column in digests.items():
            if arithmetic == "native" and len(set(column)) > 1:
                continue  # the control has done its duty
            locks[arithmetic].append(lock(arithmetic, short, SURROUNDINGS[name]))
            column.append(results(locks[arithmetic][-1]))
            print(f" {column[-1]:12}", end="", flush=True)
        print()
    # The whole file, byte for byte: of the first run in the short form, else what is committed.
    expected = locks["exact"][0] if short else (ROOT / "dvc.lock").read_bytes()
    same, control = set(locks["exact"]) == {expected}, len(set(digests["native"])) > 1
    print(f"exact: {'the same dvc.lock everywhere' if same else 'DIFFERENT'}", end="")
    print("" if short else f", committed is {results(expected)}")
    print(f"native: {len(set(digests['native']))} different results, the control")
    sys.exit(0 if same and control else 1)


if __name__ == "__main__":
    main()
