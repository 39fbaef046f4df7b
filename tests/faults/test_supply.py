"""What is installed is what the lock names, to the byte; known vulnerabilities are looked up."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from benchmarks.clones import ROOT

PART = "11. Supply chain"
TINY = "tiny-of-these-tests"
WHEEL = "tiny_of_these_tests-1.0-py3-none-any.whl"
A_FILES_TIME = 10  # where it is in a zip archive, which with another is just as good
CONTROL = "with its hash the package is installed"
STUBS = re.compile(r"types-.*|.*-stubs")  # whose names say what they are for


class Locked(NamedTuple):
    """An entry of requirements.txt."""

    name: str
    version: str
    hashes: tuple[str, ...]


def locked() -> list[Locked]:
    """All of requirements.txt; fails where it holds anything else."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    entries: list[Locked] = []
    for line in lines:
        if line.startswith(" "):
            found = re.fullmatch(r"    --hash=(sha256:[0-9a-f]{64})(?: \\)?", line)
            assert found, line
            last = entries.pop()
            entries.append(last._replace(hashes=(*last.hashes, found[1])))
        else:
            found = re.fullmatch(r"([a-z0-9-]+)==([0-9][\w.!+-]*)(?: ; [^\\]+)? \\", line)
            assert found, line
            entries.append(Locked(found[1], found[2], ()))
    return entries


def test_every_locked_package_has_one_version_and_a_hash(tried: Callable[..., None]) -> None:
    entries = locked()
    assert len(entries) > 100
    assert not [entry for entry in entries if not entry.hashes]
    tried(
        PART, "the lock read line by line", "each package has an exact version and a sha256",
        times=len(entries),
    )  # fmt: skip


def test_every_direct_dependency_is_pinned_as_locked_and_has_its_reason() -> None:
    text = (ROOT / "requirements.in").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    assert len(lines) > 20
    versions: dict[str, set[str]] = {}
    for entry in locked():
        versions.setdefault(entry.name, set()).add(entry.version)
    for line in lines:
        asked = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)( +# .+)?", line)
        assert asked, line
        name = re.sub(r"[._-]+", "-", asked[1]).lower()
        assert versions[name] == {asked[2]}, line
        assert asked[3] or STUBS.fullmatch(name), f"{line}: why?"


def wheel(folder: Path, code: bytes) -> str:
    """Write a package of one file into the folder, and return its entry for a lock."""
    info = f"{TINY.replace('-', '_')}-1.0.dist-info"
    files = {
        "tiny.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {TINY}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()[:-1]},\n"
        for name, data in files.items()
    )
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    digest = hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    return f"{TINY}==1.0 \\\n    --hash=sha256:{digest}\n"


class Setup:
    """A folder in which `make setup` installs uv and a tiny package, from files alone."""

    def __init__(self, folder: Path, uv: str, wheels: Path) -> None:
        self.folder, self.uv, self.wheels = folder, uv, wheels
        shutil.copy(ROOT / "Makefile", folder)
        self.lock(wheel(wheels, b"ANSWER = 42\n"))

    def lock(self, entry: str, uv: str | None = None) -> None:
        (self.folder / "requirements.txt").write_text((uv or self.uv) + entry)

    def make(self) -> subprocess.CompletedProcess[str]:
        environment = {
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels),
            "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(self.wheels),
            "UV_CACHE_DIR": str(self.folder / "cache"), "PYTHON": sys.executable,
        }  # fmt: skip
        return subprocess.run(
            ["make", "--no-print-directory", "setup"], cwd=self.folder, check=False,
            env=os.environ | environment, capture_output=True, text=True,
        )  # fmt: skip

    def refuses(self, why: str) -> None:
        """Set-up fails, says why, installs nothing, and does not take itself for done."""
        done = self.make()
        assert done.returncode != 0, done.stdout
        assert why in done.stderr, done.stderr
        assert not list(self.folder.glob(".venv/lib/python*/site-packages/tiny*"))
        assert not (self.folder / ".venv/built-from").exists()

    def installs(self) -> None:
        done = self.make()
        assert done.returncode == 0, done.stderr
        said = [str(self.folder / ".venv/bin/python"), "-c", "import tiny; print(tiny.ANSWER)"]
        assert subprocess.run(said, check=True, capture_output=True, text=True).stdout == "42\n"
        assert self.make().stdout == ""  # nothing to do


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The lock's entry of uv, and a folder with its wheel."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    entry = re.search(r"^uv==.*\n(?: +--hash=.*\n)+", text, re.MULTILINE)
    assert entry
    folder = tmp_path_factory.mktemp("wheels")
    (folder / "uv.txt").write_text(entry[0])
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
         "--only-binary=:all:", "--requirement", "uv.txt"],
        cwd=folder, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"the package index does not deliver uv: {done.stderr.strip()[-200:]}")
    return entry[0], folder


