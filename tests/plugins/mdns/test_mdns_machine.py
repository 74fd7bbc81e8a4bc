"""mDNS in virtual time: who finds whom, how soon, and how many packets that takes."""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from ipaddress import ip_network

import attrs
import pytest

from dialkey import EndpointAddr, EndpointInfo, SecretKey
from dialkey.identity import EndpointId, IpAddr
from dialkey_mdns import limits, messages
from dialkey_mdns.machine import Link, Machine

LAN = Link("lan", 2, 4, (ip_network("10.0.0.0/16"),))
LAN_6 = Link("lan", 2, 6, (ip_network("fe80::/64"),))
CAFE = Link("cafe", 3, 4, (ip_network("192.168.1.0/24"),))


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fifty machines read is the same fifty times."""
    monkeypatch.setattr(messages, "read", functools.cache(messages.read))


@functools.cache
def key(number: int) -> EndpointId:
    return SecretKey(number.to_bytes(32, "big")).id


def info(number: int, *addrs: str, user_data: str | None = None) -> EndpointInfo:
    given = addrs or (f"10.0.{number // 256}.{number % 256}:4433",)
    return EndpointInfo(EndpointAddr(key(number), map(IpAddr.parse, given)), user_data)


def ip(number: int) -> str:
    return f"10.0.{number // 256}.{number % 256}"


@attrs.define
class Lan:
    """Machines on links, a loss rate, and a clock; what is sent arrives after a millisecond."""

    loss: float = 0.0
    now: float = 0.0
    machines: dict[int, Machine] = attrs.Factory(dict)
    sent: list[tuple[float, int, Link, bytes]] = attrs.Factory(list)
    chance: random.Random = attrs.Factory(lambda: random.Random(7))
    mail: list[tuple[float, int, Link, str, bytes]] = attrs.Factory(list)
    order: itertools.count[int] = attrs.Factory(itertools.count)
    seen_at: dict[tuple[int, EndpointId], float] = attrs.Factory(dict)

    def join(self, number: int, *links: Link, publish: bool = True, **options: bool) -> Machine:
        machine = Machine(key(number), self.now, self.chance.uniform, **options)
        self.machines[number] = machine
        machine.set_links(links or (LAN,), self.now)
        if publish:
            machine.publish(info(number), self.now)
        return machine

    def collect(self) -> None:
        for number, machine in self.machines.items():
            machine.on_timer(self.now)
            for each in machine.take_sends():
                self.sent.append((self.now, number, each.link, each.data))
                self.post(each.link, ip(number), each.data)
            for id in machine.take_news():
                self.seen_at.setdefault((number, id), self.now)

    def post(self, link: Link, source: str, data: bytes) -> None:
        source = source if link.family == 4 else f"fe80::{source.rpartition('.')[2]}"
        heapq.heappush(self.mail, (self.now + 0.001, next(self.order), link, source, data))

    def run(self, until: float) -> None:
        while True:
            self.collect()
            timers = [each.timer() for each in self.machines.values()]
            at = min([*timers, *(each[0] for each in self.mail[:1])])
            if at > until:
                self.now = until
                self.collect()
                return
            self.now = max(self.now, at)
            while self.mail and self.mail[0][0] <= self.now:
                _, _, link, source, data = heapq.heappop(self.mail)
                for machine in self.machines.values():
                    if self.chance.random() >= self.loss:
                        machine.on_datagram(link, source, data, self.now)

    def per_minute(self, since: float) -> float:
        return len([each for each in self.sent if each[0] >= since]) * 60 / (self.now - since)

    def knows(self, one: int, other: int) -> bool:
        return bool(self.machines[one].entries(key(other)))


def test_two_find_each_other_at_once_and_tell_all_that_is_published() -> None:
    lan = Lan()
    lan.join(1)
    lan.run(10)
    lan.join(2)
    lan.machines[2].publish(info(2, "10.0.0.2:1", "10.0.0.2:2", user_data="hello"), lan.now)
    lan.run(10.2)
    (entry,) = lan.machines[1].entries(key(2))
    assert entry.info == info(2, "10.0.0.2:1", "10.0.0.2:2", user_data="hello")
    assert entry.source == "10.0.0.2"
    assert lan.knows(2, 1)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_fifty_endpoints_find_each_other_and_stay_quiet(loss: float) -> None:
    lan = Lan(loss=loss)
    for number in range(1, 51):
        lan.join(number)
    pairs = list(itertools.permutations(range(1, 51), 2))
    lan.run(10)
    found = [lan.knows(*pair) for pair in pairs]
    assert all(found) if not loss else sum(found) > 0.99 * len(found)
    assert len(lan.sent) <= 50 * len(limits.ANNOUNCEMENTS_AT_S) + 60, "when all start at once"
    lan.run(130)
    lan.run(730)
    assert lan.per_minute(since=130) < (100 if loss else 75), (
        "an answer of each every 50 s, and a question for all"
    )
    if not loss:
        assert all(lan.knows(*pair) for pair in pairs)


def test_fifty_on_two_families_of_one_interface_ask_on_one() -> None:
    lan = Lan()
    for number in range(1, 51):
        lan.join(number, LAN, LAN_6)
    lan.run(100)
    lan.run(400)
    assert lan.per_minute(since=100) < 75
    assert lan.knows(1, 50)


def test_iroh_that_asks_all_the_time_makes_no_storm_and_keeps_everybody() -> None:
    """It asks every 0.7 s, and forgets whoever is silent for 1.05 s times their number, or 2.1 s."""
    for count in (1, 2, 5, 50):
        lan = Lan()
        for number in range(1, count + 1):
            lan.join(number)
        for _ in range(200):
            lan.post(LAN, "10.0.200.1", messages.query())
            lan.run(lan.now + 0.7)
        since = 30.0
        assert lan.per_minute(since) < 300, count
        longest = max(2.1, 1.05 * count)
        for number in range(1, count + 1):
            answers = [at for at, who, _, _ in lan.sent if who == number and at >= since]
            gaps = [b - a for a, b in itertools.pairwise([since, *answers, lan.now])]
            assert max(gaps) < longest, (count, number)


def test_who_is_looked_for_answers_within_a_second_in_a_crowd() -> None:
    lan = Lan(loss=0.02)
    for number in range(1, 51):
        lan.join(number)
    lan.run(60)
    for number in range(51, 61):
        newcomer = lan.join(number, publish=False)
        at = lan.now
        newcomer.search(key(number - 50), at)
        lan.run(at + 1)
        assert lan.knows(number, number - 50)
        newcomer.end_search(key(number - 50))
        lan.run(at + 3)


def test_an_address_that_changed_is_known_at_once() -> None:
    lan = Lan()
    lan.join(1)
    lan.join(2)
    lan.run(20)
    lan.machines[2].publish(info(2, "10.0.0.99:7"), lan.now)
    lan.run(20.1)
    (entry,) = lan.machines[1].entries(key(2))
    assert entry.info == info(2, "10.0.0.99:7")


def test_an_interface_that_comes_later_is_used_at_once() -> None:
    lan = Lan()
    lan.join(1, LAN, CAFE)
    lan.join(2, publish=False)
    lan.run(5)
    lan.machines[2].set_links([CAFE], lan.now)
    lan.machines[2].publish(info(2), lan.now)
    # In a cafe addresses are others.
    machine = lan.machines[1]
    lan.run(5.01)
    sent = [each for each in lan.sent if each[1] == 2 and each[2] == CAFE]
    assert sent
    machine.on_datagram(CAFE, "192.168.1.7", sent[0][3], lan.now)
    assert lan.knows(1, 2)
    assert {each[2] for each in lan.sent if each[1] == 1} == {LAN, CAFE}


def test_goodbye_and_silence_end_a_peer() -> None:
    lan = Lan()
    lan.join(1)
    lan.join(2)
    lan.join(3)
    lan.run(10)
    lan.machines[2].close()
    lan.collect()
    del lan.machines[2]
    lan.run(12)
    assert not lan.knows(1, 2)
    assert lan.knows(1, 3)
    del lan.machines[3]
    lan.run(12 + limits.PEER_LIFETIME_S)
    assert not lan.knows(1, 3)


def test_a_goodbye_in_the_name_of_another_changes_nothing() -> None:
    """From elsewhere it is not heard; in the sender's own name, whoever is there speaks up."""
    lan = Lan()
    lan.join(1)
    lan.join(2)
    lan.run(10)
    for source in ("10.0.0.66", "10.0.0.2"):
        for _ in range(20):
            lan.post(LAN, source, messages.goodbye(key(2)))
            lan.run(lan.now + 1)
            assert lan.knows(1, 2)
    lan.run(lan.now + 5)
    assert lan.knows(1, 2)


