"""The relay handshake: captured bytes of docs/wire/relay.md 8.1 and 8.2, and refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import RemoteError
from dialkey.identity import InvalidSignature, SecretKey
from dialkey_relay.errors import RelayDenied, RelayViolation, RelayWireError
from dialkey_relay.frames import RelayVersion
from dialkey_relay.handshake import (
    CONFIRMED,
    ClientHandshake,
    KeyingMaterialProof,
    encode_challenge,
    encode_client_auth,
    encode_denial,
    signed_message,
    verify_client_auth,
)
from dialkey_relay.http1 import (
    ClientHttp,
    ServerHttp,
    accept_value,
    check_upgrade,
    check_upgrade_response,
    upgrade_request,
    upgrade_response,
)
from dialkey_relay.websocket import BINARY, FrameReader, encode_frame

CHALLENGE = bytes(range(16))
SECRET_1 = SecretKey(b"\x01" * 32)
SECRET_2 = SecretKey(b"\x02" * 32)
AUTH_1 = bytes.fromhex(
    "018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c40"
    "4d5e2e27b1f48ba67554ffa68589791ddfec1529574c3f26e4356bc075cee0a3"
    "ddaedea5fb0b3de1359d135dce06aa7f192562e48df781df865c77f1d716f00d"
)
AUTH_1_ON_THE_WIRE = bytes.fromhex(
    "82e262c0cd6f634a458cbfb4c49ef73d9fb44ffc7732100aaa66dddd597d7933b9e76374c2003e8080314ce77c9b"
    "e966b83b9d6648e61bdd128377e99a235de6295a0900b8a1826310c1bc6536645f21f8f2719d0369c8bfd44a0024"
    "4098e31f4b3315311a7992cd"
)
SIGNATURE_2 = (
    "ef0157e4d946ff69f1dc5e382117b873dfd4dbc54a0b0a9fbd9d33a7ae8618d8"
    "b88ebbb8566b96f22675c191575674a631182d4a1d2425264a5f17255a5c4704"
)
REQUEST = (
    b"GET /relay HTTP/1.1\r\nHost: 127.0.0.1:37669\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: OeAe5QzRiuGv8h+FIM6xkw==\r\nSec-WebSocket-Version: 13\r\n"
    b"sec-websocket-protocol: iroh-relay-v2, iroh-relay-v1\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: /CAQv2Xq0cuGAILGBpJCEqBoDIQ=\r\n"
    b"sec-websocket-protocol: iroh-relay-v2\r\nconnection: upgrade\r\n\r\n"
)
PROOFS = [
    (
        "ee48b21dd5a613d9bc54e155e727ac0f0df81f2fd8a1617b5de42ba5fbafa011",
        "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1xAICy_FZRpO6cXeNUWtsPpNxEOx61tOq890RDbeEy7UTNac_V_"
        "3p9_fegPHN3citmiylxLXLmSLcB974KFZ1ksBw34Hy_YoWF7XeQrpfuvoBE",
    ),
    (
        "b46ace5c613d552dfe5b9d3f3ce37c0f788f506c21d2a41efb5137fc86a72c6d",
        "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1xA7BB3U4HH5hdQ0BmofPMdXCR2pM7TnAg6RhM2C1iFnO0K7EIQ"
        "DfdJVtaK0JLn8gGalyiiRiB6UfA4_Tqm6OAxCHiPUGwh0qQe-1E3_IanLG0",
    ),
    (
        "5b65a3ba126ed143c3b314c68ea529a2b0f59fa51f9290f221765686ef01f610",
        "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1xAonj9hYKfjsV3ujE0nS9wFe93sswDQyLMPokSbjXgzcDXe4EH"
        "maZBUo6ze2AXtIHChPLW9sWxU8o_EbYmNc9_A7D1n6UfkpDyIXZWhu8B9hA",
    ),
]


def test_the_captured_upgrade() -> None:
    server, client = ServerHttp(), ClientHttp()
    server.feed(REQUEST)
    request = server.next_request()
    upgrade = check_upgrade(request)
    assert upgrade.version is RelayVersion.V2
    assert server.respond(upgrade_response(upgrade)) == RESPONSE
    key = "OeAe5QzRiuGv8h+FIM6xkw=="
    assert upgrade_request("127.0.0.1:37669", "/relay", key, http=client) == REQUEST
    assert accept_value(key) == "/CAQv2Xq0cuGAILGBpJCEqBoDIQ="
    client.feed(RESPONSE)
    assert check_upgrade_response(client.next_response(), key) is RelayVersion.V2


def test_the_captured_challenge() -> None:
    challenge = encode_challenge(CHALLENGE)
    assert encode_frame(BINARY, challenge).hex() == "821100000102030405060708090a0b0c0d0e0f"
    digest = "b7b16e505d2cb5dbaf494800092c3b05a6c45d8d3fd4f1b888c6a77240b876c0"
    assert signed_message(CHALLENGE).hex() == digest
    handshake = ClientHandshake(SECRET_1)
    answer = handshake.receive(challenge)
    assert answer == AUTH_1
    assert encode_frame(BINARY, answer, bytes.fromhex("62c0cd6f")) == AUTH_1_ON_THE_WIRE
    reader = FrameReader(from_client=True, limit=1000)
    assert reader.feed(memoryview(AUTH_1_ON_THE_WIRE)) == [AUTH_1]
    assert verify_client_auth(AUTH_1, CHALLENGE) == SECRET_1.id
    assert encode_frame(BINARY, CONFIRMED).hex() == "820102"
    assert handshake.receive(CONFIRMED) is None
    assert handshake.done


def test_the_second_client_of_the_capture() -> None:
    answer = encode_client_auth(SECRET_2, CHALLENGE)
    assert answer[1:33].hex() == "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
    assert answer[33] == 0x40
    assert answer[34:].hex() == SIGNATURE_2
    assert verify_client_auth(answer, CHALLENGE) == SECRET_2.id


@pytest.mark.parametrize(("exported", "header"), PROOFS)
def test_captured_keying_material_headers(exported, header) -> None:
    keying_material = bytes.fromhex(exported)
    assert KeyingMaterialProof.make(SECRET_1, keying_material).encode() == header
    proof = KeyingMaterialProof.decode(header)
    assert proof.endpoint_id == SECRET_1.id
    assert proof.proves(keying_material)
    assert not proof.proves(keying_material[:-1] + b"\0")
    assert not proof.proves(b"\0" + keying_material[1:])
    assert not proof.proves(b"")


@pytest.mark.parametrize("header", ["", "!!!!", "iojj", PROOFS[0][1][:-4], "A" * 151])
def test_broken_keying_material_headers(header) -> None:
    with pytest.raises(RelayWireError):
        KeyingMaterialProof.decode(header)


def test_denials() -> None:
    assert encode_denial().hex() == "030e6e6f7420617574686f72697a6564"
    assert encode_denial("R" * 200) == bytes.fromhex("03c801") + b"R" * 200
    handshake = ClientHandshake(SECRET_1)
    with pytest.raises(RelayDenied) as caught:
        handshake.receive(encode_denial())
    assert caught.value.reason == "not authorized"
    with pytest.raises(RelayDenied) as caught:
        ClientHandshake(SECRET_1).receive(encode_denial("R" * 200))
    assert caught.value.reason == "R" * 200
    assert len(encode_denial("ä" * 5000)) <= 4096 + 3


def test_a_relay_may_skip_the_challenge_and_append_bytes() -> None:
    handshake = ClientHandshake(SECRET_1)
    assert handshake.receive(CONFIRMED + b"later versions") is None
    assert handshake.done


@pytest.mark.parametrize("message", [b"", b"\0short", b"\x03", b"\x03\x05ab", b"\x03\x01\xff"])
def test_malformed_messages_to_a_client(message) -> None:
    with pytest.raises(RelayWireError):
        ClientHandshake(SECRET_1).receive(message)


@pytest.mark.parametrize("frame_type", [1, 4, 6, 9, 13, 14])
def test_a_client_takes_no_other_frames(frame_type) -> None:
    with pytest.raises(RelayViolation):
        ClientHandshake(SECRET_1).receive(bytes((frame_type,)) + b"\0" * 40)


def test_a_second_challenge_is_refused() -> None:
    handshake = ClientHandshake(SECRET_1)
    handshake.receive(encode_challenge(CHALLENGE))
    with pytest.raises(RelayViolation):
        handshake.receive(encode_challenge(CHALLENGE))


def test_a_wrong_signature_is_refused() -> None:
    with pytest.raises(InvalidSignature):
        verify_client_auth(AUTH_1, b"\xff" * 16)
    with pytest.raises(InvalidSignature):
        verify_client_auth(AUTH_1[:-1] + b"\0", CHALLENGE)
    with pytest.raises(RelayViolation):
        verify_client_auth(b"\x09" + b"\0" * 8, CHALLENGE)
    identity = b"\x01" + b"\0" * 31
    with pytest.raises(InvalidSignature):
        verify_client_auth(b"\x01" + identity + b"\x40" + identity + b"\0" * 32, CHALLENGE)


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_arbitrary_answers_raise_one_error_family(message) -> None:
    with pytest.raises(RemoteError):
        verify_client_auth(message, CHALLENGE)
    with pytest.raises(RemoteError):
        verify_client_auth(b"\x01" + message, CHALLENGE)
