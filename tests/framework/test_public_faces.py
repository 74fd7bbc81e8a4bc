"""Public classes show public, documented names only; what drives them is private."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from dialkey import Connection, Endpoint, RecvStream, Router, SendStream
from dialkey.endpoint import Incoming

FACES: dict[type, frozenset[str]] = {
    Endpoint: frozenset(
        [
            "accept",
            "add_addr",
            "addr",
            "address_lookups",
            "alpns",
            "bind",
            "bound_addrs",
            "close",
            "connect",
            "connections",
            "id",
            "info",
            "is_published",
            "look_up",
            "lookup_troubles",
            "set_user_data",
            "side_channel",
            "network_changed",
            "online",
            "plugins",
            "published",
            "relay_urls",
            "secret_key",
            "set_alpns",
            "ticket",
            "transports",
        ]
    ),
    Connection: frozenset(
        [
            "accept_bi",
            "accept_uni",
            "alpn",
            "close",
            "closed",
            "delivered",
            "endpoint",
            "is_client",
            "is_closed",
            "max_datagram_size",
            "open_bi",
            "open_uni",
            "path_events",
            "paths",
            "read_datagram",
            "remote_id",
            "request_key_update",
            "send_datagram",
            "stats",
        ]
    ),
    SendStream: frozenset(
        [
            "connection",
            "delivered",
            "finish",
            "priority",
            "reset",
            "set_priority",
            "stopped",
            "stream_id",
            "write",
        ]
    ),
    RecvStream: frozenset(
        ["buffered_bytes", "connection", "read", "read_exactly", "read_to_end", "stop", "stream_id"]
    ),
    Router: frozenset(
        ["accept", "add", "add_installed", "alpns", "close", "serve", "shutdown", "stats"]
    ),
    Incoming: frozenset(("remote", "validated")),
}
"""A name that is added here is a promise to those who build on it."""


def public_names(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize("cls", FACES, ids=lambda cls: cls.__name__)
def test_a_public_class_shows_these_names(cls: type) -> None:
    assert public_names(cls) == FACES[cls]


@pytest.mark.parametrize("cls", FACES, ids=lambda cls: cls.__name__)
def test_every_public_name_is_documented(cls: type) -> None:
    documented_attributes = inspect.getdoc(cls) or ""
    undocumented = [
        name
        for name in public_names(cls)
        if not (inspect.getattr_static(cls, name).__doc__ or "").strip()
        and f"{name}:" not in documented_attributes
    ]
    assert not undocumented


@pytest.mark.parametrize(
    "cls", [cls for cls in FACES if cls is not Incoming], ids=lambda cls: cls.__name__
)
def test_an_instance_keeps_what_it_has_to_itself(cls: type) -> None:
    """Attributes that `__init__` sets are private, too."""
    source = inspect.getsource(cls.__init__)  # type: ignore[misc]
    shown = [line.strip() for line in source.splitlines() if line.strip().startswith("self.")]
    assert not [line for line in shown if not line.startswith("self._")]


# What the shell calls the parts of a machine.
CORE = re.compile(r"\b_?(?:core|half|path|paths|recv|send|mtu|recovery|cids)\b(?:\[.*\])?\.\w+$")


def test_the_shell_calls_the_core_and_assigns_nothing_in_it() -> None:
    found = []
    folder = Path(inspect.getfile(Endpoint)).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                target = ast.unparse(node)
                if CORE.search(target):
                    found.append(f"{file.name}:{node.lineno}: {target}")
    assert not found


def test_what_counts_as_assigned_in_the_core() -> None:
    for text in (
        "half.watched",
        "self._half.priority",
        "path.mtu.x",
        "core.paths[0].idle",
        "core.x",
    ):
        assert CORE.search(text), text
    for text in ("self.core", "self._half", "record.failures", "self._path_readers"):
        assert not CORE.search(text), text
