"""The complete exchanges of docs/wire/blobs.md 9.1, 9.4 and 9.5: requests and responses."""

from __future__ import annotations

import attrs
from blake3 import blake3
from blob_peers import p, t

_ONE_BLOB = "020001000100"
_LAST = "020001ffffffffffffffffff010100"
_EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
_HELLO = "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"
_HELLO_WORLD = "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"
_COLLECTION = "aac02f486b49281dbcf65438b124db31cc7671be01620a85f7dc417102d4a237"
_NAMES = "9aa1e089374f3f757d361f1582fbf34fdb009847756fed2ddabd3f416811b04f"
_A = "17762fddd969a453925d65717ac3eea21320b66b54342fde15128d6caf21215f"
_P1025 = "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"
_P16385 = "1dabe216be2578830263b049de1639f39f05a4da616b9b78c7a5e4e41662fd1f"
_CHUNK_0 = "5c9e654411e393d1f4bec710ccd5bc5669ab177d610a0eb691fcfee92fb4e8b1"

UNKNOWN: str = "da" * 32

CONTENTS: list[bytes] = [
    b"hello",
    b"hello world",
    b"a",
    bytes.fromhex("436f6c6c656374696f6e56302e010161"),
    bytes.fromhex(_NAMES + _A),
    *(p(n) for n in (1025, 2048, 16_384, 16_385, 32_769, 49_153, 70_000, 100_000, 1 << 20)),
    p((10 << 20) + 7),
    *(t(n) for n in (1, 1024, 16_383, 16_384, 16_385, 1 << 20, 8 << 20)),
]
"""What a provider must hold to answer the requests below."""


@attrs.frozen
class Exchange:
    """A request, and its response: in full, or as length and BLAKE3 (which may be cut off)."""

    name: str
    request: bytes
    response: bytes | None = None
    length: int = 0
    digest: str = ""

    def check(self, response: bytes) -> None:
        if self.response is not None:
            assert response == self.response
        else:
            assert len(response) == self.length
            assert blake3(response).hexdigest().startswith(self.digest)


def _full(name: str, request: str, response: str) -> Exchange:
    return Exchange(name, bytes.fromhex(request), bytes.fromhex(response))


def _digested(name: str, hash: str, ranges: str, length: int, digest: str) -> Exchange:
    return Exchange(name, bytes.fromhex("00" + hash + ranges), None, length, digest)


def _spec(*boundaries: int) -> str:
    """Return the sequence for these boundaries of one blob."""
    encoded = bytes([2, 0, len(boundaries)])
    previous = 0
    for bound in boundaries:
        value = bound - previous
        previous = bound
        while value >= 0x80:
            encoded += bytes([value & 0x7F | 0x80])
            value >>= 7
        encoded += bytes([value])
    return (encoded + b"\x01\x00").hex()


