"""The DNS machine, in virtual time: what it sends when, and what it believes."""

from __future__ import annotations

from collections.abc import Callable

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from dialkey_pkarr.dns_query import AskByTcp, DnsQuery, SendDatagram

NAME = dns.name.from_text("_iroh.abc.dns.example.")
ID = 4711


def query(*servers: str, now: float = 0.0) -> DnsQuery:
    return DnsQuery(NAME, servers or ("a",), ID, now)


def reply(
    wire: bytes,
    *texts: str,
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
    flags: int = 0,
    change: Callable[[dns.message.Message], object] = lambda each: None,
) -> bytes:
    response = dns.message.make_response(dns.message.from_wire(wire))
    response.flags |= flags
    response.set_rcode(rcode)
    if texts:
        response.answer.append(
            dns.rrset.from_text_list(NAME, 30, "IN", "TXT", [f'"{each}"' for each in texts])
        )
    change(response)
    return response.to_wire(want_shuffle=False)


def first(machine: DnsQuery) -> bytes:
    (action,) = machine.take_actions()
    assert isinstance(action, SendDatagram)
    return action.data


def schedule(machine: DnsQuery) -> list[tuple[float, str, str]]:
    """Let time pass until the end; return when which server was asked how."""
    now, seen = 0.0, []
    while True:
        for each in machine.take_actions():
            kind = "tcp" if isinstance(each, AskByTcp) else "udp"
            seen.append((round(now, 3), each.server, kind))
        if machine.is_over:
            return seen
        assert machine.timer() > now, "it does not spin"
        now = machine.timer()
        machine.on_timer(now)


def test_the_question() -> None:
    message = dns.message.from_wire(first(query()))
    assert message.id == ID
    assert message.flags == dns.flags.RD
    assert [str(each) for each in message.question] == ["_iroh.abc.dns.example. IN TXT"]
    assert (message.edns, message.payload) == (0, 1232)


def test_a_silent_server_is_asked_at_growing_intervals_and_over_tcp() -> None:
    machine = query()
    assert schedule(machine) == [
        (0.0, "a", "udp"),
        (0.3, "a", "udp"),
        (0.6, "a", "udp"),
        (0.9, "a", "tcp"),
        (1.2, "a", "udp"),
        (2.4, "a", "udp"),
    ]
    assert machine.answer is None
    assert machine.errors == ["no answer from a in 6 s"]


def test_a_slow_server_gets_company_but_no_more_than_three_are_asked() -> None:
    machine = query("a", "b", "c", "d")
    asked = schedule(machine)
    firsts = {name: min(at for at, server, _ in asked if server == name) for name in "abc"}
    assert firsts == {"a": 0.0, "b": 0.5, "c": 1.0}
    assert "d" not in {server for _, server, _ in asked}
    assert machine.errors == ["no answer from a and b and c in 6 s"]


def test_the_first_good_answer_wins() -> None:
    machine = query("a", "b")
    wire = first(machine)
    machine.on_timer(0.5)
    machine.on_message("b", reply(wire, "relay=https://r/"), 0.6)
    assert machine.is_over
    assert machine.strings() == [b"relay=https://r/"]
    machine.on_message("a", reply(wire, "late"), 0.7)
    assert machine.strings() == [b"relay=https://r/"]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
def test_a_server_that_fails_is_left_for_the_next_at_once(rcode: dns.rcode.Rcode) -> None:
    machine = query("a", "b")
    wire = first(machine)
    machine.on_message("a", reply(wire, rcode=rcode), 0.1)
    assert [each.server for each in machine.take_actions()] == ["b"]
    machine.on_message("b", reply(wire, rcode=rcode), 0.2)
    assert machine.is_over
    assert len(machine.errors) == 2
    assert dns.rcode.to_text(rcode) in machine.errors[0]


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
def test_that_there_is_nothing_is_an_answer(rcode: dns.rcode.Rcode) -> None:
    machine = query("a", "b")
    machine.on_message("a", reply(first(machine), rcode=rcode), 0.1)
    assert machine.is_over
    assert machine.strings() == []
    assert machine.answer is not None


def test_a_cut_answer_is_fetched_over_tcp_at_once() -> None:
    machine = query()
    wire = first(machine)
    machine.on_message("a", reply(wire, flags=dns.flags.TC), 0.1)
    (action,) = machine.take_actions()
    assert action == AskByTcp("a", wire)
    machine.on_timer(0.9)
    assert machine.take_actions() == [], "no more datagrams, and no second connection"
    machine.on_message("a", reply(wire, "x=1"), 1.0, by_tcp=True)
    assert machine.strings() == [b"x=1"]


