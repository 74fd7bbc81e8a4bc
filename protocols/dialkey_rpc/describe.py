"""Types, as the wire sees them: which can travel, in which form, and how a schema writes them down.

Source: docs/rpc-wire.md, "Values" and "Schema". An expression is plain data: a name such as ``"int"``,
or a list such as ``["list", "int"]``; ``["ref", "Order"]`` names an entry of `Types.named`.
"""

from __future__ import annotations

import collections
import collections.abc as abc
import dataclasses
import enum
import types
import typing
import uuid
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NewType, TypeVar, Union, get_args, get_origin

import attrs

from dialkey.identity import EndpointId
from dialkey_rpc.errors import ServiceDefinitionError

__all__ = [
    "TAG",
    "Expression",
    "Types",
    "is_named_tuple",
    "is_record",
    "is_union",
    "record_fields",
    "show",
    "tag_of",
    "union_members",
    "unwrap",
]

TAG: Final = "_type"
"""The key under which a record says which member of a union it is."""

Expression = str | list[object]

SCALARS: Final[dict[object, tuple[str, str]]] = {
    # type: (name in schemas, form on the wire)
    type(None): ("nil", "nil"),
    None: ("nil", "nil"),
    bool: ("bool", "bool"),
    int: ("int", "int"),
    float: ("float", "float"),
    str: ("str", "str"),
    bytes: ("bytes", "bin"),
    bytearray: ("bytes", "bin"),
    datetime: ("timestamp", "timestamp"),
    date: ("date", "str"),
    time: ("time", "str"),
    timedelta: ("duration", "int"),
    Decimal: ("decimal", "str"),
    uuid.UUID: ("uuid", "bin"),
    EndpointId: ("endpoint_id", "bin"),
    Any: ("any", "any"),
    object: ("any", "any"),
}

LISTS: Final = {list, abc.Sequence, abc.MutableSequence, collections.deque}
SETS: Final = {set, frozenset, abc.Set, abc.MutableSet}
MAPS: Final = {dict, abc.Mapping, abc.MutableMapping}

KEY_FORMS: Final = frozenset({"str", "int", "bin"})


def is_record(kind: object) -> bool:
    """Whether a type is an attrs class or a dataclass, with or without type arguments."""
    plain = get_origin(kind) or kind
    return isinstance(plain, type) and (attrs.has(plain) or dataclasses.is_dataclass(plain))


def is_union(kind: object) -> bool:
    """Whether a type is a union, `Optional` among them."""
    return get_origin(kind) in (Union, types.UnionType)


def tag_of(kind: object) -> str:
    """Return the name of a record: what it says of itself in a union."""
    plain = get_origin(kind) or kind
    return str(getattr(plain, "__name__", plain))


def unwrap(kind: object) -> object:
    """See through `Annotated`, `NewType`, `Final` and ``type`` aliases."""
    while True:
        if get_origin(kind) in (Annotated, typing.Final, typing.ClassVar):
            kind = get_args(kind)[0]
        elif isinstance(kind, NewType):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__  # type: ignore[attr-defined]  # Python 3.12 and later
        else:
            return kind


def union_members(kind: object) -> tuple[object, ...]:
    """Return the members of a union, unions within it opened."""
    members: list[object] = []
    for member in get_args(kind):
        plain = unwrap(member)
        members.extend(union_members(plain) if is_union(plain) else (plain,))
    return tuple(dict.fromkeys(members))


