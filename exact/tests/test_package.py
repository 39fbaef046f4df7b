"""The wheel and the sdist work in an environment that has torch and nothing else."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from exact.tests.test_docs import EXAMPLES, FOLDER, block


def needed(name: str) -> set[str]:
    """The distribution and those that it requires, of those that are installed."""
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # of another platform
        return set()
    found = {name}
    for requirement in requirements:
        if "extra ==" not in requirement:
            found |= needed(re.split(r"[^\w.-]", requirement)[0])
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with torch, what torch requires, and the wheel."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("package")
    # With -P, as the folder has a module named `random`.
    build = [sys.executable, "-P", "-m", "hatchling", "build", "--directory", str(folder / "dist")]
    subprocess.run(build, cwd=FOLDER, check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    installed = Path(sysconfig.get_path("platlib"))
    for name in needed("torch"):
        files = importlib.metadata.files(name) or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(installed / top)
    (wheel,) = (folder / "dist").glob("*.whl")
    shutil.unpack_archive(wheel, packages, "zip")  # which is all that an installation needs
    return python


def test_the_archives_hold_what_is_needed_and_no_more(python: Path) -> None:
    dist = python.parents[2] / "dist"
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    files = {
        path.relative_to(FOLDER.parent).as_posix()
        for folder in (".", "distributed", "kernels", "operations")
        for pattern in ("*.py", "*.c", "*.h")
        for path in Path(FOLDER, folder).glob(pattern)
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == files | {"exact/py.typed"}
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/test_package.py"} <= held
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    assert [line for line in lines if line.startswith("Requires-Dist")] == [
        "Requires-Dist: torch>=2.8"
    ]


def test_a_strangers_environment_prints_the_bits_that_the_readme_says(
    python: Path, run_all: bool
) -> None:
    def printed(*command: str | Path) -> str:
        return subprocess.check_output([python, *command], cwd=python.parent, text=True)

    with pytest.raises(subprocess.CalledProcessError):  # the control: nothing but torch
        printed("-c", "import pandas")
    where, modules = printed(
        "-c", "import exact, sys; print(exact.__file__); print(*sys.modules)"
    ).splitlines()
    assert "site-packages" in where and "mlflow" not in modules
    code = block("example").split("```python")[1].split("```")[0]
    assert printed("-c", code).strip() == code.rpartition("# ")[2].strip()
    if run_all:
        assert printed("-m", "exact.probe").strip().endswith("as expected")
        assert printed(EXAMPLES[-1])
