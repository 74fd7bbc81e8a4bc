"""What workers and clients say to each other by RPC."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator
from typing import Protocol
from uuid import UUID

import attrs

import dialkey_rpc as rpc

__all__ = ["JobFailed", "Order", "Report", "Step", "Workshop"]


@attrs.frozen
class Order:
    """A job for a worker.

    Attributes:
        id: names the job, however often it is tried.
        job: what to do.
        input: a blob ticket of the client; the worker fetches the input there.
        input_bytes: how long the input is.
    """

    id: UUID
    job: str
    input: str
    input_bytes: int


class Step(enum.Enum):
    """What a worker is doing with a job."""

    FETCHING = "fetching"
    WORKING = "working"
    FINISHED = "finished"


@attrs.frozen
class Report:
    """How far a job is. They come at least once a second: silence means that the worker is gone.

    Attributes:
        step: what is being done.
        done_bytes: so much of the input was fetched, or read by the job.
        result: the hash of the blob that came out, when finished.
    """

    step: Step
    done_bytes: int = 0
    result: bytes | None = None


@attrs.define
class JobFailed(Exception):
    """The job cannot be done with this input, by whomever."""

    reason: str


@rpc.service("workshop/1")
class Workshop(Protocol):
    """What a worker offers. Orders and releases may be repeated: an order's id says which is meant."""

    @rpc.method(idempotent=True, raises=[JobFailed])
    def run(self, order: Order) -> AsyncGenerator[Report, None]:
        """Do a job, or follow one of the caller's that is being done already.

        The result can be fetched, by the caller only, from the report that names it until it is
        released. A job that nobody follows is cancelled.

        Raises:
            JobFailed: it cannot be done, here or elsewhere.
            ResourceExhausted: all slots are taken.
            Unavailable: the worker is leaving.
            InvalidArgument: this worker does not take the order.
        """
        ...

    @rpc.method(idempotent=True)
    async def release(self, order_id: UUID) -> None:
        """Say that the result of a job was fetched; the worker forgets it, and `run` ends."""
        ...
