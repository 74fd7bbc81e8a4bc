"""Schemas: what a service offers, as plain data that can be asked for, and its hash. Sans-IO.

Source: docs/rpc-wire.md, "Schema".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import attrs

from dialkey_rpc.describe import Types, is_record
from dialkey_rpc.errors import MalformedMessage
from dialkey_rpc.packing import pack
from dialkey_rpc.service import MethodSpec, ServiceSpec

__all__ = ["Schema", "schema_of"]


@attrs.frozen
class Schema:
    """What a service offers.

    Attributes:
        service: its name.
        methods: for each method its parameters, streams, result, errors; see the wire document.
        types: for each record and enum that they mention, its description.
        hash: SHA-256 over everything but the prose, in hex; two services with the same hash can be
            called in the same way.
    """

    service: str
    methods: Mapping[str, object]
    types: Mapping[str, object]
    hash: str

    def to_wire(self) -> dict[str, object]:
        """Return the form in which it travels."""
        return attrs.asdict(self, recurse=False)

    @classmethod
    def from_wire(cls, plain: object) -> Schema:
        """Read the form in which it travels.

        Raises:
            MalformedMessage: it is something else.
        """
        fields = plain if type(plain) is dict else {}
        service, methods = fields.get("service"), fields.get("methods")
        types, hash = fields.get("types"), fields.get("hash")
        if (
            type(service) is not str
            or type(methods) is not dict
            or type(types) is not dict
            or type(hash) is not str
        ):
            raise MalformedMessage("a schema has a service, methods, types and a hash")
        return cls(service, methods, types, hash)


def schema_of(spec: ServiceSpec) -> Schema:
    """Describe a service."""
    types = Types()
    methods = {name: _method(spec.methods[name], types) for name in sorted(spec.methods)}
    named = {name: types.named[name] for name in sorted(types.named)}
    # Prose may change without changing what is said on the wire.
    bare = {
        name: {key: each[key] for key in each if key != "doc"} for name, each in methods.items()
    }
    canonical, _ = pack(_sorted({"service": spec.name, "methods": bare, "types": named}))
    return Schema(spec.name, methods, named, hashlib.sha256(canonical).hexdigest())


def _method(spec: MethodSpec, types: Types) -> dict[str, object]:
    described: dict[str, object] = {
        "params": [[p.name, types.describe(p.kind), p.required] for p in spec.params],
        "result": types.describe(spec.result_kind),
        "stream": spec.streams_down,
    }
    if spec.upload is not None:
        described["upload"] = [spec.upload.name, types.describe(spec.upload_kind)]
    if spec.idempotent:
        described["idempotent"] = True
    if spec.raises:
        described["raises"] = [
            [name, types.describe(kind) if is_record(kind) else "str"]
            for name, kind in sorted(spec.raises.items())
        ]
    if spec.doc:
        described["doc"] = spec.doc
    return described


def _sorted(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(each) for each in value]
    return value
