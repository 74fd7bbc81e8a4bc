"""A client's connection to a relay, from the upgrade request on: a state machine without I/O.

::

    UPGRADING ──101──> PROVING ──confirmed──> CONFIRMED ──first pong──> ESTABLISHED
        │                 │                       │                         │
        └── each has a deadline: nothing that a relay does or fails to do keeps us waiting ──┘

Source: docs/wire/relay.md 1.5, 2 and 5.3.
"""

from __future__ import annotations

import base64
import random
from enum import Enum
from typing import Final, TypeAlias

import attrs

from dialkey.identity import SecretKey
from dialkey.limits import MAX_RELAY_MESSAGE_BYTES
from dialkey_relay.errors import RelayLost, RelaySilent, RelayUnreachable
from dialkey_relay.frames import (
    MAX_SENT_CONTENT,
    Datagrams,
    EndpointGone,
    FrameType,
    Health,
    Ping,
    Pong,
    RelayVersion,
    Restarting,
    Status,
    decode_server_frame,
)
from dialkey_relay.handshake import (
    CLIENT_AUTH_HEADER,
    ClientHandshake,
    KeyingMaterialProof,
)
from dialkey_relay.http1 import ClientHttp, check_upgrade_response, upgrade_request
from dialkey_relay.keepalive import KeepAlive
from dialkey_relay.websocket import (
    BINARY,
    CLOSE_NORMAL,
    PONG,
    FrameReader,
    apply_mask,
    encode_close,
    encode_frame,
)

__all__ = ["ClientMachine", "Confirmed", "Established", "Event", "MachineState"]

HANDSHAKE_TIMEOUT_S: Final = 10.0
"""From the request to the relay's verdict; iroh's own number for the whole attempt."""

MASK_BYTES: Final = 4

_SINGLE: Final = bytes((FrameType.CLIENT_TO_RELAY_DATAGRAM,))
_BATCH: Final = bytes((FrameType.CLIENT_TO_RELAY_BATCH,))
_SINGLE_HEAD: Final = 34
_BATCH_HEAD: Final = 36


class MachineState(Enum):
    """The state of a connection to a relay."""

    UPGRADING = "waiting for the answer to the upgrade"
    PROVING = "proving our key"
    CONFIRMED = "waiting for the first pong"
    ESTABLISHED = "established"


@attrs.frozen
class Confirmed:
    """The relay has accepted us: datagrams can be sent.

    Attributes:
        version: of the relay protocol.
    """

    version: RelayVersion


@attrs.frozen
class Established:
    """A ping was answered; the first time it means that the connection works both ways.

    Attributes:
        rtt_s: its round-trip time.
    """

    rtt_s: float


Event: TypeAlias = Confirmed | Established | Datagrams | EndpointGone | Health | Status | Restarting


