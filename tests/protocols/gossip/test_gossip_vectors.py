"""The byte vectors of docs/wire/gossip.md 7."""

from __future__ import annotations

import pytest

from dialkey.errors import WireError
from dialkey_gossip.framing import FrameReader, frame
from dialkey_gossip.messages import decode

K1 = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
K2 = "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
P1 = (
    "011a68747470733a2f2f72656c61792e6578616d706c652e6f72672f0200c0000201d122"
    "0120010db8000000000000000000000001d122"
)
M = "85052e9aab1b67b6622d94a08441b09fd5b7aca61ee360416d70de5da67d86ca"
M2 = "9250df4f9a62498d15b0d288a70bafb47b97d0835c4812a67c9d7548b54ba99f"
EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

VECTORS = {
    "V1 Join": "00000003 00 00 00",
    "V2 Join P0": "00000006 00 00 01 02 0000",
    "V3 Join P1": f"0000003b 00 00 01 37 {P1}",
    "V4 ForwardJoin": f"00000027 00 01 {K2} 01 02 0000 06",
    "V5 Shuffle": f"00000069 00 02 {K1} 02 {K2} 00 {K1} 01 02 0000 06",
    "V6 ShuffleReply": "00000003 00 03 00",
    "V7 ShuffleReply": f"00000027 00 03 01 {K2} 01 02 0000",
    "V8 Neighbor High": "00000007 00 04 00 01 02 0000",
    "V9 Neighbor Low": "00000004 00 04 01 00",
    "V10 Disconnect": "00000004 00 05 01 00",
    "V11 Disconnect": "00000004 00 05 00 00",
    "V12 Gossip": f"00000027 01 00 {M} 02 6869 00 00",
    "V13 Gossip": f"00000028 01 00 {M} 02 6869 00 ac02",
    "V14 Gossip": f"00000026 01 00 {M} 02 6869 01",
    "V15 Gossip": f"00000025 01 00 {EMPTY} 00 00 00",
    "V16 Prune": "00000002 01 01",
    "V17 Graft": f"00000024 01 02 01 {M} 02",
    "V18 Graft": "00000004 01 02 00 02",
    "V19 IHave": f"00000024 01 03 01 {M} 02",
    "V20 IHave": f"00000045 01 03 02 {M} 02 {M2} 03",
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_both_ways(name: str) -> None:
    data = bytes.fromhex(VECTORS[name])
    (body,) = FrameReader().feed(data)
    assert body == data[4:]
    assert frame(decode(body)) == data


@pytest.mark.parametrize(
    "body",
    [
        f"01 00 {M} 02 68",
        "00 04 02 00",
        "00 05 02 00",
        "00 01" + "02" * 32 + "01 02 0000 06",
    ],
)
def test_malformed_messages_are_refused(body: str) -> None:
    with pytest.raises(WireError):
        decode(bytes.fromhex(body))


def test_bytes_behind_a_message_are_ignored() -> None:
    assert decode(bytes.fromhex("00 00 00 ff")) == decode(bytes.fromhex("00 00 00"))


def test_a_frame_that_is_too_large_is_refused() -> None:
    with pytest.raises(WireError, match=r"too large|exceeds|more than|limit"):
        FrameReader().feed(bytes.fromhex("00001001"))
