from __future__ import annotations

import attrs
import pytest

from dialkey.errors import InvalidKey, InvalidTicket
from dialkey.identity import EndpointAddr, EndpointTicket, HasAddr, IpAddr, SecretKey, parse_remote

ID = SecretKey(bytes(32)).id
ADDR = EndpointAddr(ID, [IpAddr.parse("127.0.0.1:1234")])
TICKET = EndpointTicket(ADDR)


@attrs.frozen
class TicketOfAnotherKind:
    addr: EndpointAddr


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        (ADDR, ADDR),
        (ID, EndpointAddr(ID)),
        (TICKET, ADDR),
        (str(TICKET), ADDR),
        (f"  {TICKET}\n", ADDR),
        (str(ID), EndpointAddr(ID)),
        (f"{ID}\n", EndpointAddr(ID)),
        (ID.to_base32(), EndpointAddr(ID)),
        (ID.to_base32().upper(), EndpointAddr(ID)),
        (TicketOfAnotherKind(ADDR), ADDR),
    ],
)
def test_whatever_names_an_endpoint(remote, expected):
    assert parse_remote(remote) == expected


def test_tickets_have_an_addr():
    assert isinstance(TICKET, HasAddr)
    assert isinstance(TicketOfAnotherKind(ADDR), HasAddr)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", InvalidTicket, "does not name an endpoint"),
        ("alice", InvalidTicket, "begins with 'endpoint'"),
        (str(ID)[:-1], InvalidKey, "missing or doubled"),
        (str(ID) + "0", InvalidKey, "missing or doubled"),
        (str(ID).upper(), InvalidKey, "lower case"),
        (ID.to_z32(), InvalidKey, "z-base-32"),
        ("02" + "00" * 31, InvalidKey, "not a point"),
        (str(TICKET)[:-1], InvalidTicket, "cut off"),
        (str(TICKET)[:64], InvalidTicket, "cut off"),
        ("blobaa" + "a" * 100, InvalidTicket, "'blob'"),
        ("docaaa", InvalidTicket, "'doc'"),
        ("127.0.0.1:1234", InvalidTicket, "does not name an endpoint"),
    ],
)
def test_texts_that_name_none(text, error, says):
    with pytest.raises(error) as caught:
        parse_remote(text)
    assert says in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 7, bytes(ID), [ADDR], SecretKey(bytes(32)), object()])
def test_other_objects_are_a_programming_error(wrong):
    with pytest.raises(TypeError, match=type(wrong).__name__):
        parse_remote(wrong)


def test_an_addr_that_is_not_an_endpoint_addr_is_refused():
    with pytest.raises(TypeError):
        parse_remote(TicketOfAnotherKind("somewhere"))