class ClientMachine:
    """One connection to a relay.

    Args:
        secret_key: the endpoint's key.
        host: for the Host header: as in the URL, with its port unless that is the scheme's own.
        target: path and query of the upgrade request.
        random: for keys, masks and ping payloads.
        now: the time, monotonic seconds.
        token: for the relay's access rules.
        keying_material: exported from the TLS connection for our key, where it can be.
        is_close: notice soon when the relay falls silent; see `KeepAlive`.

    Attributes:
        state: what it is doing.
        version: of the protocol, once the relay has answered.
    """

    def __init__(
        self,
        secret_key: SecretKey,
        *,
        host: str,
        target: str,
        random: random.Random,
        now: float,
        token: str | None = None,
        keying_material: bytes | None = None,
        is_close: bool = False,
    ) -> None:
        self._random = random
        self._is_close = is_close
        self._handshake = ClientHandshake(secret_key)
        self._key = base64.b64encode(random.randbytes(16)).decode()
        self._http = ClientHttp()
        self._reader = FrameReader(from_client=False, limit=MAX_RELAY_MESSAGE_BYTES)
        self._keepalive: KeepAlive | None = None
        self._deadline = now + HANDSHAKE_TIMEOUT_S
        self.state = MachineState.UPGRADING
        self.version = RelayVersion.V2
        headers: tuple[tuple[str, str], ...] = ()
        if keying_material is not None:
            proof = KeyingMaterialProof.make(secret_key, keying_material).encode()
            headers = ((CLIENT_AUTH_HEADER, proof),)
        self._out: list[bytes] = [
            upgrade_request(host, target, self._key, token=token, headers=headers, http=self._http)
        ]

    @property
    def rtt_s(self) -> float | None:
        """The round-trip time of the last ping, seconds."""
        return self._keepalive.rtt_s if self._keepalive is not None else None

    @property
    def last_frame_at(self) -> float | None:
        """When the last frame arrived; None before the relay has accepted us."""
        return self._keepalive.last_frame_at if self._keepalive is not None else None

    # --- input ----------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> list[Event]:
        """Take what has arrived; the memory can be reused afterwards.

        Raises:
            RelayUpgradeError: the server is not a relay.
            RelayDenied: the relay refuses us.
            RelayWireError, RelayViolation: its bytes are wrong.
            RelayLost: it said goodbye.
        """
        if self.state is MachineState.UPGRADING:
            self._http.feed(data)
            response = self._http.next_response()
            if response is None:
                return []
            self.version = check_upgrade_response(response, self._key)
            self.state = MachineState.PROVING
            data = memoryview(self._http.rest())
        events: list[Event] = []
        for message in self._reader.feed(data):
            if self._keepalive is None:
                self._receive_handshake(message, now, events)
            else:
                self._receive_frame(message, self._keepalive, now, events)
        for payload in self._reader.pings:
            self._send_websocket(PONG, payload)
        self._reader.pings.clear()
        if self._reader.close_payload is not None:
            self._end_after(events)
        return events

    def _end_after(self, events: list[Event]) -> None:
        """Report the relay's close frame, unless it announced a restart just before."""
        payload = self._reader.close_payload
        assert payload is not None
        if any(isinstance(event, Restarting) for event in events):
            return
        raise RelayLost(f"the relay closed the connection (code {int.from_bytes(payload[:2])})")

    def _receive_handshake(self, message: bytes, now: float, events: list[Event]) -> None:
        answer = self._handshake.receive(message)
        if answer is not None:
            self._send_websocket(BINARY, answer)
        if self._handshake.done:
            self.state = MachineState.CONFIRMED
            self._keepalive = KeepAlive(self._random, now, jitter=False, is_close=self._is_close)
            self._send_ping(self._keepalive.ping(now))
            events.append(Confirmed(self.version))

    def _receive_frame(
        self, message: bytes, keepalive: KeepAlive, now: float, events: list[Event]
    ) -> None:
        frame = decode_server_frame(message, self.version)
        keepalive.last_frame_at = now
        if isinstance(frame, Ping):
            self._send_websocket(BINARY, bytes((FrameType.PONG,)) + frame.payload)
        elif isinstance(frame, Pong):
            if keepalive.pong(frame.payload, now) and keepalive.rtt_s is not None:
                self.state = MachineState.ESTABLISHED
                events.append(Established(keepalive.rtt_s))
        else:
            events.append(frame)

    # --- output ---------------------------------------------------------------------------------

    def send(self, peer: bytes, data: bytes | memoryview, segment_bytes: int, ecn: int = 0) -> bool:
        """Queue datagrams to one endpoint, as few frames as they fit.

        Args:
            peer: the endpoint id, raw.
            data: datagrams behind each other; it is copied.
            segment_bytes: the size of each; the last may be shorter.

        Returns:
            Whether there is a relay to send them to; if not, they are dropped.
        """
        if self._keepalive is None or not data:
            return self._keepalive is not None
        total = len(data)
        if total <= segment_bytes:
            self._send_datagrams(_SINGLE + peer + bytes((ecn,)), _SINGLE_HEAD, data)
            return True
        head = _BATCH + peer + bytes((ecn,)) + segment_bytes.to_bytes(2, "big")
        step = max(1, MAX_SENT_CONTENT // segment_bytes) * segment_bytes
        if total <= step:
            self._send_datagrams(head, _BATCH_HEAD, data)
            return True
        view = memoryview(data)
        for at in range(0, total, step):
            self._send_datagrams(head, _BATCH_HEAD, view[at : at + step])
        return True

    def _send_datagrams(self, head: bytes, head_bytes: int, data: bytes | memoryview) -> None:
        length = head_bytes + len(data)
        mask = self._random.randbytes(MASK_BYTES)
        if length < 126:
            header = bytes((0x80 | BINARY, 0x80 | length))
        elif length < 1 << 16:
            header = bytes((0x80 | BINARY, 0x80 | 126)) + length.to_bytes(2, "big")
        else:
            header = bytes((0x80 | BINARY, 0x80 | 127)) + length.to_bytes(8, "big")
        # Masking head and data apart spares a copy of the data; the mask continues where it was.
        turned = mask if head_bytes % 4 == 0 else mask[2:] + mask[:2]
        self._out += (header + mask + apply_mask(head, mask), apply_mask(data, turned))

    def _send_websocket(self, opcode: int, payload: bytes) -> None:
        self._out.append(encode_frame(opcode, payload, self._random.randbytes(MASK_BYTES)))

    def _send_ping(self, payload: bytes) -> None:
        self._send_websocket(BINARY, bytes((FrameType.PING,)) + payload)

    def ping(self, now: float) -> None:
        """Ask at once whether the connection still works; it is lost if no answer comes in time."""
        if self._keepalive is not None:
            self._send_ping(self._keepalive.ping(now))

    def watch_closely(self, is_close: bool) -> None:
        """Change how soon it is noticed that the relay has fallen silent."""
        self._is_close = is_close
        if self._keepalive is not None:
            self._keepalive.watch_closely(is_close)

    def close(self) -> None:
        """Say goodbye."""
        if self.state is not MachineState.UPGRADING:
            self._out.append(encode_close(CLOSE_NORMAL, self._random.randbytes(MASK_BYTES)))

    def take_output(self) -> bytes:
        """Take the bytes to send."""
        if not self._out:
            return b""
        out, self._out = self._out, []
        return b"".join(out)

    # --- time -----------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When to call `on_timer`; always set."""
        return self._deadline if self._keepalive is None else self._keepalive.deadline

    def on_timer(self, now: float) -> None:
        """Do what is due. Calling it too early is harmless.

        Raises:
            RelayUnreachable: the relay did not accept us in time.
            RelaySilent: it no longer answers.
        """
        if self._keepalive is None:
            if now >= self._deadline:
                raise RelayUnreachable(f"the relay kept us waiting while {self.state.value}")
            return
        payload = self._keepalive.on_timer(now)
        if self._keepalive.timed_out:
            raise RelaySilent("the relay did not answer a ping")
        if payload is not None:
            self._send_ping(payload)
