"""What surrounds a call: who calls, until when, and with which metadata."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import attrs

from dialkey.errors import LocalError
from dialkey_rpc.service import MethodSpec

if TYPE_CHECKING:
    from dialkey import Connection
    from dialkey.identity import EndpointId

__all__ = ["Call", "current_call", "deadline"]

NO_METADATA: Final[Mapping[str, str]] = {}

deadline_var: Final[ContextVar[float | None]] = ContextVar("dialkey_rpc_deadline", default=None)
"""In the time of the running event loop."""

call_var: Final[ContextVar[Call | None]] = ContextVar("dialkey_rpc_call", default=None)


@attrs.frozen(eq=False)
class Call:
    """A call that is being served.

    Attributes:
        method: what is called.
        connection: the connection that it came over.
        metadata: text by text, as the caller gave it. It is the caller's word, and no more.
        deadline: when the caller stops waiting, in the time of the event loop; or None.
    """

    method: MethodSpec
    connection: Connection
    metadata: Mapping[str, str]
    deadline: float | None

    @property
    def remote_id(self) -> EndpointId:
        """Who calls; this is proven."""
        return self.connection.remote_id

    def remaining_s(self) -> float | None:
        """Return how long the caller still waits, seconds; None for ever."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


def current_call() -> Call:
    """Return the call that the running method, or a task that it started, serves.

    Raises:
        LocalError: there is none.
    """
    call = call_var.get()
    if call is None:
        raise LocalError("no call is being served here", hint="ask within a method of a service")
    return call


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give all calls within the block this long together; the services are told.

    The shorter one of nested deadlines holds. While a call with a deadline is served, the calls that
    the service makes in turn have it too, without further ado.
    """
    at = asyncio.get_running_loop().time() + seconds
    outer = deadline_var.get()
    token = deadline_var.set(at if outer is None else min(at, outer))
    try:
        yield
    finally:
        deadline_var.reset(token)
