"""The errors of remote procedure calls, and the numbers under which they travel.

::

    dialkey.errors.RemoteError
    ├── RpcError                   the service answered with an error; `status` is its number
    │   ├── CallCancelled      1   the serving side ended the call
    │   ├── DeadlineExceeded   2   the time that came with the call is over (also a TimeoutError)
    │   ├── InvalidArgument    3   the arguments do not fit the method
    │   ├── MethodNotFound     4   the service has no such method
    │   ├── PermissionDenied   5   the caller may not call it
    │   ├── ResourceExhausted  6   a limit of the service was met; try less, or later
    │   ├── Unavailable        7   the service did not start the call; it may be repeated
    │   ├── InternalError      8   the service failed, and does not say more
    │   └── ApplicationError   9   an error of the application that the caller's class does not declare
    ├── WireError ← MalformedMessage
    └── LimitExceeded ← MessageTooLarge
    dialkey.errors.InvalidInput
    ├── ServiceDefinitionError     a class cannot be a service as it is written
    └── CannotSend                 a value has no form on the wire

A service raises them too: an `RpcError` that a method raises itself reaches the caller with its
status and message. Errors that a method declares with ``@method(raises=[…])`` reach the caller as
that very class. Everything else becomes `InternalError` without a word about the cause, and so does
an `RpcError` that the method received from somebody else: who that was is not the caller's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from dialkey.errors import InvalidInput, LimitExceeded, RemoteError, WireError

if TYPE_CHECKING:
    from dialkey.identity import EndpointId

__all__ = [
    "STATUSES",
    "ApplicationError",
    "CallCancelled",
    "CannotSend",
    "DeadlineExceeded",
    "InternalError",
    "InvalidArgument",
    "MalformedMessage",
    "MessageTooLarge",
    "MethodNotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "RpcError",
    "ServiceDefinitionError",
    "Unavailable",
]


class ServiceDefinitionError(InvalidInput):
    code = "local.input.rpc_service"


class CannotSend(InvalidInput):
    code = "local.input.rpc_value"


class MalformedMessage(WireError):
    code = "remote.wire.rpc"


class MessageTooLarge(LimitExceeded):
    code = "remote.limit.rpc"


class RpcError(RemoteError):
    """The service answered with an error.

    Raised as this very class for a status that is not in the table above.

    Attributes:
        status: its number on the wire.
        endpoint_id: who answered; None for an error that was made here.
    """

    code = "remote.rpc"
    STATUS: ClassVar[int] = 0

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.status = self.STATUS if status is None else status


class CallCancelled(RpcError):
    code = "remote.rpc.cancelled"
    STATUS = 1


class DeadlineExceeded(RpcError, TimeoutError):
    code = "remote.rpc.deadline"
    STATUS = 2


class InvalidArgument(RpcError):
    code = "remote.rpc.argument"
    STATUS = 3


class MethodNotFound(RpcError):
    code = "remote.rpc.method"
    STATUS = 4


class PermissionDenied(RpcError):
    code = "remote.rpc.permission"
    STATUS = 5


class ResourceExhausted(RpcError):
    code = "remote.rpc.exhausted"
    STATUS = 6


class Unavailable(RpcError):
    code = "remote.rpc.unavailable"
    STATUS = 7


class InternalError(RpcError):
    """The service failed.

    Attributes:
        remote_traceback: the traceback there, from a service with ``expose_errors=True``; else None.
    """

    code = "remote.rpc.internal"
    STATUS = 8

    def __init__(
        self,
        message: str = "",
        *,
        remote_traceback: str | None = None,
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.remote_traceback = remote_traceback


class ApplicationError(RpcError):
    """The method raised an error of the application.

    Attributes:
        name: the name of its class there.
        data: its fields as plain values, or None.
    """

    code = "remote.rpc.application"
    STATUS = 9

    def __init__(
        self,
        message: str = "",
        *,
        name: str = "",
        data: object = None,
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.name = name
        self.data = data


STATUSES: Final[dict[int, type[RpcError]]] = {
    kind.STATUS: kind
    for kind in (
        CallCancelled,
        DeadlineExceeded,
        InvalidArgument,
        MethodNotFound,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        InternalError,
        ApplicationError,
    )
}
