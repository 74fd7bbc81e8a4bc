"""The vectors of docs/wire/rendezvous.md 6 are what both sides say, and follow from K as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dialkey_rendezvous import frames, limits
from dialkey_rendezvous.codes import Code
from dialkey_rendezvous.exchange import Agreed, Delivered, Offering, Taking, TicketCame
from dialkey_rendezvous.words import WORDS

PAGE: Final = Path(__file__).parents[2] / "docs" / "wire" / "rendezvous.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
SECTION: Final = TEXT.split("## 6. Vectors")[1]
ROWS: Final = {
    name: bytes.fromhex(hexadecimal)
    for name, hexadecimal in re.findall(r"^\| (.+?) \| `([0-9a-f ]+)` \|$", SECTION, re.MULTILINE)
}
CODE: Final = Code(7, ("amber", "violin"))
TICKET: Final = "endpointaaaa"


def test_both_sides_say_what_the_page_says() -> None:
    offerer = Offering(
        CODE.words, lifetime_s=3600, compares=True, entropy=lambda count: b"\1" * count
    )
    taker = Taking(CODE, compares=False, entropy=lambda count: b"\2" * count)
    assert offerer.bytes_to_send() == ROWS["Offer"]
    offerer.receive(ROWS["Allocated"])
    assert taker.bytes_to_send() == ROWS["Claim"]
    offerer.receive(ROWS["Claimed"])
    assert offerer.bytes_to_send() == ROWS["Answer"]
    taker.receive(ROWS["Answer"])
    assert taker.bytes_to_send() == ROWS["TakerConfirms"]
    words = tuple(re.findall(r"show `(\w+) (\w+) (\w+)`", SECTION)[0])
    assert offerer.receive(ROWS["TakerConfirms"]) == [Agreed(words, other_compares=False)]
    assert offerer.bytes_to_send() == ROWS["OffererConfirms"]
    assert taker.receive(ROWS["OffererConfirms"]) == [Agreed(words, other_compares=True)]
    offerer.give(TICKET)
    assert offerer.bytes_to_send() == ROWS["SealedTicket"]
    assert taker.receive(ROWS["SealedTicket"]) == [TicketCame(TICKET)]
    taker.confirm()
    assert taker.bytes_to_send() == ROWS["Taken"]
    assert offerer.receive(ROWS["Taken"]) == [Delivered()]


def test_all_follows_from_the_key_as_the_page_says() -> None:
    key = bytes.fromhex(re.findall(r"K is `([0-9a-f]{64})`", SECTION)[0])

    def derive(label: str) -> bytes:
        info = b"dialkey/rendezvous/1 " + label.encode()
        return HKDF(SHA256(), 32, b"\x01\x00", info).derive(key)

    assert ROWS["TakerConfirms"][4:] == derive("taker confirms")
    assert ROWS["OffererConfirms"][3:] == derive("offerer confirms")
    assert ROWS["Taken"][3:] == derive("taken")
    cipher = ChaCha20Poly1305(derive("ticket"))
    opened = cipher.decrypt(bytes(12), ROWS["SealedTicket"][3:], b"dialkey/rendezvous/1 offerer")
    assert opened == TICKET.encode()
    number = int.from_bytes(derive("words"), "big")
    words = [WORDS[number % 512], WORDS[number // 512 % 512], WORDS[number // 512**2 % 512]]
    assert " ".join(words) in SECTION


def test_other_frames() -> None:
    found = {
        "Gone": frames.Gone(),
        "Refused, asked too often, wait 20 s": frames.Refused(frames.Reason.TOO_OFTEN, 20),
        "Failed, wrong code": frames.Failed(frames.Failure.WRONG_CODE),
    }
    for name, frame in found.items():
        assert frames.encode(frame) == ROWS[name]
        assert frames.FrameReader().feed(ROWS[name]) == [frame]
    assert len(ROWS) == 12


def test_the_limits_are_those_of_the_page() -> None:
    section = " ".join(TEXT.split("## 5. ")[1].split("## 6. ")[0].split())
    for count in (
        f"{limits.MAX_OFFERS:,} in all",
        f"{limits.MAX_OFFERS_PER_ID} for each endpoint id",
        f"{limits.MAX_OFFERS_PER_ADDRESS} for each IPv4 address or IPv6 /64",
        f"{limits.MAX_OFFERS_PER_RELAY} for each relay",
        f"for {limits.REMEMBERED_S:.0f} seconds",
        f"{limits.FIRST_FRAME_S:.0f} s to the first frame",
        f"at most {limits.LIFETIME_S:,} s",
        f"{limits.EXCHANGE_S:.0f} s from Claim to Taken",
    ):
        assert count in section
    for burst, per_s in (limits.CLAIMS_PER_ID, limits.CLAIMS_PER_ADDRESS, limits.OFFERS_PER_ID):
        assert f"{burst:.0f} " in section
        assert f"one in {1 / per_s:.0f} s" in section
    assert (WORDS[0], WORDS[511]) == ("abacus", "zucchini")
