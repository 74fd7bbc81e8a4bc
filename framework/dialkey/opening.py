"""What opens something: awaitable, and an asynchronous context manager.

`await x(...)` gives the opened thing, to be closed by hand; `async with x(...)` closes it, too.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from dialkey.errors import LocalError

__all__ = ["AsyncOnly", "Closing", "Opening", "check_loop"]


class Closing(Protocol):
    """What `Opening` opens: an asynchronous context manager that enters as itself."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> object: ...


T = TypeVar("T", bound=Closing)


def check_loop() -> None:
    """Make sure that asyncio runs here; other kinds of event loops say nothing that helps.

    Raises:
        RuntimeError: it does not; the message says what to do.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "dialkey needs a running asyncio loop: start your program with asyncio.run(main()); from"
            " trio or curio, run it in a thread of its own"
        ) from None


class AsyncOnly:
    """Gives a plain `with` an error that says what to write instead."""

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker is to reject it by itself

        def __enter__(self) -> None:
            name = type(self).__name__.lstrip("_")
            raise TypeError(f"{name} is asynchronous: write `async with`, not `with`")

        def __exit__(self, *exc_info: object) -> None:
            """Never reached; a plain `with` looks for it first."""


class Opening(AsyncOnly, Coroutine[Any, Any, T], Generic[T]):
    """Something about to be opened: await it, or enter it with `async with`.

    It is a coroutine, so that `asyncio.create_task` and its like take it as they take any other.

    Args:
        coroutine: opens it.
        again: what to say to a program that opens it a second time.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        again: str = "this was awaited already; make the call again",
    ) -> None:
        self._coroutine = coroutine
        self._again = again
        self._is_used = False
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        if self._is_used:
            raise LocalError(self._again)
        self._is_used = True
        try:
            check_loop()
        except RuntimeError:
            self._coroutine.close()
            raise
        return self._coroutine.__await__()

    async def __aenter__(self) -> T:
        opened = await self
        self._opened = opened
        return await opened.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._opened is not None
        await self._opened.__aexit__(kind, error, traceback)

    def send(self, value: Any) -> Any:
        """Resume the coroutine."""
        self._is_used = True
        return self._coroutine.send(value)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Raise an exception in the coroutine."""
        self._is_used = True
        error = value if isinstance(value, BaseException) else kind
        if isinstance(error, type):
            error = error() if value is None else error(value)
        return self._coroutine.throw(error.with_traceback(traceback) if traceback else error)

    def close(self) -> None:
        """End the coroutine."""
        self._is_used = True
        self._coroutine.close()

    def __del__(self) -> None:
        if not self._is_used:
            # The inner coroutine would warn, too, under a name that the user never wrote.
            self._coroutine.close()
            name = getattr(self._coroutine, "__qualname__", "coroutine")
            warnings.warn(f"{name} was never awaited", RuntimeWarning, stacklevel=2)
