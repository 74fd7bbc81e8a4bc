"""Access rules and signed grants."""

from __future__ import annotations

import base64

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import InvalidInput
from dialkey.identity import EndpointId, SecretKey
from dialkey_relay.access import (
    Admission,
    AdmitRequest,
    AllowList,
    Denial,
    DenyList,
    Everyone,
    GrantRule,
    SharedTokens,
    check_all,
    recheck_all,
)
from dialkey_relay.errors import InvalidGrant, RelayConfigError
from dialkey_relay.grants import Grant, GrantVerifier, Revocations
from dialkey_relay.rates import Rate

ISSUER = SecretKey(b"\x11" * 32)
OTHER_ISSUER = SecretKey(b"\x12" * 32)
A = SecretKey(b"\x01" * 32).id
B = SecretKey(b"\x02" * 32).id
NOW = 1_790_000_000.5


def grant(**changes):
    options = {"now": NOW, "lifetime_s": 3600, "bytes_per_second": 1_000_000} | changes
    return Grant.issue(options.pop("issuer", ISSUER), options.pop("endpoint_id", A), **options)


# --- grants -------------------------------------------------------------------------------------


def test_a_grant_is_compact_and_survives_its_text() -> None:
    issued = grant(max_burst_bytes=2_000_000)
    text = str(issued)
    assert len(text) < 180
    assert text.startswith("dkg1_")
    assert Grant.parse(text) == issued
    assert issued.expires_at == 1_790_003_600
    assert issued.rate == Rate(1_000_000, 2_000_000)
    assert issued.id == issued.signature[:8]
    assert grant(bytes_per_second=None).rate is None


def test_the_form_of_a_grant_is_stable() -> None:
    assert str(grant()) == (
        "dkg1_AdBKsjKKiOPddAnxlf1S2y08ul1yymcJvx2UEhvzdIgBtA9vXID3xNUGkBzAhD0ACwMIVA-dyPTU9yKWgE1b"
        "LagQqZnxEhR-Te_L0_JvBNaMLras-kLeP2ljE7Y9h_7NM5EK1Va28VFPWVUGcE8uAg"
    )
    assert Grant.parse(str(grant())).is_signed_by(ISSUER.id)
    assert not Grant.parse(str(grant())).is_signed_by(OTHER_ISSUER.id)


def test_a_verifier_takes_grants_of_its_issuers_for_their_endpoint_in_their_time() -> None:
    verifier = GrantVerifier([OTHER_ISSUER.id, ISSUER.id])
    assert verifier.check(str(grant()), A, NOW) == grant()
    with pytest.raises(InvalidGrant, match="another endpoint"):
        verifier.check(str(grant()), B, NOW)
    with pytest.raises(InvalidGrant, match="expired"):
        verifier.check(str(grant()), A, NOW + 3600)
    with pytest.raises(InvalidGrant, match="future"):
        verifier.check(str(grant(now=NOW + 120)), A, NOW)
    verifier.check(str(grant(now=NOW + 50)), A, NOW)
    with pytest.raises(InvalidGrant, match="longer"):
        verifier.check(str(grant(lifetime_s=30 * 86_400)), A, NOW)
    verifier.issuers = (OTHER_ISSUER.id,)
    with pytest.raises(InvalidGrant, match="not signed"):
        verifier.check(str(grant()), A, NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint_id": B},
        {"issued_at": 1_790_000_001},
        {"lifetime_s": 3601},
        {"bytes_per_second": 9_000_000},
        {"bytes_per_second": None},
        {"max_burst_bytes": 9_000_000},
    ],
)
def test_nothing_in_a_grant_can_be_changed(change) -> None:
    forged = attrs.evolve(grant(), **change)
    with pytest.raises(InvalidGrant, match="not signed"):
        GrantVerifier([ISSUER.id]).check(str(forged), forged.endpoint_id, NOW)


def test_the_same_bytes_signed_for_something_else_are_not_a_grant() -> None:
    genuine = grant()
    body = genuine._body()
    forged = attrs.evolve(genuine, signature=bytes(ISSUER.sign(body)))
    assert not forged.is_signed_by(ISSUER.id)


def test_revocations() -> None:
    issued = grant()
    text = f"""
        # the phone that was lost
        grant {issued.id.hex()}
        endpoint {B}   # and a whole endpoint
        before {OTHER_ISSUER.id} 1790000001
    """
    revocations = Revocations.parse(text)
    verifier = GrantVerifier([ISSUER.id, OTHER_ISSUER.id], revocations=revocations)
    for revoked in (
        issued,
        grant(endpoint_id=B, lifetime_s=5),
        grant(issuer=OTHER_ISSUER),
    ):
        with pytest.raises(InvalidGrant, match="revoked"):
            verifier.check(str(revoked), revoked.endpoint_id, NOW)
    verifier.check(str(grant(lifetime_s=3601)), A, NOW)
    verifier.check(str(grant(issuer=OTHER_ISSUER, now=NOW + 2)), A, NOW)


