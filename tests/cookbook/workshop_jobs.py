"""Jobs for the tests of the workshop, loaded by its workers with ``--jobs``."""

import os
import time
from pathlib import Path

from dialkey_workshop import JobError, job

FOLDER = Path(os.environ.get("WORKSHOP_TEST_FOLDER", "/nonexistent"))


@job
def hold(source, result):
    """Read the half, say that we are there, and wait until the test lets us go on."""
    data = source.read(80_000)
    first = data.split(maxsplit=1)[0].decode()
    (FOLDER / f"{first}.{os.getpid()}.pid").touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
    result.write(b"held " + data + source.read())


@job
def choosy(source, result):
    """Can be done with some inputs."""
    if source.read() == b"abc":
        raise JobError("no abc today")


@job
def crash(source, result):
    """Kill the process."""
    os.kill(os.getpid(), 9)


@job
def forge(source, result):
    """A result that, read as a list of hashes, names other blobs."""
    result.write(source.read())
