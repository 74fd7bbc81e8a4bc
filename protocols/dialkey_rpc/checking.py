"""Whether a value is of the type that its method declares, before it is sent. Sans-IO.

What does not fit is never sent as something less: a `datetime` would lose its time where a `date` is
declared, and an object of a subclass the fields that the declared class does not have.
"""

from __future__ import annotations

import collections.abc as abc
import enum
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from dialkey.identity import EndpointId
from dialkey_rpc.describe import (
    LISTS,
    MAPS,
    SETS,
    is_named_tuple,
    is_record,
    is_union,
    record_fields,
    show,
    union_members,
    unwrap,
)

__all__ = ["Check", "an", "checker", "fields_checker"]

Check = Callable[[object], None]
"""Raises `TypeError` for a value that is not of the type."""

_BUFFERS: Final = frozenset({bytes, bytearray, memoryview})
_SCALARS: Final[dict[object, frozenset[type]]] = {
    type(None): frozenset({type(None)}),
    None: frozenset({type(None)}),
    # An int is a float to Python's type checkers, and loses nothing on its way.
    float: frozenset({float, int}),
    bytes: _BUFFERS,
    bytearray: _BUFFERS,
    **{
        kind: frozenset({kind})
        for kind in (
            bool,
            int,
            str,
            datetime,
            date,
            time,
            timedelta,
            Decimal,
            uuid.UUID,
            EndpointId,
        )
    },
}
_CONCRETE: Final = frozenset({list, deque, set, frozenset, dict, tuple})


def an(name: str) -> str:
    """Return a name behind its article."""
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"


def checker(kind: object) -> Check | None:
    """Return the check for a type; None where everything fits."""
    return _Checks().of(kind)


def fields_checker(kind: object) -> Check:
    """Return the check for the fields of a record, whose class may be a subclass of `kind`."""
    return _Checks().fields(kind)


def _wrong(kind: object, value: object) -> TypeError:
    return TypeError(f"expected {show(kind)}, got {type(value).__name__}")


class _Checks:
    """Compiles checks; a record that mentions itself gets one."""

    def __init__(self) -> None:
        self._records: dict[object, Check] = {}

    def of(self, kind: object) -> Check | None:
        kind = unwrap(kind)
        if kind is Any or kind is object:
            return None
        exact = self._exact_types(kind)
        if exact is not None:
            return _types_check(kind, exact)
        if is_union(kind):
            return self._union(kind)
        if get_origin(kind) is Literal:
            allowed = {(type(each), each) for each in get_args(kind)}
            return _test(kind, lambda value: (type(value), value) in allowed)
        if is_record(kind):
            return self._record(kind)
        return self._container(kind)

    def fields(self, kind: object) -> Check:
        checks = [
            (name, check)
            for name, annotation, _ in record_fields(kind)
            if (check := self.of(annotation)) is not None
        ]

        def check_fields(value: object) -> None:
            for name, check in checks:
                try:
                    check(getattr(value, name))
                except TypeError as error:
                    raise TypeError(f"{name}: {error}") from None

        return check_fields

    @staticmethod
    def _exact_types(kind: object) -> frozenset[type] | None:
        """Return the types that values of a scalar type or an enum have."""
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return frozenset({kind})
        return _SCALARS.get(kind) if isinstance(kind, abc.Hashable) else None

    def _record(self, kind: object) -> Check:
        known = self._records.get(kind)
        if known is not None:
            return known
        plain = get_origin(kind) or kind

        def check_record(value: object) -> None:
            if type(value) is not plain:
                raise _wrong(kind, value)
            fields(value)

        self._records[kind] = check_record
        fields = self.fields(kind)
        return check_record

    def _union(self, kind: object) -> Check:
        exact: dict[type, Check | None] = {}
        abstract: list[tuple[type, Check | None]] = []
        for member in union_members(kind):
            check = self.of(member)
            origin: Any = get_origin(member) or member
            types = self._exact_types(member)
            if types is not None:
                exact.update(dict.fromkeys(types - exact.keys()))
            elif origin is Literal:
                # Of several literals all have to be asked; that is done here.
                for each in {type(each) for each in get_args(member)}:
                    exact[each] = check
            elif origin in _CONCRETE or is_record(member) or is_named_tuple(member):
                exact[origin] = check
            else:
                abstract.append((origin, check))

        def check_union(value: object) -> None:
            runtime = type(value)
            found = [exact[runtime]] if runtime in exact else []
            if not found and not isinstance(value, (str, *_BUFFERS)):
                found = [check for origin, check in abstract if isinstance(value, origin)]
            if not found:
                raise _wrong(kind, value)
            if found[0] is not None:
                found[0](value)

        return check_union

    def _container(self, kind: object) -> Check:
        origin: Any = get_origin(kind) or kind
        arguments = get_args(kind)
        if is_named_tuple(kind):
            hints = get_type_hints(kind, include_extras=True)
            return self._fixed(kind, origin, [hints[name] for name in origin._fields])
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            return self._fixed(kind, tuple, arguments)
        is_kind: Callable[[object], bool] = (
            (lambda value: type(value) is origin)
            if origin in _CONCRETE
            # Text is a sequence of its characters, but nobody means that.
            else lambda value: isinstance(value, origin) and not isinstance(value, (str, *_BUFFERS))
        )
        if origin in MAPS:
            keys, values = self._items(arguments[0]), self._items(arguments[1])

            def check_map(value: Any) -> None:
                if not is_kind(value):
                    raise _wrong(kind, value)
                keys(value)
                values(value.values())

            return check_map
        assert origin is tuple or origin in LISTS or origin in SETS
        items = self._items(arguments[0])

        def check_items(value: Any) -> None:
            if not is_kind(value):
                raise _wrong(kind, value)
            items(value)

        return check_items

    def _items(self, kind: object) -> Callable[[Iterable[object]], None]:
        """Return the check for all items of a container: at the speed of C where they are scalars."""
        exact = self._exact_types(unwrap(kind))
        check = self.of(kind)
        if check is None:
            return lambda items: None

        def check_all(items: Iterable[object]) -> None:
            if exact is not None and exact.issuperset(map(type, items)):
                return
            for item in items:
                check(item)

        return check_all

    def _fixed(self, kind: object, exact: type[Any], kinds: Iterable[object]) -> Check:
        checks = [self.of(each) for each in kinds]

        def check_fixed(value: Any) -> None:
            if type(value) is not exact:
                raise _wrong(kind, value)
            if len(value) != len(checks):
                raise TypeError(f"expected {len(checks)} values, got {len(value)}")
            for check, each in zip(checks, value, strict=True):
                if check is not None:
                    check(each)

        return check_fixed


def _types_check(kind: object, exact: frozenset[type]) -> Check:
    def check_type(value: object) -> None:
        if type(value) not in exact:
            raise _wrong(kind, value)

    return check_type


def _test(kind: object, fits: Callable[[object], bool]) -> Check:
    def check(value: object) -> None:
        try:
            is_fit = fits(value)
        except TypeError:  # it cannot be hashed
            is_fit = False
        if not is_fit:
            raise TypeError(f"expected {show(kind)}, got {value!r:.64}")

    return check
