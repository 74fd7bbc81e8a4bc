"""Traces: parseable, complete, and free when they are not wanted."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quic_pair import Pair, frame, stream_frame, transfer

from dialkey.quic import codes
from dialkey.quic.connection import State
from dialkey.quic.qlog import Qlog, describe
from dialkey.testing import Conditions


class Files:
    """Opens traces in memory and keeps what was written when they are closed."""

    def __init__(self) -> None:
        self.open: dict[str, io.StringIO] = {}
        self.texts: dict[str, str] = {}
        self.qlog = Qlog(self._open, lambda: 1_700_000_000_000.0)

    def _open(self, name: str) -> io.StringIO:
        files = self

        class File(io.StringIO):
            def close(self) -> None:
                if not self.closed:
                    files.texts[name] = self.getvalue()
                super().close()

        self.open[name] = File()
        return self.open[name]

    def records(self, role: str) -> list[dict[str, Any]]:
        (name,) = [name for name in self.open if name.endswith(role)]
        text = self.texts[name] if name in self.texts else self.open[name].getvalue()
        assert text.startswith("\x1e")
        return [json.loads(line) for line in text.split("\x1e")[1:]]


def traced(**kwargs: object) -> tuple[Pair, Files]:
    files = Files()
    options = {"qlog": files.qlog}
    pair = Pair(client=options, server=options, **kwargs)  # type: ignore[arg-type]
    return pair.connect(seconds=60), files


def named(records: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [record["data"] for record in records if record.get("name") == name]


def test_a_whole_connection_is_in_one_trace() -> None:
    pair, files = traced()
    transfer((pair.client, 300_000))
    pair.client.c.update_keys(pair.now)
    transfer((pair.server, 1000))
    pair.client.close(7, b"done")
    pair.run(lambda: all(side.c.state is State.GONE for side in pair.sides), seconds=5)
    assert len(files.texts) == 2, "both files are closed when the connections are gone"
    for role in ("client", "server"):
        records = files.records(role)
        header = records[0]
        assert header["qlog_format"] == "JSON-SEQ"
        assert header["trace"]["vantage_point"]["type"] == role
        assert header["trace"]["common_fields"]["reference_time"] == 1_700_000_000_000.0
        times = [record["time"] for record in records[1:]]
        assert times == sorted(times)
        assert 0 <= times[-1] < 60_000
        packets = named(records, "transport:packet_sent") + named(
            records, "transport:packet_received"
        )
        kinds = {each["header"]["packet_type"] for each in packets}
        assert kinds == {"initial", "handshake", "1RTT"}
        assert named(records, "recovery:metrics_updated")
        assert len(named(records, "security:key_updated")) >= 1
        (closed,) = named(records, "connectivity:connection_closed")
        assert closed["application_code"] == 7
        assert closed["reason"] == "done"


def test_what_one_side_sends_is_what_the_other_receives() -> None:
    pair, files = traced()
    transfer((pair.client, 200_000), (pair.server, 200_000))
    pair.settle(0.5)

    def packets(role: str, event: str) -> dict[int, tuple[int, str]]:
        return {
            each["header"]["packet_number"]: (each["raw"]["length"], json.dumps(each["frames"]))
            for each in named(files.records(role), f"transport:{event}")
            if each["header"]["packet_type"] == "1RTT"
        }

    for here, there in (("client", "server"), ("server", "client")):
        sent = packets(here, "packet_sent")
        received = packets(there, "packet_received")
        assert len(received) > 100
        assert received == {number: sent[number] for number in received}
        assert set(sent) == set(received)


def test_losses_are_in_the_trace() -> None:
    pair, files = traced(conditions=Conditions(loss=0.1), seed=3)
    transfer((pair.client, 100_000))
    records = files.records("client")
    lost = named(records, "recovery:packet_lost")
    assert len([each for each in lost if "path_id" in each]) >= 5
    last = [each for each in named(records, "recovery:metrics_updated") if "path_id" in each][-1]
    assert last["congestion_window"] > 0
    assert last["smoothed_rtt"] == pytest.approx(20, rel=0.5)


def test_without_one_nothing_is_written() -> None:
    pair = Pair().connect()
    assert pair.client.c.qlog is None


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (bytes(5), [{"frame_type": "padding", "length": 5}]),
        (frame(codes.PING), [{"frame_type": "ping"}]),
        (
            stream_frame(4, 10, b"abc", finish=True),
            [{"frame_type": "stream", "stream_id": 4, "offset": 10, "length": 3, "fin": True}],
        ),
        (
            frame(codes.STREAM, 4, b"abc"),
            [{"frame_type": "stream", "stream_id": 4, "offset": 0, "length": 3, "fin": False}],
        ),
        (
            frame(codes.ACK, 9, 10, 0, 4),
            [{"frame_type": "ack", "ack_delay": 0.08, "acked_ranges": [[5, 9]]}],
        ),
        (
            frame(codes.PATH_ACK, 2, 9, 0, 0, 9),
            [{"frame_type": "path_ack", "path_id": 2, "ack_delay": 0, "acked_ranges": [[0, 9]]}],
        ),
        (
            frame(codes.PATH_CHALLENGE, b"12345678") + frame(codes.PATH_RESPONSE, b"12345678"),
            [{"frame_type": "path_challenge"}, {"frame_type": "path_response"}],
        ),
        (
            frame(codes.NEW_CONNECTION_ID, 5, 1, b"\x0812345678", bytes(16)) + b"\x01",
            [
                {"frame_type": "new_connection_id", "sequence_number": 5, "retire_prior_to": 1},
                {"frame_type": "ping"},
            ],
        ),
        (
            frame(codes.DATAGRAM_WITH_LENGTH, 3, b"abc") + frame(codes.DATAGRAM, b"rest"),
            [{"frame_type": "datagram", "length": 3}, {"frame_type": "datagram", "length": 4}],
        ),
        (frame(0x3D7FA0, b"?"), [{"frame_type": "unknown", "raw_frame_type": 0x3D7FA0}]),
    ],
)
def test_frames_are_described(payload: bytes, expected: list[dict[str, object]]) -> None:
    assert describe(payload) == expected


def test_no_secret_is_described() -> None:
    token = bytes(range(16))
    text = json.dumps(describe(frame(codes.NEW_CONNECTION_ID, 5, 1, b"\x0812345678", token)))
    assert token.hex() not in text


@given(st.binary(max_size=200))
def test_any_bytes_are_described(payload: bytes) -> None:
    for record in describe(payload):
        assert record["frame_type"]
        json.dumps(record)