_END = (1 << 64) - 1
_WHOLE = [
    # T(n): n, hash, length, digest of the response
    (t(1), "32684bfa28c0c84d6f210511aace0efc5171c7889148ba89208d5aa29705fa98", 9,
     "7ffb6a674b6ec08da4511d22d1c282b6f120922faedc56bec534fddc00f636e7"),
    (t(1024), "f7314bcd4f08b945da46890d4abcbe9bd78905369461379ed5ab893eaccff236", 1032,
     "a53a7ea023222bc36b11c64bca94dbd368e9eb805871131213384880f07ae88c"),
    (t(16_383), "eed1f8762cade3e87900e09b36198013bc892efcc8b6116df0f0ea3f41010573", 16_391,
     "7ecb64e6ad869464673bc541476006cf64715322d5f3474bd21865fa804129a0"),
    (t(16_384), "86e4285d19bee1141aae6de3dc496a0e16ecf5873d8a9dbe83d3568f94dba1fc", 16_392,
     "a5bda653ce52b510c6c8afbc614ce23e1d370c8c5b317e72249830c28e4903d4"),
    (t(16_385), "2b0431903e5967a081fa64e6210c0684c734a3ca02c7b2582c39f0be117bace8", 16_457,
     "65f98e17d77ec1b389abd47d86da737ec3e2abbd659bd204c043716f21de9c91"),
    (t(1 << 20), "3dd77abb6c0125fb748313704ccd74ce9a7e94247dcf917bd96118b4f549534b", 1_052_616,
     "e67aff92075670b8ebb977e5a6c85469ac9bcdb337236f74b9a32650c1f1f088"),
    (t(8 << 20), "389192a6cb69a6bafd5586cac3e82cd640150686c64bb348ab75ff255dae275e", 8_421_320,
     "c744cffdf041f904ea709c6497dd5f98a0f2950c158ba3e583c05413baf0be85"),
    (p(1025), _P1025, 1033, "1d6b64cb5191d2496c9128e16d078f12"),
    (p(32_769), "da589428d9b32c97658a04a21c0c8a38aad2ac402120819d956fd6d62bbfa36e", 32_905,
     "bfd53bc3a00e81f8f436473439370777"),
    (p(49_153), "447d09cdb7cc2b870f041eda4d9b759195db784047b12666ec29e6905d38ac9c", 49_353,
     "ab34e6982ee2dfc30b9c1689a7438242"),
    (p(100_000), "d93c23eedaf165a7e0be908ba86f1a7a520d568d2d13cde787c8580c5c72cc54", 100_392,
     "e956ede102804468fda2dab079b970ff"),
    (p(1 << 20), "74cb441fd087764ca9c3694da742ebe30cbeb3060a17009ca81825c7a8d10343", 1_052_616,
     "26e61c2d9e47ce699b4f08caf283090a"),
    (p((10 << 20) + 7), "72a0cc1ad8a3bcfc68379cc04c66d958107bcb3b519bad05693862523c25b0c6",
     10_526_735, "7adb3c7cc54156819a98b240b8c282ca"),
]  # fmt: skip

_PARTS = [
    # content, boundaries, length, digest of the response
    (p(1025), (0, 1), 1096, "272df76c596cdd92f63d1f15db03deaf9470ecc7493283a7acccd5ca74eedfd1"),
    (p(2048), (0, 1), 1096, "9d6e1fd74077fa26dc40c69b199c6d54bd86294e866157aa73db479daaf727d0"),
    (p(16_384), (0, 8), 8264, "6192b7fbfbfcce0ad96d5b313a809bae7d2cfc68293758170661e74aad92e43b"),
    (p(16_384), (3, 5), 2440, "7031c012e2ec54855db6e58158b196a24d648b5c2f8e807905880aa8518ea285"),
    (p(16_384), (_END,), 1288, "082a87c55c0617e9ff4717b701fa0372063c8f4a1b94f87f7e43e84f462f68f6"),
    (p(16_385), (0,), 16_457, "0c6fa6b6ec04fc36a32daebfed66120764b0877410b5fe1931c247027bb206a3"),
    (p(16_385), (0, 16), 16_456, "e7699a8fbd4957b70d63f9fa02d48892a69872dca327ab48b50144ae985548cd"),
    (p(16_385), (0, 1), 1352, "5e20155fd76e72991133376ec2db10c75b07a74581308cab4e1b5bfcadeb216d"),
    (p(70_000), (0,), 70_264, "6485f65f94d48c19dc660ba881c654bc8f823f0c27fb9bf630e9374701dfdda6"),
    (p(70_000), (16, 32), 16_584, "71e8734a750894445f743a2a4a0bbdb36c047f8834128101857d497be93e509b"),
    (p(70_000), (20, 21), 1480, "7d9c002985d08752050544313aada4e81df389eddb7f8b2c6681fe2bcaa4e6b3"),
    (p(70_000), (0, 1, _END), 1912, "f675045c01bce1c5302cd68f80d62e74116d9ca742c667891b0a85e069a1f167"),
    (p(70_000), (60, 100), 8888, "b1abb3e1a92b4e17af7965b7aac47349b1a1e4efd4d736be025fb6fc3a172b25"),
    (p(70_000), (60, 65, 200, 300), 6008,
     "e060329dbde720eedb8d6c3c61e79ac0a99fd4dbc5fc60a39b5c60eed6d93c5e"),
    (p(49_153), (47,), 1417, "4f62ad0dbc7e9c2c4db4a46e602b159c0466657234b7aaadcb70539be7897010"),
]  # fmt: skip

