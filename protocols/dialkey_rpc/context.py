"""What surrounds a call: who calls, until when, and with which metadata."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import attrs

from dialkey.errors import InvalidInput, LocalError
from dialkey_rpc.service import MethodSpec

if TYPE_CHECKING:
    from dialkey import Connection
    from dialkey.identity import EndpointId

__all__ = ["ENDLESS_S", "Call", "checked_timeout", "current_call", "deadline"]

ENDLESS_S: Final = 1e9
"""Thirty years. Waiting longer counts as waiting for ever, which spares clocks the addition."""

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
        metadata: text by text, as the caller gave it. Nothing but the caller's word for it.
        deadline: when the caller stops waiting, in the time of the event loop; or None.
    """

    method: MethodSpec
    connection: Connection
    metadata: Mapping[str, str]
    deadline: float | None

    @property
    def remote_id(self) -> EndpointId:
        """Who is calling, as proven by the connection."""
        return self.connection.remote_id

    def remaining_s(self) -> float | None:
        """Return how long the caller still waits, seconds; None for ever."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


def checked_timeout(timeout: float | None) -> float | None:
    """Return a timeout in seconds, None for one that never comes.

    Raises:
        InvalidInput: it is not positive, or not a number.
    """
    if timeout is None:
        return None
    if not timeout > 0:
        raise InvalidInput(f"a timeout is a positive number of seconds, not {timeout}")
    return timeout if timeout < ENDLESS_S else None


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
    """Give all calls within the block this much time together; the services are told.

    The shorter one of nested deadlines holds. While a call with a deadline is served, the calls that
    the service makes in turn inherit it.

    Args:
        seconds: from now on; infinity and more than thirty years mean no limit.

    Raises:
        InvalidInput: `seconds` is not a number.
    """
    at = outer = deadline_var.get()
    if math.isnan(seconds):
        raise InvalidInput("a deadline is a number of seconds, not nan")
    if seconds < ENDLESS_S:
        own = asyncio.get_running_loop().time() + seconds
        at = own if outer is None else min(own, outer)
    token = deadline_var.set(at)
    try:
        yield
    finally:
        deadline_var.reset(token)
