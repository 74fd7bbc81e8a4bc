"""The vectors printed in docs/wire are what the code reads and writes.

The tests of each protocol have vectors of their own; these keep the pages true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from blake3 import blake3

from dialkey.errors import WireError
from dialkey.identity import EndpointId, EndpointTicket, RelayUrl, SecretKey, postcard
from dialkey_blobs import BlobTicket
from dialkey_blobs.ranges import (
    read_range_spec,
    read_ranges_seq,
    write_range_spec,
    write_ranges_seq,
)
from dialkey_gossip.framing import FrameReader, frame
from dialkey_gossip.messages import decode
from dialkey_relay.frames import (
    RelayVersion,
    decode_client_frame,
    decode_server_frame,
    encode_server_frame,
    encode_to_relay,
)

WIRE: Final = Path(__file__).parents[2] / "docs" / "wire"
CODE: Final = re.compile(r"`([^`]*)`")


def rows(page: str, section: str) -> Iterator[list[str]]:
    """Yield the cells of the tables below a heading, without their head."""
    text = (WIRE / page).read_text(encoding="utf-8")
    body = re.split(rf"^#+ {re.escape(section)} .*$", text, flags=re.MULTILINE)[1]
    body = re.split(r"^#", body, maxsplit=1, flags=re.MULTILINE)[0]
    head_is_over = False
    for line in body.splitlines():
        if not line.startswith("|"):
            head_is_over = False
        elif re.fullmatch(r"[|\-]+", line):
            head_is_over = True
        elif head_is_over:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def codes(cell: str) -> list[str]:
    return CODE.findall(cell)


def bytes_of(cell: str, **names: str) -> bytes:
    """Read hex in backquotes, and names of byte strings between."""
    words = re.sub(r"\b[A-Z]\w*\b", lambda m: "`" + names.get(m[0], m[0]) + "`", cell)
    return bytes.fromhex("".join(codes(words)).replace(" ", ""))


def test_keys() -> None:
    seeds = {"32 x `00`": bytes(32), "32 x `01`": b"\1" * 32, "`00` to `1f`": bytes(range(32))}
    found = list(rows("discovery.md", "1.4"))
    assert len(found) == len(seeds)
    for seed, *cells in found:
        key = SecretKey(seeds[seed])
        texts = (str(key.id), key.id.to_base32(), key.id.to_z32())
        assert tuple(cell.strip("`") for cell in cells) == (*texts, str(key.sign(b"hello world")))


def test_relay_urls() -> None:
    found = list(rows("discovery.md", "2.3"))
    assert len(found) == 7
    for given, kept in found:
        for text in codes(given):
            if kept == "refused":
                with pytest.raises(ValueError, match="URL"):
                    RelayUrl(text)
            else:
                assert str(RelayUrl(text)) == codes(kept)[0]


def test_tickets() -> None:
    endpoints = [codes(cell)[0] for _, cell in rows("discovery.md", "4.2")]
    blobs = [codes(cell)[0] for _, cell in rows("discovery.md", "4.3") if "blobac" in cell]
    assert (len(endpoints), len(blobs)) == (3, 2)
    for text in endpoints:
        assert str(EndpointTicket.parse(text)) == text
        assert EndpointTicket.parse(text).addr.id == SecretKey(bytes(32)).id
    for text in blobs:
        assert str(BlobTicket.parse(text)) == text
        assert BlobTicket.parse(text).hash.digest == blake3(b"hi there").digest()


def test_ranges() -> None:
    sets = [bytes_of(cell) for _, cell in rows("blobs.md", "2.1")]
    sequences = [bytes_of(cell) for _, cell in rows("blobs.md", "2.2")]
    assert (len(sets), len(sequences)) == (8, 7)
    for data in sets:
        writer = postcard.Writer()
        write_range_spec(writer, read_range_spec(postcard.Reader(data)))
        assert bytes(writer) == data
    for data in sequences:
        writer = postcard.Writer()
        write_ranges_seq(writer, read_ranges_seq(postcard.Reader(data)))
        assert bytes(writer) == data


def refused(section: str) -> list[bytes]:
    text = (WIRE / "blobs.md").read_text(encoding="utf-8").split(f"### {section} ")[1]
    line = text.split("\nRefused: ")[1].split("\n\n")[0]
    return [bytes.fromhex(each.replace(" ", "")) for each in codes(line)]


def test_refused_ranges() -> None:
    for data in refused("2.1"):
        with pytest.raises(WireError):
            read_range_spec(postcard.Reader(data))
    for data in refused("2.2"):
        with pytest.raises(WireError):
            read_ranges_seq(postcard.Reader(data))
    assert len(refused("2.1")) + len(refused("2.2")) == 5


def test_hashes() -> None:
    contents = {
        "empty": b"",
        "`hello`": b"hello",
        "`hi there`": b"hi there",
        "P(70000)": bytes(i % 251 for i in range(70_000)),
        "T(16385)": bytes(65 + i // 1024 % 26 for i in range(16_385)),
    }
    assert {name: codes(cell)[0] for name, cell in rows("blobs.md", "9.1")} == {
        name: blake3(data).hexdigest() for name, data in contents.items()
    }


def test_gossip_frames() -> None:
    text = (WIRE / "gossip.md").read_text(encoding="utf-8")
    names = {
        name: codes(cell)[0] for name, cell in rows("gossip.md", "7.") if name in {"K1", "K2", "M"}
    }
    names["P"] = re.findall(r"P is `([0-9a-f]+)`", text)[0]
    assert names["M"] == blake3(b"hi").hexdigest()
    assert names["K2"] == str(SecretKey(b"\2" * 32).id)
    frames = 0
    for name, cell in rows("gossip.md", "7."):
        if name in names or name == "head":
            continue
        for each in cell.split(";"):
            data = bytes_of(each, **names)
            (body,) = FrameReader().feed(data)
            assert frame(decode(body)) == data, name
            frames += 1
    assert frames == 16


def test_relay_frames() -> None:
    key = SecretKey(b"\x2a" * 32).id
    assert str(key) in (WIRE / "relay.md").read_text(encoding="utf-8")
    frames = 0
    for name, cell in rows("relay.md", "8.3"):
        if name.startswith("denial"):
            continue
        for each in cell.split(","):
            data = bytes_of(each, PK=str(EndpointId(bytes(key))))
            if data[0] in (4, 5):
                assert encode_to_relay(decode_client_frame(data)) == data
            else:
                version = RelayVersion.V1 if data[0] == 0x0B else RelayVersion.V2
                assert encode_server_frame(decode_server_frame(data, version)) == data
            frames += 1
    assert frames == 10
