"""Typed remote procedure calls between endpoints.

A service is a plain class. Its ``async def`` methods can be called remotely; asynchronous iterators
stream, in either direction or both::

    import dialkey_rpc as rpc

    class Calculator:
        async def add(self, a: int, b: int) -> int:
            return a + b

        async def count(self, to: int) -> AsyncIterator[int]:
            for number in range(to):
                yield number

    router.add(rpc.Rpc(Calculator()))                                # the serving side

    client = await rpc.connect(Calculator, endpoint, ticket)         # the calling side
    assert await client.add(1, 2) == 3
    async for number in client.count(10):
        ...

``docs/rpc.md`` is the guide, ``docs/rpc-wire.md`` the wire format.
"""

from __future__ import annotations

from dialkey.extras import require_extra

require_extra("rpc", "RPC", "cattrs", "msgpack", "prometheus_client")

from dialkey_rpc.client import (
    Connecting,
    StreamCall,
    close,
    connect,
    schema,
    stats,
    with_options,
)
from dialkey_rpc.context import Call, current_call, deadline
from dialkey_rpc.errors import (
    ApplicationError,
    CallCancelled,
    CannotSend,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    MalformedMessage,
    MessageTooLarge,
    MethodNotFound,
    PermissionDenied,
    ResourceExhausted,
    RpcError,
    ServiceDefinitionError,
    Unavailable,
)
from dialkey_rpc.exposition import MetricsPage, PrometheusCollector, metrics_page
from dialkey_rpc.frames import RpcLimits
from dialkey_rpc.metrics import MethodStats
from dialkey_rpc.retry import Reconnect
from dialkey_rpc.schema import Schema, schema_of
from dialkey_rpc.server import Allowed, Middleware, Proceed, Rpc
from dialkey_rpc.service import MethodSpec, ServiceSpec, local, method, service

__all__ = [
    "Allowed",
    "ApplicationError",
    "Call",
    "CallCancelled",
    "CannotSend",
    "Connecting",
    "DeadlineExceeded",
    "InternalError",
    "InvalidArgument",
    "MalformedMessage",
    "MessageTooLarge",
    "MethodNotFound",
    "MethodSpec",
    "MethodStats",
    "MetricsPage",
    "Middleware",
    "PermissionDenied",
    "Proceed",
    "PrometheusCollector",
    "Reconnect",
    "ResourceExhausted",
    "Rpc",
    "RpcError",
    "RpcLimits",
    "Schema",
    "ServiceDefinitionError",
    "ServiceSpec",
    "StreamCall",
    "Unavailable",
    "close",
    "connect",
    "current_call",
    "deadline",
    "local",
    "method",
    "metrics_page",
    "schema",
    "schema_of",
    "service",
    "stats",
    "with_options",
]
