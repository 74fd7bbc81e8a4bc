"""Keys, relay URLs, addresses and tickets beside the `iroh` wheel: same bytes, same verdicts."""

from __future__ import annotations

import random

import pytest

from dialkey.errors import InvalidAddress, InvalidKey, InvalidTicket
from dialkey.identity import (
    CustomAddr,
    EndpointAddr,
    EndpointId,
    EndpointTicket,
    IpAddr,
    RelayAddr,
    RelayUrl,
    SecretKey,
    Signature,
    encode_ticket,
)
from dialkey.identity.postcard import Writer

iroh = pytest.importorskip("iroh")

pytestmark = pytest.mark.interop

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
ID = SecretKey(bytes(32)).id
SMALL_ORDER_Y = [
    0,
    1,
    P - 1,
    P,
    P + 1,
    *(
        int.from_bytes(bytes.fromhex(y), "little")
        for y in (
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        )
    ),
]


def both_signs(y: int) -> list[bytes]:
    return [y.to_bytes(32, "little"), (y | 1 << 255).to_bytes(32, "little")]


def theirs(function, *args):
    """Call into the wheel; None stands for its refusal."""
    try:
        return function(*args)
    except iroh.IrohError:
        return None


def ours(function, *args):
    """Call into dialkey; None stands for its refusal."""
    try:
        return function(*args)
    except (InvalidKey, InvalidAddress, InvalidTicket):
        return None


# --- keys -----------------------------------------------------------------------------------------


def test_which_bytes_are_a_key():
    chance = random.Random(1)
    samples = [encoding for y in SMALL_ORDER_Y for encoding in both_signs(y)]
    for delta in range(-40, 40):
        samples += both_signs((P + delta) % 2**255)
        samples += both_signs(abs(delta))
    samples += [chance.randbytes(32) for _ in range(2000)]
    samples += [b"", bytes(31), bytes(33)]
    accepted = 0
    for raw in samples:
        mine, their = ours(EndpointId, raw), theirs(iroh.EndpointId.from_bytes, raw)
        assert (mine is None) == (their is None), raw.hex()
        if mine is not None:
            accepted += 1
            assert bytes(mine) == their.to_bytes()
            assert str(mine) == str(their)
            assert mine.short() == their.fmt_short()
    assert 900 < accepted < len(samples) - 900


def test_which_texts_are_a_key():
    chance = random.Random(2)
    texts = ["", " ", "0" * 64, "a" * 52, "A" * 52]
    for _ in range(150):
        endpoint_id = SecretKey(chance.randbytes(32)).id
        for good in (str(endpoint_id), endpoint_id.to_base32(), endpoint_id.to_base32().upper()):
            position = chance.randrange(len(good))
            wrong = chance.choice("0189gzGZ-=é \n")
            texts += [
                good,
                good.upper(),
                good[:position] + wrong + good[position + 1 :],
                good[:position] + good[position + 1 :],
                good + good[position],
                good[:-1] + chance.choice("abcdefghijklmnopqrstuvwxyz234567"),
                " " + good,
                good + "\n",
                good + "====",
            ]
        texts += [endpoint_id.to_z32(), endpoint_id.to_base32hex()]
    for text in texts:
        mine, their = ours(EndpointId.parse, text), theirs(iroh.EndpointId.from_string, text)
        assert (mine is None) == (their is None), text
        assert mine is None or bytes(mine) == their.to_bytes()


def test_seeds_and_signatures_give_the_same_bytes():
    chance = random.Random(3)
    for seed in [bytes(32), b"\xff" * 32, *(chance.randbytes(32) for _ in range(100))]:
        message = chance.randbytes(chance.randrange(200))
        mine, their = SecretKey(seed), iroh.SecretKey.from_bytes(seed)
        assert bytes(mine.id) == their.public().to_bytes()
        assert bytes(mine.sign(message)) == their.sign(message).to_bytes()
        mine.id.verify(their.sign(message).to_bytes(), message)
        their.public().verify(message, iroh.Signature.from_bytes(bytes(mine.sign(message))))
        assert bytes(SecretKey(their.to_bytes())) == seed


