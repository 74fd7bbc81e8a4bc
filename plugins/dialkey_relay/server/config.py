"""The relay's configuration in TOML.

Keys that iroh's relay has keep their names and meaning, so that a file can be reused; what such a file
asks for and we cannot do is an error, not silence. Two defaults differ: who may use the relay has to be
stated, and metrics are served to this machine only.

Source: docs/wire/relay.md 4.7 and 4.8.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from dialkey.configuration import Table, read, root_of
from dialkey.errors import DialkeyError
from dialkey.limits import MAX_RELAY_UNAUTHENTICATED
from dialkey_relay.access import (
    AccessRule,
    AllowList,
    DenyList,
    Everyone,
    GrantRule,
    SharedTokens,
)
from dialkey_relay.errors import RelayConfigError
from dialkey_relay.grants import DEFAULT_MAX_LIFETIME_S, GrantVerifier, Revocations
from dialkey_relay.rates import Rate
from dialkey_relay.server.callout import HttpCallout
from dialkey_relay.server.server import (
    ACCEPT_RATE,
    ACCEPT_RATE_PER_ADDRESS,
    RELOAD_CHECK_S,
    Address,
    RelayOptions,
)
from dialkey_relay.server.tls import TlsFiles

__all__ = ["QadConfig", "ServerConfig", "load", "parse"]

ACCESS_TOKEN_VARIABLES: Final = ("DIALKEY_RELAY_ACCESS_TOKEN", "IROH_RELAY_ACCESS_TOKEN")
CALLOUT_TOKEN_VARIABLES: Final = (
    "DIALKEY_RELAY_HTTP_BEARER_TOKEN",
    "IROH_RELAY_HTTP_BEARER_TOKEN",
)
DEV_PORT: Final = 3340
QAD_PORT: Final = 7842
METRICS_PORT: Final = 9090
UNLIMITED: Final = "unlimited"
MAX_WORKERS: Final = 64
"""Each has a stream to each other one."""


@attrs.frozen
class QadConfig:
    """Where QUIC address discovery listens (UDP), and with which certificate."""

    address: Address
    tls: TlsFiles


@attrs.frozen
class ServerConfig:
    """What a configuration says.

    Attributes:
        options: for `RelayServer`.
        rules: who may use it.
        metrics: where metrics are served, or None.
        needs_metrics: whether the file itself says where: then the relay does not run without them.
        qad: QUIC address discovery, or None.
        workers: processes that share the port.
        files: whose changes make the configuration worth reading again.
    """

    options: RelayOptions
    rules: tuple[AccessRule, ...]
    metrics: Address | None
    needs_metrics: bool
    qad: QadConfig | None
    workers: int
    files: tuple[Path, ...]


def load(path: str | Path, *, dev: bool = False) -> ServerConfig:
    """Read and check a configuration file.

    Args:
        dev: plain HTTP on port 3340 even where TLS is configured.

    Raises:
        RelayConfigError: it cannot be read or used; the message names the key.
    """
    path = Path(path)
    config = read(path, partial(parse, dev=dev, folder=path.parent), RelayConfigError)
    return attrs.evolve(config, files=(path, *config.files))


def parse(
    text: str,
    *,
    dev: bool = False,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerConfig:
    """Check a configuration.

    Args:
        dev: plain HTTP on port 3340 even where TLS is configured.
        folder: what relative paths in it are relative to.
        environment: variables that replace tokens; the process's own if None.

    Raises:
        RelayConfigError: it cannot be used; the message names the key.
    """
    root = root_of(text, RelayConfigError)
    environment = os.environ if environment is None else environment
    folder = folder if folder is not None else Path()
    root.take("key_cache_capacity", int)  # ours keeps no such cache
    if root.take("enable_relay", bool) is False:
        raise root.error("enable_relay", "a relay that does not relay is not supported")
    rules, files = _access(root, folder, environment)
    tls = _tls(root, folder)
    http = root.address("http_bind_addr", ("127.0.0.1", DEV_PORT) if dev else ("::", 80))
    metrics_on = root.take("enable_metrics", bool) is not False
    needs_metrics = "metrics_bind_addr" in root
    metrics = root.address("metrics_bind_addr", ("127.0.0.1", METRICS_PORT))
    wants_qad = root.take("enable_quic_addr_discovery", bool) or False
    workers = root.positive("workers") or 1
    if workers > MAX_WORKERS:
        raise root.error("workers", f"are {MAX_WORKERS} at most", "one for each core is enough")
    limits = _limits(root.table("limits") or Table({}, RelayConfigError, "limits"))
    root.done()
    if wants_qad and tls is None:
        raise root.error("enable_quic_addr_discovery", "needs [tls]: QUIC has no other mode")
    https = (tls.https or (http[0], 443)) if tls is not None and not dev else None
    options = RelayOptions(
        http=http,
        https=https,
        tls=tls.files if tls is not None and https is not None else None,
        reload_s=tls.reload_s if tls is not None and https is not None else None,
        reuse_port=workers > 1,
        client_rate=limits.client_rate,
        accept_rate=limits.accept_rate,
        accept_rate_per_address=limits.accept_rate_per_address,
        max_connections=limits.max_connections,
        max_unauthenticated=limits.max_unauthenticated,
    )
    qad: QadConfig | None = None
    if wants_qad and tls is not None:
        qad = QadConfig(tls.quic or ((https or http)[0], QAD_PORT), tls.files)
    return ServerConfig(
        options=options,
        rules=rules,
        metrics=metrics if metrics_on else None,
        needs_metrics=needs_metrics,
        qad=qad,
        workers=workers,
        files=files,
    )


# --- TLS ----------------------------------------------------------------------------------------


@attrs.frozen
class _Tls:
    files: TlsFiles
    https: Address | None
    quic: Address | None
    reload_s: float | None


def _tls(root: Table, folder: Path) -> _Tls | None:
    table = root.table("tls")
    if table is None:
        return None
    mode = table.take("cert_mode", str)
    if mode not in ("Manual", "Reloading"):
        raise table.error(
            "cert_mode",
            "has to be Manual or Reloading",
            "let an ACME client such as certbot or lego write the files, and use Reloading"
            if mode == "LetsEncrypt"
            else None,
        )
    directory = folder / (table.take("cert_dir", str) or ".")
    chain = table.take("manual_cert_path", str)
    key = table.take("manual_key_path", str)
    https = table.address("https_bind_addr", ("", 0)) if "https_bind_addr" in table else None
    quic = table.address("quic_bind_addr", ("", 0)) if "quic_bind_addr" in table else None
    reload_s = table.positive("reload_every_s") or RELOAD_CHECK_S
    for unused in ("hostname", "contact", "prod_tls"):
        if unused in table:
            raise table.error(unused, "only matters for LetsEncrypt, which is not supported here")
    table.done()
    files = TlsFiles(
        folder / chain if chain is not None else directory / "default.crt",
        folder / key if key is not None else directory / "default.key",
    )
    return _Tls(files, https, quic, reload_s if mode == "Reloading" else None)


# --- limits -------------------------------------------------------------------------------------


@attrs.frozen
class _Limits:
    client_rate: Rate | None
    accept_rate: Rate | None
    accept_rate_per_address: Rate | None
    max_connections: int | None
    max_unauthenticated: int


def _limits(table: Table) -> _Limits:
    client = table.table("client")
    rate = None
    if client is not None:
        rate = _client_rate(client)
        client.done()
    limits = _Limits(
        rate,
        _event_rate(table, "accept_conn_limit", "accept_conn_burst", ACCEPT_RATE),
        _event_rate(
            table, "accept_per_address_limit", "accept_per_address_burst", ACCEPT_RATE_PER_ADDRESS
        ),
        table.positive("max_connections"),
        table.positive("max_unauthenticated") or MAX_RELAY_UNAUTHENTICATED,
    )
    table.done()
    return limits


def _client_rate(client: Table) -> Rate | None:
    if isinstance(client.peek("rx"), str):
        if client.take("rx", str) != UNLIMITED:
            raise client.error("rx", f'is a table or "{UNLIMITED}"')
        return None
    rx = client.table("rx")
    if rx is None:
        return None
    rate, burst = rx.positive("bytes_per_second"), rx.positive("max_burst_bytes")
    rx.done()
    if rate is None:
        raise rx.error("bytes_per_second", "is missing")
    if rate < 10:
        raise rx.error("bytes_per_second", "has to be at least 10")
    return Rate.of_bytes(rate, burst)


def _event_rate(table: Table, limit_key: str, burst_key: str, default: Rate) -> Rate | None:
    if isinstance(table.peek(limit_key), str):
        if table.take(limit_key, str) != UNLIMITED or table.take(burst_key, int) is not None:
            raise table.error(limit_key, f'is a number, or "{UNLIMITED}" without a burst')
        return None
    limit = table.number(limit_key)
    burst = table.take(burst_key, int)
    if limit is None and burst is None:
        return default
    if limit is None or limit <= 0 or (burst is not None and burst < 1):
        raise table.error(limit_key, "has to be above 0, as has the burst")
    return Rate(limit, burst if burst is not None else max(1, 4 * limit))


# --- access -------------------------------------------------------------------------------------


def _first(environment: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _access(
    root: Table, folder: Path, environment: Mapping[str, str]
) -> tuple[tuple[AccessRule, ...], tuple[Path, ...]]:
    if "access" not in root:
        raise root.error(
            "access",
            "missing, so nobody may use this relay",
            'write access = "everyone" for an open relay, or [access.grants] for an app',
        )
    if isinstance(root.peek("access"), str):
        if root.take("access", str) != "everyone":
            raise root.error(
                "access",
                'is "everyone" or a table',
                "[access] allowlist, denylist, shared_token, grants or http say who",
            )
        return (Everyone(),), ()
    table = root.table("access")
    assert table is not None
    rules: list[AccessRule] = []
    files: list[Path] = []
    denied = table.ids("denylist")
    if denied is not None:
        rules.append(DenyList(denied))
    allowed = table.ids("allowlist")
    if allowed is not None:
        rules.append(AllowList(allowed))
    tokens = table.strings("shared_token")
    replaced = _first(environment, ACCESS_TOKEN_VARIABLES)
    if tokens is not None:
        tokens = [replaced] if replaced is not None else tokens
        if not tokens or not all(tokens):
            raise table.error("shared_token", "is empty, or one of the tokens is")
        rules.append(SharedTokens(tokens))
    grants = table.table("grants")
    if grants is not None:
        rules.append(_grants(grants, folder, files))
    callout = table.table("http")
    if callout is not None:
        rules.append(_callout(callout, environment))
    table.done()
    if not rules:
        raise root.error("access", "names no rule", 'an open relay says access = "everyone"')
    return tuple(rules), tuple(files)


def _grants(table: Table, folder: Path, files: list[Path]) -> GrantRule:
    issuers = table.ids("issuers")
    if not issuers:
        raise table.error("issuers", "has to name the keys that sign grants")
    lifetime = table.positive("max_lifetime_s") or DEFAULT_MAX_LIFETIME_S
    listed = table.take("revocations", str)
    table.done()
    revocations = Revocations()
    if listed is not None:
        path = folder / listed
        files.append(path)
        try:
            revocations = Revocations.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise table.error("revocations", f"{path} cannot be read: {error.strerror}") from None
        except DialkeyError as error:
            raise table.error("revocations", error.message) from None
    verifier = GrantVerifier(issuers, revocations=revocations, max_lifetime_s=lifetime)
    return GrantRule(verifier, time.time)


def _callout(table: Table, environment: Mapping[str, str]) -> HttpCallout:
    url = table.take("url", str)
    token = table.take("bearer_token", str)
    replaced = _first(environment, CALLOUT_TOKEN_VARIABLES)
    table.done()
    if url is None:
        raise table.error("url", "is missing")
    return HttpCallout(url, replaced if replaced is not None else token)