def test_who_speaks_in_our_name_is_contradicted_but_not_for_ever() -> None:
    """From our own address, too; and two that share a key do not quarrel all day."""
    lan = Lan()
    lan.join(1)
    lan.join(2)
    lan.run(10)
    lan.post(LAN, "10.0.0.2", messages.response(info(2, "10.9.9.9:1")) or b"")
    lan.run(11.2)
    assert [each.info for each in lan.machines[1].entries(key(2))] == [info(2)]
    lan.machines[3] = twin = Machine(key(2), lan.now, lan.chance.uniform)
    twin.set_links([LAN], lan.now)
    twin.publish(info(2, "10.0.0.3:1"), lan.now)
    lan.run(60)
    lan.run(660)
    assert lan.per_minute(60) < 20


def test_a_liar_does_not_displace_the_truth() -> None:
    lan = Lan()
    lan.join(1)
    for number in range(60, 80):
        lan.post(LAN, ip(number), messages.response(info(2, "10.9.9.9:1")) or b"")
    lan.join(2)
    lan.run(2)
    sources = {each.source for each in lan.machines[1].entries(key(2))}
    assert len(sources) <= limits.MAX_SOURCES_PER_PEER
    lan = Lan()
    lan.join(1)
    lan.join(2)
    lan.run(2)
    for number in range(60, 80):
        lan.post(LAN, ip(number), messages.response(info(2, "10.9.9.9:1")) or b"")
    lan.run(3)
    assert info(2) in [each.info for each in lan.machines[1].entries(key(2))]


