"""When to ask, to answer and to announce. Sans-IO: datagrams and time in, datagrams and news out.

A machine has *links*: an interface with one family of addresses each, where it asks and answers for
itself. Of three kinds of messages there are no more than these:

* An endpoint *announces* itself when it comes, when something about it changes, and on new links, thrice.
* It *asks* for all when it comes, and in a network in which nobody else has asked for `REFRESH_S`: one
  question serves everybody. Who is looked for is asked for at once, by id, then less and less often.
* It *answers* a question for itself within a tenth of a second, and one for all as often as it takes to
  stay known: the more endpoints, the less often each. So 50 of them that are asked all the time, as
  iroh's do, send three answers a second together.

Source: docs/wire/discovery.md 9.1; RFC 6762 sections 5 to 8, 10 and 11.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterable

import attrs

from dialkey.allowance import Allowance
from dialkey.endpoint import EndpointInfo
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, TransportAddr
from dialkey_mdns import messages
from dialkey_mdns.book import Book, Entry
from dialkey_mdns.errors import InvalidMessage
from dialkey_mdns.limits import (
    ANNOUNCEMENTS_AT_S,
    ANSWER_AGAIN_PER_PEER_S,
    ANSWER_AGAIN_S,
    ANSWER_WITHIN_S,
    DATAGRAMS_BURST,
    DATAGRAMS_PER_S,
    DEFENCES_BURST,
    DEFENCES_PER_S,
    FRESH_S,
    MAX_KNOWN_SOURCES,
    QUIET_ANSWER_AGAIN_S,
    REFRESH_S,
    SEARCH_AT_S,
    SEARCH_MOST_S,
    SENDS_BURST,
    SENDS_PER_S,
    SOURCE_DATAGRAMS_BURST,
    SOURCE_DATAGRAMS_PER_S,
)

__all__ = ["Link", "Machine", "Network", "Send"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Link:
    """An interface with the addresses of one family.

    Attributes:
        name: such as "eth0".
        index: the number that the system gives the interface.
        family: 4 or 6.
        networks: the networks that it is in; who sends from elsewhere is not heard.
        is_loopback: whether it leads nowhere but to this machine.
        address: one of this machine there, which IPv4 sends from; IPv6 finds one itself.
    """

    name: str
    index: int
    family: int
    networks: tuple[Network, ...] = ()
    is_loopback: bool = False
    address: str = ""

    def reaches(self, source: str) -> bool:
        """Whether an address is one of this link."""
        try:
            ip = ipaddress.ip_address(source.partition("%")[0])
        except ValueError:
            return False
        return any(ip in network for network in self.networks)


@attrs.frozen
class Send:
    """A datagram to all on one link."""

    link: Link
    data: bytes


class _OnLink:
    """What happens on one link."""

    def __init__(self, link: Link, now: float) -> None:
        self.link = link
        self.reads = Allowance(DATAGRAMS_BURST, DATAGRAMS_PER_S, now)
        self.sends = Allowance(SENDS_BURST, SENDS_PER_S, now)
        self.announce_at: list[float] = []
        self.answer_at = math.inf
        self.answered_at = -math.inf
        self.refresh_at = math.inf

    def timer(self) -> float:
        return min(self.answer_at, self.refresh_at, *self.announce_at[:1])


@attrs.define
class _Search:
    """Somebody looks for an endpoint.

    Attributes:
        users: how many do.
        times: when to ask for it; then at intervals that double.
    """

    users: int
    times: list[float]
    pause_s: float = SEARCH_AT_S[-1]

    def next(self, now: float) -> None:
        self.times = [each for each in self.times if each > now]
        if not self.times:
            self.pause_s = min(2 * self.pause_s, SEARCH_MOST_S)
            self.times = [now + self.pause_s]


class Machine:
    """Finds others in the local network, and lets them find one endpoint.

    Args:
        id: of the endpoint, which is not news to itself.
        now: the time in seconds, of any clock; that of all later calls.
        chance: a random number between two.
        announces: whether others find it.
        is_quiet: whether it saves battery: it asks only for whom somebody looks, and answers questions
            for all less often.
    """

    def __init__(
        self,
        id: EndpointId,
        now: float,
        chance: Callable[[float, float], float],
        *,
        announces: bool = True,
        is_quiet: bool = False,
    ) -> None:
        self._id = id
        self._now = now
        self._chance = chance
        self._announces = announces
        self._is_quiet = is_quiet
        self._links: dict[Link, _OnLink] = {}
        self._own: frozenset[str] = frozenset()
        self._label = messages.label_of(id)
        self._response: bytes | None = None
        self._said: tuple[messages.Claim, ...] = ()  # what others read in that
        self._defences = Allowance(DEFENCES_BURST, DEFENCES_PER_S, now)
        self._book = Book()
        self._searches: dict[EndpointId, _Search] = {}
        self._sources: dict[str, Allowance] = {}
        self._sends: list[Send] = []
        self._news: dict[EndpointId, None] = {}
        self._closed = False
        self.dropped = 0
        """Datagrams that were not read: too many, malformed, or from elsewhere."""

    # --- what the application wants --------------------------------------------------------------

    @property
    def links(self) -> list[Link]:
        """Where it listens."""
        return list(self._links)

    @property
    def is_announced(self) -> bool:
        """Whether others in some network were told of us as we are now."""
        return self._response is not None and any(
            len(each.announce_at) < len(ANNOUNCEMENTS_AT_S)
            for each in self._links.values()
            if not each.link.is_loopback
        )

    def publish(self, info: EndpointInfo, now: float) -> None:
        """Announce this from now on."""
        if not self._announces or self._closed:
            return
        response = messages.response(info)
        if response == self._response:
            return
        if response is None:
            self._say_goodbye()
        self._response = response
        self._said = messages.read(response).claims if response is not None else ()
        for each in self._links.values():
            self._announce(each, now)

    def set_links(self, links: Iterable[Link], now: float) -> None:
        """Take these links and no others; new ones are announced to."""
        wanted = dict.fromkeys(links)
        self._own = frozenset(each.address for each in wanted)
        self._links = {link: each for link, each in self._links.items() if link in wanted}
        for link in wanted:
            if link not in self._links and not self._closed:
                each = self._links[link] = _OnLink(link, now)
                self._announce(each, now)
                if not self._is_quiet:
                    each.refresh_at = now + self._chance(0, ANSWER_WITHIN_S)
        for search in self._searches.values():
            # Whoever is looked for may be there.
            search.times.insert(0, now)

    def search(self, id: EndpointId, now: float) -> None:
        """Ask for an endpoint until `end_search` was called as often as this."""
        search = self._searches.get(id)
        if search is not None:
            search.users += 1
            return
        times = [now + each for each in SEARCH_AT_S]
        heard_at = max((each.heard_at for each in self._book.of(id)), default=-math.inf)
        if heard_at > now - FRESH_S:
            times = [heard_at + SEARCH_MOST_S]
        self._searches[id] = _Search(1, times)

    def end_search(self, id: EndpointId) -> None:
        """Say that somebody who called `search` looks no more."""
        search = self._searches[id]
        search.users -= 1
        if not search.users:
            del self._searches[id]

    def entries(self, id: EndpointId) -> list[Entry]:
        """Return what is known of an endpoint."""
        return self._book.of(id)

    @property
    def known(self) -> int:
        """How many endpoints are known."""
        return len(self._book)

    def close(self) -> None:
        """Say goodbye; nothing is sent after that."""
        if not self._closed:
            self._say_goodbye()
            self._closed = True

    def _say_goodbye(self) -> None:
        if self._response is not None:
            data = messages.goodbye(self._id)
            self._sends += [Send(link, data) for link in self._links]

    # --- what arrives ----------------------------------------------------------------------------

    def on_datagram(self, link: Link, source: str, data: bytes, now: float) -> None:
        """Read a datagram that arrived on a link."""
        if not messages.concerns(data, self._label):
            return
        on_link = self._links.get(link)
        if on_link is None or not self._may_read(on_link, source, now):
            self.dropped += 1
            return
        try:
            message = messages.read(data)
        except InvalidMessage:
            self.dropped += 1
            return
        if message.is_response:
            for claim in message.claims:
                self._on_claim(claim, on_link, source, now)
        else:
            self._on_query(message, on_link, now)

    def _may_read(self, on_link: _OnLink, source: str, now: float) -> bool:
        if not on_link.link.reaches(source):
            return False
        allowance = self._sources.pop(source, None)
        if allowance is None:
            allowance = Allowance(SOURCE_DATAGRAMS_BURST, SOURCE_DATAGRAMS_PER_S, now)
            while len(self._sources) >= MAX_KNOWN_SOURCES:
                del self._sources[next(iter(self._sources))]
        self._sources[source] = allowance
        return allowance.take(now) and on_link.reads.take(now)

    def _on_claim(self, claim: messages.Claim, on_link: _OnLink, source: str, now: float) -> None:
        id = claim.info.id
        if id == self._id:
            # Nobody else can say that we go, and who says something else of us is contradicted.
            is_wrong = claim not in self._said and self._defences.take(now)
            if self._response is not None and (claim.said_goodbye or is_wrong):
                self._answer(on_link, now)
            return
        if claim.said_goodbye:
            self._book.goes(id, source, now)
            return
        info = _believable(claim.info, from_here=source in self._own)
        if info is None:
            return
        if self._book.hear(info, source, now, self._searches):
            self._news[id] = None
        if id in self._searches:
            # Once more, as it may have been a liar that was heard.
            del self._searches[id].times[:-1]

    def _on_query(self, message: messages.Message, on_link: _OnLink, now: float) -> None:
        asks_all = asks_us = False
        mine = messages.instance_name(self._id)
        for question in message.questions:
            if question.name == messages.SERVICE:
                asks_all |= question.type in (messages.PTR, messages.ANY)
            else:
                asks_us |= question.name == mine or messages.is_host_of(self._id, question.name)
        if asks_all:
            # Its answers are for everybody.
            on_link.refresh_at = self._refresh_at(on_link, now)
        if self._response is None:
            return
        if asks_us:
            self._answer(on_link, now)
        elif asks_all and self._label not in message.known:
            again_s = QUIET_ANSWER_AGAIN_S if self._is_quiet else ANSWER_AGAIN_S
            again_s = max(again_s, ANSWER_AGAIN_PER_PEER_S * (self.known + 1))
            if now - on_link.answered_at >= again_s * self._chance(0.8, 1.2):
                self._answer(on_link, now)

    def _answer(self, on_link: _OnLink, now: float) -> None:
        soon = now + self._chance(0.02, ANSWER_WITHIN_S)
        at = max(soon, on_link.answered_at + ANSWER_AGAIN_S)
        on_link.answer_at = min(on_link.answer_at, at)

    def _announce(self, on_link: _OnLink, now: float) -> None:
        if self._response is not None:
            on_link.announce_at = [now + each for each in ANNOUNCEMENTS_AT_S]

    def _refresh_at(self, on_link: _OnLink, now: float) -> float:
        # Whoever has IPv4 there, too, is found by that.
        twin = on_link.link.family == 6 and any(
            each.index == on_link.link.index and each.family == 4 for each in self._links
        )
        if twin or self._is_quiet:
            return math.inf
        return now + REFRESH_S * self._chance(0.9, 1.1)

    # --- time ------------------------------------------------------------------------------------

    def timer(self) -> float:
        """Return when `on_timer` is due; infinity for never."""
        if self._closed:
            return math.inf
        times = [each.timer() for each in self._links.values()]
        times += [each.times[0] for each in self._searches.values()] if self._links else []
        return min([*times, self._book.timer()])

    def on_timer(self, now: float) -> None:
        """Do what is due. May be called at any time."""
        if self._closed:
            return
        for id in self._book.expire(now):
            self._news[id] = None
        for each in self._links.values():
            self._on_link_timer(each, now)
        if self._links:
            self._search_on(now)

    def _on_link_timer(self, on_link: _OnLink, now: float) -> None:
        if on_link.announce_at and on_link.announce_at[0] <= now:
            on_link.announce_at = [each for each in on_link.announce_at if each > now]
            on_link.answer_at = now
        if on_link.answer_at <= now:
            on_link.answer_at = math.inf
            if self._response is not None and self._send(on_link, self._response, now):
                on_link.answered_at = now
        if on_link.refresh_at <= now:
            on_link.refresh_at = self._refresh_at(on_link, now)
            self._send(on_link, messages.query(), now)

    def _search_on(self, now: float) -> None:
        for id, search in self._searches.items():
            if search.times[0] > now:
                continue
            search.next(now)
            question = messages.query(id)
            for each in self._links.values():
                self._send(each, question, now)

    def _send(self, on_link: _OnLink, data: bytes, now: float) -> bool:
        if not on_link.sends.take(now):
            return False
        self._sends.append(Send(on_link.link, data))
        return True

    # --- what comes of it ------------------------------------------------------------------------

    def take_sends(self) -> list[Send]:
        """Return what is to be sent now."""
        sends, self._sends = self._sends, []
        return sends

    def take_news(self) -> list[EndpointId]:
        """Return the endpoints of which something new is known, or nothing any more."""
        news, self._news = list(self._news), {}
        return news


def _believable(info: EndpointInfo, *, from_here: bool) -> EndpointInfo | None:
    """Leave out addresses that lead somewhere else from here: loopback, except said by this machine."""

    def leads_there(addr: TransportAddr) -> bool:
        if not isinstance(addr, IpAddr):
            return True
        # A link-local address of IPv6 leads nowhere without its interface.
        return (from_here or not addr.ip.is_loopback) and not (
            addr.ip.version == 6 and addr.ip.is_link_local
        )

    addrs = [each for each in info.addr.addrs if leads_there(each)]
    if not any(isinstance(each, IpAddr) for each in addrs):
        return None
    return attrs.evolve(info, addr=EndpointAddr(info.id, addrs))
