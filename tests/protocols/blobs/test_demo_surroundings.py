"""The demo of the README works where something else is in its way."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys

DEFAULT_PORTS = (3340, 9090)
"""Of a relay for development, and of metrics."""


def test_another_program_has_each_default_port() -> None:
    with contextlib.ExitStack() as stack:
        for port in DEFAULT_PORTS:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
                with contextlib.suppress(OSError):  # another program has it already
                    sock.bind(("127.0.0.1", port))
        done = subprocess.run(
            [sys.executable, "-m", "dialkey", "demo", "--json", "--size", "5"],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout.splitlines()[-1])
    # It is cut on the direct way, and closes over the relay: the sender must have heard of it.
    assert result["ways"][:2] == ["relay", "direct"]
