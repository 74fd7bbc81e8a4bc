"""The hooks of the relay server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.hooks import Refusal, hookspec

if TYPE_CHECKING:
    from dialkey_relay.access import AdmitRequest

__all__ = ["RelayHookSpecs"]


class RelayHookSpecs:
    """The contract of every hook that a relay server calls."""

    @hookspec()
    def dialkey_relay_admit(self, request: AdmitRequest) -> Refusal | None:
        """Decide who may use the relay; return a `Refusal` to turn a client away.

        Called once for each client that has proven its key and whom the access rules let in, before it
        may send.
        """
