"""A peer with a proven key and hostile frames of the multipath extension: the right code, no exception.

Source: docs/wire/quic.md 3.2, 3.3, 3.5 and 3.10.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_pair import Pair, Side, builder_of, frame, transfer
from quic_paths import PathPair, footprint

from dialkey.quic import codes
from dialkey.quic.packets.frames import VARINT_MAX
from dialkey.quic.paths import multipath
from dialkey.testing import Conditions

FAST = Conditions(delay_s=0.01)
TOKEN = bytes(16)
CID = b"\x08" + b"hostile!"
LIMIT = multipath.MAX_CONCURRENT_PATHS
"""One more than the highest path id that both sides allow."""

VALID = {
    "PATH_ACK": frame(codes.PATH_ACK, 0, 0, 0, 0, 0),
    "PATH_ACK with ECN": frame(codes.PATH_ACK_ECN, 0, 0, 0, 0, 0, 0, 0, 0),
    "PATH_ABANDON": frame(codes.PATH_ABANDON, 6, 0),
    "PATH_STATUS_BACKUP": frame(codes.PATH_STATUS_BACKUP, 1, 1),
    "PATH_STATUS_AVAILABLE": frame(codes.PATH_STATUS_AVAILABLE, 1, 1),
    "PATH_NEW_CONNECTION_ID": frame(codes.PATH_NEW_CONNECTION_ID, 5, 0, 0, CID, TOKEN),
    "PATH_RETIRE_CONNECTION_ID": frame(codes.PATH_RETIRE_CONNECTION_ID, 1, 0),
    "MAX_PATH_ID": frame(codes.MAX_PATH_ID, 20),
    "PATHS_BLOCKED": frame(codes.PATHS_BLOCKED, 7),
    "PATH_CIDS_BLOCKED": frame(codes.PATH_CIDS_BLOCKED, 5, 0),
}


def with_path_id(path_id: int) -> dict[str, bytes]:
    return {
        "PATH_ACK": frame(codes.PATH_ACK, path_id, 0, 0, 0, 0),
        "PATH_ACK with ECN": frame(codes.PATH_ACK_ECN, path_id, 0, 0, 0, 0, 0, 0, 0),
        "PATH_ABANDON": frame(codes.PATH_ABANDON, path_id, 0),
        "PATH_STATUS_BACKUP": frame(codes.PATH_STATUS_BACKUP, path_id, 1),
        "PATH_STATUS_AVAILABLE": frame(codes.PATH_STATUS_AVAILABLE, path_id, 1),
        "PATH_NEW_CONNECTION_ID": frame(codes.PATH_NEW_CONNECTION_ID, path_id, 0, 0, CID, TOKEN),
        "PATH_RETIRE_CONNECTION_ID": frame(codes.PATH_RETIRE_CONNECTION_ID, path_id, 0),
        "MAX_PATH_ID": frame(codes.MAX_PATH_ID, path_id),
        "PATHS_BLOCKED": frame(codes.PATHS_BLOCKED, path_id),
        "PATH_CIDS_BLOCKED": frame(codes.PATH_CIDS_BLOCKED, path_id, 0),
    }


def new_cid(path_id: int, sequence: int, retire: int = 0, cid: bytes | None = None) -> bytes:
    cid = cid if cid is not None else b"cid%05d" % sequence
    head = frame(codes.PATH_NEW_CONNECTION_ID, path_id, sequence, retire)
    return head + bytes((len(cid),)) + cid + TOKEN


def pair_with(role: str) -> tuple[PathPair, Side, Side]:
    """Return a pair with two paths, who attacks, and who must bear it."""
    pair = PathPair(FAST, FAST).with_paths()
    pair.settle()
    victim = getattr(pair, role)
    return pair, pair.other(victim), victim


def code_after(payload: bytes, role: str = "server") -> int | None:
    pair, attacker, victim = pair_with(role)
    send_on(pair, attacker, 0, payload)
    reason = victim.close_reason
    if reason is None:
        pair.settle(0.5)
        assert victim.close_reason is None
        return None
    assert reason.cause == "protocol"
    return reason.error_code


def send_on(pair: PathPair, attacker: Side, path_id: int, payload: bytes) -> None:
    """Let the other side receive any payload on one of the paths."""
    path = attacker.c.paths[path_id]
    cid = path.cid
    way = pair.ways[min(path_id, 1)]
    if cid is not None:
        packet = builder_of(attacker.c).seal(path, payload, cid)
        source = way.client if attacker is pair.client else way.server
        pair.deliver(pair.other(attacker), source, [packet])


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("what", VALID)
def test_each_frame_is_taken(what: str, role: str) -> None:
    assert code_after(VALID[what], role) is None


@pytest.mark.parametrize("what", VALID)
def test_a_frame_that_is_cut_off_anywhere(what: str) -> None:
    whole = VALID[what]
    # Padding would make up for what is missing in a packet that is too short.
    before = bytes((codes.PING,)) * 4
    for end in range(1, len(whole)):
        assert code_after(before + whole[:end]) == codes.FRAME_ENCODING_ERROR, end


@pytest.mark.parametrize("path_id", [1 << 32, (1 << 32) + 1, VARINT_MAX])
@pytest.mark.parametrize("what", VALID)
def test_a_path_id_of_more_than_32_bits(what: str, path_id: int) -> None:
    assert code_after(with_path_id(path_id)[what]) == codes.FRAME_ENCODING_ERROR


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("path_id", [LIMIT, LIMIT + 1, (1 << 32) - 1])
@pytest.mark.parametrize("what", VALID)
def test_a_path_id_beyond_the_limit(what: str, path_id: int, role: str) -> None:
    expected = codes.PROTOCOL_VIOLATION
    if what in ("MAX_PATH_ID", "PATH_RETIRE_CONNECTION_ID"):
        # A limit may be anything; an id of a path that we know nothing of is retired by nobody.
        expected = None
    assert code_after(with_path_id(path_id)[what], role) == expected


@pytest.mark.parametrize("what", VALID)
@pytest.mark.parametrize("path_id", [0, 1])
def test_an_extension_that_was_not_agreed_on(what: str, path_id: int) -> None:
    pair = Pair(server={"multipath": False}).connect()
    pair.settle()
    pair.client.inject(with_path_id(path_id)[what])
    reason = pair.server.close_reason
    assert reason is not None
    assert reason.error_code == codes.PROTOCOL_VIOLATION


BROKEN = {
    "a path that was never used is acknowledged": (
        frame(codes.PATH_ACK, 5, 0, 0, 0, 0),
        codes.PROTOCOL_VIOLATION,
    ),
    "a packet that was never sent is acknowledged": (
        frame(codes.PATH_ACK, 1, 1 << 20, 0, 0, 0),
        codes.PROTOCOL_VIOLATION,
    ),
    "acknowledged below zero": (
        frame(codes.PATH_ACK, 1, 1, 0, 0, 2),
        codes.FRAME_ENCODING_ERROR,
    ),
    "2^62 ranges": (
        frame(codes.PATH_ACK, 1, 0, 0, VARINT_MAX, 0),
        codes.FRAME_ENCODING_ERROR,
    ),
    "too many ids for a path that is open": (
        b"".join(new_cid(1, n) for n in range(5, 9)),
        codes.CONNECTION_ID_LIMIT_ERROR,
    ),
    "too many ids for a path to come": (
        b"".join(new_cid(6, n) for n in range(9)),
        codes.CONNECTION_ID_LIMIT_ERROR,
    ),
    "an id that retires itself": (new_cid(1, 9, retire=10), codes.PROTOCOL_VIOLATION),
    "one number for two ids": (
        new_cid(6, 0) + new_cid(6, 0, cid=b"another!"),
        codes.PROTOCOL_VIOLATION,
    ),
    "an id of no bytes": (new_cid(6, 0, cid=b""), codes.FRAME_ENCODING_ERROR),
    "an id of 21 bytes": (new_cid(6, 0, cid=bytes(21)), codes.FRAME_ENCODING_ERROR),
    "an id of another length": (new_cid(6, 0, cid=bytes(20)), codes.PROTOCOL_VIOLATION),
    "an id that was never issued is retired": (
        frame(codes.PATH_RETIRE_CONNECTION_ID, 1, 99),
        codes.PROTOCOL_VIOLATION,
    ),
    "an id that was never issued is awaited": (
        frame(codes.PATH_CIDS_BLOCKED, 1, 99),
        codes.PROTOCOL_VIOLATION,
    ),
}


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_rule(what: str, role: str) -> None:
    payload, code = BROKEN[what]
    assert code_after(payload, role) == code


def test_a_server_that_ends_paths_before_they_are_opened() -> None:
    """Odd, and harmless: those ids are over, others take their place."""
    pair, attacker, victim = pair_with("client")
    send_on(pair, attacker, 0, b"".join(frame(codes.PATH_ABANDON, n, 0) for n in range(2, 8)))
    pair.settle(2)
    assert victim.close_reason is None
    state = victim.c.paths.multipath
    assert state is not None
    assert state.local_max == 7 + 6
    assert state.next_id == 8


def test_an_end_of_a_path_again_and_again_allows_one_other() -> None:
    pair, attacker, victim = pair_with("server")
    for _ in range(50):
        send_on(pair, attacker, 0, frame(codes.PATH_ABANDON, 1, 0) * 20)
    state = victim.c.paths.multipath
    assert state is not None
    assert state.local_max == LIMIT
    pair.settle(10)
    for _ in range(50):
        send_on(pair, attacker, 0, frame(codes.PATH_ABANDON, 1, 0) * 20)
    assert state.local_max == LIMIT


# --- random sequences ---------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(0, 12),
    st.integers(0, 70),
    st.sampled_from([(1 << n) + d for n in (6, 14, 30, 32, 60) for d in (-1, 0, 1)]),
    st.just(VARINT_MAX),
)
kinds = st.sampled_from(
    [
        codes.PATH_ACK,
        codes.PATH_ACK_ECN,
        codes.PATH_ABANDON,
        codes.PATH_STATUS_BACKUP,
        codes.PATH_STATUS_AVAILABLE,
        codes.PATH_RETIRE_CONNECTION_ID,
        codes.MAX_PATH_ID,
        codes.PATHS_BLOCKED,
        codes.PATH_CIDS_BLOCKED,
    ]
)
low = st.integers(0, 9)
hostile_frames = st.one_of(
    st.builds(lambda kind, fields: frame(kind, *fields), kinds, st.lists(numbers, max_size=6)),
    st.builds(frame, st.just(codes.PATH_ABANDON), low, numbers),
    st.builds(frame, st.just(codes.PATH_RETIRE_CONNECTION_ID), low, low),
    st.builds(frame, st.just(codes.PATH_STATUS_BACKUP), low, numbers),
    st.builds(frame, st.just(codes.PATH_CIDS_BLOCKED), low, low),
    st.builds(frame, st.just(codes.MAX_PATH_ID), numbers),
    st.builds(new_cid, low, low, low),
    st.builds(
        frame,
        st.sampled_from([codes.PATH_CHALLENGE, codes.PATH_RESPONSE]),
        st.binary(min_size=8, max_size=8),
    ),
    st.just(bytes((codes.PING,))),
)
packets = st.lists(
    st.tuples(st.integers(0, 3), st.lists(hostile_frames, min_size=1, max_size=5), st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(packets=packets, role=st.sampled_from(["client", "server"]))
def test_random_frames_on_random_paths(
    packets: list[tuple[int, list[bytes], bool]], role: str
) -> None:
    pair = PathPair(FAST, FAST, FAST, FAST).with_paths()
    victim = getattr(pair, role)
    attacker = pair.other(victim)
    for path_id, parts, waits in packets:
        path = attacker.c.paths.get(path_id)
        cid = path.cid if path is not None else None
        if path is None or cid is None or victim.close_reason is not None:
            continue
        payload = b"".join(parts)[:1100]
        packet = builder_of(attacker.c).seal(path, payload, cid)
        way = pair.ways[path_id]
        pair.deliver(victim, way.client if role == "server" else way.server, [packet])
        pair.flush()
        if waits:
            pair.run(seconds=0.05)
    reason = victim.close_reason
    if reason is not None:
        # What the attacker's own machine thinks of the answers to its lies does not matter.
        assert reason.cause in ("protocol", "peer", "no path")
        if reason.cause == "protocol":
            # Fields too many or too few begin other frames, of streams perhaps.
            assert codes.INTERNAL_ERROR < reason.error_code <= codes.NO_VIABLE_PATH
        return
    sizes = footprint(victim)
    assert sizes["paths"] <= LIMIT + multipath.MAX_DRAINING
    assert sizes["cid sets"] <= 3 * LIMIT
    assert sizes["ids"] <= 20 * 5
    assert sizes["ranges of ids that are over"] <= LIMIT + 1


def test_data_flows_on_after_odd_frames() -> None:
    pair, attacker, _ = pair_with("server")
    send_on(pair, attacker, 1, VALID["PATHS_BLOCKED"] + VALID["PATH_CIDS_BLOCKED"])
    transfer((pair.client, 50_000), (pair.server, 50_000))
