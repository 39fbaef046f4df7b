"""What is installed is what the lock names, to the byte; known vulnerabilities are looked up."""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import Clone
from tests.inputs import refusing
from tracking.repository import ROOT

fault = partial(pytest.mark.fault, "11. Supply chain")
TINY = "tiny-of-these-tests"
WHEEL = "tiny_of_these_tests-1.0-py3-none-any.whl"
ENTRY = re.compile(
    r"^([a-z0-9-]+)==([0-9][\w.!+-]*)(?: ; [^\\\n]+)? \\\n"
    r"(?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+",
    re.MULTILINE,
)
A_FILES_TIME = 10  # its position in a zip archive, which stays valid with another time
CONTROL = "with its hash the package is installed"
STUBS = re.compile(r"types-.*|.*-stubs")  # their names say what they are for


def locked() -> list[tuple[str, str]]:
    """Names and versions in requirements.txt, in which nothing but entries with hashes may be."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    text = re.sub(r"^ *(#.*)?\n", "", text, flags=re.MULTILINE)
    assert not ENTRY.sub("", text)
    return ENTRY.findall(text)


@fault("the lock read line by line", "each package has an exact version and a sha256")
def test_every_locked_package_has_one_version_and_a_hash(times: Callable[[int], None]) -> None:
    entries = locked()
    assert len(entries) > 100
    times(len(entries))


def test_every_direct_dependency_is_pinned_as_locked_and_has_its_reason() -> None:
    text = (ROOT / "requirements.in").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    assert len(lines) > 20
    for line in lines:
        entry = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)( +# .+)?", line)
        assert entry, line
        name = re.sub(r"[._-]+", "-", entry[1]).lower()
        assert {version for package, version in locked() if package == name} == {entry[2]}, line
        assert entry[3] or STUBS.fullmatch(name), f"{line}: why?"


def wheel(folder: Path, code: bytes) -> str:
    """Write a package of one file into the folder, and return its entry for a lock."""
    info = f"{TINY.replace('-', '_')}-1.0.dist-info"
    files = {
        "tiny.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {TINY}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in files).encode()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    digest = hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    return f"{TINY}==1.0 \\\n    --hash=sha256:{digest}\n"


class Setup(Clone):
    """A folder in which `make setup` installs uv and a tiny package, without an index."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        super().__init__(folder, folder)
        for tool in ("PIP", "UV"):
            self.environment |= {f"{tool}_NO_INDEX": "1", f"{tool}_FIND_LINKS": str(wheels)}
        self.environment |= {"UV_CACHE_DIR": str(folder / "cache"), "PYTHON": sys.executable}
        shutil.copy(ROOT / "Makefile", folder)

    def keep_environment(self) -> None:
        """Let later set-ups begin with a copy of the empty environment, which saves seconds."""
        empty, python = self.folder / "empty", self.folder / "python"
        (self.folder / ".venv").rename(empty)
        python.write_text(
            f'#!/bin/sh\n[ "$2" = venv ] && rm -rf .venv && exec cp -a {empty} .venv\n'
            f'exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        self.environment["PYTHON"] = str(python)

    def make(self, *lock: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "requirements.txt").write_text("".join(lock))
        return self.try_("make", "--no-print-directory", "setup")

    def refuses(self, why: str, *lock: str) -> None:
        """Set-up fails, says why, installs nothing, and is not marked as done."""
        done = self.make(*lock)
        assert done.returncode != 0, done.stdout
        assert why in done.stderr, done.stderr
        assert not list(self.folder.glob(".venv/lib/python*/site-packages/tiny*"))
        assert not (self.folder / ".venv/built-from").exists()

    def installs(self, *lock: str) -> None:
        done = self.make(*lock)
        assert done.returncode == 0, done.stderr
        assert self.run(".venv/bin/python", "-c", "import tiny; print(tiny.ANSWER)") == "42\n"
        assert self.make(*lock).stdout == ""  # nothing to do


@pytest.fixture
def installer(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The lock's entry of uv, and a folder with its wheel."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    (entry,) = (match[0] for match in ENTRY.finditer(text) if match[1] == "uv")
    folder = tmp_path_factory.mktemp("wheels")
    (folder / "uv.txt").write_text(entry)
    command = "pip download --quiet --no-deps --require-hashes --only-binary=:all: -r uv.txt"
    done = Clone(folder, folder).try_("python", "-m", *command.split())
    if done.returncode:
        pytest.skip(f"the package index does not deliver uv: {done.stderr.strip()[-200:]}")
    return entry, folder


@fault("another installer than the lock's", "`make setup` fails and installs nothing", CONTROL)
@fault(
    "a package changed on its way: one byte",
    "`make setup` fails, says hash mismatch and installs nothing",
    CONTROL,
)
@fault(
    "then a package with other code", "the same again; with the true package it succeeds", CONTROL
)
@fault(
    "an entry of the lock without a hash",
    "`make setup` fails and installs nothing",
    "without --require-hashes it is installed",
)
@pytest.mark.slow
@pytest.mark.sample(0)
def test_set_up_installs_only_packages_with_the_hashes_of_the_lock(
    installer: tuple[str, Path], tmp_path: Path
) -> None:
    uv, wheels = installer
    setup, path = Setup(tmp_path, wheels), wheels / WHEEL
    package = wheel(wheels, b"ANSWER = 42\n")
    true = path.read_bytes()
    setup.refuses("DO NOT MATCH THE HASHES", re.sub(r"sha256:\w{4}", "sha256:0000", uv), package)
    setup.keep_environment()

    changed = bytearray(true)
    changed[A_FILES_TIME] ^= 1
    path.write_bytes(changed)
    setup.refuses("ash mismatch", uv, package)
    wheel(wheels, b"ANSWER = 43\n")
    setup.refuses("ash mismatch", uv, package)
    path.write_bytes(true)
    setup.installs(uv, package)

    without_hash = f"{TINY}==1.0\n"
    setup.refuses("--require-hashes", uv, without_hash)
    makefile = tmp_path / "Makefile"
    makefile.write_text(makefile.read_text().replace("--require-hashes", ""))
    setup.installs(uv, without_hash)


@fault(
    "`make audit` without a network, and of a package that the index does not know",
    "it fails",
    "without strictness an unknown package passes",
)
@pytest.mark.slow
def test_an_audit_that_finds_nothing_out_fails(
    tmp_path: Path, times: Callable[[int], None]
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text(f"{TINY}==1.0 --hash=sha256:{'0' * 64}\n")
    folder = Clone(tmp_path, tmp_path)
    audit = ("make", "audit", "SOURCES=true", "STAMP=/dev/null")  # without building .venv
    with refusing() as proxy:
        assert folder.try_(*audit, HTTPS_PROXY=proxy, https_proxy=proxy).returncode
    assert folder.try_(*audit).returncode
    options = "--requirement requirements.txt --require-hashes --disable-pip"
    if folder.try_("python", "-m", "pip_audit", *options.split()).returncode:
        pytest.skip("no network to show that strictness makes the difference")
    times(2)


def test_the_public_workflow_runs_the_audit() -> None:
    commands = [
        step.get("run", "")
        for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
        for job in YAML(typ="safe").load(path)["jobs"].values()
        for step in job["steps"]
    ]
    assert any(re.search(r"^make audit$", command, re.MULTILINE) for command in commands)
