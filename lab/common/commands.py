"""Other programs: what they print, or in one line why they fail."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.common.files import InputError, one_line


def output(
    command: Sequence[str | Path],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> bytes:
    """What a program prints on standard output.

    Raises InputError where it cannot be started, fails, or takes longer than `timeout` seconds.
    """
    name = " ".join([Path(command[0]).name, *map(str, command[1:2])])
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{name}: not done after {timeout:g} seconds") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be started: {one_line(error)}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reasons = [line for line in lines if line.lower().startswith(("error", "e: ", "fatal"))]
        reason = [*reasons[:1], *lines[-1:], f"exit status {done.returncode}"][0]
        raise InputError(f"{name}: {one_line(reason)}")
    return done.stdout
