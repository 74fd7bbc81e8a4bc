"""One DNS question to a few servers, over UDP and TCP: what to send when, and which answer to believe.

Sans-IO: `DnsQuery` is told the time, what came from which server, and what failed. It asks the first
server with a few datagrams at growing intervals, over TCP as well if that takes long or an answer is
truncated, and the next server if one fails or is slow. The first good answer wins; a server that reports
a failure (SERVFAIL, REFUSED) is abandoned for the next.

Source: RFC 1035, 5452, 6891 and 7766; docs/wire/discovery.md 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from dialkey_pkarr.limits import (
    DNS_TIMEOUT_S,
    EDNS_PAYLOAD_BYTES,
    MAX_DNS_SERVERS,
    NEXT_SERVER_S,
    TCP_AFTER_S,
    UDP_AT_S,
)

__all__ = ["AskByTcp", "DnsQuery", "SendDatagram"]

_ANSWERS: Final = frozenset({dns.rcode.NOERROR, dns.rcode.NXDOMAIN})
_MAX_ALIASES: Final = 8


@attrs.frozen
class SendDatagram:
    """Send this to a server from a new port, and listen there until the end."""

    server: str
    data: bytes


@attrs.frozen
class AskByTcp:
    """Ask a server over TCP, and report the message or the failure."""

    server: str
    data: bytes


class _Server:
    __slots__ = ("asks_tcp", "failed", "name", "sent", "started_at", "tcp_failed", "udp_done")

    def __init__(self, name: str) -> None:
        self.name = name
        self.started_at: float | None = None
        self.sent = 0
        self.udp_done = False
        self.asks_tcp = False
        self.tcp_failed = False
        self.failed = False


class DnsQuery:
    """See the module.

    Args:
        name: what is asked for; TXT.
        servers: names of servers, in order, which mean something to the caller.
        id: random 16 bits.
        now: any clock, seconds.
    """

    def __init__(self, name: dns.name.Name, servers: Sequence[str], id: int, now: float) -> None:
        self._query = dns.message.make_query(
            name, dns.rdatatype.TXT, use_edns=0, payload=EDNS_PAYLOAD_BYTES, id=id
        )
        self._wire = self._query.to_wire()
        self._servers = [_Server(each) for each in servers[:MAX_DNS_SERVERS]]
        self._ends_at = now + DNS_TIMEOUT_S
        self._actions: list[SendDatagram | AskByTcp] = []
        self.errors: list[str] = []
        self.ignored = 0
        self.answer: dns.message.Message | None = None
        self.is_over = False
        if not self._servers:
            self.errors.append("no DNS server is configured on this machine")
            self.is_over = True
        else:
            self._start(self._servers[0], now)

    # --- what to do -----------------------------------------------------------------------------

    def take_actions(self) -> list[SendDatagram | AskByTcp]:
        """Return what is to be sent now."""
        actions, self._actions = self._actions, []
        return actions

    def timer(self) -> float:
        """Return when `on_timer` wants to be called."""
        times = [self._ends_at]
        for number, server in enumerate(self._servers):
            if server.started_at is None:
                if number:
                    before = self._servers[number - 1].started_at
                    if before is not None:
                        times.append(before + NEXT_SERVER_S)
                continue
            if server.failed:
                continue
            if not server.udp_done and server.sent < len(UDP_AT_S):
                times.append(server.started_at + UDP_AT_S[server.sent])
            if not server.asks_tcp:
                times.append(server.started_at + TCP_AFTER_S)
        return min(times)

    def on_timer(self, now: float) -> None:
        """Do what is due."""
        if self.is_over:
            return
        for number, server in enumerate(self._servers):
            if server.started_at is None:
                before = self._servers[number - 1].started_at if number else None
                if before is not None and now >= before + NEXT_SERVER_S:
                    self._start(server, now)
            elif not server.failed:
                self._go_on(server, now)
        if now >= self._ends_at and not self.is_over:
            silent = [
                each.name
                for each in self._servers
                if each.started_at is not None and not each.failed
            ]
            self.errors.append(f"no answer from {' and '.join(silent)} in {DNS_TIMEOUT_S:g} s")
            self.is_over = True

    def _start(self, server: _Server, now: float) -> None:
        server.started_at = now
        self._go_on(server, now)

    def _go_on(self, server: _Server, now: float) -> None:
        assert server.started_at is not None
        # Sums as in `timer`: a difference may round the other way, and nothing would be due.
        while (
            not server.udp_done
            and server.sent < len(UDP_AT_S)
            and now >= server.started_at + UDP_AT_S[server.sent]
        ):
            server.sent += 1
            self._actions.append(SendDatagram(server.name, self._wire))
        if now >= server.started_at + TCP_AFTER_S:
            self._ask_by_tcp(server)

    def _ask_by_tcp(self, server: _Server) -> None:
        if not server.asks_tcp:
            server.asks_tcp = True
            self._actions.append(AskByTcp(server.name, self._wire))

    # --- what happened --------------------------------------------------------------------------

    def on_message(self, server: str, data: bytes, now: float, *, by_tcp: bool = False) -> None:
        """Process what came from the address of a server to a port from which it was asked.

        What does not answer this question is counted in `ignored`, and waiting continues.
        """
        asked = next((each for each in self._servers if each.name == server), None)
        if self.is_over or asked is None or asked.started_at is None:
            self.ignored += 1
            return
        try:
            message = dns.message.from_wire(data, ignore_trailing=True)
            is_ours = self._query.is_response(message)
        except (dns.exception.DNSException, ValueError):
            is_ours = False
        if not is_ours:
            self.ignored += 1
            return
        rcode = message.rcode()
        if rcode == dns.rcode.FORMERR and self._query.edns >= 0:
            # It does not know EDNS, so ask without it, the other servers as well.
            self._query.use_edns(False)
            self._wire = self._query.to_wire()
            asked.sent, asked.udp_done, asked.asks_tcp, asked.tcp_failed = 0, False, False, False
            self._start(asked, now)
        elif message.flags & dns.flags.TC and not by_tcp:
            asked.udp_done = True
            self._ask_by_tcp(asked)
        elif rcode in _ANSWERS:
            self.answer = message
            self.is_over = True
        else:
            self._fail(asked, f"{server} answered {dns.rcode.to_text(rcode)}", now)

    def on_unreachable(self, server: str, reason: str, now: float, *, by_tcp: bool) -> None:
        """Note that a server cannot be reached in one of the two ways."""
        asked = next((each for each in self._servers if each.name == server), None)
        if self.is_over or asked is None or asked.failed:
            return
        if by_tcp:
            asked.tcp_failed = True
        else:
            asked.udp_done = True
        if asked.udp_done and asked.tcp_failed:
            self._fail(asked, f"{server}: {reason}", now)
        elif not by_tcp:
            self._ask_by_tcp(asked)

    def _fail(self, server: _Server, reason: str, now: float) -> None:
        if server.failed:
            return
        server.failed = True
        self.errors.append(reason)
        waiting = [each for each in self._servers if each.started_at is None]
        if waiting:
            self._start(waiting[0], now)
        elif all(each.failed for each in self._servers):
            self.is_over = True

    # --- the answer -----------------------------------------------------------------------------

    def strings(self) -> list[bytes]:
        """Return the TXT strings of the name that was asked for, along aliases inside the answer."""
        if self.answer is None:
            return []
        name = self._query.question[0].name
        for _ in range(_MAX_ALIASES):
            found = self._rrset(name, dns.rdatatype.TXT)
            if found is not None:
                return [b"".join(rdata.strings) for rdata in found]
            alias = self._rrset(name, dns.rdatatype.CNAME)
            if alias is None:
                return []
            name = alias[0].target
        return []

    def _rrset(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.rrset.RRset | None:
        assert self.answer is not None
        return self.answer.get_rrset(self.answer.answer, name, dns.rdataclass.IN, kind)
