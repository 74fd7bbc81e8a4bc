"""The jobs, by name, and how to add one::

    from dialkey_workshop import job

    @job
    def upper(source, result):
        for line in source:
            result.write(line.upper())

A job runs in a process of its own. It reads the input from one binary file and writes the result to
another; how far it has come is what it has read. The same input must always give the same result,
because a job whose worker dies is done again by another one.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import runpy
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["JOBS", "JOB_NAME", "Job", "JobError", "job", "load_jobs"]

Job = Callable[[BinaryIO, BinaryIO], None]

JOBS: Final[dict[str, Job]] = {}

JOB_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
"""It becomes the end of a file name at the client, and part of each announcement."""

BLOCK_BYTES: Final = 1 << 18


class JobError(Exception):
    """The job cannot be done with this input. The client is told the text of it, and nothing else."""


def job(function: Job) -> Job:
    """Register a function as a job under its own name."""
    name = function.__name__
    if not JOB_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a job: at most 32 of a-z, 0-9 and _")
    JOBS[name] = function
    return function


def load_jobs(path: Path) -> None:
    """Run a Python file that registers jobs."""
    runpy.run_path(str(path))


@job
def wordcount(source: BinaryIO, result: BinaryIO) -> None:
    """Count the words of a text; the most frequent come first."""
    counts: Counter[bytes] = Counter()
    for line in source:
        counts.update(line.split())
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        result.write(b"%d %s\n" % (count, word))


@job
def sha256(source: BinaryIO, result: BinaryIO) -> None:
    """Compute a checksum."""
    hasher = hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        hasher.update(block)
    result.write(hasher.hexdigest().encode() + b"\n")


@job
def gz(source: BinaryIO, result: BinaryIO) -> None:
    """Compress quickly."""
    # Without a name and a time in it, the same input gives the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=result, mtime=0) as packed:
        shutil.copyfileobj(source, packed, BLOCK_BYTES)


@job
def xz(source: BinaryIO, result: BinaryIO) -> None:
    """Compress well."""
    with lzma.open(result, "wb") as packed:
        shutil.copyfileobj(source, packed, BLOCK_BYTES)
