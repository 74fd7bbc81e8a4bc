"""Typed values to plain ones and back: a cattrs converter that does not guess. Sans-IO.

cattrs compiles one function for each class; the hooks here make it strict where it would coerce
(the text ``"5"`` is not an integer), keep large bytes apart from the envelope, and tag the members of
unions. Source: docs/rpc-wire.md, "Values".
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, cast, get_args, get_origin, get_type_hints

import cattrs
from cattrs.fns import identity
from cattrs.gen import make_dict_structure_fn

from dialkey.identity import EndpointId
from dialkey_rpc.checking import an, checker, fields_checker
from dialkey_rpc.describe import (
    LISTS,
    MAPS,
    SETS,
    TAG,
    Types,
    is_named_tuple,
    is_record,
    is_union,
    tag_of,
    union_members,
)
from dialkey_rpc.packing import PART_BYTES, Part

__all__ = ["Mismatch", "Structure", "Unstructure", "make_converter", "structurer", "unstructurer"]

Structure = Callable[[object], object]
Unstructure = Callable[[object], object]
_Hook = Callable[[Any, Any], Any]

_MICROSECOND: Final = timedelta(microseconds=1)


class Mismatch(ValueError):
    """A plain value does not fit the type that was asked for."""


def structurer(converter: cattrs.Converter, kind: object) -> Structure:
    """Return the compiled function from plain values to a type. It raises `Mismatch`."""
    hook: _Hook = converter.get_structure_hook(cast("type[Any]", kind))

    def structure(value: object) -> object:
        try:
            return hook(value, kind)
        except Mismatch:
            raise
        except RecursionError:
            raise Mismatch("nested too deeply") from None
        except Exception as error:
            # Whatever a class does in its validators and `__init__`.
            raise Mismatch(_why(error)) from error

    return structure


def unstructurer(
    converter: cattrs.Converter, kind: object, *, allow_subclass: bool = False
) -> Unstructure | None:
    """Return the compiled function from a type to plain values; None where there is nothing to do.

    It raises `TypeError` for a value of any other type.

    Args:
        converter: of the wire.
        kind: the declared type.
        allow_subclass: take objects of subclasses of a record, and send them as the record.
    """
    hook: Unstructure = converter.get_unstructure_hook(kind)
    check = fields_checker(kind) if allow_subclass else checker(kind)
    if check is None:
        return None if hook is identity else hook

    def unstructure(value: object) -> object:
        check(value)
        return value if hook is identity else hook(value)

    return unstructure


def make_converter() -> cattrs.Converter:
    """Return a new converter for the wire."""
    converter = cattrs.Converter(
        detailed_validation=False,
        unstruct_collection_overrides={AbstractSet: list, Sequence: list},
    )
    add = converter.register_structure_hook
    for kind in (int, str, bool, type(None), datetime):
        add(kind, _exactly(kind))
    add(bytes, _exactly(bytes))
    add(float, _to_float)
    add(bytearray, lambda value, _: bytearray(_expect(bytes, value)))
    add(date, lambda value, _: date.fromisoformat(_expect(str, value)))
    add(time, lambda value, _: time.fromisoformat(_expect(str, value)))
    add(Decimal, lambda value, _: Decimal(_expect(str, value)))
    add(timedelta, lambda value, _: timedelta(microseconds=_expect(int, value)))
    add(uuid.UUID, lambda value, _: uuid.UUID(bytes=_expect(bytes, value)))
    add(EndpointId, lambda value, _: EndpointId(_expect(bytes, value)))
    converter.register_structure_hook_factory(_is_any, lambda _: lambda value, _: value)
    converter.register_structure_hook_factory(_has_origin(LISTS), _to_list)
    converter.register_structure_hook_factory(_has_origin(SETS), _to_set)
    converter.register_structure_hook_factory(_has_origin(MAPS), _to_map)
    converter.register_structure_hook_factory(_has_origin({tuple}), _to_tuple)
    converter.register_structure_hook_factory(is_named_tuple, _to_named_tuple)
    converter.register_structure_hook_factory(is_record, _to_record)
    converter.register_structure_hook_factory(is_union, _to_union)

    drop = converter.register_unstructure_hook
    drop(bytes, _from_bytes)
    drop(bytearray, _from_bytes)
    drop(datetime, identity)
    drop(date, date.isoformat)
    drop(time, time.isoformat)
    drop(Decimal, str)
    drop(timedelta, lambda value: value // _MICROSECOND)
    drop(uuid.UUID, lambda value: value.bytes)
    drop(EndpointId, bytes)
    converter.register_unstructure_hook_factory(_is_any, lambda _: _from_any(converter))
    converter.register_unstructure_hook_factory(is_named_tuple, _from_named_tuple)
    converter.register_unstructure_hook_factory(is_union, _from_union)
    return converter


# --- scalars ------------------------------------------------------------------------------------


def _mismatch(expected: str, value: object) -> Mismatch:
    return Mismatch(f"expected {expected}, got {_NAMES.get(type(value), 'something else')}")


_NAMES: Final[dict[type, str]] = {
    type(None): "nil",
    bool: "bool",
    int: "int",
    float: "float",
    str: "text",
    bytes: "bytes",
    datetime: "timestamp",
    list: "list",
    dict: "map",
}


def _expect(kind: type[Any], value: object) -> Any:
    if type(value) is not kind:
        raise _mismatch(_NAMES[kind], value)
    return value


def _exactly(exact: type[Any]) -> _Hook:
    name = _NAMES[exact]

    def structure(value: object, kind: Any) -> object:
        if type(value) is not exact:
            raise _mismatch(name, value)
        # An enum that is also a `str` or an `int` arrives here.
        return value if kind is exact else kind(value)

    return structure


def _to_float(value: object, _: object) -> float:
    if type(value) is float:
        return value
    if type(value) is int:  # what other languages send for 2.0
        return float(value)
    raise _mismatch("float", value)


def _from_bytes(value: bytes | bytearray | memoryview) -> bytes | Part:
    data = value if type(value) is bytes else bytes(value)
    return data if len(data) < PART_BYTES else Part(data)


def _is_any(kind: object) -> bool:
    return kind is Any or kind is object


def _from_any(converter: cattrs.Converter) -> Unstructure:
    def unstructure(value: object) -> object:
        return value if type(value) is object else converter.unstructure(value)

    return unstructure


# --- containers ---------------------------------------------------------------------------------


def _has_origin(origins: AbstractSet[Any]) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) in origins


def _to_list(kind: Any, converter: cattrs.Converter) -> _Hook:
    (item,) = get_args(kind)
    hook = converter.get_structure_hook(item)
    origin = get_origin(kind)
    make: Callable[[Any], Any] | None = deque if origin is deque else None

    def structure(value: object, _: object) -> object:
        if type(value) is not list:
            raise _mismatch("list", value)
        items = [hook(each, item) for each in value]
        return items if make is None else make(items)

    return structure


def _to_set(kind: Any, converter: cattrs.Converter) -> _Hook:
    (item,) = get_args(kind)
    hook = converter.get_structure_hook(item)
    make = frozenset if get_origin(kind) is frozenset else set

    def structure(value: object, _: object) -> object:
        if type(value) is not list:
            raise _mismatch("list", value)
        return make([hook(each, item) for each in value])

    return structure


def _to_map(kind: Any, converter: cattrs.Converter) -> _Hook:
    key, item = get_args(kind)
    key_hook = converter.get_structure_hook(key)
    hook = converter.get_structure_hook(item)

    def structure(value: object, _: object) -> object:
        if type(value) is not dict:
            raise _mismatch("map", value)
        return {key_hook(k, key): hook(v, item) for k, v in value.items()}

    return structure


def _to_tuple(kind: Any, converter: cattrs.Converter) -> _Hook:
    items = get_args(kind)
    if len(items) == 2 and items[1] is Ellipsis:
        to_list = _to_list(list[items[0]], converter)  # type: ignore[valid-type]
        return lambda value, kind: tuple(to_list(value, kind))
    return _fixed(items, converter, lambda values: values)


def _to_named_tuple(kind: Any, converter: cattrs.Converter) -> _Hook:
    hints = get_type_hints(kind, include_extras=True)
    items = tuple(hints[name] for name in kind._fields)
    return _fixed(items, converter, lambda values: kind(*values))


def _from_named_tuple(kind: Any, converter: cattrs.Converter) -> Unstructure:
    hints = get_type_hints(kind, include_extras=True)
    hooks = [converter.get_unstructure_hook(hints[name]) for name in kind._fields]
    return lambda value: [
        hook(each) for hook, each in zip(hooks, cast("tuple[Any, ...]", value), strict=True)
    ]


def _fixed(
    items: Sequence[Any], converter: cattrs.Converter, make: Callable[[tuple[Any, ...]], object]
) -> _Hook:
    hooks = [(converter.get_structure_hook(item), item) for item in items]

    def structure(value: object, _: object) -> object:
        if type(value) is not list or len(value) != len(hooks):
            raise _mismatch(f"list of {len(hooks)}", value)
        return make(
            tuple(hook(each, item) for each, (hook, item) in zip(value, hooks, strict=True))
        )

    return structure


def _to_record(kind: Any, converter: cattrs.Converter) -> _Hook:
    # Without forbid_extra_keys: unknown fields are skipped, so that services can grow.
    build = make_dict_structure_fn(kind, converter, _cattrs_detailed_validation=False)
    name = tag_of(kind)

    def structure(value: Any, _: object) -> object:
        if type(value) is not dict:
            raise _mismatch(f"map for {name}", value)
        try:
            return build(value, kind)
        except RecursionError:
            raise
        except Exception as error:
            raise Mismatch(f"{name}: {_why(error)}") from error

    return structure


def _why(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return f"the field {str(error.args[0])!r} is missing"
    return str(error) or type(error).__name__


# --- unions -------------------------------------------------------------------------------------

_TYPES: Final[dict[str, type]] = {
    "nil": type(None),
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "bin": bytes,
    "timestamp": datetime,
    "array": list,
    "map": dict,
}


def _to_union(kind: Any, converter: cattrs.Converter) -> _Hook:
    types = Types()
    by_type: dict[type, tuple[_Hook, Any]] = {}
    by_tag: dict[str, tuple[_Hook, Any]] = {}
    for member in union_members(kind):
        entry: tuple[_Hook, Any] = (converter.get_structure_hook(cast("type[Any]", member)), member)
        for form in types.forms(member):
            if form.startswith("record:"):
                by_tag[tag_of(member)] = entry
            else:
                by_type[_TYPES[form]] = entry
    if float in by_type:
        by_type.setdefault(int, by_type[float])
    # A union that had one member once, whose values carry no tag.
    first = next(iter(by_tag.values()), None)
    if len(by_tag) == 1 and first is not None:
        by_type[dict] = first

    def structure(value: Any, _: object) -> object:
        entry = by_type.get(type(value))
        if entry is None:
            if type(value) is not dict or first is None:
                raise _mismatch("another type", value)
            entry = by_tag.get(value[TAG]) if TAG in value else first
            if entry is None:
                raise Mismatch(f"unknown {TAG} {str(value[TAG])[:64]!r} in a union")
        hook, member = entry
        return hook(value, member)

    return structure


def _from_union(kind: Any, converter: cattrs.Converter) -> Unstructure:
    members = union_members(kind)
    records = [member for member in members if is_record(member)]
    entries: list[tuple[type, Unstructure, str | None]] = []
    for member in members:
        hook: Unstructure = converter.get_unstructure_hook(member)
        for runtime in _runtime_types(member):
            tag = tag_of(member) if len(records) > 1 and member in records else None
            entries.append((runtime, hook, tag))
    if all(hook is identity and tag is None for _, hook, tag in entries):
        return identity
    by_type = {runtime: (hook, tag) for runtime, hook, tag in reversed(entries)}

    def unstructure(value: object) -> object:
        entry = by_type.get(type(value))
        if entry is None:
            for runtime, hook, tag in entries:
                if isinstance(value, runtime):
                    entry = (hook, tag)
                    break
            else:
                raise TypeError(f"{an(type(value).__name__)} is not a member of the union")
        hook, tag = entry
        plain = hook(value)
        return plain if tag is None else {TAG: tag, **cast("dict[str, object]", plain)}

    return unstructure


def _runtime_types(member: Any) -> list[type]:
    origin = get_origin(member) or member
    if origin is float:
        return [float, int]
    if origin in (bytes, bytearray):
        return [bytes, bytearray, memoryview]
    if isinstance(origin, type):
        return [origin]
    return [type(value) for value in get_args(member)]  # a Literal
