"""Running a discovery server from a configuration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator

from dialkey.errors import DialkeyError
from dialkey_pkarr.server.config import ServerConfig
from dialkey_pkarr.server.server import DiscoveryServer
from dialkey_pkarr.server.store import MemoryStore, RecordStore, SqliteStore

__all__ = ["reload", "serve"]

logger = logging.getLogger("dialkey.dns")


def _server(config: ServerConfig) -> DiscoveryServer:
    store: RecordStore = MemoryStore() if config.store is None else SqliteStore(config.store)
    return DiscoveryServer(
        store,
        config.zone,
        dns=config.dns,
        http=config.http,
        https=config.https,
        tls=config.tls,
        metrics=config.metrics,
        allowed=config.allowed,
    )


def reload(
    server: DiscoveryServer, config: ServerConfig, read: Callable[[], ServerConfig]
) -> ServerConfig:
    """Read the configuration again, and apply origins, access and certificate.

    Returns:
        The configuration in use; the old one if the new one cannot be used.
    """
    try:
        new = read()
        server.use(new.zone, new.allowed, new.tls)
    except DialkeyError as error:
        logger.error("the changed configuration is not used: %s", error)
        return config
    for name in ("store", "dns", "http", "https", "metrics"):
        if getattr(new, name) != getattr(config, name):
            logger.warning("the change of %s needs a restart", name)
    logger.info("the configuration was read again")
    return new


@contextlib.contextmanager
def _on_hangup(work: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, work)
    except (AttributeError, NotImplementedError):  # Windows
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def serve(
    read: Callable[[], ServerConfig], announce: Callable[[DiscoveryServer], None]
) -> None:
    """Run a discovery server until cancelled. What it has accepted is kept.

    Args:
        read: reads the configuration; called again on SIGHUP.
        announce: called when it listens.

    Raises:
        ServerConfigError: the configuration cannot be used.
        StoreFailed: the database cannot be opened.
        BindError: an address cannot be had.
    """
    config = read()

    async with _server(config) as server:

        def hang_up() -> None:
            nonlocal config
            config = reload(server, config, read)

        with _on_hangup(hang_up):
            announce(server)
            await asyncio.Event().wait()
