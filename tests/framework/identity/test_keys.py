from __future__ import annotations

import copy
import pickle

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidKey, WireError
from dialkey.identity import EndpointId, InvalidSignature, SecretKey, Signature, keys
from dialkey.identity.postcard import Reader, Writer

# Wire document, section 1.4: seed, public hex, base32, z-base-32, TLS base32, signature.
VECTORS = [
    (
        bytes(32),
        "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
        "hnvcppgow2sc2yvdvdicu3ynonsteflxdxrehjr2ybekdc2z3iuq",
        "8pinxxgqs41n4aididenw5apqp1urfmzdztr8jt4abrkdn435ewo",
        "7dl2ff6emqi2qol3l382krodedij45bn3nh479hqo14a32qpr8kg",
        "b0b47780f096ae60bfff8d8e7b19c36b321ae6e69cca972f2ff987ef30f20d29"
        "774b53bae404485c4391ddf1b3f37aaa8a9747f984eb0884e8aa533386e73305",
    ),
    (
        b"\x01" * 32,
        "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",
        "rkeohxlubhyzl7ks3mwtzos5olfgocn7dwkbeg7toseadnapn5oa",
        "tkrq8zmwb8a3m9k15csu3q17qmfgqnp9dskbrg9uq1rydpyxp7qy",
        "ha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0",
        "1b11b54888ee61743d072f36ce1ffdcde233b39ace8754db41cd299af9d8a63f"
        "5ccda750aa6316da57e8f2617811a21e612a6deb6d4408894a89f1a4ec3fc004",
    ),
    (
        bytes(range(32)),
        "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
        "aoqqpp7tzyil4hlq3umoos6atft6jvrqtosq2xy53sdgiesvgg4a",
        "yqooxx9u3aemh8mo5wcqq16yufu6jitouq1o4za751dger1igghy",
        "0eggffvjpo8bs7bgrkceeiu0j5ju9lhgjeigqnotri3684il66s0",
        "c9e88a06c88855aa75f90bcfdc5a87b76a99c0d2044114b8931e72089e7b8c7a"
        "c6b4a9776b57326f2d781aa8da8821fe6b4c7296fde0b63ca24d7f6343ac6a0a",
    ),
]

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
Y1 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
Y2 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


def little(number: int) -> bytes:
    return number.to_bytes(32, "little")


def with_sign(raw: bytes) -> bytes:
    return raw[:31] + bytes([raw[31] | 0x80])


SMALL_ORDER = [
    encoding
    for y in (
        little(0),
        little(1),
        little(P - 1),
        Y1,
        Y2,
        # The same points with y written above p.
        little(P),
        little(P + 1),
    )
    for encoding in (y, with_sign(y))
]

KEY = SecretKey(bytes(range(32)))
MESSAGE = b"hello world"


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "public", "b32", "z32", "tls", "signature"), VECTORS)
def test_vectors(seed, public, b32, z32, tls, signature):
    key = SecretKey(seed)
    assert str(key.id) == public == bytes(key.id).hex()
    assert key.id.to_base32() == b32
    assert key.id.to_z32() == z32
    assert key.id.to_base32hex() == tls
    assert key.id.short() == public[:10]
    assert str(key.sign(MESSAGE)) == signature
    key.id.verify(key.sign(MESSAGE), MESSAGE)
    for parsed in (
        EndpointId.parse(public),
        EndpointId.parse(b32),
        EndpointId.parse(b32.upper()),
        EndpointId.from_z32(z32),
    ):
        assert parsed == key.id


def test_the_z32_pair_of_the_crate():
    endpoint_id = EndpointId.parse(
        "1992d53c02cdc04566e5c0edb1ce83305cd550297953a047a445ea3264b54b18"
    )
    assert endpoint_id.to_z32() == "dgjpkxyn3zyrk3zfads5duwdgbqpkwbjxfj4yt7rezidr3fijccy"
    assert EndpointId.from_z32(endpoint_id.to_z32()) == endpoint_id


# --- which 32 bytes are a key ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        bytes(32),
        little(1),
        with_sign(little(1)),  # x is 0 and the sign bit set: still a key
        b"\xff" * 32,
        little(P),
        little(P + 1),
        little(2**255 - 1),
        *SMALL_ORDER,
    ],
)
def test_odd_encodings_that_are_keys(raw):
    assert bytes(EndpointId(raw)) == raw


@pytest.mark.parametrize("raw", [little(2), with_sign(little(2)), little(P + 2)])
def test_bytes_that_are_not_a_point_are_refused(raw):
    for make in (EndpointId, lambda r: EndpointId.parse(r.hex())):
        with pytest.raises(InvalidKey, match="not a point"):
            make(raw)


