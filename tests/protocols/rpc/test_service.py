"""What a class offers, and how that is written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Protocol

import attrs
import pytest

import dialkey_rpc as rpc
from dialkey_rpc import ServiceDefinitionError, ServiceSpec, schema_of
from dialkey_rpc.service import ALPN_PREFIX


@attrs.frozen
class Order:
    item: str
    count: int = 1


@attrs.define
class OutOfStock(Exception):
    item: str
    left: int


class Shop:
    open_hours = 8

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}

    @rpc.method(idempotent=True)
    async def price(self, item: str, *, currency: str = "EUR") -> float:
        """Tell what something costs.

        More prose.
        """
        return 1.0

    @rpc.method(name="purchase", raises=[OutOfStock, KeyError, rpc.PermissionDenied])
    async def buy(self, order: Order) -> None:
        raise OutOfStock(order.item, 0)

    async def watch(self, item: str) -> AsyncIterator[int]:
        yield 1

    def browse(self) -> AsyncIterator[Order]:
        raise NotImplementedError

    async def refill(self, orders: AsyncIterator[Order], note: str = "") -> int:
        return 0

    async def haggle(self, offers: AsyncIterable[float]) -> AsyncGenerator[float, None]:
        async for offer in offers:
            yield offer

    @rpc.local
    async def count_the_money(self) -> int:
        return 0

    async def _private(self, anything) -> None:  # type: ignore[no-untyped-def]
        pass

    def ordinary(self, whatever: object) -> int:
        return 0

    @staticmethod
    async def static() -> int:
        return 0


def test_what_is_found() -> None:
    spec = ServiceSpec.of(Shop)
    assert spec.name == "Shop"
    assert spec.alpn == b"dialkey-rpc/1/Shop"
    assert set(spec.methods) == {"price", "purchase", "watch", "browse", "refill", "haggle"}
    price, buy = spec.methods["price"], spec.methods["purchase"]
    assert [(p.name, p.required) for p in price.params] == [("item", True), ("currency", False)]
    assert price.positional == ("item",)
    assert price.idempotent
    assert price.doc == "Tell what something costs."
    assert (buy.attribute, buy.result_kind) == ("buy", type(None))
    assert buy.raises == {"OutOfStock": OutOfStock, "KeyError": KeyError}
    streams = {m.attribute: (m.upload is not None, m.streams_down) for m in spec.methods.values()}
    assert streams == {
        "price": (False, False),
        "buy": (False, False),
        "watch": (False, True),
        "browse": (False, True),
        "refill": (True, False),
        "haggle": (True, True),
    }
    assert spec.methods["refill"].positional == ("orders", "note")
    assert spec.methods["refill"].upload_kind is Order


def test_interfaces() -> None:
    class Abstract(ABC):
        @abstractmethod
        async def add(self, a: int) -> int: ...

    class Proto(Protocol):
        async def add(self, a: int) -> int: ...

        def count(self) -> AsyncIterator[int]: ...

    assert set(ServiceSpec.of(Abstract).methods) == {"add"}
    assert set(ServiceSpec.of(Proto).methods) == {"add", "count"}


def test_names() -> None:
    @rpc.service("shop/2")
    class Named:
        async def add(self, a: int) -> int:
            return a

    class Heir(Named):
        async def add(self, a: int) -> int:
            return a + 1

    assert ServiceSpec.of(Named).alpn == b"dialkey-rpc/1/shop/2"
    assert ServiceSpec.of(Heir).name == "shop/2"
    assert ServiceSpec.of(Heir, "other").name == "other"
    longest = 255 - len(ALPN_PREFIX)
    assert len(ServiceSpec.of(Named, "x" * longest).alpn) == 255
    for bad in ("x" * (longest + 1), "ä", "a b", "$x", "/x"):
        with pytest.raises(ServiceDefinitionError, match="cannot name a service"):
            rpc.service(bad)


def test_marks_are_inherited() -> None:
    class Cheap(Shop):
        async def price(self, item: str, *, currency: str = "EUR") -> float:
            return 0.5

        async def count_the_money(self) -> int:
            return 1

    spec = ServiceSpec.of(Cheap)
    assert spec.methods["price"].idempotent
    assert "count_the_money" not in spec.methods


async def numbers() -> AsyncIterator[int]:
    yield 1


NUMBERS = numbers()


class Unreadable:
    async def add(self, a: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 0


def bad_services() -> list[tuple[type, str]]:
    class NoResult:
        async def add(self, a: int):  # type: ignore[no-untyped-def]
            return a

    class NoAnnotation:
        async def add(self, a) -> int:  # type: ignore[no-untyped-def]
            return 0

    class Stars:
        async def add(self, *numbers: int) -> int:
            return 0

    class Keywords:
        async def add(self, **numbers: int) -> int:
            return 0

    class PositionalOnly:
        async def add(self, a: int, /) -> int:
            return 0

    class TwoUploads:
        async def add(self, a: AsyncIterator[int], b: AsyncIterator[int]) -> int:
            return 0

    class DefaultUpload:
        async def add(self, a: AsyncIterator[int] = NUMBERS) -> int:
            return 0

    class GeneratorUpload:
        async def add(self, a: AsyncGenerator[int, None]) -> int:
            return 0

    class Cannot:
        async def add(self, a: complex) -> int:
            return 0

    class CannotResult:
        async def add(self) -> AsyncIterator[complex]:
            yield 1j

    class YieldsOnly:
        async def add(self) -> int:  # type: ignore[misc]
            yield 1

    class Twice:
        @rpc.method(name="sub")
        async def add(self) -> int:
            return 0

        async def sub(self) -> int:
            return 0

    class Dollar:
        @rpc.method(name="$schema")
        async def add(self) -> int:
            return 0

    class NotAnError:
        @rpc.method(raises=[int])  # type: ignore[list-item]
        async def add(self) -> int:
            return 0

    class Empty:
        def add(self) -> int:
            return 0

    return [
        (NoResult, "what it returns"),
        (NoAnnotation, "a has no annotation"),
        (Stars, "numbers cannot travel"),
        (Keywords, "numbers cannot travel"),
        (PositionalOnly, "a cannot travel"),
        (TwoUploads, "both stream"),
        (DefaultUpload, "cannot have a default"),
        (GeneratorUpload, "cannot be a generator"),
        (Cannot, "complex cannot travel"),
        (CannotResult, "complex cannot travel"),
        (YieldsOnly, "it yields"),
        (Twice, "two methods"),
        (Dollar, "cannot name a method"),
        (NotAnError, "not a class of errors"),
        (Empty, "no method"),
        (Unreadable, "cannot be read"),
    ]


@pytest.mark.parametrize(
    ("kind", "message"), bad_services(), ids=lambda x: getattr(x, "__name__", "")
)
def test_bad_services_say_what_is_wrong(kind: type, message: str) -> None:
    with pytest.raises(ServiceDefinitionError, match=message) as caught:
        ServiceSpec.of(kind)
    assert kind.__name__ in str(caught.value)


def test_the_schema() -> None:
    schema = schema_of(ServiceSpec.of(Shop))
    assert schema.service == "Shop"
    assert schema.methods["price"] == {
        "params": [["item", "str", True], ["currency", "str", False]],
        "result": "float",
        "stream": False,
        "idempotent": True,
        "doc": "Tell what something costs.",
    }
    assert schema.methods["purchase"] == {
        "params": [["order", ["ref", "Order"], True]],
        "result": "nil",
        "stream": False,
        "raises": [["KeyError", "str"], ["OutOfStock", ["ref", "OutOfStock"]]],
    }
    assert schema.methods["haggle"] == {
        "params": [],
        "upload": ["offers", "float"],
        "result": "float",
        "stream": True,
    }
    assert schema.types["Order"] == {
        "kind": "record",
        "fields": [["item", "str", True], ["count", "int", False]],
    }
    assert rpc.Schema.from_wire(schema.to_wire()) == schema


def test_the_hash_is_of_what_is_said_on_the_wire() -> None:
    class One:
        async def add(self, a: int) -> int:
            """Prose."""
            return a

        async def doc(self) -> None:
            """A method that is called as the key of the prose."""

    class Same:
        async def doc(self) -> None: ...

        async def add(self, a: int) -> int:
            return a + 1

    class Other:
        async def add(self, a: int, b: int = 0) -> int:
            return a

        async def doc(self) -> None: ...

    one, same, other = (schema_of(ServiceSpec.of(k, "x")).hash for k in (One, Same, Other))
    assert one == same
    assert one != other
    assert one != schema_of(ServiceSpec.of(One, "y")).hash
    assert len(one) == 64


@pytest.mark.parametrize("plain", [None, [], {}, {"service": 1}, {"service": "x", "methods": []}])
def test_what_is_not_a_schema(plain: object) -> None:
    with pytest.raises(rpc.MalformedMessage):
        rpc.Schema.from_wire(plain)
