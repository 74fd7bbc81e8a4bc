"""The signals that ask a process to end: SIGTERM, and SIGHUP when its terminal goes away.

A signal that was ignored when the process started, as under ``nohup``, stays ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator

__all__ = ["on_ending_signal"]

Tell = Callable[[signal.Signals], None]


class _Watch:
    """The handlers of one event loop, and who is told by them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._taken: set[signal.Signals] = set()
        self._is_over = False
        self.listeners: list[Tell] = []

    def take(self, *, only_default: bool) -> None:
        for number in _ending_signals():
            now = signal.getsignal(number)
            if number in self._taken or now is signal.SIG_IGN:
                continue
            if only_default and now is not signal.SIG_DFL:
                continue
            try:
                self._loop.add_signal_handler(number, self._tell, number)
            except NotImplementedError:  # event loops of Windows
                return
            self._taken.add(number)

    def release(self) -> bool:
        """Give back what may be given back; return whether that was all."""
        for number in sorted(self._taken):
            # A terminal that closes sends SIGHUP more than once, and systemd sends it after SIGTERM:
            # the second one must not cut short what the first one began.
            if not (self._is_over and number is not signal.SIGTERM):
                self._loop.remove_signal_handler(number)
                self._taken.discard(number)
        return not self._taken

    def _tell(self, number: signal.Signals) -> None:
        self._is_over = True
        for listener in list(self.listeners):
            listener(number)


_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def on_ending_signal(tell: Tell, *, only_default: bool = False) -> Iterator[None]:
    """Call `tell` in the running event loop for each signal that asks the process to end.

    Several may wait at once, and all are told. After one was told, SIGHUP stays without effect until
    the loop closes, because whoever was told is ending in order; a second SIGTERM has its usual
    effect once this context is left. Outside the main thread, where signals cannot be had, nothing
    happens.

    Args:
        tell: gets the signal; must not block.
        only_default: leave alone a signal for which the application has a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = _Watch(loop)
    watch.listeners.append(tell)
    watch.take(only_default=only_default)
    try:
        yield
    finally:
        watch.listeners.remove(tell)
        if not watch.listeners and watch.release():
            _watches.pop(loop, None)


def _ending_signals() -> tuple[signal.Signals, ...]:
    names = ("SIGTERM", "SIGHUP")
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))
