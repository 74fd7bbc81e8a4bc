"""The discovery server's configuration in TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

import attrs

from dialkey.errors import DialkeyError, InvalidKey
from dialkey.identity import EndpointId
from dialkey_pkarr.errors import ServerConfigError
from dialkey_pkarr.server.server import Address, TlsFiles
from dialkey_pkarr.server.zone import Zone

__all__ = ["DEV", "ServerConfig", "load", "parse"]

T = TypeVar("T")

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


class _Table:
    """A TOML table from which keys are taken; what is left at the end nobody understood."""

    def __init__(self, values: Mapping[str, object], name: str = "") -> None:
        self._values = dict(values)
        self._known: list[str] = []
        self._name = name

    def error(self, key: str, message: str, hint: str | None = None) -> ServerConfigError:
        return ServerConfigError(f"{self.path(key)}: {message}", hint=hint)

    def path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def peek(self, key: str) -> object:
        return self._values.get(key)

    def take(self, key: str, kind: type[T], words: str) -> T | None:
        self._known.append(key)
        value = self._values.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, kind):
            raise self.error(key, f"is not {words}")
        return value

    def text(self, key: str) -> str | None:
        return self.take(key, str, "text")

    def texts(self, key: str) -> list[str] | None:
        values = self.take(key, list, "a list of texts")
        if values is not None and not all(isinstance(each, str) for each in values):
            raise self.error(key, "is not a list of texts")
        return values

    def table(self, key: str) -> _Table | None:
        values = self.take(key, dict, "a table")
        return _Table(values, self.path(key)) if values is not None else None

    def address(self, key: str, default: Address | None) -> Address | None:
        text = self.text(key)
        if text is None:
            return default
        if text == "off":
            return None
        host, colon, port = text.rpartition(":")
        digits = port.isascii() and port.isdigit() and len(port) <= 5
        if not colon or not host or not digits or int(port) > 65_535:
            raise self.error(key, f"{text!r} is not an address", "write it like [::]:443, or off")
        return host.strip("[]"), int(port)

    def done(self) -> None:
        for key in self._values:
            near = difflib.get_close_matches(key, self._known, n=1)
            raise self.error(
                key, "is unknown", f"did you mean {self.path(near[0])}?" if near else None
            )


def load(path: Path) -> ServerConfig:
    """Read and check a configuration file.

    Raises:
        ServerConfigError: it cannot be read or used; the message names the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ServerConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ServerConfigError(f"{path} is not UTF-8") from None
    try:
        return parse(text, folder=path.parent)
    except ServerConfigError as error:
        raise ServerConfigError(f"{path}: {error.message}", hint=error.hint) from None


def parse(text: str, *, folder: Path | None = None) -> ServerConfig:
    """Check a configuration.

    Args:
        folder: what relative paths in it are relative to.

    Raises:
        ServerConfigError: it cannot be used; the message names the key.
    """
    try:
        root = _Table(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ServerConfigError(f"the configuration is not TOML: {error}") from None
    folder = folder if folder is not None else Path()
    allowed = _access(root)
    origins = root.texts("origins")
    if not origins:
        raise root.error("origins", "missing: name the domains to answer for")
    try:
        zone = Zone(
            origins,
            nameservers=root.texts("nameservers") or (),
            hostmaster=root.text("hostmaster"),
            addresses=root.texts("addresses") or (),
        )
    except DialkeyError as error:
        raise ServerConfigError(
            f"origins, nameservers, hostmaster, addresses: {error.message}"
        ) from None
    tls, https = _tls(root, folder)
    http = root.address("http_bind_addr", ("::", 80))
    dns = root.address("dns_bind_addr", ("::", 53))
    metrics = root.address("metrics_bind_addr", ("127.0.0.1", 9117))
    if root.take("enable_metrics", bool, "true or false") is False:
        metrics = None
    store = root.text("store") or "records.sqlite3"
    if "://" in store:
        raise root.error("store", "a URL is not supported yet", "name a file, or memory")
    root.done()
    if http is None and https is None:
        raise root.error("http_bind_addr", "is off, and there is no [tls]: nobody could publish")
    path = None if store == "memory" else folder / store
    return ServerConfig(zone, allowed, path, dns, http, https, tls, metrics)


def _tls(root: _Table, folder: Path) -> tuple[TlsFiles | None, Address | None]:
    table = root.table("tls")
    if table is None:
        return None, None
    chain, key = table.text("manual_cert_path"), table.text("manual_key_path")
    https = table.address("https_bind_addr", ("::", 443))
    table.done()
    for name, value in (("manual_cert_path", chain), ("manual_key_path", key)):
        if value is None:
            raise table.error(name, "is missing")
    assert chain is not None
    assert key is not None
    files = TlsFiles(folder / chain, folder / key)
    files.check()
    return files, https


def _access(root: _Table) -> frozenset[EndpointId] | None:
    said = root.peek("access")
    if said is None:
        raise root.error(
            "access",
            "missing, so nobody may publish here",
            'an open server says access = "everyone"',
        )
    if isinstance(said, str):
        if root.text("access") != "everyone":
            raise root.error("access", 'is "everyone" or a table', "[access] allowlist says who")
        return None
    table = root.table("access")
    assert table is not None
    texts = table.texts("allowlist")
    table.done()
    if texts is None:
        raise table.error("allowlist", "is missing")
    try:
        return frozenset(EndpointId.parse(each) for each in texts)
    except InvalidKey as error:
        raise table.error("allowlist", error.message, error.hint) from None