class Types:
    """Describes types, and collects the named ones that they mention.

    Attributes:
        named: descriptions of records and enums by name, in the order of their first mention.
    """

    def __init__(self) -> None:
        self.named: dict[str, Mapping[str, object]] = {}
        self._names: dict[object, str] = {}

    def describe(self, kind: object) -> Expression:
        """Return the expression for a type.

        Raises:
            ServiceDefinitionError: it cannot travel; the message says which part of it.
        """
        kind = unwrap(kind)
        scalar = SCALARS.get(kind) if isinstance(kind, abc.Hashable) else None
        if scalar is not None:
            return scalar[0]
        if is_union(kind):
            return self._describe_union(kind)
        origin = get_origin(kind) or kind
        arguments = get_args(kind)
        if origin is Literal:
            return ["literal", *self._literals(arguments)]
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return ["ref", self._enum(kind)]
        if is_record(kind):
            return ["ref", self._record(kind)]
        if is_named_tuple(kind):
            return ["tuple", *map(self.describe, _hints(kind).values())]
        if origin is tuple and arguments:
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return ["list", self.describe(arguments[0])]
            return ["tuple", *(self.describe(each) for each in arguments)]
        if origin in LISTS and arguments:
            return ["list", self.describe(arguments[0])]
        if origin in SETS and arguments:
            return ["set", self.describe(arguments[0])]
        if origin in MAPS and arguments:
            return self._describe_map(kind, *arguments)
        raise ServiceDefinitionError(
            f"{show(kind)} cannot travel",
            hint="use attrs classes or dataclasses, enums, unions, containers with their element "
            "types, numbers, text, bytes, dates and times",
        )

    def forms(self, kind: object) -> frozenset[str]:
        """Return the msgpack families that values of a type have; records are ``record:Name``."""
        kind = unwrap(kind)
        scalar = SCALARS.get(kind) if isinstance(kind, abc.Hashable) else None
        if scalar is not None:
            return frozenset({scalar[1]})
        if is_union(kind):
            return frozenset().union(*(self.forms(each) for each in union_members(kind)))
        origin = get_origin(kind) or kind
        if origin is Literal:
            return frozenset().union(*(self.forms(type(each)) for each in get_args(kind)))
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return frozenset().union(*(self.forms(type(each.value)) for each in kind))
        if is_record(kind):
            return frozenset({f"record:{tag_of(kind)}"})
        if origin in MAPS:
            return frozenset({"map"})
        return frozenset({"array"})

    # --- the composed ones ----------------------------------------------------------------------

    def _describe_union(self, kind: object) -> Expression:
        members = union_members(kind)
        expressions = [self.describe(member) for member in members]
        seen: dict[str, object] = {}
        for member in members:
            for form in self.forms(member):
                if form in seen:
                    raise ServiceDefinitionError(
                        f"{show(seen[form])} and {show(member)} look the same on the wire, so "
                        f"{show(kind)} cannot travel",
                        hint="wrap one of them in a record",
                    )
                seen[form] = member
        records = [form for form in seen if form.startswith("record:")]
        if "any" in seen or ("map" in seen and records):
            raise ServiceDefinitionError(
                f"{show(kind)} cannot travel: its members cannot be told apart",
                hint="wrap them in records",
            )
        if len(expressions) == 1:
            return expressions[0]
        return ["union", *expressions]

    def _describe_map(self, kind: object, key: object, value: object) -> Expression:
        expression: list[object] = ["map", self.describe(key), self.describe(value)]
        if not self.forms(key) <= KEY_FORMS:
            raise ServiceDefinitionError(
                f"{show(kind)} cannot travel: keys are text, integers, bytes, or enums of those"
            )
        return expression

    def _literals(self, values: tuple[object, ...]) -> list[object]:
        for value in values:
            if not isinstance(value, (str, int, bool, bytes, type(None))) or isinstance(
                value, enum.Enum
            ):
                raise ServiceDefinitionError(f"the literal {value!r} cannot travel")
        return list(values)

    def _enum(self, kind: type[enum.Enum]) -> str:
        known = self._names.get(kind)
        if known is not None:
            return known
        name = self._new_name(kind)
        for member in kind:
            if not isinstance(member.value, (str, int)) or isinstance(member.value, bool):
                raise ServiceDefinitionError(
                    f"{name}.{member.name} cannot travel: its value is neither text nor an integer"
                )
        self.named[name] = {
            "kind": "enum",
            "values": [[member.name, member.value] for member in kind],
        }
        return name

    def _record(self, kind: object) -> str:
        known = self._names.get(kind)
        if known is not None:
            return known
        name = self._new_name(kind)
        self.named[name] = {}  # holds the place: a record may mention itself
        fields: list[object] = []
        try:
            for field, annotation, has_default in record_fields(kind):
                if field == TAG:
                    raise ServiceDefinitionError(f"the field name {TAG} is reserved")
                fields.append([field, self.describe(annotation), not has_default])
        except ServiceDefinitionError as error:
            raise ServiceDefinitionError(f"{name}: {error.message}", hint=error.hint) from error
        self.named[name] = {"kind": "record", "fields": fields}
        return name

    def _new_name(self, kind: object) -> str:
        base = name = tag_of(kind)
        number = 1
        while name in self.named:
            number += 1
            name = f"{base}#{number}"
        self._names[kind] = name
        return name


def record_fields(kind: object) -> list[tuple[str, object, bool]]:
    """Return the fields that travel: name, type, and whether there is a default."""
    plain: Any = get_origin(kind) or kind
    hints = _hints(plain)
    variables = getattr(plain, "__parameters__", ())
    given = dict(zip(variables, get_args(kind), strict=False))
    found: list[tuple[str, object, bool]] = []
    if attrs.has(plain):
        for field in attrs.fields(plain):
            if field.init:
                annotation = hints.get(field.name, field.type)
                found.append((field.name, annotation, field.default is not attrs.NOTHING))
    else:
        for each in dataclasses.fields(plain):
            if each.init:
                has_default = (
                    each.default is not dataclasses.MISSING
                    or each.default_factory is not dataclasses.MISSING
                )
                found.append((each.name, hints.get(each.name), has_default))
    return [(name, _fill(annotation, given), default) for name, annotation, default in found]


def _fill(annotation: object, given: Mapping[object, object]) -> object:
    """Put type arguments in the place of type variables."""
    if isinstance(annotation, TypeVar):
        return given.get(annotation, annotation)
    arguments = get_args(annotation)
    if not given or not arguments:
        return annotation
    filled = tuple(_fill(each, given) for each in arguments)
    if is_union(annotation):
        return Union[filled]  # noqa: UP007  # built at run time
    origin: Any = get_origin(annotation)
    return annotation if filled == arguments else origin[filled]


def _hints(kind: object) -> dict[str, object]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise ServiceDefinitionError(
            f"the annotations of {show(kind)} cannot be read: {error}",
            hint="define the types that it mentions at the top level of a module",
        ) from error


def is_named_tuple(kind: object) -> bool:
    """Whether a type is a `typing.NamedTuple`."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def show(kind: object) -> str:
    """Return a type as people write it."""
    if is_union(kind):
        return " | ".join(map(show, get_args(kind)))
    if kind is type(None):
        return "None"
    if isinstance(kind, type) and not get_args(kind):
        return kind.__qualname__
    return str(kind).replace("typing.", "")