def test_what_is_sent_from_off_link_is_not_read() -> None:
    lan = Lan()
    machine = lan.join(1)
    for source in ("203.0.113.5", "10.1.0.1", "fe80::1", "nonsense"):
        machine.on_datagram(LAN, source, messages.response(info(2)) or b"", 0.0)
    assert machine.dropped == 4
    assert not lan.knows(1, 2)
    machine.on_datagram(CAFE, "192.168.1.5", messages.response(info(2)) or b"", 0.0)
    assert not lan.knows(1, 2), "no link of ours"


def test_floods_are_dropped_unread_and_fill_no_memory() -> None:
    lan = Lan()
    machine = lan.join(1)
    lan.run(5)
    numbers = itertools.count(1000)
    for source in range(1, 1000):
        data = messages.response(info(next(numbers))) or b""
        machine.on_datagram(LAN, ip(source + 300), data, 5.0)
    assert machine.known <= limits.DATAGRAMS_BURST
    assert machine.dropped > 300
    for _ in range(150):
        machine.on_datagram(LAN, "10.0.0.9", messages.response(info(next(numbers))) or b"", 60.0)
    from_one = [each for each in range(1000, 9000) if machine.entries(key(each))]
    assert len(from_one) <= limits.DATAGRAMS_BURST + limits.MAX_PEERS_PER_SOURCE


