"""Running a relay from a configuration: metrics, signals, files that change, leave-taking."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from dialkey.errors import DialkeyError
from dialkey.hooks import Plugins
from dialkey_relay.server.callout import HttpCallout
from dialkey_relay.server.config import ServerConfig
from dialkey_relay.server.metrics import MetricsServer, Snapshot
from dialkey_relay.server.qad import QadServer
from dialkey_relay.server.server import RelayServer
from dialkey_relay.server.workers import MeshLinks

__all__ = ["RunningRelay", "serve"]

logger = logging.getLogger("dialkey.relay")

LOOK_S: Final = 10.0
"""How often configuration and revocations are looked at; a revocation should not take a minute."""


class RunningRelay:
    """A relay with everything around it.

    Args:
        read: reads the configuration; called again when a file has changed.
        plugins: for hook `dialkey_relay_admit`.
        siblings: streams to the other processes that share the port, by their number.

    Raises:
        RelayConfigError: the configuration cannot be used.
    """

    def __init__(
        self,
        read: Callable[[], ServerConfig],
        plugins: Plugins | None = None,
        siblings: Mapping[int, socket.socket] | None = None,
    ) -> None:
        self._read = read
        self.config = read()
        self.relay = RelayServer(self.config.rules, self.config.options, plugins=plugins)
        self.metrics: MetricsServer | None = None
        self.qad: QadServer | None = None
        self._links = MeshLinks(self.relay, dict(siblings)) if siblings else None
        self._stamps = self._look()
        self._stack = contextlib.AsyncExitStack()
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RunningRelay:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._close_rules)
            if self._links is not None:
                await stack.enter_async_context(self._links)
            await stack.enter_async_context(self.relay)
            if self.config.metrics is not None:
                self.metrics = MetricsServer(self.config.metrics, self.snapshot)
                await stack.enter_async_context(self.metrics)
                if self._links is not None:
                    self._links.collect()
            if self.config.qad is not None:
                self.qad = QadServer(
                    self.config.qad.address, self.config.qad.tls, self.relay.hub.counters
                )
                await stack.enter_async_context(self.qad)
            self._stack = stack.pop_all()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._stack.aclose()

    async def _close_rules(self) -> None:
        for rule in self.config.rules:
            if isinstance(rule, HttpCallout):
                await rule.close()

    def snapshot(self) -> Snapshot:
        """Give the numbers of this moment, of all processes together."""
        if self._links is not None:
            return self._links.snapshot()
        hub = self.relay.hub
        return Snapshot(hub.counters, len(hub), self.relay.connection_count, hub.queued_bytes)

    # --- files that change ----------------------------------------------------------------------

    def _look(self) -> dict[Path, tuple[int, int, int] | None]:
        stamps: dict[Path, tuple[int, int, int] | None] = {}
        for path in self.config.files:
            try:
                stat = path.stat()
                stamps[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            except OSError:
                stamps[path] = None
        return stamps

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._look() != self._stamps:
                await self.reload()

    async def reload(self) -> bool:
        """Read the configuration again and apply what can be applied to a running relay.

        Access rules and rates are replaced, and clients that they no longer allow have to leave;
        certificates are read again. Addresses stay.

        Returns:
            Whether the new configuration is in use; if it cannot be used the old one stays.
        """
        self._stamps = self._look()
        self.relay.reload_tls()
        try:
            config = self._read()
        except DialkeyError as error:
            logger.error("the changed configuration is not used: %s", error)
            return False
        if _fixed(config) != _fixed(self.config):
            logger.warning("changed addresses and limits of connections need a restart")
        previous, self.config = self.config, config
        self._stamps = self._look()
        self.relay.rules = list(config.rules)
        if config.options.client_rate != previous.options.client_rate:
            self.relay.set_client_rate(config.options.client_rate)
        ended = self.relay.recheck()
        for rule in previous.rules:
            if isinstance(rule, HttpCallout):
                await rule.close()
        logger.info("the configuration was read again; %d clients had to leave", ended)
        return True

    @contextlib.contextmanager
    def reload_on_hangup(self) -> Iterator[None]:
        """Read the configuration again on SIGHUP, where there is such a signal."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[bool]] = set()

        def hang_up() -> None:
            task = loop.create_task(self.reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        try:
            loop.add_signal_handler(signal.SIGHUP, hang_up)
        except (AttributeError, NotImplementedError):  # Windows
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)


def _fixed(config: ServerConfig) -> object:
    """Give what a running relay cannot change."""
    options = attrs.evolve(config.options, client_rate=None, tls=None, https=None)
    qad = config.qad.address if config.qad is not None else None
    return (options, config.options.https, config.metrics, qad, config.workers)


async def serve(
    read: Callable[[], ServerConfig],
    announce: Callable[[RunningRelay], None],
    *,
    plugins: Plugins | None = None,
    siblings: Mapping[int, socket.socket] | None = None,
) -> None:
    """Run a relay until cancelled; then tell its clients and leave.

    Args:
        read: reads the configuration.
        announce: called when it listens.
        plugins: for hook `dialkey_relay_admit`.
        siblings: streams to the other processes that share the port, by their number.

    Raises:
        RelayConfigError: the configuration cannot be used.
        BindError: an address cannot be had.
    """
    async with RunningRelay(read, plugins, siblings) as running:
        announce(running)
        with running.reload_on_hangup():
            try:
                await running.relay.serve_forever()
            except asyncio.CancelledError:
                logger.info("process %d: telling %d clients", os.getpid(), len(running.relay))
                await running.relay.restart()
                raise
