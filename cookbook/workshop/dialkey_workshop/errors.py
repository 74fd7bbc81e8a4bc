"""What can go wrong for a client, each error placed in the tree of `dialkey.errors`."""

from __future__ import annotations

from dialkey.errors import DialError, Refused, RemoteError

__all__ = ["JobsFailed", "NoWorkers", "NotAllowed"]


class NoWorkers(DialError):
    """Nobody took a job for too long."""

    code = "network.dial.no_workers"


class NotAllowed(Refused):
    """The workers that are there do not work for this endpoint id."""

    code = "remote.handshake.refused.workshop"


class JobsFailed(RemoteError):
    """Some jobs have no result; the others have."""

    code = "remote.jobs_failed"
