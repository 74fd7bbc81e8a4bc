"""The stacks that are compared, each behind the same few methods (`base.Stack`)."""

from __future__ import annotations

import importlib

from stacks.base import Stack

HOMES = {
    "dialkey": ("stacks.dialkey_endpoint", "DialkeyStack"),
    "aioquic": ("stacks.stock_aioquic", "AioquicStack"),
    "aioquic-1452": ("stacks.stock_aioquic", "Aioquic1452Stack"),
    "qh3": ("stacks.native_qh3", "Qh3Stack"),
    "iroh": ("stacks.iroh_wheel", "IrohStack"),
    "tls": ("stacks.tls_over_tcp", "TlsStack"),
    "dialkey-relayed": ("stacks.dialkey_endpoint", "DialkeyRelayedStack"),
    "blobs-files": ("stacks.blobs", "BlobsFilesStack"),
    "blobs-memory": ("stacks.blobs", "BlobsMemoryStack"),
}


def make(name: str) -> Stack:
    """Return a new stack; imports its library only now, so that nobody else's memory has it.

    Raises:
        ImportError: its library is not installed.
    """
    module, attribute = HOMES[name]
    stack: Stack = getattr(importlib.import_module(module), attribute)()
    return stack
