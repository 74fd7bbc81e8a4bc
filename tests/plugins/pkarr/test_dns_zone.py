"""What a discovery server answers over DNS, without a socket."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidInput
from dialkey.identity import SecretKey
from dialkey.shares import network_of
from dialkey_pkarr import SignedPacket
from dialkey_pkarr.limits import NEGATIVE_TTL_S
from dialkey_pkarr.server.quotas import Places, Quota
from dialkey_pkarr.server.zone import Question, Zone

KEY = SecretKey(b"\x01" * 32)
Z32 = KEY.id.to_z32()
ORIGIN = "dns.example.org."
ZONE = Zone([ORIGIN, "org.example."], nameservers=["ns1.example.org."], addresses=["192.0.2.1"])


def signed(*records: tuple[str, str, str]) -> SignedPacket:
    """Sign records of (owner before the key, type, text)."""
    message = dns.message.Message(id=0)
    message.flags = dns.flags.QR
    for inside, kind, text in records:
        owner = f"{inside}.{Z32}." if inside else f"{Z32}."
        message.answer.append(dns.rrset.from_text(owner, 30, "IN", kind, text))
    return SignedPacket.sign(KEY, message.to_wire(), 1)


PACKET = signed(
    ("_iroh", "TXT", '"relay=https://relay.example./"'),
    ("_iroh", "TXT", '"addr=192.0.2.7:4433"'),
    ("_iroh", "TYPE65280", "\\# 2 abcd"),
    ("a.b", "A", "192.0.2.9"),
    ("", "NS", "ns.evil.example."),
    ("", "SOA", "a. b. 1 2 3 4 5"),
)


def ask(
    name: str,
    kind: str = "TXT",
    packet: SignedPacket | None = PACKET,
    *,
    payload: int | None = None,
    by_udp: bool = True,
    zone: Zone = ZONE,
) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=payload is not None, payload=payload)
    question = zone.read(query.to_wire())
    assert isinstance(question, Question)
    wire = zone.to_wire(zone.answer(question, packet), question, by_udp=by_udp)
    answer = dns.message.from_wire(wire, one_rr_per_rrset=True)
    assert answer.id == query.id
    assert query.is_response(answer)
    return answer


def soa_of(answer: dns.message.Message) -> str:
    (soa,) = answer.authority
    assert soa.rdtype == dns.rdatatype.SOA
    assert soa.ttl == soa[0].minimum == NEGATIVE_TTL_S
    return soa.name.to_text()


def test_the_records_of_a_key() -> None:
    answer = ask(f"_iroh.{Z32}.{ORIGIN}")
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.flags & dns.flags.AA
    assert not answer.flags & (dns.flags.RA | dns.flags.TC)
    assert [rdata.to_text() for each in answer.answer for rdata in each] == [
        '"relay=https://relay.example./"',
        '"addr=192.0.2.7:4433"',
    ]
    assert {each.ttl for each in answer.answer} == {30}


def test_the_letters_of_a_question_are_given_back_as_they_came() -> None:
    name = f"_iRoH.{Z32.upper()}.dNs.ExAmple.ORG."
    answer = ask(name)
    assert answer.question[0].name.to_text() == name
    assert {each.name.to_text() for each in answer.answer} == {name}
    assert len(answer.answer) == 2


def test_a_name_without_records_of_the_type_is_not_denied() -> None:
    for name, kind in [("_iroh", "A"), ("_iroh", "TYPE4711"), ("b", "A"), ("a.b", "TXT")]:
        answer = ask(f"{name}.{Z32}.{ORIGIN}", kind)
        assert answer.rcode() == dns.rcode.NOERROR, name
        assert not answer.answer
        assert soa_of(answer) == ORIGIN
    # The key's own name lies above names that exist; who answers for the zone is not for it to say.
    for kind in ("NS", "SOA", "TXT"):
        answer = ask(f"{Z32}.{ORIGIN}", kind)
        assert answer.rcode() == dns.rcode.NOERROR
        assert not answer.answer


@pytest.mark.parametrize(
    "name", [f"other.{Z32}.{ORIGIN}", f"x.a.b.{Z32}.{ORIGIN}", f"www.{ORIGIN}"]
)
def test_a_name_that_does_not_exist(name: str) -> None:
    answer = ask(name)
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert soa_of(answer) == ORIGIN


def test_an_unknown_key_is_denied_for_a_short_time() -> None:
    answer = ask(f"_iroh.{Z32}.{ORIGIN}", packet=None)
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert soa_of(answer) == ORIGIN


def test_any_and_unknown_types() -> None:
    answer = ask(f"_iroh.{Z32}.{ORIGIN}", "ANY", by_udp=False)
    assert sorted(int(each.rdtype) for each in answer.answer) == [16, 16, 65280]
    (record,) = ask(f"_iroh.{Z32}.{ORIGIN}", "TYPE65280").answer
    assert record[0].to_text() == "\\# 2 abcd"


def test_the_origin_itself() -> None:
    assert [each.rdtype for each in ask(ORIGIN, "SOA").answer] == [dns.rdatatype.SOA]
    assert ask(ORIGIN, "NS").answer[0][0].to_text() == "ns1.example.org."
    assert ask(ORIGIN, "A").answer[0][0].to_text() == "192.0.2.1"
    nothing = ask(ORIGIN, "AAAA")
    assert nothing.rcode() == dns.rcode.NOERROR
    assert soa_of(nothing) == ORIGIN


def test_the_root_is_an_origin_and_the_longest_one_decides() -> None:
    zone = Zone([".", ORIGIN])
    assert len(ask(f"_iroh.{Z32}.", zone=zone).answer) == 2
    assert soa_of(ask(f"x.{ORIGIN}", zone=zone)) == ORIGIN
    assert ask("example.com.", zone=zone).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(
    ("name", "kind"), [("example.com.", "TXT"), (ORIGIN, "AXFR"), (f"{Z32}.", "TXT")]
)
def test_what_is_refused(name: str, kind: str) -> None:
    answer = ask(name, kind)
    assert answer.rcode() == dns.rcode.REFUSED
    assert not answer.flags & dns.flags.AA
    assert not answer.authority


def test_what_is_too_long_for_udp_comes_over_tcp() -> None:
    long = signed(*(("_iroh", "TXT", f'"addr=192.0.2.{n}:4433"') for n in range(20)))
    name = f"_iroh.{Z32}.{ORIGIN}"
    assert len(ask(name, packet=long, payload=1232).answer) == 20
    assert len(ask(name, packet=long, by_udp=False).answer) == 20
    for payload in (None, 0, 512):
        cut = ask(name, packet=long, payload=payload)
        assert cut.flags & dns.flags.TC
        assert not cut.answer
    assert ask(name, payload=4096).payload == 1232


def raw(query: dns.message.Message) -> bytes:
    answer = ZONE.read(query.to_wire())
    if isinstance(answer, Question):
        return ZONE.to_wire(ZONE.answer(answer, None), answer, by_udp=True)
    assert answer is not None
    return answer


def test_what_is_not_a_question() -> None:
    query = dns.message.make_query(ORIGIN, "SOA")
    update = dns.message.make_query(ORIGIN, "SOA")
    update.set_opcode(dns.opcode.NOTIFY)
    assert dns.message.from_wire(raw(update)).rcode() == dns.rcode.NOTIMP
    newer = dns.message.make_query(ORIGIN, "SOA")
    newer.use_edns(1)
    assert dns.message.from_wire(raw(newer)).rcode() == dns.rcode.BADVERS
    two = dns.message.make_query(ORIGIN, "SOA")
    two.question.append(query.question[0])
    assert raw(two)[3] & 0xF == dns.rcode.FORMERR
    cut = ZONE.read(query.to_wire()[:-2])
    assert isinstance(cut, bytes)
    assert cut[:2] == query.to_wire()[:2]
    assert cut[3] & 0xF == dns.rcode.FORMERR
    # Nothing is said to answers, and to what has no header.
    response = dns.message.make_response(query).to_wire()
    assert ZONE.read(response) is None
    assert ZONE.read(b"\0" * 11) is None


@given(st.binary(max_size=600), st.booleans())
def test_no_message_breaks_the_zone(data: bytes, by_udp: bool) -> None:
    answered(data, by_udp)


QUERY = dns.message.make_query(f"_iroh.{Z32}.{ORIGIN}", "TXT", use_edns=True).to_wire()


@given(st.lists(st.tuples(st.integers(0, len(QUERY) - 1), st.integers(0, 255)), max_size=6))
def test_no_damaged_question_breaks_the_zone(changes: list[tuple[int, int]]) -> None:
    data = bytearray(QUERY)
    for position, value in changes:
        data[position] = value
    answered(bytes(data), by_udp=True)


def answered(data: bytes, by_udp: bool) -> None:
    question = ZONE.read(data)
    if isinstance(question, Question):
        question = ZONE.to_wire(ZONE.answer(question, PACKET), question, by_udp=by_udp)
        assert not by_udp or len(question) <= 1232
    if question is not None:
        assert question[:2] == data[:2]
        assert question[2] & 0x80


def test_what_is_not_a_domain() -> None:
    for bad in (["a..b"], ["*.example.org"], []):
        with pytest.raises(InvalidInput):
            Zone(bad)


# --- quotas ---------------------------------------------------------------------------------------


def test_an_ipv6_network_counts_once() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1%eth0")
    assert network_of("2001:db8::1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") != network_of("192.0.2.2")


def test_a_quota_refills() -> None:
    quota = Quota(2, 0.5)
    assert [quota.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert quota.take("b", 0.0)
    assert not quota.take("a", 1.0)
    assert quota.take("a", 2.0)


def test_the_network_with_most_connections_gives_way() -> None:
    places = Places(3)
    ended: list[str] = []
    places.enter("few", lambda: ended.append("few"))
    oldest = places.enter("many", lambda: ended.append("many 1"))
    places.enter("many", lambda: ended.append("many 2"))
    places.enter("new", lambda: ended.append("new"))
    assert ended == ["many 1"]
    assert len(places) == 3
    places.left("many", oldest)  # it was displaced before it left
    assert len(places) == 3