def _other_question(message: dns.message.Message) -> None:
    message.question[0].name = dns.name.from_text("_iroh.abd.dns.example.")


def _other_type(message: dns.message.Message) -> None:
    message.question[0].rdtype = dns.rdatatype.A


def _other_id(message: dns.message.Message) -> None:
    message.id ^= 1


def _no_question(message: dns.message.Message) -> None:
    message.question.clear()


def _a_query(message: dns.message.Message) -> None:
    message.flags &= ~dns.flags.QR


@pytest.mark.parametrize(
    "change", [_other_question, _other_type, _other_id, _no_question, _a_query]
)
def test_what_does_not_answer_our_question_is_ignored(
    change: Callable[[dns.message.Message], None],
) -> None:
    machine = query()
    wire = first(machine)
    machine.on_message("a", reply(wire, "addr=6.6.6.6:6", change=change), 0.1)
    assert (machine.ignored, machine.is_over) == (1, False)
    machine.on_message("a", reply(wire, "addr=1.2.3.4:5"), 0.2)
    assert machine.strings() == [b"addr=1.2.3.4:5"]


@pytest.mark.parametrize("data", [b"", b"\0", bytes(11), b"\xff" * 600, bytes(4096)])
def test_rubbish_is_ignored(data: bytes) -> None:
    machine = query()
    machine.on_message("a", data, 0.1)
    assert (machine.ignored, machine.is_over) == (1, False)


def test_a_server_that_was_not_asked_is_not_listened_to() -> None:
    machine = query("a", "b")
    wire = first(machine)
    for stranger in ("b", "c"):
        machine.on_message(stranger, reply(wire, "addr=6.6.6.6:6"), 0.1)
    assert (machine.ignored, machine.is_over) == (2, False)


def test_a_name_in_other_case_is_the_same_name() -> None:
    def upper(message: dns.message.Message) -> None:
        for rrset in (*message.question, *message.answer):
            rrset.name = dns.name.from_text("_IROH.ABC.dns.EXAMPLE.")

    machine = query()
    machine.on_message("a", reply(first(machine), "x=1", change=upper), 0.1)
    assert machine.strings() == [b"x=1"]


def test_a_server_without_edns_is_asked_in_the_old_way() -> None:
    machine = query()
    wire = first(machine)
    machine.on_message("a", reply(wire, rcode=dns.rcode.FORMERR, change=_no_question), 0.1)
    again = first(machine)
    assert dns.message.from_wire(again).edns == -1
    machine.on_message("a", reply(again, rcode=dns.rcode.FORMERR), 0.2)
    assert machine.is_over
    assert "FORMERR" in machine.errors[0]


def test_unreachable_by_both_ways_is_the_end() -> None:
    for order in ((False, True), (True, False)):
        machine = query()
        first(machine)
        machine.on_unreachable("a", "refused", 0.1, by_tcp=order[0])
        assert not machine.is_over
        machine.on_unreachable("a", "refused", 0.2, by_tcp=order[1])
        assert machine.is_over
        assert machine.errors == ["a: refused"]


def test_no_server_at_all() -> None:
    machine = DnsQuery(NAME, [], ID, 0.0)
    assert machine.is_over
    assert "no DNS server" in machine.errors[0]


def test_aliases_inside_the_answer_are_followed_and_do_not_go_in_circles() -> None:
    def alias(message: dns.message.Message) -> None:
        message.answer.insert(0, dns.rrset.from_text(NAME, 30, "IN", "CNAME", "other.example."))
        message.answer.append(dns.rrset.from_text("other.example.", 30, "IN", "TXT", '"x=1" "2"'))
        message.answer.append(dns.rrset.from_text("third.example.", 30, "IN", "TXT", '"y=1"'))

    def circle(message: dns.message.Message) -> None:
        message.answer.append(dns.rrset.from_text(NAME, 30, "IN", "CNAME", "other.example."))
        message.answer.append(dns.rrset.from_text("other.example.", 30, "IN", "CNAME", str(NAME)))

    for change, expected in ((alias, [b"x=12"]), (circle, [])):
        machine = query()
        machine.on_message("a", reply(first(machine), change=change), 0.1)
        assert machine.strings() == expected
