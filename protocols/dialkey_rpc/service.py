"""Services: what a plain class offers to remote callers, found by looking at it. Sans-IO.

Every public method that is a coroutine function is a call. Where its result is an asynchronous
iterator, items stream down; where one of its parameters is one, items stream up; with both it is a
dialogue. Methods whose names begin with an underscore, and those marked `@local`, are not offered.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from typing import Any, Final, TypeVar, get_args, get_origin

import attrs

from dialkey_rpc.describe import Types, is_record
from dialkey_rpc.errors import RpcError, ServiceDefinitionError

__all__ = ["ALPN_PREFIX", "MethodSpec", "ParamSpec", "ServiceSpec", "local", "method", "service"]

ALPN_PREFIX: Final = "dialkey-rpc/1/"
MAX_ALPN_BYTES: Final = 255

_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+-]*")
_METHOD_MARK: Final = "__dialkey_rpc__"
_SERVICE_MARK: Final = "__dialkey_rpc_name__"

F = TypeVar("F", bound=Callable[..., object])
C = TypeVar("C", bound=type)


@attrs.frozen
class _Marks:
    """What the decorators said about a method."""

    name: str | None = None
    idempotent: bool = False
    raises: tuple[type[Exception], ...] = ()
    local: bool = False


def method(
    *, name: str | None = None, idempotent: bool = False, raises: Sequence[type[Exception]] = ()
) -> Callable[[F], F]:
    """Say more about a method of a service.

    Args:
        name: its name on the wire; by default its name in Python.
        idempotent: calling it twice does no more than calling it once, so that a client may repeat
            it when the connection broke and nobody knows whether it ran.
        raises: errors that reach the caller as these classes: attrs classes or dataclasses with all
            their fields, others with their text. Their names must differ.
    """

    def mark(function: F) -> F:
        setattr(function, _METHOD_MARK, _Marks(name, idempotent, tuple(raises)))
        return function

    return mark


def local(function: F) -> F:
    """Do not offer a public method of a service to callers."""
    setattr(function, _METHOD_MARK, _Marks(local=True))
    return function


def service(name: str) -> Callable[[C], C]:
    """Name a service on the wire; by default that is the name of its class.

    The name ends the ALPN, so give it a version when callers must not mistake one for another.
    """
    alpn_of(name)

    def mark(kind: C) -> C:
        setattr(kind, _SERVICE_MARK, name)
        return kind

    return mark


def alpn_of(name: str) -> bytes:
    """Return the ALPN of a service.

    Raises:
        ServiceDefinitionError: the name is empty, too long, or has other characters than ASCII
            letters, digits and ``. _ / : + -``.
    """
    alpn = (ALPN_PREFIX + name).encode("utf-8", "replace")
    if not _NAME.fullmatch(name) or len(alpn) > MAX_ALPN_BYTES:
        raise ServiceDefinitionError(
            f"{name!r} cannot name a service",
            hint=f"letters, digits and . _ / : + -, at most {MAX_ALPN_BYTES - len(ALPN_PREFIX)}",
        )
    return alpn


@attrs.frozen
class ParamSpec:
    """A parameter that travels with the call.

    Attributes:
        name: its name, on the wire too.
        kind: its type.
        required: whether it has no default.
    """

    name: str
    kind: object
    required: bool


@attrs.frozen
class MethodSpec:
    """A method that can be called remotely.

    Attributes:
        name: its name on the wire.
        attribute: its name in Python.
        params: its parameters without the one that streams.
        positional: the names of those that callers may leave unnamed, the streaming one among them.
        upload: the parameter that streams up, or None.
        upload_kind: the type of the items that stream up.
        result_kind: the type of the result, or of the items that stream down.
        streams_down: whether the result is a stream.
        idempotent: whether it may be repeated.
        raises: the errors that reach the caller as themselves, by name.
        doc: the first line of its docstring.
    """

    name: str
    attribute: str
    params: tuple[ParamSpec, ...]
    positional: tuple[str, ...]
    upload: ParamSpec | None
    upload_kind: object
    result_kind: object
    streams_down: bool
    idempotent: bool
    raises: Mapping[str, type[Exception]]
    doc: str


@attrs.frozen
class ServiceSpec:
    """A service as seen from outside.

    Attributes:
        name: its name on the wire.
        methods: what can be called, by name on the wire.
    """

    name: str
    methods: Mapping[str, MethodSpec]

    @property
    def alpn(self) -> bytes:
        """The ALPN under which it is served."""
        return alpn_of(self.name)

    @classmethod
    def of(cls, kind: type, name: str | None = None) -> ServiceSpec:
        """Look at a class.

        Args:
            kind: the service.
            name: overrides the class's own.

        Raises:
            ServiceDefinitionError: a method lacks annotations, or has some that cannot travel.
        """
        if not isinstance(kind, type):
            raise ServiceDefinitionError(
                f"a service is a class, not {kind!r}", hint="pass the class, not an instance"
            )
        name = name or str(getattr(kind, _SERVICE_MARK, kind.__name__))
        alpn_of(name)
        methods: dict[str, MethodSpec] = {}
        for attribute in dir(kind):
            if attribute.startswith("_"):
                continue
            function = inspect.getattr_static(kind, attribute)
            if not isinstance(function, types.FunctionType):
                continue
            marks = _marks(kind, attribute)
            if marks.local:
                continue
            try:
                spec = _look_at(attribute, function, marks)
            except ServiceDefinitionError as error:
                raise ServiceDefinitionError(
                    f"{kind.__qualname__}.{attribute}: {error.message}", hint=error.hint
                ) from error
            if spec is None:
                continue
            if spec.name in methods:
                raise ServiceDefinitionError(
                    f"{kind.__qualname__} has two methods with the name {spec.name!r}"
                )
            methods[spec.name] = spec
        if not methods:
            raise ServiceDefinitionError(
                f"{kind.__qualname__} has no method that can be called",
                hint="give it a public `async def` method",
            )
        return cls(name, methods)


def _marks(kind: type, attribute: str) -> _Marks:
    """Return what was declared about a method, by its class or by a class that it overrides."""
    for base in kind.__mro__:
        marks = getattr(vars(base).get(attribute), _METHOD_MARK, None)
        if isinstance(marks, _Marks):
            return marks
    return _Marks()


def _look_at(attribute: str, function: types.FunctionType, marks: _Marks) -> MethodSpec | None:
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    try:
        hints: dict[str, Any] = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        if not is_async:
            return None
        raise ServiceDefinitionError(
            f"its annotations cannot be read: {error}",
            hint="define the types that they mention at the top level of a module",
        ) from error
    result = hints.get("return", inspect.Signature.empty)
    item = _item_of(result)
    if not is_async and item is None:
        return None  # an ordinary method
    if result is inspect.Signature.empty:
        raise ServiceDefinitionError("it does not say what it returns", hint="annotate it: -> None")
    if inspect.isasyncgenfunction(function) and item is None:
        raise ServiceDefinitionError(
            "it yields, but does not return an asynchronous iterator",
            hint="annotate it: -> AsyncIterator[…]",
        )
    params, upload, positional = _params(function, hints)
    name = marks.name or attribute
    if not _NAME.fullmatch(name):
        raise ServiceDefinitionError(f"{name!r} cannot name a method")
    spec = MethodSpec(
        name=name,
        attribute=attribute,
        params=params,
        positional=positional,
        upload=upload,
        upload_kind=None if upload is None else _item_of(upload.kind),
        result_kind=result if item is None else item,
        streams_down=item is not None,
        idempotent=marks.idempotent,
        raises=_errors(marks.raises),
        doc=(inspect.getdoc(function) or "").partition("\n")[0],
    )
    check = Types()
    for param in params:
        check.describe(param.kind)
    if upload is not None:
        check.describe(spec.upload_kind)
    check.describe(spec.result_kind)
    for error_class in spec.raises.values():
        if is_record(error_class):
            check.describe(error_class)
    return spec


def _params(
    function: types.FunctionType, hints: Mapping[str, Any]
) -> tuple[tuple[ParamSpec, ...], ParamSpec | None, tuple[str, ...]]:
    params: list[ParamSpec] = []
    positional: list[str] = []
    upload: ParamSpec | None = None
    for param in list(inspect.signature(function).parameters.values())[1:]:
        if param.kind not in (param.POSITIONAL_OR_KEYWORD, param.KEYWORD_ONLY):
            raise ServiceDefinitionError(
                f"the parameter {param.name} cannot travel: arguments go by their names",
                hint="use parameters without * and before no /",
            )
        if param.name not in hints:
            raise ServiceDefinitionError(f"the parameter {param.name} has no annotation")
        spec = ParamSpec(param.name, hints[param.name], param.default is param.empty)
        if param.kind is param.POSITIONAL_OR_KEYWORD:
            positional.append(param.name)
        if _item_of(spec.kind) is None:
            params.append(spec)
        elif get_origin(spec.kind) is AsyncGenerator:
            raise ServiceDefinitionError(
                f"{param.name} cannot be a generator", hint="annotate it as AsyncIterator[…]"
            )
        elif upload is not None:
            raise ServiceDefinitionError(f"{upload.name} and {param.name} both stream; one can")
        elif not spec.required:
            raise ServiceDefinitionError(f"{param.name} streams, so it cannot have a default")
        else:
            upload = spec
    return tuple(params), upload, tuple(positional)


def _item_of(kind: object) -> object:
    """Return the type of the items of an asynchronous iterator; None for any other type."""
    if get_origin(kind) not in _STREAMS:
        return None
    item = get_args(kind)[0]
    return type(None) if item is None else item


def _errors(classes: Sequence[type[Exception]]) -> dict[str, type[Exception]]:
    errors: dict[str, type[Exception]] = {}
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise ServiceDefinitionError(f"{each!r} is not a class of errors")
        if issubclass(each, RpcError):
            continue  # those travel anyway
        if each.__name__ in errors:
            raise ServiceDefinitionError(f"two errors with the name {each.__name__}")
        errors[each.__name__] = each
    return errors
