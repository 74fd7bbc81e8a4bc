"""Which frame may follow which: one table for each direction of a call. Sans-IO.

A stream carries one call. From the caller: CALL, then ITEM for each item that streams up, then the
end of the stream. From the service: RESULT, or ITEM for each item that streams down, then the end;
or ERROR in the place of what is missing, then the end. Source: docs/rpc-wire.md, "Calls".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import attrs

from dialkey_rpc.errors import MalformedMessage
from dialkey_rpc.frames import CALL, ERROR, ITEM, RESULT

__all__ = ["REQUEST", "REQUEST_STREAM", "RESPONSE", "RESPONSE_STREAM", "Order", "State"]


class State(enum.Enum):
    """How far one direction of a call is."""

    EMPTY = "nothing has come"
    OPEN = "items may come"
    OVER = "all has come"


@attrs.frozen
class Table:
    """What one direction allows: the state after each frame, and the states in which it may end."""

    steps: Mapping[tuple[State, int], State]
    ends: frozenset[State]


REQUEST: Final = Table({(State.EMPTY, CALL): State.OVER}, frozenset({State.OVER}))
REQUEST_STREAM: Final = Table(
    {(State.EMPTY, CALL): State.OPEN, (State.OPEN, ITEM): State.OPEN}, frozenset({State.OPEN})
)
RESPONSE: Final = Table(
    {(State.EMPTY, RESULT): State.OVER, (State.EMPTY, ERROR): State.OVER}, frozenset({State.OVER})
)
RESPONSE_STREAM: Final = Table(
    {
        (State.EMPTY, ITEM): State.OPEN,
        (State.OPEN, ITEM): State.OPEN,
        (State.EMPTY, ERROR): State.OVER,
        (State.OPEN, ERROR): State.OVER,
    },
    frozenset(State),
)

_NAMES: Final = {CALL: "CALL", ITEM: "ITEM", RESULT: "RESULT", ERROR: "ERROR"}


class Order:
    """Watches the frames of one direction of a call."""

    __slots__ = ("_table", "state")

    def __init__(self, table: Table) -> None:
        self._table = table
        self.state = State.EMPTY

    def frame(self, kind: int) -> None:
        """Note a frame.

        Raises:
            MalformedMessage: it may not come now.
        """
        state = self._table.steps.get((self.state, kind))
        if state is None:
            raise MalformedMessage(f"{_NAMES[kind]} may not come when {self.state.value}")
        self.state = state

    def end(self) -> None:
        """Note the end of the stream.

        Raises:
            MalformedMessage: it comes too early.
        """
        if self.state not in self._table.ends:
            raise MalformedMessage(f"the stream ended when {self.state.value}")
        self.state = State.OVER
