"""Typed values to plain ones and back, through msgpack."""

from __future__ import annotations

import enum
import uuid
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.identity import EndpointId, SecretKey
from dialkey_rpc import ServiceDefinitionError
from dialkey_rpc.convert import Mismatch, make_converter, structurer, unstructurer
from dialkey_rpc.describe import Types
from dialkey_rpc.packing import pack, unpack

CONVERTER = make_converter()
T = TypeVar("T")
Metres = NewType("Metres", float)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Unit(enum.StrEnum):
    METRE = "m"


class Shout(str, enum.Enum):  # noqa: UP042  # as people wrote it before StrEnum
    LOUD = "!"


@attrs.frozen
class Circle:
    radius: float
    label: str = ""


@dataclass
class Square:
    side: float
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    unit: Unit = Unit.METRE
    inner: Circle | None = None


@attrs.frozen
class Node:
    value: int
    children: list[Node] = attrs.field(factory=list)
    next: Node | None = None


@attrs.frozen
class Box(Generic[T]):
    content: T


class Point(NamedTuple):
    x: int
    circle: Circle


@attrs.frozen
class Blob:
    name: str
    data: bytes
    pieces: list[bytes] = attrs.field(factory=list)


def there_and_back(kind: object, value: object) -> object:
    drop = unstructurer(CONVERTER, kind)
    envelope, parts = pack(value if drop is None else drop(value))
    return structurer(CONVERTER, kind)(unpack(envelope, parts, 64))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 5),
        (float, 1.5),
        (str, "ä"),
        (bool, True),
        (type(None), None),
        (bytes, b"x"),
        (bytes, bytes(10_000)),
        (bytearray, bytearray(b"abc")),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (date, date(2026, 1, 2)),
        (time, time(1, 2, 3, 4)),
        (timedelta, timedelta(days=-3, microseconds=7)),
        (Decimal, Decimal("1.10")),
        (uuid.UUID, uuid.UUID(int=7)),
        (EndpointId, SecretKey(bytes(32)).id),
        (Colour, Colour.BLUE),
        (Level, Level.HIGH),
        (Unit, Unit.METRE),
        (Shout, Shout.LOUD),
        (Literal["a", 1], "a"),
        (Metres, 1.5),
        (Annotated[int, "metres"], 5),
        (Circle, Circle(1.0, "x")),
        (Square, Square(2.0, Colour.BLUE, Level.HIGH, Unit.METRE, Circle(1.0))),
        (Node, Node(1, [Node(2), Node(3, [], Node(4))])),
        (Box[int], Box(1)),
        (Box[list[Circle]], Box([Circle(1.0)])),
        (Point, Point(1, Circle(2.0))),
        (Blob, Blob("n", bytes(20_000), [b"a", bytes(9_000), b""])),
        (list[int], [1, 2]),
        (Sequence[Circle], [Circle(1.0)]),
        (deque[int], deque([1, 2])),
        (tuple[int, str], (1, "a")),
        (tuple[Circle, ...], (Circle(1.0), Circle(2.0))),
        (set[int], {1, 2}),
        (frozenset[Colour], frozenset({Colour.RED})),
        (dict[str, Circle], {"k": Circle(1.0)}),
        (Mapping[Colour, int], {Colour.RED: 1}),
        (dict[int, list[bytes]], {1: [bytes(9_000)]}),
        (dict[bytes, int], {b"a": 1}),
        (int | None, None),
        (Circle | None, Circle(1.0)),
        (bytes | None, bytes(9_000)),
        (int | str | list[int] | bytes, [1]),
        (Circle | Square, Circle(1.0)),
        (Circle | Square | None | int, Square(1.0)),
        (list[Circle | Square | str], [Circle(1.0), "x", Square(2.0)]),
        (dict[str, int] | list[int], {"a": 1}),
        (Any, {"a": [1, b"x", None]}),
        (Any, [bytes(9_000)]),
        (object, "x"),
    ],
)
def test_values_come_back(kind: object, value: object) -> None:
    Types().describe(kind)
    found = there_and_back(kind, value)
    assert found == value
    assert type(found) is type(value)


def test_a_time_keeps_its_moment_and_not_its_zone() -> None:
    moment = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    found = there_and_back(datetime, moment)
    assert isinstance(found, datetime)
    assert found == moment
    assert found.tzinfo is UTC


