"""The vectors of docs/rpc-wire.md, both ways."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import attrs
import pytest

from dialkey_rpc import InternalError, PermissionDenied, ServiceSpec, schema_of
from dialkey_rpc.codec import (
    Buffers,
    CallRequest,
    compile_service,
    error_frame,
    error_from_wire,
    read_call,
)
from dialkey_rpc.frames import CALL, ERROR, ITEM, RESULT, FrameReader, RpcLimits
from dialkey_rpc.packing import Part, pack_frame, unpack_frame

PAGE: Final = Path(__file__).parents[3] / "docs" / "rpc-wire.md"
VECTORS: Final = {
    name: bytes.fromhex(text.replace("·", ""))
    for name, text in re.findall(r"^([a-z0-9-]+) +([0-9a-f·]+)$", PAGE.read_text(), re.MULTILINE)
}


class Calculator:
    async def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


@attrs.frozen
class Circle:
    radius: float


@attrs.frozen
class Square:
    side: float


class Shapes:
    async def area(self, shape: Circle | Square) -> float:
        return shape.side**2 if isinstance(shape, Square) else 3 * shape.radius**2


def joined(buffers: Buffers) -> bytes:
    head, parts = buffers
    return b"".join((head, *parts))


def read(name: str) -> tuple[int, object]:
    reader = FrameReader(RpcLimits())
    (frame,) = reader.feed(VECTORS[name])
    reader.finish()
    return frame.kind, unpack_frame(frame, 64)


ADD: Final = compile_service(Calculator).methods["add"]
SUM: Final = {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("name", "frame", "expected"),
    [
        ("call", ADD.call_frame(SUM), CallRequest("add", SUM, None, {})),
        ("call-with-time", ADD.call_frame(SUM, 1.5), CallRequest("add", SUM, 1.5, {})),
        (
            "call-with-metadata",
            ADD.call_frame(SUM, None, {"trace": "7f"}),
            CallRequest("add", SUM, None, {"trace": "7f"}),
        ),
    ],
)
def test_calls(name: str, frame: Buffers, expected: CallRequest) -> None:
    assert joined(frame) == VECTORS[name]
    kind, plain = read(name)
    assert kind == CALL
    assert read_call(plain) == expected


@pytest.mark.parametrize(
    ("name", "kind", "sent", "expected"),
    [
        ("result", RESULT, 3, 3),
        ("nothing", RESULT, None, None),
        ("item", ITEM, "hello", "hello"),
        ("part", ITEM, Part(b"\1\2\3\4"), b"\1\2\3\4"),
        ("parts", RESULT, [Part(b"\xaa\xbb"), "x", Part(b"")], [b"\xaa\xbb", "x", b""]),
        ("time", ITEM, None, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("time-with-fraction", ITEM, None, datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)),
        ("time-before-1970", ITEM, None, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_values(name: str, kind: int, sent: object, expected: object) -> None:
    assert joined(pack_frame(kind, expected if sent is None else sent)) == VECTORS[name]
    assert read(name) == (kind, expected)


def test_errors() -> None:
    assert joined(error_frame(PermissionDenied("no"))) == VECTORS["refusal"]
    kind, plain = read("refusal")
    error = error_from_wire(plain, None)
    assert kind == ERROR
    assert (type(error), error.status, error.message) == (PermissionDenied, 5, "no")
    assert joined(error_frame(ValueError("a secret"))) == VECTORS["failure"]
    assert type(error_from_wire(read("failure")[1], None)) is InternalError


def test_a_union() -> None:
    area = compile_service(Shapes).methods["area"]
    frame = area.call_frame(area.plain_arguments({"shape": Square(2.0)}))
    assert joined(frame) == VECTORS["union"]
    request = read_call(read("union")[1])
    assert area.read_arguments(request) == {"shape": Square(2.0)}


def test_the_schema() -> None:
    found = schema_of(ServiceSpec.of(Calculator))
    assert found.hash == hashlib.sha256(VECTORS["schema"]).hexdigest()
    assert found.hash in PAGE.read_text()


def test_every_vector_is_tested() -> None:
    assert set(VECTORS) == {
        *("call", "call-with-time", "call-with-metadata", "result", "nothing", "item"),
        *("refusal", "failure", "part", "parts", "time", "time-with-fraction"),
        *("time-before-1970", "union", "schema"),
    }
