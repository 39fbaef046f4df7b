"""Python with the large libraries already loaded, for the hundreds of processes that tests start.

Most of their time would go into loading PyTorch, MLflow and DVC. One process, the server, loads
these once. The commands `python -m` and `dvc` ask it for a fork, which takes over the folder, the
environment, the open files and the arguments, and imports the project's code from the folder. So
does `worker`, which is how pytest-xdist starts the processes that run the tests: `-u -c CODE`.

This file is the server and the client. It needs the standard library alone, as that loads quickly.
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
import threading
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torch",
    "torch.nested._internal.nested_tensor",
    "torch.utils._device",
    "pyarrow.pandas_compat",
    "pygit2",
    "ruamel.yaml",
    "safetensors.torch",
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
    "dulwich.worktree",
    "fsspec.implementations.memory",
    "kombu.transport.filesystem",
    "networkx",
    "platformdirs",
    "rich.console",
    "scmrepo.git.backend.pygit2",
)
# What starts with this is read when Python or a library is loaded.
READ_EARLY = ("PYTHON", "OMP_", "GOMP_", "MKL_", "ATEN_", "ONEDNN_", "LD_", "MALLOC_", "CUDA")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
SIZE = 2**20  # bytes of a request at the most


def early(environment: dict[str, str]) -> dict[str, str]:
    """The variables that a fork cannot change any more."""
    names = {name for name in environment if name.startswith(READ_EARLY)} - {"PYTHONPATH"}
    return {name: environment[name] for name in names}


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the server, and write the commands `python`, `dvc` and `worker` into the folder.

    The server ends when its standard input does.
    """
    whole = f"exec {shlex.quote(sys.executable)}"
    client = f"{whole} -IS {shlex.join([__file__, f'{folder}/socket'])}"
    for name, text in {
        "python": f'[ "$1" = -m ] || {whole} "$@"\n{client} "$@"',
        "dvc": f'{client} -m dvc "$@"',
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
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if "torch" not in sys.modules:
            load()
            gc.freeze()  # else the collector of each fork would write to all objects
        request, files, *_ = socket.recv_fds(connection, SIZE, 3)
        if not request:  # the client was killed
            connection.close()
            continue
        arguments, folder, environment, mask = json.loads(request)
        if early(environment) != early(dict(os.environ)):
            send(connection, 0)
        elif not os.fork():
            listener.close()
            supervise(connection)
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            os.chdir(folder)
            os.umask(mask)
            os.environ.clear()
            os.environ.update(environment)
            return list(arguments)
        connection.close()
        for file in files:
            os.close(file)
    sys.exit()


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


def supervise(connection: socket.socket) -> None:
    """Fork once more, and return in the new process. This one tells the client how that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (process := os.fork()):
        connection.close()
        return
    send(connection, process)

    def end_with_client() -> None:
        connection.recv(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    threading.Thread(target=end_with_client, daemon=True).start()
    _, status = os.waitpid(process, 0)
    send(connection, os.waitstatus_to_exitcode(status))
    os._exit(0)


def send(connection: socket.socket, number: int) -> None:
    """Send a number to the client, which may have been killed."""
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(number).encode())


def ask(address: str, arguments: list[str]) -> NoReturn:
    """Run Python with these arguments in a fork of the server, and end as it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until they can be passed on
    server = socket.socket(*KIND)
    server.connect(address)
    os.umask(mask := os.umask(0))
    request = json.dumps([arguments, str(Path.cwd()), dict(os.environ), mask])
    socket.send_fds(server, [request.encode()], [0, 1, 2])
    if process := int(server.recv(SIZE)):
        for number in SIGNALS:
            signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if not process:
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606
    code = int(server.recv(SIZE) or 1)
    if code < 0:
        with contextlib.suppress(OSError):  # of SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def end() -> NoReturn:
    """End a fork without freeing what the server has loaded, which takes half a second."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    if sys.argv[2:]:
        ask(sys.argv[1], sys.argv[2:])
    code: object = 1  # of an exception
    atexit.register(end)  # first, to be called last
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are nobody's to wait for
    try:
        option, program, *sys.argv[1:] = serve(socket.socket(*KIND, fileno=int(sys.argv[1])))
        folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:1] = [str(Path.cwd()), *filter(None, folders)]
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("sitecustomize")  # as Python does when it begins
        if option == "-c":
            exec(program, {"__name__": "__main__"})  # noqa: S102
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
        raise
