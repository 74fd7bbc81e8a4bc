"""Calls, errors and the order of frames, without any stream."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import dialkey_rpc as rpc
from dialkey.errors import (
    ConnectionClosedByPeer,
    ConnectionLost,
    DialError,
    DialkeyError,
    Refused,
    ResolveError,
    WireError,
    WrongKey,
)
from dialkey.identity import SecretKey
from dialkey.printable import printable
from dialkey_rpc.codec import (
    Buffers,
    CallRequest,
    compile_service,
    error_from_wire,
    error_to_wire,
    read_call,
)
from dialkey_rpc.frames import CALL, ERROR, ITEM, RESULT, FrameReader, RpcLimits
from dialkey_rpc.limits import MAX_RPC_ERROR_CHARS
from dialkey_rpc.metrics import BUCKETS_S, MethodCounters
from dialkey_rpc.order import REQUEST, REQUEST_STREAM, RESPONSE, RESPONSE_STREAM, Order, Table
from dialkey_rpc.packing import unpack_frame

PEER = SecretKey(bytes(32)).id


@attrs.frozen
class Item:
    name: str


@attrs.define
class OutOfStock(Exception):
    item: Item
    left: int = 0


class Special(OutOfStock):
    pass


class Shop:
    @rpc.method(raises=[OutOfStock, KeyError])
    async def buy(self, item: Item, count: int = 1, *, note: str = "") -> float:
        return 1.0

    async def refill(self, count: int, items: AsyncIterator[Item], note: str = "") -> list[Item]:
        return []


SHOP = compile_service(Shop)
BUY, REFILL = SHOP.methods["buy"], SHOP.methods["refill"]


def plain_of(buffers: Buffers) -> object:
    head, parts = buffers
    (frame,) = FrameReader(RpcLimits()).feed(b"".join((head, *parts)))
    return unpack_frame(frame, 64)


def test_arguments_are_bound_as_python_binds_them() -> None:
    apple = Item("apple")
    assert BUY.bind((apple,), {}) == ({"item": apple}, None)
    assert BUY.bind((apple, 2), {"note": "x"}) == ({"item": apple, "count": 2, "note": "x"}, None)
    stream = object()
    assert REFILL.bind((1, stream, "x"), {}) == ({"count": 1, "note": "x"}, stream)
    assert REFILL.bind((), {"items": stream, "count": 1}) == ({"count": 1}, stream)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "is missing the argument 'item'"),
        ((1, 2, 3), {}, "takes 2 positional arguments but 3"),
        ((1,), {"item": 2}, "multiple values for 'item'"),
        ((1,), {"nothing": 2}, "unexpected argument 'nothing'"),
    ],
)
def test_arguments_that_do_not_fit(
    args: tuple[object, ...], kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        BUY.bind(args, kwargs)


def test_a_call_there() -> None:
    arguments = BUY.plain_arguments({"item": Item("apple"), "count": 2})
    request = read_call(plain_of(BUY.call_frame(arguments, 0.0301, {"a": "b"})))
    assert request == CallRequest("buy", {"item": {"name": "apple"}, "count": 2}, 0.031, {"a": "b"})
    assert BUY.read_arguments(request) == {"item": Item("apple"), "count": 2}
    assert BUY.call_frame({}, -1.0) == BUY.call_frame({}, 0.0)


def test_a_wrong_argument_is_not_sent() -> None:
    with pytest.raises(rpc.CannotSend, match="item cannot be sent: a str"):
        BUY.plain_arguments({"item": "apple"})
    with pytest.raises(rpc.CannotSend):
        REFILL.upload_frame(5)
    with pytest.raises(rpc.CannotSend):
        REFILL.result_frame(5)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        "buy",
        [],
        ["buy"],
        [5, {}],
        ["buy", []],
        ["buy", {}, -1],
        ["buy", {}, "soon"],
        ["buy", {}, True],
        ["buy", {}, 1.5],
        ["buy", {}, None, []],
        ["buy", {}, None, {"a": 1}],
        ["buy", {}, None, {1: "a"}],
        ["buy", {}, None, {str(n): "" for n in range(65)}],
    ],
)
def test_what_is_not_a_call(plain: object) -> None:
    with pytest.raises(rpc.MalformedMessage):
        read_call(plain)


def test_calls_may_grow() -> None:
    assert read_call(["buy", {}, None, None, "more", [1]]) == CallRequest("buy", {}, None, {})


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "item is missing"),
        ({"item": {}}, "item: Item: the field 'name' is missing"),
        ({"item": {"name": "x"}, "count": "2"}, "count: expected int, got text"),
    ],
)
def test_arguments_that_the_service_refuses(given_: dict[str, object], message: str) -> None:
    with pytest.raises(rpc.InvalidArgument, match=message.replace("'", ".")):
        BUY.read_arguments(CallRequest("buy", given_, None, {}))


def test_unknown_arguments_are_skipped() -> None:
    request = CallRequest("buy", {"item": {"name": "x"}, "colour": "red"}, None, {})
    assert BUY.read_arguments(request) == {"item": Item("x")}


def test_results() -> None:
    assert BUY.read_result(plain_of(BUY.result_frame(1.5))) == 1.5
    with pytest.raises(rpc.MalformedMessage, match="not what this side expects") as caught:
        BUY.read_result("free")
    assert "same version" in str(caught.value)
    assert REFILL.read_upload(plain_of(REFILL.upload_frame(Item("x")))) == Item("x")
    with pytest.raises(rpc.InvalidArgument, match="an item"):
        REFILL.read_upload(5)


# --- errors -------------------------------------------------------------------------------------


def error_there(error: BaseException, *, expose: bool = False) -> Exception:
    return BUY.read_error(plain_of(BUY.error_frame(error, expose=expose)), PEER)


def test_declared_errors_come_back_as_themselves() -> None:
    error = error_there(OutOfStock(Item("x"), 3))
    assert type(error) is OutOfStock
    assert (error.item, error.left) == (Item("x"), 3)
    assert type(error_there(Special(Item("x")))) is OutOfStock
    error = error_there(KeyError("text"))
    assert type(error) is KeyError
    assert BUY.declares(KeyError())
    assert not BUY.declares(LookupError())


def test_errors_that_this_side_does_not_know() -> None:
    plain = {"status": 9, "message": "m", "name": "Other", "data": {"a": 1}}
    error = BUY.read_error(plain, PEER)
    assert isinstance(error, rpc.ApplicationError)
    assert (error.name, error.data, error.endpoint_id) == ("Other", {"a": 1}, PEER)
    # Known by name, in another version.
    error = BUY.read_error({**plain, "name": "OutOfStock"}, PEER)
    assert isinstance(error, rpc.ApplicationError)


@pytest.mark.parametrize(
    "kind",
    [
        rpc.CallCancelled,
        rpc.DeadlineExceeded,
        rpc.InvalidArgument,
        rpc.MethodNotFound,
        rpc.PermissionDenied,
        rpc.ResourceExhausted,
        rpc.Unavailable,
        rpc.InternalError,
    ],
)
def test_rpc_errors_keep_their_class_and_text(kind: type[rpc.RpcError]) -> None:
    error = error_there(kind("because"))
    assert type(error) is kind
    assert isinstance(error, rpc.RpcError)
    assert (error.message, error.status, error.endpoint_id) == ("because", kind.STATUS, PEER)


def test_unknown_statuses() -> None:
    error = error_from_wire({"status": 77, "message": "new"}, PEER)
    assert (type(error), error.status) == (rpc.RpcError, 77)
    assert error_to_wire(rpc.RpcError("x", status=77)) == {"status": 77, "message": "x"}


def test_nothing_is_told_about_other_errors() -> None:
    error = error_there(ValueError("a secret"))
    assert type(error) is rpc.InternalError
    assert error.remote_traceback is None
    assert "secret" not in str(error)
    # Also not about what somebody else told the service.
    received = rpc.PermissionDenied("a secret", endpoint_id=PEER)
    assert type(error_there(received)) is rpc.InternalError


def test_everything_is_told_where_that_is_allowed() -> None:
    try:
        raise ValueError("x" * 20_000)
    except ValueError as raised:
        error = error_there(raised, expose=True)
    assert isinstance(error, rpc.InternalError)
    assert error.message.startswith("ValueError: xxx")
    assert error.remote_traceback is not None
    assert len(error.message) < MAX_RPC_ERROR_CHARS + 10
    assert len(error.remote_traceback) < MAX_RPC_ERROR_CHARS + 10


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        {"status": "5"},
        {"status": 5, "message": 7},
        {"status": 9, "message": "no name"},
        {"status": True, "message": ""},
    ],
)
def test_what_is_not_an_error(plain: object) -> None:
    with pytest.raises(rpc.MalformedMessage):
        error_from_wire(plain, PEER)


def test_the_error_tree() -> None:
    assert issubclass(rpc.DeadlineExceeded, TimeoutError)
    assert issubclass(rpc.MalformedMessage, WireError)
    codes = [kind.code for kind in (rpc.RpcError, *rpc.RpcError.__subclasses__())]
    assert len(set(codes)) == len(codes)
    assert str(rpc.DeadlineExceeded("late", endpoint_id=PEER, hint="h")).startswith("late [")


# --- the order of frames ------------------------------------------------------------------------

ALLOWED = {
    "request": (REQUEST, lambda k: k == [CALL]),
    "request stream": (REQUEST_STREAM, lambda k: k[:1] == [CALL] and set(k[1:]) <= {ITEM}),
    "response": (RESPONSE, lambda k: k in ([RESULT], [ERROR])),
    "response stream": (
        RESPONSE_STREAM,
        lambda k: set(k[:-1]) <= {ITEM} and set(k[-1:]) <= {ITEM, ERROR},
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_orders(name: str) -> None:
    table, is_allowed = ALLOWED[name]
    for length in range(5):
        for kinds in itertools.product((CALL, ITEM, RESULT, ERROR), repeat=length):
            assert _accepts(table, kinds) == is_allowed(list(kinds)), kinds


def _accepts(table: Table, kinds: tuple[int, ...]) -> bool:
    order = Order(table)
    try:
        for kind in kinds:
            order.frame(kind)
        order.end()
    except rpc.MalformedMessage:
        return False
    return True


# --- when to try again --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "unsent", "sent", "sent_idempotent"),
    [
        (ConnectionLost(""), True, False, True),
        (ConnectionClosedByPeer("", error_code=0), True, False, True),
        (rpc.Unavailable(""), True, True, True),
        (DialError(""), True, False, False),
        (Refused(""), True, False, False),
        (WrongKey(""), False, False, False),
        (ResolveError(""), False, False, False),
        (rpc.InternalError(""), False, False, False),
        (rpc.DeadlineExceeded(""), False, False, False),
        (DialkeyError(""), False, False, False),
    ],
)
def test_what_may_be_repeated(
    error: DialkeyError, unsent: bool, sent: bool, sent_idempotent: bool
) -> None:
    policy = rpc.Reconnect(attempts=3)

    def ask(attempt: int, sent: bool, idempotent: bool) -> bool:
        return policy.may_repeat(error, attempt, sent=sent, idempotent=idempotent)

    assert ask(1, False, False) is unsent
    assert ask(2, True, False) is sent
    assert ask(2, True, True) is sent_idempotent
    assert not ask(3, False, True)


@given(st.integers(1, 10_000), st.integers(0, 1000))
def test_pauses_grow_to_a_limit(attempt: int, seed: int) -> None:
    policy = rpc.Reconnect(first_pause_s=0.1, max_pause_s=3.0, jitter=0.25)
    pause = policy.pause_s(attempt, random.Random(seed))
    whole = min(3.0, 0.1 * 2 ** min(attempt - 1, 10))
    assert 0.75 * whole <= pause <= whole


# --- counters -----------------------------------------------------------------------------------


def test_counters() -> None:
    counters = MethodCounters()
    for outcome, seconds in (("ok", 0.001), ("ok", 0.3), ("remote.rpc.internal", 99.0)):
        counters.active += 1
        counters.end(outcome, seconds)
    counters.active += 1
    counters.items_up += 7
    stats = counters.stats()
    assert stats.active == 1
    assert stats.ended == {"ok": 2, "remote.rpc.internal": 1}
    assert (stats.buckets[0], stats.buckets[-1], sum(stats.buckets)) == (1, 1, 3)
    assert stats.plus(stats).ended == {"ok": 4, "remote.rpc.internal": 2}
    service = rpc.Rpc(Shop())
    service.counters["buy"] = counters
    text = rpc.metrics_page(service).body.decode()
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["dialkey_rpc_calls_total", "Shop", "buy", "ok", "server"] == 2
    assert samples["dialkey_rpc_calls_active", "Shop", "buy", "server"] == 1
    assert samples["dialkey_rpc_call_seconds_bucket", "0.5", "Shop", "buy", "server"] == 2
    assert samples["dialkey_rpc_call_seconds_bucket", "+Inf", "Shop", "buy", "server"] == 3
    assert samples["dialkey_rpc_call_seconds_count", "Shop", "buy", "server"] == 3
    assert samples["dialkey_rpc_items_total", "Shop", "buy", "server", "up"] == 7
    assert text.count("# TYPE") == 4
    assert len(BUCKETS_S) + 1 == len(stats.buckets)


@pytest.mark.parametrize("status", [3, 5, 8, 9, 99])
def test_what_a_service_says_cannot_steer_a_terminal(status: int) -> None:
    evil = "\x1b]0;pwned\x07\r\nroot: all is well\u202egnp.exe\x9b2K"
    wire = {"status": status, "message": evil, "name": evil, "traceback": f"one\n{evil}"}
    error = error_from_wire(wire, None)
    assert r"\x1b]0;pwned\x07\r\nroot" in str(error)
    shown = [str(error), getattr(error, "name", "")]
    assert [printable(text) for text in shown] == shown
    remote = getattr(error, "remote_traceback", None)
    if status == 8:
        assert remote is not None
        assert remote.startswith("one\n\\x1b")
        assert printable(remote, keep="\n") == remote


@pytest.mark.parametrize(
    ("timeout_ms", "timeout_s"),
    [(None, None), (0, 0.0), (1500, 1.5), (10**12, None), (2**64 - 1, None)],
)
def test_how_long_a_caller_waits(timeout_ms: int | None, timeout_s: float | None) -> None:
    assert read_call(["add", {}, timeout_ms]).timeout_s == timeout_s


@pytest.mark.parametrize(
    ("accept", "newer"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3", True),
        ("application/openmetrics-text; q=0", False),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.9", False),
        ('application/openmetrics-text; version="1.0.0"', True),
        ("application/openmetrics-text; version=99\r\nX: y", False),
        ("application/openmetrics-text; q=x", False),
    ],
)
def test_the_page_is_what_its_header_says(accept: str, newer: bool) -> None:
    page = rpc.metrics_page(rpc.Rpc(Shop()), accept=accept)
    assert page.body.endswith(b"# EOF\n") == newer
    kind = "application/openmetrics-text; version=1.0.0" if newer else "text/plain; version=0.0.4"
    assert page.content_type == f"{kind}; charset=utf-8"
