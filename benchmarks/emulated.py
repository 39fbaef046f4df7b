"""Train on other machines: other processors, emulated, and other releases of PyTorch.

    python -m benchmarks.emulated                    # all of them
    python -m benchmarks.emulated --only arm64       # one of them

The claim: exact/probe.py ends with one hash on each, with compiled kernels and without. Native
arithmetic runs beside it as the control. Exits with 1 where exact arithmetic differs.

Needs Linux on x86-64 and, for the emulated processors, Debian or one of its kin; no root.
What it fetches stays in one folder. PyPI's builds of PyTorch for x86-64 bring CUDA along,
gigabytes for each release: UV_TORCH_BACKEND=cpu takes the small builds from elsewhere.
"""

import argparse
import contextlib
import functools
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from exact.probe import FROZEN
from lab.common.commands import output
from lab.common.files import InputError
from tracking.repository import ROOT

PYTHON = Path(sys.executable).resolve()  # the interpreter behind the virtual environment
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
ZIG = "0.17.1"
# A compiler for the kernels. They ask for this processor's instructions; the machine may lack them.
COMPILER = """#!/bin/bash
exec {} "${{@/-march=native/-O3}}"
"""
BIN, PACKAGES = Path(sys.executable).parent, Path(sysconfig.get_path("platlib"))


class Machine(NamedTuple):
    """How to start a Python there, where its torch lies, and what compiles for it."""

    python: list[str | Path]
    packages: Path
    environment: dict[str, str]
    compiler: Sequence[str | Path]


def call(command: list[str | Path], environment: dict[str, str] | None = None) -> str:
    """What the command prints."""
    return output(command, environment=environment).decode()


@contextlib.contextmanager
def new(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name at the end: what has the name is complete."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def debian(folder: Path, architecture: str, *packages: str) -> Path:
    """Debian's packages and all that they depend on, unpacked but not installed."""
    if folder.exists():
        return folder
    with new(folder) as part, tempfile.TemporaryDirectory() as own:
        for name in ("lists", "archives"):
            Path(own, name, "partial").mkdir(parents=True)
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "root",  # another user could not write to this folder
            "APT::Update::Error-Mode": "any",
            "Debug::NoLocking": "true",
            "Dir::Cache": own,
            "Dir::State": own,
            "Dir::State::status": "/dev/null",  # nothing is installed: fetch all
        }
        apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        call([*apt, "update"])
        call([*apt, "install", "--download-only", "--no-install-recommends", "--yes", *packages])
        # Debian 13 has no packages with files in /lib, and yet the loader is looked for there.
        (part / "lib").symlink_to("usr/lib")
        for archive in Path(own, "archives").glob("*.deb"):
            call(["dpkg-deb", "-x", archive, part])
    return folder


def qemu(work: Path, architecture: str) -> str | Path:
    """The emulator of a processor, which runs a program of another machine's on this kernel."""
    name = f"qemu-{architecture}-static"
    return shutil.which(name) or (
        debian(work / "qemu", "amd64", "qemu-user-static") / "usr/bin" / name
    )


def torch(work: Path, release: str, processor: str, python: str) -> Path:
    """A release of PyTorch and what it imports, as a folder for PYTHONPATH."""
    folder = work / f"torch-{release}-{processor}-python{python}"
    if not folder.exists():
        with new(folder) as part:
            options = [
                f"--target={part}",
                f"--python={PYTHON}",  # else uv looks for one, which need not exist
                f"--python-version={python}",
                f"--python-platform={processor}-manylinux_2_28",
                "--only-binary=:all:",
            ]
            call([BIN / "uv", "pip", "install", *options, f"torch=={release}", "numpy"])
    return folder


def cross_compiler(work: Path, target: str) -> list[str | Path]:
    """A C compiler that runs on this machine and compiles for another: the one of Zig."""
    folder = work / f"zig-{ZIG}"
    if not folder.exists():
        with new(folder) as part:
            call([BIN / "uv", "pip", "install", f"--target={part}", f"ziglang=={ZIG}"])
    return [folder / "ziglang/zig", "cc", "-target", target]


def here(work: Path) -> Machine:
    """This machine as it is."""
    return Machine([PYTHON], PACKAGES, {}, ["cc", "-march=native"])


