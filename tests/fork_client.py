"""The client of tests/preloaded.py: it runs Python with some arguments in a fork of that process.

It stands in place of every command that the tests fork, so it imports little.
"""

import json
import os
import signal
import socket
import sys

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ask(address: str, arguments: list[str]) -> int:
    """Have the server at the address run Python with the arguments, and return the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until they can be passed on
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    os.umask(mask := os.umask(0))
    request = json.dumps([arguments, os.getcwd(), dict(os.environ), mask])  # noqa: PTH109
    socket.send_fds(server, [request.encode()], [0, 1, 2])
    if process := int(server.recv(16)):
        for number in SIGNALS:
            signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if not process:  # the server cannot do what the environment says
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606
    return int(server.recv(16) or 1)


if __name__ == "__main__":
    code = ask(sys.argv[1], sys.argv[2:])
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
