"""A code from the first frame to the ticket, at a desk without a network."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendezvous_desk import TICKET, Person, Table, offerer

from dialkey.errors import DialkeyError, InvalidTicket, ProtocolViolation
from dialkey_rendezvous import frames
from dialkey_rendezvous.codes import Code
from dialkey_rendezvous.errors import (
    CodeRefused,
    ExpiredCode,
    PartnerLeft,
    UnknownCode,
    UsedCode,
    WordsDiffer,
    WrongCode,
)
from dialkey_rendezvous.exchange import Agreed, Delivered, Named, Offering, Taking, TicketCame
from dialkey_rendezvous.limits import EXCHANGE_S, REMEMBERED_S


def named(person: Person) -> Code:
    (event,) = person.step()
    assert isinstance(event, Named)
    return event.code


def taker(table: Table, code: Code, who: int = 2, *, compares: bool = False) -> Person:
    side = Taking(code, compares=compares, entropy=table.rng.randbytes)
    return Person(table, side, table.sit(who))


def agree(alice: Person, bob: Person) -> tuple[Agreed, Agreed]:
    """Run both sides to where they know that the other knows the code."""
    assert bob.step() == []
    assert alice.step() == []
    assert bob.step() == []
    (of_alice,) = alice.step()
    (of_bob,) = bob.step()
    assert isinstance(of_alice, Agreed)
    assert isinstance(of_bob, Agreed)
    return of_alice, of_bob


def test_a_ticket_passes_and_both_sides_know() -> None:
    table = Table()
    alice = offerer(table)
    bob = taker(table, named(alice))
    of_alice, of_bob = agree(alice, bob)
    assert of_alice.words == of_bob.words
    assert len(of_alice.words) == 3
    assert not of_alice.other_compares
    assert isinstance(alice.side, Offering)
    assert isinstance(bob.side, Taking)
    alice.side.give(TICKET)
    assert alice.step() == []
    assert bob.step() == [TicketCame(TICKET)]
    bob.side.confirm()
    assert bob.step() == []
    assert alice.step() == [Delivered()]
    assert table.left == {alice.seat, bob.seat}
    stats = table.desk.stats()
    assert (stats.given, stats.claimed, stats.delivered, stats.waiting) == (1, 1, 1, 0)


def test_the_server_sees_neither_words_nor_ticket() -> None:
    table = Table()
    seen = bytearray()
    receive = table.desk.receive
    table.desk.receive = lambda seat, data, now: (  # type: ignore[method-assign]
        seen.extend(data),
        receive(seat, data, now),
    )[1]
    alice = offerer(table)
    bob = taker(table, named(alice))
    agree(alice, bob)
    assert isinstance(alice.side, Offering)
    alice.side.give(TICKET)
    alice.step()
    assert len(seen) > 150
    for secret in (b"amber", b"violin", TICKET.encode()):
        assert secret not in seen


@pytest.mark.parametrize("of_alice", [False, True])
@pytest.mark.parametrize("of_bob", [False, True])
def test_each_side_learns_whether_the_other_compares(of_alice: bool, of_bob: bool) -> None:
    table = Table()
    alice = offerer(table, compares=of_alice)
    bob = taker(table, named(alice), compares=of_bob)
    to_alice, to_bob = agree(alice, bob)
    assert (to_alice.other_compares, to_bob.other_compares) == (of_bob, of_alice)
    assert to_alice.words == to_bob.words


def test_a_wrong_word_burns_the_code_and_both_hear_it() -> None:
    table = Table()
    alice = offerer(table)
    code = named(alice)
    mallory = taker(table, Code(code.nameplate, ("amber", "walnut")))
    mallory.step()
    alice.step()
    mallory.step()
    with pytest.raises(WrongCode, match="with wrong words, and the code is burnt"):
        alice.step()
    with pytest.raises(WrongCode, match="may be tried only once: it is burnt"):
        mallory.step()
    assert table.desk.stats().burnt == 1
    bob = taker(table, code, 3)
    with pytest.raises(UsedCode, match="tried this code with wrong words, so it is burnt"):
        bob.step()


def test_a_wrong_guess_learns_nothing_that_could_be_tried_out() -> None:
    """The offerer sends its message of SPAKE2, and nothing more, before the taker has proved itself."""
    table = Table()
    alice = offerer(table)
    mallory = taker(table, Code(named(alice).nameplate, ("amber", "walnut")))
    mallory.step()
    alice.step()
    reader = frames.FrameReader()
    (answer,) = reader.feed(bytes(table.inbox[mallory.seat]))
    assert isinstance(answer, frames.Answer)
    mallory.step()
    with pytest.raises(WrongCode):
        alice.step()
    received = reader.feed(bytes(table.inbox[mallory.seat]))
    assert received == [frames.Failed(frames.Failure.WRONG_CODE)]


def test_a_second_receiver_hears_that_the_code_is_used() -> None:
    table = Table()
    alice = offerer(table)
    code = named(alice)
    bob = taker(table, code)
    bob.step()
    carol = taker(table, code, 3)
    with pytest.raises(UsedCode, match="somebody has used this code already"):
        carol.step()
    alice.step()
    bob.step()
    alice.step()
    (event,) = bob.step()
    assert isinstance(event, Agreed)


def test_an_unknown_number() -> None:
    table = Table()
    bob = taker(table, Code(5, ("amber", "violin")))
    with pytest.raises(UnknownCode, match="nobody offers anything under this number"):
        bob.step()


def test_an_expired_code() -> None:
    table = Table()
    alice = offerer(table, lifetime_s=60)
    code = named(alice)
    table.wait(61)
    with pytest.raises(ExpiredCode, match="the code has expired"):
        alice.step()
    with pytest.raises(ExpiredCode, match="the code has expired"):
        taker(table, code).step()
    table.wait(REMEMBERED_S)
    with pytest.raises(UnknownCode):
        taker(table, code).step()


def test_a_sender_that_ends_takes_its_code_along() -> None:
    table = Table()
    alice = offerer(table)
    code = named(alice)
    table.leave(alice.seat)
    with pytest.raises(ExpiredCode, match="the other side has ended, and its code with it"):
        taker(table, code).step()


def test_whoever_leaves_in_the_middle_is_told_of() -> None:
    table = Table()
    alice = offerer(table)
    code = named(alice)
    bob = taker(table, code)
    bob.step()
    table.leave(bob.seat)
    with pytest.raises(PartnerLeft, match="went away, and the code with it"):
        alice.step()
    with pytest.raises(UsedCode):
        taker(table, code, 3).step()


def test_an_exchange_has_one_deadline_for_all_of_it() -> None:
    table = Table()
    alice = offerer(table)
    code = named(alice)
    table.wait(300)
    bob = taker(table, code)
    bob.step()
    table.wait(EXCHANGE_S - 1)
    alice.step()
    bob.step()
    table.wait(1)
    for person in (alice, bob):
        with pytest.raises(PartnerLeft):
            person.step()
    assert table.desk.next_time() is None


def test_somebody_says_that_the_words_differ() -> None:
    table = Table()
    alice = offerer(table, compares=True)
    bob = taker(table, named(alice), compares=True)
    agree(alice, bob)
    error = alice.side.decline()
    assert isinstance(error, WordsDiffer)
    alice.step()
    with pytest.raises(CodeRefused, match="somebody on the other side says that the words differ"):
        bob.step()


def test_somebody_in_the_middle_who_does_not_know_the_words_gets_nowhere() -> None:
    """A server that answers both sides itself has one guess at each, and shows them other words."""
    table, of_server = Table(seed=1), Table(seed=2)
    alice = offerer(table)
    code = named(alice)
    evil_bob = taker(table, Code(code.nameplate, ("apple", "walnut")))
    evil_bob.step()
    alice.step()
    evil_bob.step()
    with pytest.raises(WrongCode):
        alice.step()
    evil_alice = offerer(of_server, words=("apple", "walnut"))
    other = named(evil_alice)
    bob = taker(of_server, Code(other.nameplate, code.words))
    bob.step()
    evil_alice.step()
    bob.step()
    with pytest.raises(WrongCode):
        evil_alice.step()


def test_flags_that_were_changed_on_the_way_end_it() -> None:
    """The server could otherwise keep a side from showing the words."""
    table = Table()
    alice = offerer(table, compares=True)
    bob = taker(table, named(alice))
    bob.step()
    alice.step()
    inbox = table.inbox[bob.seat]
    assert inbox[3] == 1
    inbox[3] = 0
    bob.step()
    with pytest.raises(WrongCode):
        alice.step()


def test_a_ticket_that_was_changed_on_its_way_is_refused() -> None:
    table = Table()
    alice = offerer(table)
    bob = taker(table, named(alice))
    agree(alice, bob)
    assert isinstance(alice.side, Offering)
    alice.side.give(TICKET)
    alice.step()
    table.inbox[bob.seat][-1] ^= 1
    with pytest.raises(ProtocolViolation, match="the ticket was changed on its way"):
        bob.step()
    with pytest.raises(PartnerLeft, match="could not go on"):
        alice.step()


def test_what_is_handed_over_is_text() -> None:
    table = Table()
    alice = offerer(table)
    bob = taker(table, named(alice))
    agree(alice, bob)
    assert isinstance(alice.side, Offering)
    alice.side.give("blöb")
    alice.step()
    with pytest.raises(InvalidTicket, match="is not a ticket"):
        bob.step()


@pytest.mark.parametrize(
    "element", [bytes(32), b"\xff" * 32, b"\x01" + bytes(31), bytes(range(32))]
)
def test_numbers_that_spake2_forbids_end_it(element: bytes) -> None:
    table = Table()
    alice = offerer(table)
    code = named(alice)
    seat = table.sit(2)
    table.send(seat, frames.encode(frames.Claim(code.nameplate, element)))
    with pytest.raises(ProtocolViolation, match="SPAKE2 forbids"):
        alice.step()
    failed = frames.encode(frames.Failed(frames.Failure.BROKEN))
    assert table.take_inbox(seat) == failed


def test_a_reflected_message_is_refused() -> None:
    table = Table()
    alice = offerer(table)
    bob = taker(table, named(alice))
    claim = bob.side.bytes_to_send()
    with pytest.raises(ProtocolViolation, match="SPAKE2 forbids"):
        bob.side.receive(frames.encode(frames.Answer(False, claim[-32:])))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2))
def test_bytes_of_a_hostile_server_end_in_one_error_family(data: bytes, stage: int) -> None:
    table = Table()
    alice = offerer(table)
    code = named(alice)
    bob = taker(table, code)
    if stage:
        bob.step()
        alice.step()
    if stage == 2:
        bob.step()
    for side in (alice.side, bob.side):
        try:
            side.receive(data)
        except DialkeyError:
            assert side.is_over
