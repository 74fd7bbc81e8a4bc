"""Two QUIC connections with several ways between them, each direction of each with its own faults.

A *way* leads from an address of the client to an address of the server. The client opens paths over
ways; both sides choose among paths by a small rule that stands for the endpoint's: stay, unless the
path in use is suspect or over.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from typing import Any

from quic_pair import Datagram, Pair, Side

from dialkey.quic import events
from dialkey.quic.connection import State
from dialkey.quic.paths.path import Address, Path
from dialkey.testing import Channel, Conditions


class Way:
    """One way through the network.

    Attributes:
        up, down: what happens to datagrams of the client, and of the server.
        client, server: the addresses at its ends; the client's changes when it is rebound.
    """

    def __init__(self, name: str, up: Conditions, down: Conditions, rng: random.Random) -> None:
        self.name = name
        self.up = Channel(up, rng)
        self.down = Channel(down, rng)
        self.client = f"client on {name}"
        self.server = f"server on {name}"
        self.rebinds = 0

    def set(self, up: Conditions, down: Conditions | None = None) -> None:
        self.up.conditions = up
        self.down.conditions = down if down is not None else up

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Let everything vanish, in one direction or both; nobody is told."""
        self.up.is_up = self.up.is_up and not up
        self.down.is_up = self.down.is_up and not down

    def mend(self) -> None:
        self.up.is_up = self.down.is_up = True

    def rebind(self) -> None:
        """Give the client another address, as a NAT does; what is in flight to the old one is lost."""
        self.rebinds += 1
        self.client = f"client on {self.name}, port {self.rebinds}"


class PathPair(Pair):
    """A pair with ways between it; the first one carries the handshake."""

    def __init__(self, *ways: tuple[Conditions, Conditions] | Conditions, **kwargs: Any) -> None:
        self.ways: list[Way] = []
        self.chooses = True
        self.by_address: dict[Address, Way] = {}
        super().__init__(remote="server on a", **kwargs)
        for number, conditions in enumerate(ways):
            up, down = conditions if isinstance(conditions, tuple) else (conditions, conditions)
            way = Way("abcdefgh"[number], up, down, self.rng)
            self.ways.append(way)
            self.by_address[way.server] = way
        first = self.ways[0]
        self.client.address, self.server.address = first.client, first.server

    # --- the network ----------------------------------------------------------------------------

    def _carry(self, side: Side, remote: Address, data: bytes) -> None:
        datagram = Datagram(self.now, side.name, remote, data)
        self.sent.append(datagram)
        if self.drop is not None and self.drop(datagram):
            return
        way = self.by_address.get(remote)
        if way is None:
            # A victim, or an address that the client had before.
            return
        is_client = side is self.client
        channel, source = (way.up, way.client) if is_client else (way.down, way.server)
        if is_client:
            self.by_address[source] = way
        name = self.other(side).name
        for at in channel.arrivals(len(data), self.now):
            heapq.heappush(self._arriving, (at, next(self._order), name, source, remote, data))

    def _due(self, side: Side) -> Iterator[tuple[Address, bytes]]:
        later = []
        here = {way.server if side is self.server else way.client for way in self.ways}
        while self._arriving and self._arriving[0][0] <= self.now:
            entry = heapq.heappop(self._arriving)
            _, _, name, source, destination, data = entry
            if name != side.name:
                later.append(entry)
            elif destination in here:
                yield source, data
        for entry in later:
            heapq.heappush(self._arriving, entry)

    # --- paths ----------------------------------------------------------------------------------

    def open_path(self, way: Way) -> Path | None:
        path = self.client.c.open_path(way.server, self.now)
        self.wants_flush(self.client)
        return path

    def with_paths(self) -> PathPair:
        """Connect, and open a path over each further way."""
        self.connect(seconds=60)
        for way in self.ways[1:]:
            opened: list[Path] = []

            def try_open(way: Way = way, opened: list[Path] = opened) -> bool:
                path = self.open_path(way)
                if path is not None:
                    opened.append(path)
                return path is not None

            self.run(try_open, seconds=60)
            path = opened[0]
            self.run(
                lambda path=path: (  # type: ignore[misc]
                    path.validated
                    and path.id in self.server.c.paths
                    and self.server.c.paths[path.id].validated
                ),
                seconds=60,
            )
        return self

    def select(self, path_id: int, *sides: Side) -> None:
        for side in sides or self.sides:
            side.c.paths.select(path_id)
            self.wants_flush(side)

    def abandon(self, side: Side, path_id: int, code: int) -> bool:
        done = side.c.paths.abandon(side.c.paths[path_id], code, self.now)
        self.wants_flush(side)
        return done

    def way_of(self, path: Path) -> Way | None:
        return self.by_address.get(path.remote)

    # --- choosing -------------------------------------------------------------------------------

    def pump(self) -> None:
        if self.chooses:
            for side in self.sides:
                self._choose(side)
        super().pump()

    def _choose(self, side: Side) -> None:
        core = side.core
        if core is None or core.state is not State.OPEN or core.paths.multipath is None:
            return
        selected = core.paths.selected
        if selected is None or not selected.suspect:
            return
        for path in core.paths.values():
            if path.validated and not path.abandoned and not path.suspect:
                self.select(path.id, side)
                return


def footprint(side: Side) -> dict[str, int]:
    """Return the sizes of everything that a connection keeps of its paths."""
    core = side.c
    state = core.paths.multipath
    assert state is not None
    return {
        "paths": len(core.paths),
        "cid sets": len(core.paths.ids.sets),
        "ids": len(core.paths.ids.by_cid),
        "ranges of ids that are over": len(state.abandoned),
        "peer ids": sum(len(cids.peer.spare) + 1 for cids in core.paths.ids.sets.values()),
        "seen numbers of peer ids": sum(
            len(cids.peer._seen) for cids in core.paths.ids.sets.values()
        ),
        "reset tokens": len(side.reset_tokens),
        "owed frames": len(core.control),
        "records in flight": sum(len(path.recovery.sent) for path in core.paths.values()),
        "responses": sum(len(path.responses) for path in core.paths.values()),
    }


def selected_events(side: Side) -> list[events.Event]:
    return [e for e in side.log if isinstance(e, events.PathSuspected | events.PathRecovered)]
