"""What holds for every test: it stays offline, and no process that it starts outlives the tests.

Commands use public services unless something else is said, so the environment says something else.

Where Linux and util-linux are, each is started so that the kernel kills it when the test process dies,
even by ``kill -9``. Elsewhere dialkey's own processes end by themselves, see `dialkey.cli.children`.
"""

from __future__ import annotations

import functools
import multiprocessing.util
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence

os.environ["DIALKEY_PRESET"] = "minimal"
os.environ.pop("DIALKEY_SERVICES", None)

SETPRIV = shutil.which("setpriv")
BINDING = (SETPRIV, "--pdeathsig", "KILL", "--")


def _can_bind_lives() -> bool:
    if SETPRIV is None:
        return False
    probe = [SETPRIV, "--pdeathsig", "keep", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


_popen_init = subprocess.Popen.__init__


@functools.wraps(_popen_init)
def _init(self: subprocess.Popen[bytes], args: object, *rest: object, **options: object) -> None:
    # The kernel looks at the thread that started a process, and worker threads end early.
    if threading.current_thread() is threading.main_thread():
        args = _bound(args, options)
    _popen_init(self, args, *rest, **options)  # type: ignore[arg-type]


def _bound(args: object, options: Mapping[str, object]) -> object:
    if not isinstance(args, Sequence) or isinstance(args, str | bytes):
        return args
    if options.get("shell") or options.get("executable"):
        return args
    env = options.get("env")
    path = env.get("PATH") if isinstance(env, Mapping) else os.environ.get("PATH")
    if shutil.which(os.fspath(args[0]), path=path) is None:
        return args  # so that it is not found in the usual way
    return [*BINDING, *args]


def _spawn(path: bytes, args: Sequence[str | bytes], passed: Sequence[int]) -> int:
    """Start a process of `multiprocessing`; its tracker of resources is to outlive us and clean up."""
    if "--multiprocessing-fork" not in args:
        return _spawn_unbound(path, args, passed)
    assert SETPRIV is not None
    return _spawn_unbound(os.fsencode(SETPRIV), [*BINDING, path, *args[1:]], passed)


if _can_bind_lives():
    subprocess.Popen.__init__ = _init  # type: ignore[method-assign]
    _spawn_unbound = multiprocessing.util.spawnv_passfds
    multiprocessing.util.spawnv_passfds = _spawn
