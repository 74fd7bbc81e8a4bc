"""The discovery server's configuration in TOML."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import attrs

from dialkey.configuration import Table, read, root_of
from dialkey.errors import DialkeyError
from dialkey.identity import EndpointId
from dialkey_pkarr.errors import ServerConfigError
from dialkey_pkarr.server.server import Address, TlsFiles
from dialkey_pkarr.server.zone import Zone

__all__ = ["DEV", "ServerConfig", "load", "parse"]

DEV: Final = """
access = "everyone"
origins = ["dns.dialkey.test"]
dns_bind_addr = "127.0.0.1:5300"
http_bind_addr = "127.0.0.1:8080"
enable_metrics = false
store = "memory"
"""
"""For trying out: nothing is kept, and nobody but this machine reaches it."""


@attrs.frozen
class ServerConfig:
    """What a configuration says.

    Attributes:
        allowed: keys whose records are taken, None for everybody's.
        store: the file of the database, None for memory.
    """

    zone: Zone
    allowed: frozenset[EndpointId] | None
    store: Path | None
    dns: Address | None
    http: Address | None
    https: Address | None
    tls: TlsFiles | None
    metrics: Address | None


def load(path: Path) -> ServerConfig:
    """Read and check a configuration file.

    Raises:
        ServerConfigError: it cannot be read or used; the message names the key.
    """
    return read(path, partial(parse, folder=path.parent), ServerConfigError)


def parse(text: str, *, folder: Path | None = None) -> ServerConfig:
    """Check a configuration.

    Args:
        folder: what relative paths in it are relative to.

    Raises:
        ServerConfigError: it cannot be used; the message names the key.
    """
    root = root_of(text, ServerConfigError)
    folder = folder if folder is not None else Path()
    allowed = _access(root)
    origins = root.strings("origins")
    if not origins:
        raise root.error("origins", "missing: name the domains to answer for")
    try:
        zone = Zone(
            origins,
            nameservers=root.strings("nameservers") or (),
            hostmaster=root.take("hostmaster", str),
            addresses=root.strings("addresses") or (),
        )
    except DialkeyError as error:
        raise ServerConfigError(
            f"origins, nameservers, hostmaster, addresses: {error.message}"
        ) from None
    tls, https = _tls(root, folder)
    http = _address(root, "http_bind_addr", ("::", 80))
    dns = _address(root, "dns_bind_addr", ("::", 53))
    metrics = _address(root, "metrics_bind_addr", ("127.0.0.1", 9117))
    if root.take("enable_metrics", bool) is False:
        metrics = None
    store = root.take("store", str) or "records.sqlite3"
    if "://" in store:
        raise root.error("store", "a URL is not supported yet", "name a file, or memory")
    root.done()
    if http is None and https is None:
        raise root.error("http_bind_addr", "is off, and there is no [tls]: nobody could publish")
    path = None if store == "memory" else folder / store
    return ServerConfig(zone, allowed, path, dns, http, https, tls, metrics)


def _address(table: Table, key: str, default: Address) -> Address | None:
    if table.peek(key) == "off":
        table.take(key, str)
        return None
    return table.address(key, default, "write it like [::]:443, or off")


def _tls(root: Table, folder: Path) -> tuple[TlsFiles | None, Address | None]:
    table = root.table("tls")
    if table is None:
        return None, None
    chain, key = table.take("manual_cert_path", str), table.take("manual_key_path", str)
    https = _address(table, "https_bind_addr", ("::", 443))
    table.done()
    for name, value in (("manual_cert_path", chain), ("manual_key_path", key)):
        if value is None:
            raise table.error(name, "is missing")
    assert chain is not None
    assert key is not None
    files = TlsFiles(folder / chain, folder / key)
    files.check()
    return files, https


def _access(root: Table) -> frozenset[EndpointId] | None:
    said = root.peek("access")
    if said is None:
        raise root.error(
            "access",
            "missing, so nobody may publish here",
            'an open server says access = "everyone"',
        )
    if isinstance(said, str):
        if root.take("access", str) != "everyone":
            raise root.error("access", 'is "everyone" or a table', "[access] allowlist says who")
        return None
    table = root.table("access")
    assert table is not None
    allowed = table.ids("allowlist")
    table.done()
    if allowed is None:
        raise table.error("allowlist", "is missing")
    return frozenset(allowed)