def test_large_bytes_stay_what_they_are() -> None:
    large = bytes(100_000)
    drop = unstructurer(CONVERTER, Blob)
    assert drop is not None
    envelope, parts = pack(drop(Blob("n", large)))
    assert parts[0] is large
    assert len(envelope) < 100
    found = structurer(CONVERTER, Blob)(unpack(envelope, parts, 64))
    assert isinstance(found, Blob)
    assert found.data is large


@pytest.mark.parametrize(
    ("kind", "plain", "message"),
    [
        (int, "5", "expected int, got text"),
        (int, True, "expected int, got bool"),
        (int, 1.0, "expected int, got float"),
        (bool, 1, "expected bool"),
        (float, "1", "expected float"),
        (str, b"x", "expected text, got bytes"),
        (bytes, "x", "expected bytes"),
        (bytes, [1, 2], "expected bytes, got list"),
        (type(None), 0, "expected nil"),
        (datetime, 5, "expected timestamp"),
        (date, "yesterday", "isoformat"),
        (timedelta, 1.5, "expected int"),
        (Decimal, "zz", "Conversion"),
        (uuid.UUID, b"short", "16"),
        (EndpointId, b"short", "32"),
        (Colour, "green", "green"),
        (Level, 9, "9"),
        (Level, "1", "expected int"),
        (Unit, "km", "km"),
        (Literal["a"], "b", "b"),
        (list[int], "abc", "expected list, got text"),
        (list[int], {}, "expected list, got map"),
        (list[int], [1, "2"], "expected int"),
        (set[int], 5, "expected list"),
        (dict[str, int], [], "expected map"),
        (dict[str, int], {1: 1}, "expected text"),
        (tuple[int, str], [1], "list of 2"),
        (Point, [1, {}], "Circle: the field 'radius' is missing"),
        (Circle, {}, "Circle: the field 'radius' is missing"),
        (Circle, ["radius"], "expected map for Circle"),
        (Circle, "radius", "expected map for Circle"),
        (Circle, {"radius": "1"}, "Circle: expected float"),
        (Square, {"side": 1.0, "inner": {"radius": None}}, "Square: Circle: expected float"),
        (int | str, None, "another type"),
        (Circle | Square, {"_type": "Triangle"}, "unknown _type 'Triangle'"),
        (Circle | Square, {"_type": 5}, "unknown _type '5'"),
        (Circle | Square, {"_type": []}, "list"),
        (Circle | int, [], "another type"),
    ],
)
def test_nothing_is_guessed(kind: object, plain: object, message: str) -> None:
    with pytest.raises(Mismatch, match=message.replace("'", ".")):
        structurer(CONVERTER, kind)(plain)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["side", "colour", "inner", "radius", "value", "children", "_type"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(
        [Circle, Square, Node, Circle | Square, list[Point], dict[Colour, Level | None]]
    ),
)
def test_any_plain_value_fits_or_is_a_mismatch(plain: object, kind: object) -> None:
    try:
        structurer(CONVERTER, kind)(plain)
    except Mismatch:
        pass


def test_what_a_class_raises_itself_is_a_mismatch() -> None:
    @attrs.frozen
    class Picky:
        value: int = attrs.field(validator=attrs.validators.gt(5))

    with pytest.raises(Mismatch, match="must be > 5"):
        structurer(CONVERTER, Picky)({"value": 3})


def test_deep_recursion_is_a_mismatch() -> None:
    plain: dict[str, object] = {"value": 1}
    for _ in range(5000):
        plain = {"value": 1, "next": plain}
    with pytest.raises(Mismatch, match="deeply"):
        structurer(CONVERTER, Node)(plain)


def test_services_grow() -> None:
    newer = {"radius": 1.0, "label": "x", "colour": {"anything": [1]}}
    assert structurer(CONVERTER, Circle)(newer) == Circle(1.0, "x")
    assert structurer(CONVERTER, Circle)({"radius": 1}) == Circle(1.0)
    # A parameter that was a Circle once and is a Circle or a Square now, and the other way round.
    assert structurer(CONVERTER, Circle | Square)({"radius": 1.0}) == Circle(1.0)
    assert structurer(CONVERTER, Circle)({"_type": "Circle", "radius": 1.0}) == Circle(1.0)


def test_a_member_of_no_union_is_not_sent() -> None:
    drop = unstructurer(CONVERTER, Circle | Square)
    assert drop is not None
    with pytest.raises(TypeError, match=r"expected Circle \| Square, got str"):
        drop("a circle")


class Loud(str):
    __slots__ = ()


@attrs.frozen
class Ring(Circle):
    inner_radius: float = 0.0


@attrs.frozen
class SubNode(Node):
    more: int = 0