@given(st.binary(min_size=32, max_size=32))
def test_the_sign_bit_never_matters(raw):
    def is_key(candidate: bytes) -> bool:
        try:
            EndpointId(candidate)
        except InvalidKey:
            return False
        return True

    assert is_key(raw) == is_key(with_sign(raw))


@given(st.binary(min_size=32, max_size=32))
def test_every_seed_makes_a_key(seed):
    key = SecretKey(seed)
    assert EndpointId(bytes(key.id)) == key.id
    assert SecretKey.parse(key.to_hex()) == key


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_wrong_lengths_are_refused(length):
    for make in (EndpointId, SecretKey):
        with pytest.raises(InvalidKey, match="32 bytes"):
            make(bytes(length))
    if length != 64:
        with pytest.raises(InvalidKey, match="64 bytes"):
            Signature(bytes(length))


@pytest.mark.parametrize("make", [EndpointId, SecretKey, Signature])
@pytest.mark.parametrize("value", ["0" * 64, 32, None, [0] * 32])
def test_other_types_are_a_programming_error(make, value):
    with pytest.raises(TypeError):
        make(value)


def test_buffers_are_accepted_and_copied():
    buffer = bytearray(bytes(KEY.id))
    endpoint_id = EndpointId(buffer)
    assert endpoint_id == EndpointId(memoryview(buffer)) == KEY.id
    buffer[0] ^= 1
    assert endpoint_id == KEY.id


def test_the_cache_of_known_keys_is_bounded():
    assert keys._is_point.cache_info().maxsize == 8192


# --- texts ----------------------------------------------------------------------------------------

HEX = VECTORS[0][1]
B32 = VECTORS[0][2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "0"),
        (HEX[:-1], "63"),
        (HEX + "0", "65"),
        (HEX.upper(), "lower case"),
        (HEX[:-1] + "g", "character 64"),
        ("0x" + HEX[2:], "character 2"),
        (" " + HEX, "white space"),
        (HEX + "\n", "white space"),
        (B32 + "\n", "white space"),
        (B32[:-1], "51"),
        (B32 + "====", "56"),
        (B32[:-1] + "r", "bits"),
        (B32[:20] + "-" + B32[21:], "character 21"),
        (VECTORS[0][3], "z-base-32"),
        ("endpointaa5wuj54z23killcuounaktpbvzwkmqvo4o6eq5ghlaerimllhncsaa", "ticket"),
        ("é" * 32, "32"),
        ("\u0660" * 64, "character 1"),
    ],
)
def test_texts_that_are_refused(text, says):
    with pytest.raises(InvalidKey) as caught:
        EndpointId.parse(text)
    assert says in str(caught.value)
    with pytest.raises(InvalidKey):
        SecretKey.parse(text)


def test_z32_is_strict():
    z32 = VECTORS[0][3]
    for text in (z32.upper(), z32[:-1], z32 + "y", z32[:-1] + "n", B32, " " + z32, ""):
        with pytest.raises(InvalidKey):
            EndpointId.from_z32(text)


@given(st.binary(min_size=32, max_size=32))
def test_all_texts_of_an_id_round_trip(seed):
    endpoint_id = SecretKey(seed).id
    assert EndpointId.parse(str(endpoint_id)) == endpoint_id
    assert EndpointId.parse(endpoint_id.to_base32()) == endpoint_id
    assert EndpointId.parse(endpoint_id.to_base32().upper()) == endpoint_id
    assert EndpointId.from_z32(endpoint_id.to_z32()) == endpoint_id


def test_signature_texts():
    signature = KEY.sign(MESSAGE)
    assert Signature.parse(str(signature)) == signature
    assert Signature.parse(str(signature).upper()) == signature
    assert hash(Signature(bytes(signature))) == hash(signature)
    assert repr(signature) == f"Signature({bytes(signature).hex()})"
    for text in ("", "00", "g" * 128, " " + str(signature)[1:], "\u0660" * 128, "\u212a" * 128):
        with pytest.raises(InvalidKey):
            Signature.parse(text)


# --- values ---------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=8))
def test_ids_order_by_their_bytes(seeds):
    ids = [SecretKey(seed).id for seed in seeds]
    assert [bytes(i) for i in sorted(ids)] == sorted(bytes(i) for i in ids)


def test_ids_compare_and_hash():
    other = SecretKey(bytes(32)).id
    same = EndpointId(bytes(KEY.id))
    assert same == KEY.id
    assert hash(same) == hash(KEY.id)
    assert {same: 1}[KEY.id] == 1
    assert KEY.id < other
    assert KEY.id <= same
    assert other > KEY.id
    assert same >= KEY.id
    assert KEY.id != str(KEY.id)
    with pytest.raises(TypeError):
        KEY.id < b"x"  # noqa: B015
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        same._raw = b""


def test_two_encodings_of_one_point_are_two_ids():
    assert EndpointId(little(1)) != EndpointId(little(P + 1))