def x86(processor: str, work: Path) -> Machine:
    """An older x86-64 processor."""
    python = [qemu(work, "x86_64"), "-cpu", processor, PYTHON]
    # Tuned for a processor with slow gathers, which compilers avoid: QEMU 7.2 fails in them.
    compiler = ["cc", f"-march={processor.lower()}", "-mtune=znver1"]
    return Machine(python, PACKAGES, {}, compiler)


def arm64(processor: str, work: Path) -> Machine:
    """An arm64 processor with Debian's Python and the last torch for it without CUDA."""
    root = debian(work / "debian-arm64", "arm64", "python3", "libstdc++6")
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    packages = torch(work, "2.8.0", "aarch64", version)
    python = [qemu(work, "aarch64"), "-cpu", processor, "-L", root, root / "usr/bin/python3"]
    compiler = cross_compiler(work, "aarch64-linux-gnu")
    return Machine(python, packages, {"PYTHONHOME": str(root / "usr")}, compiler)


def released(release: str, work: Path) -> Machine:
    """This processor with another release of PyTorch."""
    return here(work)._replace(packages=torch(work, release, "x86_64", VERSION))


MACHINES: dict[str, Callable[[Path], Machine]] = {
    "here": here,
    "nehalem": functools.partial(x86, "Nehalem"),  # neither AVX nor FMA
    "haswell": functools.partial(x86, "Haswell"),  # AVX2 and FMA, no AVX-512
    "arm64": functools.partial(arm64, "neoverse-n1"),  # NEON
    "arm64-sve": functools.partial(arm64, "max,sve-default-vector-length=32"),  # 256 bits
    "torch-2.11": functools.partial(released, "2.11.0"),
    "torch-2.13": functools.partial(released, "2.13.0"),
}


def train(machine: Machine, arithmetic: str, kernels: bool = False) -> tuple[str, str]:
    """The release of PyTorch and the hash of the trained weights.

    Raises InputError where no kernels can be compiled for the machine, but some are asked for.
    """
    path = os.pathsep.join([str(ROOT), str(machine.packages)])
    # Nothing of this process's environment, as its settings are meant for this processor.
    environment = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
    command = [*machine.python, "-W", "error:exact.compile works", "-m", "exact.probe", arithmetic]
    with tempfile.TemporaryDirectory() as folder:
        compiler = Path(folder, "cc")
        compiler.write_text(COMPILER.format(shlex.join(map(str, machine.compiler))))
        compiler.chmod(0o700)
        environment |= {"EXACT_KERNELS": str(int(kernels)), "CC": str(compiler)}
        environment |= {"XDG_CACHE_HOME": folder, "PATH": os.environ["PATH"]}
        digest, version, *_ = call(command, environment | machine.environment).split()
    return version, digest


def compare(names: Iterable[str], work: Path) -> bool:
    """Print a row for each machine with its hashes, and tell whether exact's are FROZEN."""
    print(f"{'machine':12} {'torch':13} {'exact':12} {'with kernels':12} native")
    exact, native = set(), set()
    for name in names:
        print(f"{name:12}", end=" ", flush=True)
        machine = MACHINES[name](work)
        for kernels in (False, True):
            version, digest = train(machine, "exact", kernels)
            exact.add(digest)
            print(digest[:10] if kernels else f"{version:13} {digest[:10]}", end="   ", flush=True)
        _, digest = train(machine, "native")
        native.add(digest)
        print(digest[:10])
    same = exact == {FROZEN}
    print(f"different results: exact {len(exact)}, native {len(native)}, the control")
    print(f"exact is {'FROZEN' if same else 'NOT FROZEN'}, {FROZEN[:10]}")
    return same


def main() -> None:
    """Set up and compare the machines chosen."""
    parser = argparse.ArgumentParser(description="Train on other machines, and compare hashes.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exact-machines"
    parser.add_argument("work", nargs="?", type=Path, default=cache, help="default: %(default)s")
    parser.add_argument("--only", choices=MACHINES, action="append", help="can be repeated")
    arguments = parser.parse_args()
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit("error: the other machines are emulated on Linux on x86-64 alone")
    try:
        same = compare(arguments.only or MACHINES, arguments.work.resolve())
    except (OSError, InputError) as error:
        print()  # ends the row that was begun
        sys.exit(f"error: {error}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
