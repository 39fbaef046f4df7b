"""The stages of the pipeline, one script each, run as `python -m stages.train mlp`.

This file runs before any of them, and before every program of `tools`, `benchmarks` and `tests`.
So it checks the Python, and sets what PyTorch and MLflow read from the environment.
"""

import argparse
import atexit
import gc
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

# Read when torch is loaded. By default a thread that waits for another spins for milliseconds. On a
# busy machine it takes the time that the other one needs, and a step lasts a hundred times as long.
# With GNU's OpenMP, spinning for microseconds is faster on a quiet machine than not spinning.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Read when MLflow is loaded. A dead server should be an error soon, not after minutes.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
    "PGCONNECT_TIMEOUT": "3",  # seconds
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)


@atexit.register
def _freeze() -> None:
    """Spare Python its last search for garbage: with MLflow loaded, it takes a second or two."""
    if "triton" not in sys.modules:  # which would complain of all that is left
        gc.freeze()


if missing := [
    name for name in ("torch", "pydantic", "ruamel") if not importlib.util.find_spec(name)
]:
    sys.exit(
        f"error: {sys.executable} lacks {', '.join(missing)}:"
        " run `make repro`, or `make setup` and then `. .venv/bin/activate`"
    )


def argument(description: str, name: str, choices: Iterable[str]) -> str:
    """The one argument of the command line, as in `python -m stages.train mlp`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(name, choices=list(choices))
    return str(getattr(parser.parse_args(), name))


def run(main: Callable[[], None]) -> None:
    """Run a stage, one process at a time in this folder; errors are told as by `command`."""
    from lab.common.workspace import exclusive_lock

    def stage() -> None:
        name = " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]])
        with exclusive_lock(re.sub(r"[^\w-]", "_", name)):
            main()

    command(stage)


def command(main: Callable[[], None]) -> None:
    """Run a program: a user's mistake or a failing disk is one line and a non-zero exit.

    Wrong parameters exit with 2, as wrong arguments do; anything else with 1.
    """
    from lab.common.files import InputError, one_line

    # As an exception, SIGTERM cleans up on its way: temporary files, an open MLflow run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has had enough, as in `make compare | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        # All is cleaned up. While Python itself ends, an exception would be printed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