def test_ids_survive_pickling():
    assert pickle.loads(pickle.dumps(KEY.id)) == KEY.id


def test_ids_in_postcard():
    writer = Writer()
    KEY.id.write(writer)
    assert bytes(writer) == bytes(KEY.id)
    assert EndpointId.read(Reader(bytes(writer))) == KEY.id
    for bad in (b"", bytes(31), little(2)):
        with pytest.raises(WireError):
            EndpointId.read(Reader(bad))


# --- strict verification --------------------------------------------------------------------------


def refused(endpoint_id: EndpointId, signature: bytes, message: bytes = MESSAGE) -> str:
    with pytest.raises(InvalidSignature) as caught:
        endpoint_id.verify(signature, message)
    assert isinstance(caught.value, WireError)
    assert not endpoint_id.verifies(signature, message)
    return str(caught.value)


def test_verify_takes_signature_or_bytes():
    signature = KEY.sign(MESSAGE)
    KEY.id.verify(signature, MESSAGE)
    KEY.id.verify(bytes(signature), MESSAGE)
    assert KEY.id.verifies(signature, MESSAGE)


@given(st.integers(0, 511), st.binary(max_size=64))
def test_any_flipped_bit_is_noticed(bit, message):
    raw = bytearray(bytes(KEY.sign(message)))
    raw[bit // 8] ^= 1 << bit % 8
    assert not KEY.id.verifies(bytes(raw), message)


def test_another_message_or_key_is_refused():
    signature = bytes(KEY.sign(MESSAGE))
    refused(KEY.id, signature, b"hello worle")
    refused(SecretKey(bytes(32)).id, signature)
    refused(KEY.id, signature[:-1])
    refused(KEY.id, signature + b"\x00")


@pytest.mark.parametrize("raw", SMALL_ORDER)
def test_keys_of_small_order_prove_nothing(raw):
    endpoint_id = EndpointId(raw)
    assert endpoint_id.is_weak
    # With A the neutral element, R = A and s = 0 satisfy the plain equation for every message.
    assert "small order" in refused(endpoint_id, raw + bytes(32))
    assert not KEY.id.is_weak


@pytest.mark.parametrize("raw", SMALL_ORDER)
def test_points_of_small_order_in_signatures_are_refused(raw):
    assert "small order" in refused(KEY.id, raw + bytes(KEY.sign(MESSAGE))[32:])


def test_unreduced_scalars_are_refused():
    raw = bytes(KEY.sign(MESSAGE))
    s = int.from_bytes(raw[32:], "little")
    assert "reduced" in refused(KEY.id, raw[:32] + little(s + L))
    refused(KEY.id, raw[:32] + b"\xff" * 32)


def test_a_point_that_does_not_decompress_is_refused():
    s = bytes(KEY.sign(MESSAGE))[32:]
    for y in (2, 2**255 - 3, P + 2):
        refused(KEY.id, little(y) + s)


def test_verifying_does_not_flush_the_cache_of_keys():
    before = keys._is_point.cache_info().currsize
    KEY.id.verify(KEY.sign(b"another"), b"another")
    assert keys._is_point.cache_info().currsize == before


# --- secrets --------------------------------------------------------------------------------------


def test_generated_keys_differ():
    assert SecretKey.generate() != SecretKey.generate()


def test_signing_key_is_the_backends_object():
    signing_key = KEY.signing_key()
    assert isinstance(signing_key, Ed25519PrivateKey)
    assert signing_key.sign(MESSAGE) == bytes(KEY.sign(MESSAGE))


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, ascii])
def test_a_secret_never_shows(show):
    key = SecretKey(bytes(range(100, 132)))
    text = show(key)
    assert key.id.short() in text
    for form in (key.to_hex(), repr(bytes(key)), str(list(bytes(key)))):
        assert form[:12] not in text


def test_a_mistyped_secret_is_not_quoted():
    for text in (KEY.to_hex()[:-1], KEY.to_hex().upper(), "x" * 52, KEY.to_hex()[:-1] + "-"):
        with pytest.raises(InvalidKey) as caught:
            SecretKey.parse(text)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert text[:8] not in str(caught.value)
        assert "z-base-32" not in str(caught.value)


def test_secrets_do_not_leave_through_generic_doors():
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(KEY)
    assert not attrs.has(SecretKey)
    assert not hasattr(KEY, "__dict__")
    assert copy.copy(KEY) is KEY
    assert copy.deepcopy({"key": KEY})["key"] is KEY


def test_secrets_compare_by_value_and_hash_by_id():
    same = SecretKey(bytes(KEY))
    assert same == KEY
    assert SecretKey(bytes(32)) != KEY
    assert KEY.to_hex() != KEY
    assert hash(same) == hash(KEY.id)


def test_secrets_are_immutable():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        KEY._seed = bytes(32)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del KEY._seed