class Pair(NamedTuple):
    x: int
    y: int


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (date, NOON),
        (datetime, date(2026, 1, 2)),
        (int, True),
        (int, Level.LOW),
        (int, "5"),
        (int, 5.0),
        (bool, 1),
        (float, True),
        (float, Decimal(1)),
        (str, Loud("x")),
        (str, Unit.METRE),
        (str, b"x"),
        (bytes, "x"),
        (type(None), 0),
        (Decimal, 1),
        (timedelta, 1.5),
        (Colour, "red"),
        (Level, 1),
        (Literal[1, "a"], True),
        (Literal[1, "a"], 2),
        (Literal[1, "a"], []),
        (Metres, "x"),
        (NewType("Day", date), NOON),
        (Annotated[date, "day"], NOON),
        (Circle, Ring(1.0)),
        (Circle, Square(1.0)),
        (Circle, {"radius": 1.0}),
        (Circle, Circle("x")),  # type: ignore[arg-type]
        (Square, Square(1.0, inner=Ring(1.0))),
        (Node, Node(1, [SubNode(2)])),
        (Node, Node(1, [], Node(1, [], SubNode(1)))),
        (Box[date], Box(NOON)),
        (Circle | Square, Ring(1.0)),
        (Circle | None, Ring(1.0)),
        (date | None, NOON),
        (int | str, True),
        (int | list[date], [NOON]),
        (list[date], [date(2026, 1, 2), NOON]),
        (list[int], (1, 2)),
        (list[int], [1, True]),
        (set[str], {Loud("x")}),
        (frozenset[int], {1}),
        (dict[str, date], {"a": NOON}),
        (dict[str, int], {Loud("a"): 1}),
        (dict[str, int], Counter("abc")),
        (Mapping[str, date], {"a": NOON}),
        (Sequence[str], "text"),
        (tuple[int, int], Pair(1, 2)),
        (tuple[int, int], (1, 2, 3)),
        (tuple[date, ...], (NOON,)),
        (Pair, (1, 2)),
        (Pair, Pair(1, True)),
    ],
)
def test_what_is_not_of_the_declared_type_is_not_sent(kind: object, value: object) -> None:
    """It would arrive as something else, or as less: a `datetime` without its time."""
    drop = unstructurer(CONVERTER, kind)
    assert drop is not None
    with pytest.raises(TypeError, match="expected"):
        drop(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (float, 1),
        (bytes, bytearray(b"x")),
        (bytes, memoryview(b"x")),
        (bytes | None, bytearray(b"x")),
        (Sequence[int], (1, 2)),
        (Sequence[int], [1, 2]),
        (Mapping[str, int], Counter("abc")),
        (int | float, 1),
        (float | None, 1),
        (float | date, 1),
        (Literal["a", 1] | None, 1),
        (Any, Ring(1.0)),
        (object, NOON),
        (list[Any], [1, "x", NOON]),
    ],
)
def test_what_loses_nothing_is_sent(kind: object, value: object) -> None:
    there_and_back(kind, value)


class Plain:
    pass


@pytest.mark.parametrize(
    "kind",
    [
        Plain,
        complex,
        tuple[()],
        list,
        dict,
        tuple,
        list[Plain],
        dict[float, int],
        dict[Circle, int],
        int | Literal[3],
        str | Colour,
        list[int] | tuple[int, ...],
        Circle | dict[str, int],
        Any | None,
        date | str,
        Literal[1.5],
        Box[complex],
        T,
    ],
)
def test_what_cannot_travel(kind: object) -> None:
    with pytest.raises(ServiceDefinitionError):
        Types().describe(kind)


def test_enums_with_other_values_cannot_travel() -> None:
    class Odd(enum.Enum):
        PAIR = (1, 2)

    with pytest.raises(ServiceDefinitionError, match=r"Odd\.PAIR"):
        Types().describe(Odd)


def test_the_reserved_field() -> None:
    @attrs.frozen
    class Tagged:
        _type: str

    with pytest.raises(ServiceDefinitionError, match="reserved"):
        Types().describe(Tagged)


def test_the_path_to_what_cannot_travel_is_told() -> None:
    @dataclass
    class Inner:
        odd: complex = field(default=1j)

    @dataclass
    class Outer:
        inner: Inner

    Outer.__annotations__["inner"] = Inner
    Inner.__annotations__["odd"] = complex
    with pytest.raises(ServiceDefinitionError, match="Outer: Inner: complex"):
        Types().describe(Outer)