_COLLECTION_RESPONSE = (
    "4000000000000000" + _NAMES + _A
    + "1000000000000000" + "436f6c6c656374696f6e56302e010161"
    + "0100000000000000" + "61"
)  # fmt: skip
_P1025_LAST = (
    "0104000000000000" + _CHUNK_0
    + "2f008e8a6979718c0c2f2fd7deb6e7fe4c1a3d8e90139c60cc163eb610ad8411" + "14"
)  # fmt: skip

EXCHANGES: list[Exchange] = [
    _full("nothing of what nobody has", "00" + UNKNOWN + "00", ""),
    _full("empty", "00" + _EMPTY + _ONE_BLOB, "0000000000000000"),
    _full("hello", "00" + _HELLO + _ONE_BLOB, "050000000000000068656c6c6f"),
    *(
        _full(f"hello world, {ranges}", "00" + _HELLO_WORLD + ranges,
              "0b0000000000000068656c6c6f20776f726c64")
        for ranges in (_ONE_BLOB, _LAST, _spec(5, 9))
    ),
    _full("two blobs", "0902" + _HELLO_WORLD + _HELLO + "020001000200",
          "0b0000000000000068656c6c6f20776f726c64" + "050000000000000068656c6c6f"),
    _full("two blobs, without end", "0902" + _HELLO_WORLD + _HELLO + "01000100",
          "0b0000000000000068656c6c6f20776f726c64" + "050000000000000068656c6c6f"),
    _full("collection", "00" + _COLLECTION + "01000100", _COLLECTION_RESPONSE),
    _full("collection and sizes", "00" + _COLLECTION + "020001000101ffffffffffffffffff01",
          _COLLECTION_RESPONSE),
    _full("P(1025), chunk 1", "00" + _P1025 + _spec(1, 2), _P1025_LAST),
    _full("P(1025), last chunk", "00" + _P1025 + _LAST, _P1025_LAST),
    _full("P(16385), last chunk", "00" + _P16385 + _LAST,
          "0140000000000000"
          "5384f9b342c6cb86badedcbe662b0e980476a8db17db3cc1f13b19329749ab1f"
          "7eec20c857faf93c8102396e3b2ea90bcdf693ebd5cbd77211e5f606d72bc1a5"
          "45"),
    *(
        _digested(f"{len(data)} bytes of {data[:2]!r}", hash, _ONE_BLOB, length, digest)
        for data, hash, length, digest in _WHOLE
    ),
    *(
        _digested(f"P({len(data)}), {boundaries}", blake3(data).hexdigest(), _spec(*boundaries),
                  length, digest)
        for data, boundaries, length, digest in _PARTS
    ),
]  # fmt: skip

PUSH_HELLO: bytes = bytes.fromhex("0826" + _HELLO + "020001000100" + "050000000000000068656c6c6f")

REFUSED: dict[str, bytes] = {
    name: bytes.fromhex(request)
    for name, request in {
        "one blob": "00" + UNKNOWN + _ONE_BLOB,
        "hash sequence": "00" + UNKNOWN + "01000100",
        "verified size": "00" + UNKNOWN + _LAST,
        "hash sequence and sizes": "00" + UNKNOWN + "020001000101ffffffffffffffffff01",
        "two blobs": "0902" + "11" * 32 + "22" * 32 + "020001000200",
        "two blobs, without end": "0902" + "11" * 32 + "22" * 32 + "01000100",
    }.items()
}
"""Requests for what nobody has: no bytes come back, but a reset with code 3."""

OBSERVE_UNKNOWN: tuple[bytes, bytes] = (
    bytes.fromhex("01" + UNKNOWN + "0100"),
    bytes.fromhex("020000"),
)
OBSERVE_HELLO: tuple[bytes, bytes] = (
    bytes.fromhex("01" + _HELLO + "0100"),
    bytes.fromhex("03050100"),
)
