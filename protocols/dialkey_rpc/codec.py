"""Methods, compiled: from arguments to frames and back, without looking at a type twice. Sans-IO.

Source: docs/rpc-wire.md, "Calls" and "ERROR".
"""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import attrs
import cattrs

from dialkey.identity import EndpointId
from dialkey.printable import printable
from dialkey_rpc.checking import an
from dialkey_rpc.context import ENDLESS_S
from dialkey_rpc.convert import (
    Mismatch,
    Structure,
    Unstructure,
    make_converter,
    structurer,
    unstructurer,
)
from dialkey_rpc.describe import is_record
from dialkey_rpc.errors import (
    STATUSES,
    ApplicationError,
    CannotSend,
    InternalError,
    InvalidArgument,
    MalformedMessage,
    RpcError,
)
from dialkey_rpc.frames import CALL, ERROR, ITEM, RESULT
from dialkey_rpc.limits import MAX_RPC_ERROR_CHARS, MAX_RPC_METADATA_ENTRIES
from dialkey_rpc.packing import pack_frame
from dialkey_rpc.service import MethodSpec, ServiceSpec

__all__ = [
    "SCHEMA",
    "Buffers",
    "CallRequest",
    "MethodCodec",
    "ServiceCodec",
    "compile_service",
    "error_frame",
    "error_from_wire",
    "error_to_wire",
    "read_call",
]

Buffers = tuple[bytes, Sequence[bytes]]
"""The head of a frame, and the parts to be written after it."""


@attrs.frozen
class CallRequest:
    """What a CALL frame says.

    Attributes:
        method: the name of the method.
        arguments: plain values by the names of the parameters.
        timeout_s: how long the caller waits from now on, or None.
        metadata: text by text, sent along with the arguments.
    """

    method: str
    arguments: Mapping[str, object]
    timeout_s: float | None
    metadata: Mapping[str, str]


_NO_METADATA: Mapping[str, str] = {}


def read_call(value: object) -> CallRequest:
    """Read the envelope of a CALL frame.

    Raises:
        MalformedMessage: it is something else.
    """
    if type(value) is not list or len(value) < 2:
        raise MalformedMessage("a call is a list of at least two values")
    method, arguments = value[0], value[1]
    timeout_ms = value[2] if len(value) > 2 else None
    metadata = value[3] if len(value) > 3 else None
    if type(method) is not str or type(arguments) is not dict:
        raise MalformedMessage("a call begins with a method's name and a map of arguments")
    if timeout_ms is not None and (type(timeout_ms) is not int or timeout_ms < 0):
        raise MalformedMessage("the time of a call is a number of milliseconds")
    if metadata is None:
        metadata = _NO_METADATA
    elif (
        type(metadata) is not dict
        or len(metadata) > MAX_RPC_METADATA_ENTRIES
        or not all(type(k) is str and type(v) is str for k, v in metadata.items())
    ):
        raise MalformedMessage(f"metadata is at most {MAX_RPC_METADATA_ENTRIES} pairs of text")
    # Callers of other makes may say how long "for ever" is; no clock has to be able to add that.
    timeout_s = None if timeout_ms is None or timeout_ms >= ENDLESS_S * 1000 else timeout_ms / 1000
    return CallRequest(method, arguments, timeout_s, metadata)