def they_verify(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        iroh.EndpointId.from_bytes(public).verify(message, iroh.Signature.from_bytes(signature))
    except iroh.IrohError:
        return False
    return True


def test_which_signatures_hold():
    # Few cases: the wheel takes some 60 ms to refuse one.
    chance = random.Random(4)
    message = b"message"
    cases = []
    for _ in range(8):
        key = SecretKey(chance.randbytes(32))
        public, good = bytes(key.id), bytes(key.sign(message))
        r, s = good[:32], int.from_bytes(good[32:], "little")
        flipped = bytearray(good)
        flipped[chance.randrange(64)] ^= 1 << chance.randrange(8)
        cases += [
            (public, good),
            (public, bytes(flipped)),
            (public, r + (s + L).to_bytes(32, "little")),
            (public, chance.randbytes(32) + good[32:]),
            (public, bytes(64)),
        ]
    weak = [encoding for y in SMALL_ORDER_Y for encoding in both_signs(y)]
    good = bytes(SecretKey(bytes(32)).sign(message))
    for a in weak:
        cases += [(a, chance.choice(weak) + bytes(32)), (bytes(ID), a + good[32:])]
    cases.append(((1).to_bytes(32, "little"), (1).to_bytes(32, "little") + bytes(32)))
    held = 0
    for public, signature in cases:
        mine = EndpointId(public).verifies(Signature(signature), message)
        assert mine == they_verify(public, signature, message), (public.hex(), signature.hex())
        held += mine
    assert held == 8


# --- relay URLs -----------------------------------------------------------------------------------


def their_url(text: str) -> str | None:
    """Normalise by way of a ticket: the wheel parses what it carries."""
    writer = Writer().u8(0).raw(bytes(ID)).varint(1).varint(0).string(text)
    ticket = theirs(iroh.EndpointTicket.from_string, encode_ticket("endpoint", bytes(writer)))
    return None if ticket is None else ticket.endpoint_addr().relay_url()


def our_url(text: str) -> str | None:
    url = ours(RelayUrl, text)
    return None if url is None else str(url)


WORDS = (
    "http https HTTPS foo user user:pw@ [ ] [::1] [1:2::3.4.5.6] [::ffff:1.2.3.4] :: 1 0x7f 08 010 "
    "127.0.0.1 256 1.2.3.4.5 . .. %2e %2E%2e %41 %zz % %00 example EXAMPLE.com example.com. bücher "
    "faß ☃ 💩 xn--bcher-kva xn-- xn--a ＷＷＷ א localhost 。 ． ％ ① İ ſ \u212a / // \\ @ C: "
    ":80 :443 :0443 :99999"
)
PIECES = [
    *WORDS.split(),
    *"-_?#'\"`{}|^<>~!$&*+,;=():",
    *" \t\n\x00\x1f\x7f\x80\xa0\u00ad\u200d",
    "a b",
]
STARTS = [
    "https://",
    "http://",
    "https:",
    "ws://",
    "wss://",
    "ftp://",
    "https://example.com",
    "https://example.com/",
    "https://u@h",
    "foo://h/",
    "foo:",
    "foo:/",
    "",
]


def test_relay_urls_have_the_same_normal_form():
    chance = random.Random(5)
    accepted = 0
    for _ in range(12_000):
        text = chance.choice(STARTS) + "".join(chance.choices(PIECES, k=chance.randrange(6)))
        if text.startswith("foo://") and ("@" in text or "\\" in text):
            continue  # written down in the module as not followed
        their = their_url(text)
        accepted += their is not None
        assert our_url(text) == their, ascii(text)
    assert accepted > 4000


def test_host_names_of_many_scripts_have_the_same_normal_form():
    # Letters that were in Unicode for long, so that the two libraries' tables agree on them.
    chance = random.Random(6)
    letters = "aßçñøžαςσжщאבתابتदेवनครไท中文字かなカナ한글ﬁ²½\u0301\u064b\u200c\u200d\u00b7۰٠1-"
    accepted = 0
    for _ in range(4000):
        label = "".join(chance.choices(letters, k=chance.randrange(1, 6)))
        if chance.random() < 0.2:
            label = "xn--" + label.lower().encode("punycode").decode()
        text = f"https://{label}" + chance.choice(["", ".example", ".א", ".中文", "."])
        their = their_url(text)
        accepted += their is not None
        assert our_url(text) == their, ascii(text)
    assert accepted > 800


# --- socket addresses -----------------------------------------------------------------------------


def test_socket_addresses_print_alike():
    chance = random.Random(7)
    for _ in range(300):
        groups = [chance.choice([0, 0, 0, 1, 0xFFFF, chance.randrange(65536)]) for _ in range(8)]
        if chance.random() < 0.2:
            groups[:6] = [0, 0, 0, 0, 0, chance.choice([0, 0xFFFF])]
        port = chance.randrange(65536)
        addr = IpAddr.parse(f"[{':'.join(f'{g:x}' for g in groups)}]:{port}")
        ticket = iroh.EndpointTicket.from_string(str(EndpointTicket(EndpointAddr(ID, [addr]))))
        assert ticket.endpoint_addr().direct_addresses() == [str(addr)]


@pytest.mark.parametrize(
    "text",
    [
        "1.2.3.4:80",
        "1.2.3.4:00080",
        "01.2.3.4:80",
        "1.2.3.4:65536",
        "1.2.3.4:+1",
        "1.2.3.4",
        " 1.2.3.4:80",
        "1.2.3.4:80 ",
        "[::1]:80",
        "[::1.2.3.4]:80",
        "[::FFFF:1.2.3.4]:80",
        "[::01.2.3.4]:80",
        "[1:2:3:4:5:6:7::]:80",
        "[1:2:3:4::5:6:7:8]:80",
        "[12345::]:80",
        "[fe80::1%3]:80",
        "[fe80::1%03]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1%4294967296]:80",
        "::1:80",
        "localhost:80",
    ],
)
def test_socket_address_texts_get_the_same_verdict(text):
    addr = theirs(iroh.EndpointAddr, iroh.EndpointId.from_bytes(bytes(ID)), None, [text])
    their = None if addr is None else theirs(iroh.EndpointTicket.from_addr, addr)
    assert (ours(IpAddr.parse, text) is None) == (their is None)


# --- tickets --------------------------------------------------------------------------------------


def random_addr(chance: random.Random) -> EndpointAddr:
    addrs: list[RelayAddr | IpAddr | CustomAddr] = []
    if chance.random() < 0.5:
        host = chance.choice(["relay.example", "RELAY.example.", "127.0.0.1", "[::1]"])
        addrs.append(RelayAddr(RelayUrl(f"https://{host}:{chance.randrange(65536)}")))
    for _ in range(chance.randrange(4)):
        octets = ".".join(str(o) for o in chance.randbytes(4))
        addrs.append(IpAddr.parse(f"{octets}:{chance.randrange(65536)}"))
    for _ in range(chance.randrange(3)):
        groups = ":".join(f"{chance.randrange(65536):x}" for _ in range(8))
        addrs.append(IpAddr.parse(f"[{groups}]:{chance.randrange(65536)}"))
    return EndpointAddr(SecretKey(chance.randbytes(32)).id, addrs)


def test_they_read_our_tickets_and_we_read_theirs():
    chance = random.Random(8)
    for _ in range(150):
        addr = random_addr(chance)
        text = str(EndpointTicket(addr))
        ticket = iroh.EndpointTicket.from_string(text)
        assert str(ticket) == text
        their = ticket.endpoint_addr()
        assert their.id().to_bytes() == bytes(addr.id)
        assert their.relay_url() == next((str(u) for u in addr.relay_urls), None)
        assert their.direct_addresses() == [str(a) for a in addr.ip_addrs]

        direct = [str(a) for a in addr.ip_addrs] * 2
        chance.shuffle(direct)
        made = iroh.EndpointTicket.from_addr(
            iroh.EndpointAddr(their.id(), their.relay_url(), direct)
        )
        assert EndpointTicket.parse(str(made)).addr == addr


def test_custom_addresses_pass_through_their_tickets():
    addrs = [
        CustomAddr(0x544F52, bytes(range(32))),
        CustomAddr(1, b""),
        CustomAddr(2**64 - 1, b"x"),
    ]
    addrs += [CustomAddr(7, bytes([n]) * size) for n, size in ((9, 2), (1, 3), (9, 31), (1, 32))]
    text = str(EndpointTicket(EndpointAddr(ID, addrs)))
    assert str(iroh.EndpointTicket.from_string(text)) == text
    writer = Writer().u8(0).raw(bytes(ID)).varint(len(addrs))
    for addr in addrs:
        writer.varint(2).varint(addr.id).byte_string(addr.data)
    unsorted = encode_ticket("endpoint", bytes(writer))
    assert str(iroh.EndpointTicket.from_string(unsorted)) == text
    assert str(EndpointTicket.parse(unsorted)) == text


def verdicts(text: str) -> tuple[str | None, str | None]:
    mine, their = ours(EndpointTicket.parse, text), theirs(iroh.EndpointTicket.from_string, text)
    return (None if mine is None else str(mine)), (None if their is None else str(their))


def test_damaged_tickets_get_the_same_verdict():
    chance = random.Random(9)
    base = str(EndpointTicket(random_addr(random.Random(10)).with_addrs([CustomAddr(5, b"abc")])))
    texts = [base[:end] for end in range(len(base))]
    for position in range(len(base)):
        for wrong in [*chance.sample("abcdefghijklmnopqrstuvwxyz234567", 3), *"0=-é"]:
            texts.append(base[:position] + wrong + base[position + 1 :])
    texts += [base[:8] + base[8:].upper(), base + "a", base + "aa", base + "===="]
    accepted = 0
    for text in texts:
        mine, their = verdicts(text)
        assert mine == their, text
        accepted += mine is not None
    assert accepted > 100


def test_a_ticket_in_upper_case_is_read_here_and_not_by_the_wheel():
    """A QR code of capitals is smaller."""
    text = str(EndpointTicket(random_addr(random.Random(10))))
    assert verdicts(text.upper()) == (text, None)


def test_damaged_payloads_get_the_same_verdict():
    chance = random.Random(11)
    accepted = 0
    for _ in range(2000):
        addr = random_addr(chance).with_addrs([CustomAddr(chance.randrange(300), b"ab")])
        payload = bytearray(EndpointTicket(addr).to_bytes())
        for _ in range(chance.randrange(1, 3)):
            payload[chance.choice([0, *range(33, len(payload))])] = chance.choice(
                [0, 1, 2, 3, 0x7F, 0x80, 0x81, 0xFF, chance.randrange(256)]
            )
        if chance.random() < 0.3:
            payload += chance.randbytes(3)
        mine, their = verdicts(encode_ticket("endpoint", bytes(payload)))
        assert mine == their, payload.hex()
        accepted += mine is not None
    assert accepted > 300