@pytest.mark.parametrize("line", ["grant abc", "endpoint x", "before x 1", "revoke all", "grant"])
def test_broken_revocation_lists_name_the_line(line) -> None:
    with pytest.raises(RelayConfigError, match="line 2"):
        Revocations.parse("\n" + line)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lifetime_s": 0}, "lives"),
        ({"bytes_per_second": 9}, "rate"),
        ({"bytes_per_second": None, "max_burst_bytes": 5}, "burst"),
    ],
)
def test_grants_that_make_no_sense_are_not_issued(options, match) -> None:
    with pytest.raises(InvalidInput, match=match):
        grant(**options)


@settings(deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=200).map(lambda raw: raw.hex()))
def test_arbitrary_text_is_not_a_grant(text) -> None:
    for candidate in (text, "dkg1_" + text):
        with pytest.raises(InvalidGrant):
            GrantVerifier([ISSUER.id]).check(candidate, A, NOW)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_or_shortened_token_is_refused(position, change) -> None:
    text = str(grant())
    verifier = GrantVerifier([ISSUER.id])
    for mangled in (
        text[: position % len(text)],
        text + "A" * (1 + position % 3),
        text[:position] + chr(33 + change % 90) + text[position + 1 :],
    ):
        if mangled == text:
            continue
        try:
            found = verifier.check(mangled, A, NOW)
        except InvalidGrant:
            continue
        # Only the spare bits of the last character can differ.
        assert found == grant()


# --- rules --------------------------------------------------------------------------------------


async def test_no_rules_admit_nobody() -> None:
    assert isinstance(await check_all([], AdmitRequest(A)), Denial)
    assert recheck_all([], A, Admission()) is not None


async def test_everyone() -> None:
    assert await check_all([Everyone()], AdmitRequest(A)) == Admission()
    assert recheck_all([Everyone()], A, Admission()) is None


async def test_lists() -> None:
    allow, deny = AllowList([A, B]), DenyList([B])
    assert await check_all([allow, deny], AdmitRequest(A)) == Admission()
    assert await check_all([allow, deny], AdmitRequest(B)) == Denial()
    assert isinstance(await check_all([allow], AdmitRequest(ISSUER.id)), Denial)
    deny.endpoint_ids = frozenset({A})
    assert recheck_all([allow, deny], A, Admission()) is not None
    allow.endpoint_ids = frozenset()
    assert recheck_all([allow], B, Admission()) is not None


async def test_shared_tokens() -> None:
    rule = SharedTokens(["secret", "other"])
    admission = await check_all([rule], AdmitRequest(A, token="secret"))
    assert isinstance(admission, Admission)
    assert recheck_all([rule], A, admission) is None
    for token in (None, "", "Secret", "secret "):
        assert isinstance(await check_all([rule], AdmitRequest(A, token=token)), Denial)
    rule.replace(["other"])
    assert recheck_all([rule], A, admission) is not None
    assert "secret" not in repr(AdmitRequest(A, token="secret"))


async def test_grants_as_a_rule() -> None:
    clock = [NOW]
    rule = GrantRule(GrantVerifier([ISSUER.id]), lambda: clock[0])
    request = AdmitRequest(A, token=str(grant()))
    admission = await check_all([Everyone(), rule], request)
    assert isinstance(admission, Admission)
    assert admission.rate == Rate.of_bytes(1_000_000)
    assert admission.expires_in_s == pytest.approx(3599.5)
    assert admission.grant == grant()
    denial = await check_all([rule], AdmitRequest(B, token=str(grant())))
    assert denial == Denial("the grant is for another endpoint")
    assert isinstance(await check_all([rule], AdmitRequest(A)), Denial)
    assert recheck_all([rule], A, admission) is None
    assert recheck_all([rule], A, Admission()) is not None
    rule.verifier.revocations = Revocations(grants=frozenset({grant().id}))
    assert recheck_all([rule], A, admission) == "the grant was revoked"


async def test_the_narrower_limit_counts() -> None:
    class Slow:
        async def check(self, request: AdmitRequest) -> Admission | Denial:
            return Admission(rate=Rate(100, 10), expires_in_s=5)

        def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
            return None

    rule = GrantRule(GrantVerifier([ISSUER.id]), lambda: NOW)
    admission = await check_all([rule, Slow()], AdmitRequest(A, token=str(grant())))
    assert isinstance(admission, Admission)
    assert admission.rate == Rate(100, 10)
    assert admission.expires_in_s == 5
    assert admission.grant == grant()


def test_a_grant_is_one_text() -> None:
    """Padding bits, longer varints and white space would make many texts of one grant."""
    text = str(grant())
    raw = base64.urlsafe_b64decode(text[5:] + "=" * (-len(text[5:]) % 4))
    assert Grant.parse(text) == grant()
    others = [text + "=", text + "\n", f" {text}", text[:5] + text[5:].swapcase()]
    # The last character of base64 has bits that belong to no byte.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare = len(raw) * 8 % 6
    assert spare
    number = alphabet.index(text[-1])
    others += [text[:-1] + alphabet[number ^ bit] for bit in range(1, 1 << (6 - spare))]
    # The time of issue as a varint with a needless byte at its end.
    at = 1 + 4 + 32
    end = next(n for n in range(at, len(raw)) if raw[n] < 0x80)
    longer = raw[:end] + bytes((raw[end] | 0x80, 0)) + raw[end + 1 :]
    others.append("dkg1_" + base64.urlsafe_b64encode(longer).decode().rstrip("="))
    for other in others:
        with pytest.raises(InvalidGrant):
            Grant.parse(other)
