"""Running a relay from a configuration: metrics, signals, changing files, and an orderly end."""

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

from dialkey.errors import BindError, DialkeyError
from dialkey.hooks import Plugins
from dialkey_relay.access import Everyone
from dialkey_relay.server.callout import HttpCallout
from dialkey_relay.server.config import ServerConfig
from dialkey_relay.server.metrics import MetricsServer, Snapshot
from dialkey_relay.server.qad import QadServer
from dialkey_relay.server.server import Address, RelayServer
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
        # The listeners hold these; a new configuration only changes what is in them.
        self._tls = [
            each
            for each in (
                self.config.options.tls,
                self.config.qad.tls if self.config.qad is not None else None,
            )
            if each is not None
        ]
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
                await self._serve_metrics(stack, self.config.metrics)
                if self._links is not None:
                    self._links.collect()
            if self.config.qad is not None:
                if not all(isinstance(rule, Everyone) for rule in self.config.rules):
                    logger.warning(
                        "address discovery answers everybody: clients do not show a key there, "
                        "so [access] holds for the relay alone"
                    )
                self.qad = QadServer(
                    self.config.qad.address, self.config.qad.tls, self.relay.hub.counters
                )
                await stack.enter_async_context(self.qad)
            self._stack = stack.pop_all()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _serve_metrics(self, stack: contextlib.AsyncExitStack, address: Address) -> None:
        server = MetricsServer(address, self.snapshot)
        try:
            self.metrics = await stack.enter_async_context(server)
        except BindError as error:
            if self.config.needs_metrics:
                raise
            # This is only the default port: another relay on this machine may have it, or Prometheus.
            logger.warning(
                "%s; no metrics are served (metrics_bind_addr gives them another port, "
                "enable_metrics = false ends this warning)",
                error.message,
            )

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
        """Return the current numbers, of all processes together."""
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
        certificates are taken from where it says now, for address discovery as well. What cannot be
        changed while the relay runs is named in the log.

        Returns:
            Whether the new configuration is in use; if it cannot be used the old one stays.
        """
        self._stamps = self._look()
        try:
            config = self._read()
        except DialkeyError as error:
            logger.error("the changed configuration is not used: %s", error)
            self.relay.reload_tls()
            return False
        for change in _not_applied(self.config, config):
            logger.warning("%s: this change needs a restart", change)
        self._use_certificate(config)
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

    def _use_certificate(self, config: ServerConfig) -> None:
        """Take the certificate from where the new configuration says, for the relay and for QAD."""
        new = config.options.tls or (config.qad.tls if config.qad is not None else None)
        if new is None:
            return
        for files in {id(each): each for each in self._tls}.values():
            if files.use(new):
                self.relay.hub.counters.tls_reloads += 1
                logger.info("the certificate is %s now", files.certificate)

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


_FIXED: Final[dict[str, Callable[[ServerConfig], object]]] = {
    "http_bind_addr": lambda config: config.options.http,
    "tls, or tls.https_bind_addr": lambda config: config.options.https,
    "tls.cert_mode, or tls.reload_every_s": lambda config: config.options.reload_s,
    "enable_metrics, or metrics_bind_addr": lambda config: config.metrics,
    "enable_quic_addr_discovery, or tls.quic_bind_addr": lambda config: (
        config.qad.address if config.qad is not None else None
    ),
    "workers": lambda config: config.workers,
    "limits.accept_conn_limit, or its burst": lambda config: config.options.accept_rate,
    "limits.accept_per_address_limit, or its burst": lambda config: (
        config.options.accept_rate_per_address
    ),
    "limits.max_connections": lambda config: config.options.max_connections,
    "limits.max_unauthenticated": lambda config: config.options.max_unauthenticated,
}
"""What a running relay cannot change, by the keys that say it."""


def _not_applied(old: ServerConfig, new: ServerConfig) -> list[str]:
    """Return the keys whose change has to wait for a restart."""
    return [keys for keys, value in _FIXED.items() if value(old) != value(new)]


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
        BindError: an address cannot be used.
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