class MethodCodec:
    """One method, compiled.

    Attributes:
        spec: the method.
    """

    def __init__(self, spec: MethodSpec, converter: cattrs.Converter) -> None:
        self.spec = spec
        self._positional = spec.positional
        self._names = frozenset(p.name for p in spec.params)
        required = [p.name for p in spec.params if p.required]
        if spec.upload is not None:
            self._names |= {spec.upload.name}
            required.append(spec.upload.name)
        self._required = tuple(required)
        self._drop = _only_work({p.name: unstructurer(converter, p.kind) for p in spec.params})
        self._build = tuple(
            (p.name, p.required, structurer(converter, p.kind)) for p in spec.params
        )
        self._drop_result = unstructurer(converter, spec.result_kind)
        self._build_result = structurer(converter, spec.result_kind)
        self._drop_upload: Unstructure | None = None
        self._build_upload: Structure | None = None
        if spec.upload is not None:
            self._drop_upload = unstructurer(converter, spec.upload_kind)
            self._build_upload = structurer(converter, spec.upload_kind)
        self._error_codecs = {
            kind: (
                unstructurer(converter, kind, allow_subclass=True),
                structurer(converter, kind),
            )
            for kind in spec.raises.values()
            if is_record(kind)
        }

    # --- the caller's side ----------------------------------------------------------------------

    def bind(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[dict[str, object], object]:
        """Match arguments with parameters, as Python would.

        Returns:
            The arguments by name, and the one that streams, or None. What has a default and is not
            given is left out: the service's own default holds.

        Raises:
            TypeError: they do not fit.
        """
        if len(args) > len(self._positional):
            raise TypeError(
                f"{self.spec.attribute}() takes {len(self._positional)} positional arguments "
                f"but {len(args)} were given"
            )
        values = dict(zip(self._positional, args, strict=False))
        for name, value in kwargs.items():
            if name in values:
                raise TypeError(f"{self.spec.attribute}() got multiple values for {name!r}")
            if name not in self._names:
                raise TypeError(f"{self.spec.attribute}() got an unexpected argument {name!r}")
            values[name] = value
        for name in self._required:
            if name not in values:
                raise TypeError(f"{self.spec.attribute}() is missing the argument {name!r}")
        upload = self.spec.upload
        return values, (None if upload is None else values.pop(upload.name))

    def plain_arguments(self, values: dict[str, object]) -> dict[str, object]:
        """Make arguments plain, in place.

        Raises:
            CannotSend: one is not of its parameter's type.
        """
        for name, drop in self._drop:
            if name in values:
                values[name] = _apply(drop, values[name], name)
        return values

    def call_frame(
        self,
        arguments: Mapping[str, object],
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Buffers:
        """Return the frame that starts the call. `arguments` are plain.

        Raises:
            CannotSend: one of them has no form on the wire.
        """
        call: list[object] = [self.spec.name, arguments]
        if timeout_s is not None or metadata:
            call.append(None if timeout_s is None else max(0, math.ceil(timeout_s * 1000)))
        if metadata:
            call.append(metadata)
        return pack_frame(CALL, call)

    def upload_frame(self, item: object) -> Buffers:
        """Return the frame of an item that streams up. Raises `CannotSend`."""
        drop = self._drop_upload
        return pack_frame(ITEM, item if drop is None else _apply(drop, item, "an item"))

    def read_result(self, plain: object) -> object:
        """Return the result, or an item that streams down.

        Raises:
            MalformedMessage: it is of another type than the method promises.
        """
        try:
            return self._build_result(plain)
        except Mismatch as error:
            raise MalformedMessage(
                f"the result of {self.spec.name} is not what this side expects: {error}",
                hint="do both sides have the same version of the service?",
            ) from error

    def read_error(self, plain: object, endpoint_id: EndpointId | None) -> Exception:
        """Return the exception for the envelope of an ERROR frame.

        Raises:
            MalformedMessage: it is not an error.
        """
        error = error_from_wire(plain, endpoint_id)
        if type(error) is not ApplicationError:
            return error
        kind = self.spec.raises.get(error.name)
        if kind is None:
            return error
        codec = self._error_codecs.get(kind)
        if codec is None:
            return kind(error.message)
        try:
            built = codec[1](error.data)
        except Mismatch:
            return error  # a version of it that this side does not know
        assert isinstance(built, Exception)
        return built

    # --- the service's side ---------------------------------------------------------------------

    def read_arguments(self, request: CallRequest) -> dict[str, object]:
        """Return the arguments by name; unknown ones are left out.

        Raises:
            InvalidArgument: one is missing or of another type.
        """
        given = request.arguments
        arguments: dict[str, object] = {}
        for name, required, build in self._build:
            if name in given:
                try:
                    arguments[name] = build(given[name])
                except Mismatch as error:
                    raise InvalidArgument(f"{name}: {error}") from error
            elif required:
                raise InvalidArgument(f"{name} is missing")
        return arguments

    def read_upload(self, plain: object) -> object:
        """Return an item that streams up.

        Raises:
            InvalidArgument: it is of another type.
        """
        assert self._build_upload is not None
        try:
            return self._build_upload(plain)
        except Mismatch as error:
            raise InvalidArgument(f"an item: {error}") from error

    def result_frame(self, value: object) -> Buffers:
        """Return the frame of the result. Raises `CannotSend`."""
        drop = self._drop_result
        return pack_frame(RESULT, value if drop is None else _apply(drop, value, "the result"))

    def item_frame(self, item: object) -> Buffers:
        """Return the frame of an item that streams down. Raises `CannotSend`."""
        drop = self._drop_result
        return pack_frame(ITEM, item if drop is None else _apply(drop, item, "an item"))

    def declares(self, error: BaseException) -> bool:
        """Whether an error reaches the caller as what it is."""
        return self._declared(error) is not None

    def _declared(self, error: BaseException) -> type[Exception] | None:
        for kind in type(error).__mro__:
            if self.spec.raises.get(kind.__name__) is kind:
                return kind
        return None

    def error_frame(self, error: BaseException, *, expose: bool) -> Buffers:
        """Return the frame for what a method raised. Raises `CannotSend`."""
        kind = self._declared(error)
        if kind is None:
            return error_frame(error, expose=expose)
        drop, _ = self._error_codecs.get(kind, (None, None))
        wire = {
            "status": ApplicationError.STATUS,
            "message": _cut(str(error)),
            "name": kind.__name__,
        }
        if drop is not None:
            wire["data"] = _apply(drop, error, "an error")
        return pack_frame(ERROR, wire)


def _only_work(
    hooks: Mapping[str, Unstructure | None],
) -> tuple[tuple[str, Unstructure], ...]:
    return tuple((name, hook) for name, hook in hooks.items() if hook is not None)


def _apply(drop: Unstructure, value: object, what: str) -> object:
    try:
        return drop(value)
    except Exception as error:
        raise CannotSend(
            f"{what} cannot be sent: {an(type(value).__name__)} is not of the declared type",
            hint=str(error) or None,
        ) from error


class ServiceCodec:
    """A service, compiled.

    Attributes:
        spec: the service.
        methods: its methods by name on the wire.
    """

    def __init__(self, spec: ServiceSpec) -> None:
        converter = make_converter()
        self.spec = spec
        self.methods = {name: MethodCodec(each, converter) for name, each in spec.methods.items()}


@functools.lru_cache(maxsize=256)
def compile_service(kind: Callable[..., object], name: str | None = None) -> ServiceCodec:
    """Return the codec of a class, made once. (A `type` would not take protocols and abstract ones.)

    Raises:
        ServiceDefinitionError: it cannot be a service.
    """
    return ServiceCodec(ServiceSpec.of(cast("type", kind), name))


SCHEMA: Final = MethodCodec(
    MethodSpec(
        name="$schema",
        attribute="schema",
        params=(),
        positional=(),
        upload=None,
        upload_kind=None,
        result_kind=Any,
        streams_down=False,
        idempotent=True,
        raises={},
        doc="Say what the service offers.",
    ),
    make_converter(),
)
"""The method that every service has; the names of others cannot begin with a dollar sign."""


# --- errors -------------------------------------------------------------------------------------


def error_frame(error: BaseException, *, expose: bool = False) -> Buffers:
    """Return the frame for an error that belongs to no method's own."""
    return pack_frame(ERROR, error_to_wire(error, expose=expose))


def error_to_wire(error: BaseException, *, expose: bool = False) -> dict[str, object]:
    """Return an error as a plain value.

    Args:
        error: an `RpcError` made here travels with its status and message; anything else becomes
            an internal error.
        expose: tell the class, text and traceback of such others.
    """
    if isinstance(error, RpcError) and error.endpoint_id is None:
        name = data = None
        if isinstance(error, ApplicationError):
            name, data = error.name, error.data
        return _without_none(status=error.status, message=_cut(error.message), name=name, data=data)
    if not expose:
        return {"status": InternalError.STATUS, "message": "the service failed"}
    text = "".join(traceback.format_exception(error))
    return {
        "status": InternalError.STATUS,
        "message": _cut(f"{type(error).__name__}: {error}"),
        "traceback": text[-MAX_RPC_ERROR_CHARS:],
    }


def error_from_wire(plain: object, endpoint_id: EndpointId | None) -> RpcError:
    """Return the exception for the envelope of an ERROR frame.

    Raises:
        MalformedMessage: it is not an error.
    """
    if type(plain) is not dict:
        raise MalformedMessage("an error is a map")
    status = plain.get("status")
    message = plain.get("message", "")
    if type(status) is not int or type(message) is not str:
        raise MalformedMessage("an error has a status and a message")
    message = _cut(message)
    if status == InternalError.STATUS:
        remote = plain.get("traceback")
        return InternalError(
            message,
            remote_traceback=_lines(remote) if type(remote) is str else None,
            endpoint_id=endpoint_id,
        )
    if status == ApplicationError.STATUS:
        name = plain.get("name")
        if type(name) is not str:
            raise MalformedMessage("an error of the application has a name")
        name = printable(name)
        return ApplicationError(message, name=name, data=plain.get("data"), endpoint_id=endpoint_id)
    return STATUSES.get(status, RpcError)(message, status=status, endpoint_id=endpoint_id)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_RPC_ERROR_CHARS else text[:MAX_RPC_ERROR_CHARS] + " …"


def _lines(text: str) -> str:
    return printable(_cut(text), keep="\n\t")


def _without_none(**fields: object) -> dict[str, object]:
    return {key: value for key, value in fields.items() if value is not None}