def test_a_full_book_makes_room_at_the_expense_of_the_fullest_source() -> None:
    from dialkey_mdns.book import Book

    book = Book()
    assert book.hear(info(1), "10.0.0.1", 0.0, ())
    for number in range(2, 3000):
        book.hear(info(number), f"10.7.{number % 40}.1", float(number), ())
    assert len(book) <= limits.MAX_PEERS
    assert book.of(key(1))
    # Even where every source has one only, whoever is looked for stays.
    book = Book()
    assert book.hear(info(1), "10.0.0.1", 0.0, ())
    for number in range(2, 3000):
        book.hear(info(number), f"10.7.{number // 256}.{number % 256}", float(number), {key(1)})
    assert len(book) <= limits.MAX_PEERS
    assert book.of(key(1))


def test_questions_of_a_flood_are_answered_once_a_second() -> None:
    lan = Lan()
    lan.join(1)
    lan.run(10)
    before = len(lan.sent)
    for step in range(1000):
        lan.post(LAN, f"10.0.3.{step % 50}", messages.query(key(1)))
        lan.run(lan.now + 0.01)
    assert len(lan.sent) - before <= 12


def test_a_quiet_one_sends_next_to_nothing_and_is_found_at_once() -> None:
    lan = Lan()
    lan.join(1, is_quiet=True)
    lan.run(600)
    assert len(lan.sent) <= len(limits.ANNOUNCEMENTS_AT_S)
    seeker = lan.join(2, publish=False, is_quiet=True)
    seeker.search(key(1), lan.now)
    lan.run(600.2)
    assert lan.knows(2, 1)
    before = len(lan.sent)
    seeker.end_search(key(1))
    lan.run(1200)
    assert len(lan.sent) == before


def test_a_search_for_somebody_who_is_not_there_slows_down() -> None:
    lan = Lan()
    lan.join(1).search(key(2), 0.0)
    lan.run(600)
    asked = [at for at, _, _, data in lan.sent if messages.read(data).questions[1:]]
    assert asked[:4] == pytest.approx(list(limits.SEARCH_AT_S))
    assert len(asked) < 30


def test_who_does_not_announce_is_not_found_and_finds() -> None:
    lan = Lan()
    lan.join(1, announces=False)
    lan.join(2)
    lan.run(10)
    assert lan.knows(1, 2)
    assert not lan.knows(2, 1)


def test_who_is_known_already_need_not_answer() -> None:
    """RFC 6762 section 7.1; avahi lists what it knows."""
    lan = Lan()
    machine = lan.join(1)
    lan.run(10)
    before = len(lan.sent)
    known = bytearray(messages.query())
    pointer = messages.response(info(1)) or b""
    name_ends = 12 + len(messages.SERVICE.to_wire() or b"")
    length = int.from_bytes(pointer[name_ends + 8 : name_ends + 10], "big")
    known[6:8] = b"\0\1"
    known += b"\xc0\x0c" + pointer[name_ends : name_ends + 10 + length]
    assert messages.read(bytes(known)).known == {messages.label_of(key(1))}
    machine.on_datagram(LAN, "10.0.0.5", bytes(known), lan.now)
    lan.run(12)
    assert len(lan.sent) == before
    machine.on_datagram(LAN, "10.0.0.5", messages.query(), lan.now)
    lan.run(14)
    assert len(lan.sent) == before + 1


def test_loopback_addresses_are_believed_from_this_machine_only() -> None:
    """Whichever interface it is heard on: the loopback interface is used only where there is no other."""
    link = Link("lan", 2, 4, (ip_network("10.0.0.0/16"),), address="10.0.0.1")
    here = Link("lo", 1, 4, (ip_network("127.0.0.0/8"),), is_loopback=True, address="127.0.0.1")
    for on, source in ((link, "10.0.0.1"), (here, "127.0.0.1")):
        lan = Lan()
        machine = lan.join(1, link, here)
        data = messages.response(info(2, "127.0.0.1:9")) or b""
        machine.on_datagram(link, "10.0.0.2", data, 0.0)
        assert not lan.knows(1, 2)
        machine.on_datagram(on, source, data, 0.0)
        assert lan.knows(1, 2)
