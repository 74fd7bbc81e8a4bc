"""The server's rules: numbers, limits on strangers, deadlines, and bytes that follow no format."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendezvous_desk import Person, Table, offerer

from dialkey.errors import LimitExceeded, ProtocolViolation, WireError
from dialkey_rendezvous import frames, limits
from dialkey_rendezvous.allowances import Allowances
from dialkey_rendezvous.errors import CodeRefused, RendezvousBusy, UnknownCode
from dialkey_rendezvous.exchange import Named
from dialkey_rendezvous.frames import FrameReader, Reason, encode

CLAIM = encode(frames.Claim(1, bytes(32)))


def number_of(person: Person) -> int:
    (event,) = person.step()
    assert isinstance(event, Named)
    return event.code.nameplate


def reasons(table: Table, kind: str) -> int:
    return table.desk.stats().refused.get(kind, 0)


def ask(table: Table, who: int, source: str, kind: str = "address") -> Reason:
    """Claim a number that nobody offers, and return what the server says."""
    seat = table.sit(who, source, kind)
    table.send(seat, encode(frames.Claim(99_999, bytes(32))))
    (frame,) = FrameReader().feed(table.take_inbox(seat))
    assert isinstance(frame, frames.Refused)
    return frame.reason


def test_numbers_are_short_while_few_wait() -> None:
    table = Table()
    first = [number_of(offerer(table, who)) for who in range(4)]
    assert len(set(first)) == 4
    assert max(first) < 10
    more = [number_of(offerer(table, who)) for who in range(4, 44)]
    assert len(set(first + more)) == 44
    assert 10 <= max(more) < 100


def test_a_number_that_is_over_is_not_given_out_again_for_some_time() -> None:
    table = Table()
    first = offerer(table, 1)
    old = number_of(first)
    table.leave(first.seat)
    others = {number_of(offerer(table, who)) for who in range(2, 60)}
    assert old not in others


def test_codes_that_wait_are_limited_per_id() -> None:
    table = Table()
    for place in range(limits.MAX_OFFERS_PER_ID):
        number_of(offerer(table, 1, source=f"192.0.2.{place}"))
    with pytest.raises(RendezvousBusy, match="no room for another code"):
        number_of(offerer(table, 1, source="192.0.2.200"))
    number_of(offerer(table, 2, source="192.0.2.1"))


@pytest.mark.parametrize(
    ("kind", "most"),
    [("address", limits.MAX_OFFERS_PER_ADDRESS), ("relay", 70)],
)
def test_codes_that_wait_are_limited_per_source(kind: str, most: int) -> None:
    """Keys are free, and a relay stands for many people."""
    table = Table()
    for who in range(most):
        number_of(offerer(table, who, source="one", kind=kind))
    if kind == "relay":
        assert table.desk.stats().waiting == most > limits.MAX_OFFERS_PER_ADDRESS
        return
    with pytest.raises(RendezvousBusy):
        number_of(offerer(table, most, source="one", kind=kind))
    number_of(offerer(table, most + 1, source="other", kind=kind))


def test_when_all_room_is_taken_the_fullest_gives_way() -> None:
    table = Table(max_offers=20)
    many = [offerer(table, who, source="one") for who in range(19)]
    for each in many:
        number_of(each)
    number_of(offerer(table, 100, source="other"))
    number_of(offerer(table, 101, source="third"))
    assert table.desk.stats().waiting == 20
    (loser,) = [each for each in many if each.seat in table.left]
    with pytest.raises(RendezvousBusy):
        loser.step()


def test_a_place_is_free_again_however_a_code_ends() -> None:
    table = Table()
    for end in ("leave", "expire", "claim"):
        for _ in range(limits.MAX_OFFERS_PER_ID):
            person = offerer(table, 1, lifetime_s=5)
            number = number_of(person)
            if end == "leave":
                table.leave(person.seat)
            elif end == "claim":
                table.send(table.sit(2), encode(frames.Claim(number, bytes(32))))
        table.wait(limits.EXCHANGE_S)
    assert table.desk.stats().waiting == 0
    assert table.desk._by_id.used == table.desk._by_source.used == 0
    assert table.desk._open == 0


def test_guesses_are_limited_per_address_whatever_the_key() -> None:
    table = Table()
    burst = int(limits.CLAIMS_PER_ADDRESS[0])
    assert {ask(table, who, "192.0.2.1") for who in range(burst)} == {Reason.UNKNOWN}
    assert ask(table, 1000, "192.0.2.1") is Reason.TOO_OFTEN
    assert ask(table, 1000, "192.0.2.2") is Reason.UNKNOWN
    table.wait(1 / limits.CLAIMS_PER_ADDRESS[1])
    assert ask(table, 1001, "192.0.2.1") is Reason.UNKNOWN
    assert ask(table, 1002, "192.0.2.1") is Reason.TOO_OFTEN


def test_guesses_are_limited_per_id_whatever_the_address() -> None:
    table = Table()
    burst = int(limits.CLAIMS_PER_ID[0])
    assert {ask(table, 1, f"192.0.2.{place}") for place in range(burst)} == {Reason.UNKNOWN}
    assert ask(table, 1, "192.0.2.200") is Reason.TOO_OFTEN
    assert reasons(table, "too_often") == 1


def test_guesses_are_limited_per_relay_whatever_the_key() -> None:
    table = Table()
    burst = int(limits.CLAIMS_PER_RELAY[0])
    assert {ask(table, who, "relay r", "relay") for who in range(burst)} == {Reason.UNKNOWN}
    assert ask(table, 1000, "relay r", "relay") is Reason.TOO_OFTEN


def test_a_refused_guess_burns_nothing() -> None:
    table = Table()
    number = number_of(offerer(table, 1))
    for _ in range(int(limits.CLAIMS_PER_ID[0])):
        ask(table, 9, "192.0.2.9")
    seat = table.sit(9)
    table.send(seat, encode(frames.Claim(number, bytes(32))))
    assert table.desk.stats().waiting == 1
    (refused,) = FrameReader().feed(table.take_inbox(seat))
    assert isinstance(refused, frames.Refused)
    assert 0 < refused.wait_s <= 1 / limits.CLAIMS_PER_ID[1]


def test_codes_that_are_asked_for_are_limited_in_the_long_run() -> None:
    table = Table()
    for _ in range(int(limits.OFFERS_PER_ID[0])):
        person = offerer(table, 1)
        number_of(person)
        table.leave(person.seat)
    with pytest.raises(RendezvousBusy, match="asked too often from here"):
        number_of(offerer(table, 1))


def test_who_has_said_nothing_leaves_soon() -> None:
    table = Table()
    seat = table.sit(1)
    table.wait(limits.FIRST_FRAME_S - 1)
    table.send(seat, CLAIM[:5])
    table.wait(1)
    assert seat in table.left


def test_a_lifetime_is_between_a_second_and_the_most() -> None:
    for asked, given_s in ((0, 1), (60, 60), (65_535, limits.LIFETIME_S)):
        person = offerer(Table(), lifetime_s=asked)
        (event,) = person.step()
        assert isinstance(event, Named)
        assert event.lifetime_s == given_s


def test_what_is_over_is_remembered_in_bounded_memory() -> None:
    table = Table()
    for who in range(limits.MAX_REMEMBERED + 100):
        person = offerer(table, who, source=str(who))
        number_of(person)
        table.leave(person.seat)
    assert len(table.desk._over) == limits.MAX_REMEMBERED
    assert len(table.desk._timers) < 200
    assert len(table.desk._offers) <= limits.MAX_CALLERS


def test_callers_beyond_the_limit_share_one_allowance() -> None:
    allowances = Allowances(most=4)
    rate = (2.0, 0.1)
    for caller in range(20):
        if not allowances.missing_s(caller, rate, 0.0):
            allowances.take(caller, rate, 0.0)
    assert len(allowances) == 5
    assert allowances.missing_s("new", rate, 0.0) > 0
    # Whoever has an allowance in full again is forgotten, and there is room.
    assert allowances.missing_s("new", rate, 30.0) == 0
    assert len(allowances) <= 4


@pytest.mark.parametrize("stage", ["new", "waiting", "offering", "claiming"])
@pytest.mark.parametrize(
    "frame",
    [
        frames.Allocated(1, 1),
        frames.Claimed(bytes(32)),
        frames.Gone(),
        frames.Refused(Reason.USED),
        frames.OffererConfirms(bytes(32)),
        frames.SealedTicket(bytes(17)),
        frames.Taken(bytes(32)),
        frames.Offer(1),
        frames.Claim(1, bytes(32)),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_frames_out_of_order_end_the_seat_and_tell_the_other(
    stage: str, frame: frames.Frame
) -> None:
    if stage == "new" and isinstance(frame, frames.Offer | frames.Claim):
        return
    table = Table()
    seat, other = table.sit(1), table.sit(2)
    if stage != "new":
        table.send(seat, encode(frames.Offer(60)))
        (allocated,) = FrameReader().feed(table.take_inbox(seat))
        assert isinstance(allocated, frames.Allocated)
        if stage != "waiting":
            table.send(other, encode(frames.Claim(allocated.nameplate, bytes(32))))
        if stage == "claiming":
            seat, other = other, seat
            table.take_inbox(other)
    with pytest.raises(ProtocolViolation):
        table.send(seat, encode(frame))
    if stage in ("offering", "claiming"):
        assert table.take_inbox(other) == encode(frames.Gone())
        assert other in table.left
    table.send(seat, encode(frame))  # whoever has left is not listened to


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.one_of(
                st.binary(max_size=50),
                st.sampled_from(
                    [
                        encode(frames.Offer(600)),
                        CLAIM,
                        *(encode(frames.Claim(number, bytes(32))) for number in range(2, 10)),
                        encode(frames.Answer(True, bytes(32))),
                        encode(frames.TakerConfirms(False, bytes(32))),
                        encode(frames.OffererConfirms(bytes(32))),
                        encode(frames.SealedTicket(bytes(40))),
                        encode(frames.Taken(bytes(32))),
                        encode(frames.Failed(frames.Failure.WRONG_CODE)),
                        "leave",
                        "wait",
                    ]
                ),
            ),
        ),
        max_size=40,
    )
)
def test_whatever_strangers_do_the_books_are_right_at_the_end(
    steps: list[tuple[int, bytes | str]],
) -> None:
    table = Table()
    seats = [table.sit(who) for who in range(4)]
    for who, what in steps:
        seat = seats[who]
        try:
            if what == "leave":
                table.leave(seat)
            elif what == "wait":
                table.wait(7.0)
            else:
                assert isinstance(what, bytes)
                table.send(seat, what)
        except (WireError, LimitExceeded, ProtocolViolation):
            seats[who] = table.sit(who)
        if not seats[who]._is_open:
            seats[who] = table.sit(who)
        assert sum(map(len, table.inbox.values())) < 20_000
    for seat in list(table.inbox):
        table.leave(seat)
    assert table.desk.next_time() is None
    assert table.desk.stats().waiting == 0
    assert table.desk._open == 0
    assert table.desk._by_id.used == table.desk._by_source.used == 0


@given(st.lists(st.binary(max_size=20), max_size=10), st.binary(max_size=200))
def test_frames_do_not_depend_on_how_bytes_come(pieces: list[bytes], rest: bytes) -> None:
    data = b"".join([encode(frames.Offer(7)), CLAIM, *pieces, rest])

    def read(parts: list[bytes]) -> tuple[list[frames.Frame], type[Exception] | None]:
        reader = FrameReader()
        found: list[frames.Frame] = []
        try:
            for part in parts:
                found += reader.feed(part)
        except (WireError, LimitExceeded) as error:
            return found[:2], type(error)
        return found[:2], None

    one_by_one = read([data[at : at + 1] for at in range(len(data))])
    assert one_by_one[1] == read([data])[1]
    assert one_by_one[0] == [frames.Offer(7), frames.Claim(1, bytes(32))]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x00\x00\x00", WireError),
        (b"\x01\x00\x03", WireError),
        (b"\x24\x00\x10", WireError),
        (b"\x24\xff\xff", LimitExceeded),
        (b"\x14\x00\x03\x00\x00\x00", WireError),
        (b"\x26\x00\x01\x09", WireError),
        (b"\x21\x00\x21\x02" + bytes(32), WireError),
    ],
)
def test_bytes_that_are_not_frames(data: bytes, kind: type[Exception]) -> None:
    """A wrong head is refused before its body has come."""
    with pytest.raises(kind):
        FrameReader().feed(data)


def test_every_refusal_is_a_sentence() -> None:
    for reason in Reason:
        person = offerer(Table())
        with pytest.raises(CodeRefused) as caught:
            person.side.receive(encode(frames.Refused(reason, 7)))
        assert str(caught.value)[0].islower()
        assert isinstance(caught.value, UnknownCode) is (reason is Reason.UNKNOWN)