@pytest.fixture
def setup(uv: tuple[str, Path], tmp_path: Path) -> Setup:
    return Setup(tmp_path, *uv)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one byte", "other code"])
def test_a_changed_package_is_refused_and_the_true_one_is_installed_afterwards(
    setup: Setup, how: str, tried: Callable[..., None]
) -> None:
    true = (setup.wheels / WHEEL).read_bytes()
    if how == "one byte":
        changed = bytearray(true)
        changed[A_FILES_TIME] ^= 1
        (setup.wheels / WHEEL).write_bytes(changed)
    else:
        wheel(setup.wheels, b"ANSWER = 43\n")
        setup.refuses("ash mismatch")
    setup.refuses("ash mismatch")
    (setup.wheels / WHEEL).write_bytes(true)
    setup.installs()
    tried(
        PART, "a package changed on its way: one byte, or other code",
        "`make setup` fails each time it is asked, says hash mismatch and installs nothing;"
        " with the true package it succeeds", CONTROL,
    )  # fmt: skip


@pytest.mark.slow
def test_an_entry_without_a_hash_is_refused(setup: Setup, tried: Callable[..., None]) -> None:
    setup.lock(f"{TINY}==1.0\n")
    setup.refuses("--require-hashes")
    makefile = setup.folder / "Makefile"
    makefile.write_text(makefile.read_text().replace("--require-hashes", ""))
    setup.installs()
    tried(
        PART, "an entry of the lock without a hash", "`make setup` fails and installs nothing",
        "without --require-hashes it is installed",
    )  # fmt: skip


@pytest.mark.slow
def test_an_installer_with_another_hash_is_refused(
    setup: Setup, tried: Callable[..., None]
) -> None:
    entry = (setup.folder / "requirements.txt").read_text().removeprefix(setup.uv)
    setup.lock(entry, uv=re.sub(r"sha256:\w", "sha256:x", setup.uv).replace(":x", ":0"))
    setup.refuses("DO NOT MATCH THE HASHES")
    tried(
        PART, "another installer than the lock's", "`make setup` fails and installs nothing",
        CONTROL,
    )  # fmt: skip


@pytest.mark.slow
def test_an_audit_that_cannot_know_is_no_pass(tmp_path: Path, tried: Callable[..., None]) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text(f"{TINY}==1.0 --hash=sha256:{'0' * 64}\n")
    options = ["--requirement", "requirements.txt", "--require-hashes", "--disable-pip"]
    lenient = subprocess.run(
        [sys.executable, "-m", "pip_audit", *options], cwd=tmp_path, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    # The environment is this one; set-up is not what is asked.
    audit = ["make", "audit", "SOURCES=true", "STAMP=/dev/null"]
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    cut_off = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    for network in (cut_off, {}):
        done = subprocess.run(
            audit, cwd=tmp_path, env=os.environ | path | network, check=False, capture_output=True
        )
        assert done.returncode != 0
    if lenient.returncode:
        pytest.skip("no network to show that it is strictness which fails")
    tried(
        PART, "`make audit` without a network, and of a package that the index does not know",
        "it fails", "without strictness an unknown package passes", times=2,
    )  # fmt: skip


def test_the_public_workflow_runs_the_audit() -> None:
    commands = [
        step.get("run", "")
        for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
        for job in YAML(typ="safe").load(path)["jobs"].values()
        for step in job["steps"]
    ]
    assert any(re.search(r"^make audit$", command, re.MULTILINE) for command in commands)
