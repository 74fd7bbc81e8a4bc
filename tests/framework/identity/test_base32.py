from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidInput
from dialkey.identity import base32
from dialkey.identity.base32 import Base32Error

ALPHABETS = [
    (base32.encode, base32.decode, "abcdefghijklmnopqrstuvwxyz234567"),
    (base32.encode_z32, base32.decode_z32, "ybndrfg8ejkmcpqxot1uwisza345h769"),
    (base32.encode_hex, base32.decode_hex, "0123456789abcdefghijklmnopqrstuv"),
]


@pytest.mark.parametrize(("encode", "decode", "alphabet"), ALPHABETS)
@given(data=st.binary(max_size=80))
def test_round_trip(encode, decode, alphabet, data):
    text = encode(data)
    assert decode(text) == data
    assert set(text) <= set(alphabet)
    assert len(text) == (len(data) * 8 + 4) // 5


@given(data=st.binary(max_size=80))
def test_agrees_with_the_standard_library(data):
    assert base32.encode(data) == base64.b32encode(data).decode().rstrip("=").lower()
    assert base32.encode_hex(data) == base64.b32hexencode(data).decode().rstrip("=").lower()


@pytest.mark.parametrize(("encode", "decode", "alphabet"), ALPHABETS)
def test_each_symbol_has_its_value(encode, decode, alphabet):
    assert decode(alphabet) == int("".join(f"{n:05b}" for n in range(32)), 2).to_bytes(20, "big")
    assert encode(decode(alphabet)) == alphabet


@pytest.mark.parametrize(("encode", "decode", "alphabet"), ALPHABETS)
@given(text=st.text(alphabet="aAyY0189=-l \n\u212a", max_size=12))
def test_what_decodes_is_the_only_text_of_its_bytes(encode, decode, alphabet, text):
    try:
        data = decode(text)
    except Base32Error:
        return
    assert encode(data) == text.lower()


@pytest.mark.parametrize(("encode", "decode", "alphabet"), ALPHABETS)
@pytest.mark.parametrize("length", [1, 3, 6, 9, 11, 14])
def test_refuses_impossible_lengths(encode, decode, alphabet, length):
    with pytest.raises(Base32Error) as caught:
        decode(alphabet[0] * length)
    assert caught.value.position is None
    assert "cut off" in str(caught.value)


@pytest.mark.parametrize(("encode", "decode", "alphabet"), ALPHABETS)
def test_refuses_spare_bits(encode, decode, alphabet):
    good = encode(b"\xff")
    assert len(good) == 2
    worse = good[0] + alphabet[alphabet.index(good[1]) + 1]
    with pytest.raises(Base32Error) as caught:
        decode(worse)
    assert caught.value.position == 1


@pytest.mark.parametrize(
    "text", ["aa======", "a a", "aa\n", " aa", "a-a", "a1", "a0", "a8", "\u212aa"]
)
def test_refuses_foreign_characters(text):
    with pytest.raises(Base32Error) as caught:
        base32.decode(text)
    position = caught.value.position
    assert position is not None
    assert text[position] not in "abcdefghijklmnopqrstuvwxyz234567"
    assert isinstance(caught.value, InvalidInput)


def test_only_rfc_4648_folds_case():
    assert base32.decode("AaAaA") == base32.decode("aaaaa")
    for decode in (base32.decode_z32, base32.decode_hex):
        with pytest.raises(Base32Error):
            decode("AAAAA")


def test_empty():
    assert base32.encode(b"") == ""
    assert base32.decode("") == b""


def test_long_input_takes_linear_time():
    # A quadratic decoder would need minutes for this.
    data = bytes(range(256)) * 4096
    assert base32.decode(base32.encode(data)) == data
