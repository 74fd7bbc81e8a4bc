"""Which HTTP proxy leads to a server, as the environment or the application says."""

from __future__ import annotations

import base64
import ipaddress
import re
import urllib.parse
import urllib.request

import attrs
import idna

from dialkey.errors import InvalidInput

__all__ = ["HttpProxy", "from_environment", "is_exempt"]


def from_environment(host: str, port: int, *, is_tls: bool) -> str | None:
    """Return the proxy that the environment names for a server (``HTTPS_PROXY`` …), or None."""
    proxies = urllib.request.getproxies()
    if "no" in proxies:
        if is_exempt(host, port, proxies["no"]):
            return None
    elif urllib.request.proxy_bypass(host):
        # The settings of a desktop, where the environment says nothing.
        return None
    schemes = ("https", "http") if is_tls else ("http", "https")
    return next((proxies[scheme] for scheme in schemes if scheme in proxies), None)


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Return whether ``NO_PROXY`` names a server.

    Args:
        host: its name or address.
        port: TCP port.
        no_proxy: separated by commas or spaces: ``*`` for all; a name, which means all names under
            it, too; an address; a network such as ``10.0.0.0/8``. All but a network may have a port.
    """
    return any(_matches(host, port, each) for each in re.split(r"[,\s]+", no_proxy) if each)


def _matches(target_host: str, target_port: int, entry: str) -> bool:
    if entry == "*":
        return True
    host, port = _split_port(entry)
    if port is not None and port != target_port:
        return False
    address = _address(target_host)
    if address is not None:
        try:
            network = ipaddress.ip_network(host.partition("%")[0], strict=False)
        except ValueError:
            return False
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= 96:
            network = ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
        return address.version == network.version and address in network
    name = _name(host.removeprefix("*").lstrip("."))
    found = _name(target_host)
    return name != "" and (found == name or found.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    """Take a port off; an IPv6 address has colons itself, and needs brackets before a port."""
    host, colon, port = entry.rpartition(":")
    has_port = colon and port.isascii() and port.isdigit()
    if not has_port or (":" in host and not host.endswith("]")):
        host, port = entry, ""
    bare, bracket, rest = host.removeprefix("[").partition("]")
    # "[fd00::]/8" is seen as well as "[fd00::/8]".
    return (bare + rest if bracket else host), int(port) if port else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped if mapped is not None else address


def _name(host: str) -> str:
    """Return a name as it is compared: as the DNS has it, in lower case, without a final dot."""
    name = host.removesuffix(".").lower()
    if name.isascii():
        return name
    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError:
        return name


@attrs.frozen
class HttpProxy:
    """A proxy that allows CONNECT.

    Attributes:
        host: its name or address.
        port: TCP port.
        is_tls: whether to speak TLS with it.
        authorization: the value of the header that it wants, or None.
    """

    host: str
    port: int
    is_tls: bool
    authorization: str | None = attrs.field(repr=False)

    @classmethod
    def parse(cls, text: str) -> HttpProxy:
        """Take a URL apart; without a scheme it is ``http://``.

        Raises:
            InvalidInput: it is not the URL of an HTTP proxy.
        """
        try:
            parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port
        except ValueError:
            # Not the text: it may hold a password.
            raise InvalidInput(
                "the proxy is not a URL", hint="write it like http://user:password@host:port"
            ) from None
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise InvalidInput(
                f"a proxy with scheme {parts.scheme!r} is not supported",
                hint="give an http:// or https:// proxy that allows CONNECT",
            )
        is_tls = parts.scheme == "https"
        authorization = None
        if parts.username is not None:
            user = urllib.parse.unquote(parts.username)
            password = urllib.parse.unquote(parts.password or "")
            encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
            authorization = f"Basic {encoded}"
        return cls(parts.hostname, port or (443 if is_tls else 80), is_tls, authorization)
