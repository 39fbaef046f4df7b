"""Python with the large libraries already loaded, for the hundreds of processes that tests start.

Most of their time would go into loading PyTorch, MLflow and DVC. One process, the server, loads
these once. The commands `python -m`, `dvc` and `mlflow` ask it for a fork, by fork_client.py. The
fork takes over the folder, the environment, the open files and the arguments, and imports the
project's code from the folder. So does `worker`, which is how pytest-xdist starts the processes
that run the tests: `-u -c CODE`.

It works on Linux: other systems lack this kind of socket, or may not fork with threads.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.nested._internal.nested_tensor",
    "torch.utils._device",
    "pyarrow.pandas_compat",
    "pygit2",
    "ruamel.yaml",
    "safetensors.torch",
    "aiohttp",
    "fastapi",
    "flask",
    "graphene",
    "uvicorn",
    "mlflow.deployments.cli",
    "mlflow.gateway.budget",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracing.processor.base_mlflow",
    "mlflow.tracing.provider",
    "alembic.config",
    "opentelemetry.sdk.metrics.view",
    "sqlalchemy.dialects.sqlite",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "dvc.cli.parser",
    "dvc.repo.experiments.queue.celery",
    "dvc.repo.experiments.queue.tempdir",
    "dvc.repo.experiments.queue.workspace",
    "dvc.repo.experiments.show",
    "dvc.repo.plots",
    "dvc.ui.table",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local",
    "dvc_render.vega",
    "dvc_task.proc.manager",
    "boto3",
    "dulwich.worktree",
    "fsspec.implementations.memory",
    "kombu.transport.filesystem",
    "networkx",
    "platformdirs",
    "rich.console",
    "s3fs",
    "scmrepo.git.backend.pygit2",
)
# What starts with this is read when Python or a library is loaded.
READ_EARLY = ("PYTHON", "OMP_", "GOMP_", "MKL_", "ATEN_", "ONEDNN_", "LD_", "MALLOC_", "CUDA")
KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
SIZE = 2**20  # bytes of a request at the most


def early(environment: dict[str, str]) -> dict[str, str]:
    """The variables that a fork cannot change any more."""
    names = {name for name in environment if name.startswith(READ_EARLY)} - {"PYTHONPATH"}
    return {name: environment[name] for name in names}


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the server, and write the commands that it serves into the folder.

    The server ends when its standard input does.
    """
    whole = f"exec {shlex.quote(sys.executable)}"
    program = Path(__file__).with_name("fork_client.py")
    client = f"{whole} -IS {shlex.join([str(program), f'{folder}/socket'])}"
    for name, text in {
        "python": f'[ "$1" = -m ] || {whole} "$@"\n{client} "$@"',
        "dvc": f'{client} -m dvc "$@"',
        "mlflow": f'{client} -m mlflow "$@"',
        "worker": f'shift\n{client} "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    with socket.socket(*KIND) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(64)
        number = listener.fileno()
        command = [sys.executable, __file__, str(number)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, pass_fds=[number], start_new_session=True)


def serve(listener: socket.socket) -> list[str]:
    """Answer requests until the tests end. In a fork it returns: the arguments of Python."""
    forks: dict[int, tuple[socket.socket, int]] = {}  # by a descriptor that tells the fork's end
    while True:
        clients = {client.fileno(): process for client, process in forks.values()}
        ready = select.select([sys.stdin.fileno(), *forks, *clients, listener], [], [])[0][0]
        if ready in forks:
            client, process = forks.pop(ready)
            os.close(ready)
            _, status = os.waitpid(process, 0)
            send(client, os.waitstatus_to_exitcode(status))
            client.close()
        elif ready in clients:  # the client was killed
            os.kill(clients[ready], signal.SIGKILL)
        elif ready is not listener:
            sys.exit()
        elif request := accept(listener):
            client, files, (arguments, folder, environment, mask) = request
            if early(environment) != early(dict(os.environ)):
                send(client, 0)
            elif process := os.fork():
                forks[os.pidfd_open(process)] = client, process
                send(client, process)
            else:
                for other in (listener, client, *(client for client, _ in forks.values())):
                    other.close()
                for descriptor in forks:
                    os.close(descriptor)
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                os.chdir(folder)
                os.umask(mask)
                os.environ.clear()
                os.environ.update(environment)
                return list(arguments)
            for file in files:
                os.close(file)


def accept(listener: socket.socket) -> tuple[socket.socket, list[int], list[Any]] | None:
    """A client, its open files, and its request; None where the client was killed."""
    client, _ = listener.accept()
    if "torch" not in sys.modules:
        load()
        gc.freeze()  # else the collector of each fork would write to all objects
    request, files, *_ = socket.recv_fds(client, SIZE, 3)
    return (client, files, json.loads(request)) if request else None


def load() -> None:
    """Load the libraries, and what they would look up once in each process."""
    for library in LIBRARIES:
        importlib.import_module(library)
    metadata: Any = sys.modules["importlib_metadata"]
    found = metadata.packages_distributions()  # MLflow's check of requirements takes 0.7 s for it
    metadata.packages_distributions = lambda: found
    figure = sys.modules["matplotlib.figure"].Figure()
    figure.subplots().set_yscale("log")  # which needs mathematics
    figure.savefig(io.BytesIO())


def send(connection: socket.socket, number: int) -> None:
    """Send a number to the client, which may have been killed."""
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(number).encode())


def end() -> NoReturn:
    """End a fork without freeing what the server has loaded, which takes half a second."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    code: object = 1  # of an exception
    atexit.register(end)  # first, to be called last
    try:
        listener = socket.socket(*KIND, fileno=int(sys.argv[1]))
        commands = Path(listener.getsockname()).parent
        option, program, *sys.argv[1:] = serve(listener)
        folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:1] = [str(Path.cwd()), *filter(None, folders)]
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("sitecustomize")  # as Python does when it begins
        if option == "-c":
            exec(program, {"__name__": "__main__"})  # noqa: S102
        else:
            sys.executable = str(commands / "python")  # so that what it starts is a fork, too
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
        raise
