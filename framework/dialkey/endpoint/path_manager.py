"""Maintains the paths of one connection as `PathPolicy` decides, and sets the timer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from dialkey.endpoint.following import Follower
from dialkey.endpoint.lookup import AddressLookup, LookupAnswer
from dialkey.endpoint.path_policy import PathPolicy, PathView
from dialkey.endpoint.paths import PathInfo, kind_of
from dialkey.endpoint.selection import DirectFirst
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress
from dialkey.quic import codes
from dialkey.quic.connection import State

if TYPE_CHECKING:
    from dialkey.endpoint._connection_driver import ConnectionDriver

RELAY_IDLE_TIMEOUT_S: Final = 30.0
"""A path over a relay may be silent for this long: it survives while we reconnect to the relay."""
_SOONEST_LOOK_S: Final = 0.01


class PathManager:
    """One for each connection that speaks multipath."""

    def __init__(self, connection: ConnectionDriver) -> None:
        self._connection = connection
        self._core = connection.core
        self._driver = connection.driver
        self._policy = PathPolicy(is_client=connection.core.is_client)
        self._fallback = DirectFirst()
        self._timer: asyncio.TimerHandle | None = None
        self._follower: Follower | None = None

    def follow(self, lookups: Iterable[AddressLookup]) -> None:
        """Ask these where the peer went, whenever no path works; for the side that opens paths."""
        self._follower = Follower(self._connection.remote_id, lookups, self._on_found)

    def _on_found(self, answer: LookupAnswer) -> None:
        peer = self._connection.remote_id
        addresses = [
            each
            for addr in answer.info.addr.addrs
            for each in self._driver.path_addresses(peer, addr, answer.may_reach)
        ]
        news = [
            self._policy.learn(each, is_relayed=kind_of(each) == "relay", is_newest=True)
            for each in addresses
        ]
        if any(news):
            self.update()

    def add_addresses(self, addresses: Iterable[PathAddress]) -> None:
        """Add addresses of the peer."""
        for address in addresses:
            self._policy.learn(address, is_relayed=kind_of(address) == "relay")
        self.update()

    def set_candidates(self, candidates: Iterable[IpAddr]) -> None:
        """Tell the peer where this machine may be reached, so that both sides probe each other."""
        self._core.paths.traversal.set_candidates(candidates, self._driver.now())
        self._connection.flush_soon()

    def on_punched(self, address: PathAddress) -> None:
        """Note that an address of the peer answered a probe."""
        self._policy.on_punched(address)
        self._core.paths.nudge(address, self._driver.now())
        self.update()

    def close(self) -> None:
        """Stop checking."""
        self._cancel_timer()
        if self._follower is not None:
            self._follower.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_suspected(self, path_id: int) -> None:
        """Note that a path stopped answering."""
        path = self._core.paths.get(path_id)
        if path is not None:
            self._policy.on_suspected(path.remote, self._driver.now())
        self.update()

    def on_validated(self, path_id: int) -> None:
        """Note that a path works."""
        path = self._core.paths.get(path_id)
        if path is not None:
            self._policy.on_answered(path_id, path.remote, self._driver.now())
        self.update()

    def network_changed(self) -> None:
        """Try everything again at once."""
        self._policy.on_network_changed()
        if self._core.paths.multipath is not None:
            self._core.paths.traversal.punch(self._driver.now())
        self.update()

    def update(self) -> None:
        """Check all paths: select, open, abandon; and set the time of the next check."""
        core = self._core
        if core.paths.multipath is None or core.state is not State.OPEN:
            return
        now = self._driver.now()
        for path in core.paths.values():
            if kind_of(path.remote) == "relay":
                path.tolerate_silence(RELAY_IDLE_TIMEOUT_S)
        self._select(now)
        self._connection.announce_selection()
        if core.is_client and core.confirmed:
            self._leave(now)
            self._open(now)
            if self._policy.wants_punching(self._views(), now):
                core.paths.traversal.punch(now)
            if self._follower is not None:
                self._follower.update(is_stranded=self._policy.is_stranded(self._views()))
        self._connection.flush_soon()
        self._schedule(now)

    def _views(self) -> list[PathView]:
        selected = self._core.paths.selected
        return [
            PathView(
                id=path.id,
                remote=path.remote,
                is_relayed=kind_of(path.remote) == "relay",
                is_validated=path.validated,
                is_suspect=path.suspect,
                is_selected=path is selected,
                tried_since=path.challenge.started_at if path.challenge is not None else None,
            )
            for path in self._core.paths.values()
            if not path.abandoned and not path.parked
        ]

    def _select(self, now: float) -> None:
        candidates = self._policy.candidates(self._views(), now)
        if not candidates:
            return
        paths = self._core.paths
        infos = [self._connection.path_info(paths[each.id]) for each in candidates]
        choice = self._ask(infos)
        if choice is not None and any(choice.id == info.id for info in infos):
            self._connection.select_path(choice.id)

    def _ask(self, infos: list[PathInfo]) -> PathInfo | None:
        selector = self._driver.path_selector
        try:
            return selector.select(infos)
        except Exception as exc:
            # A plugin that chooses badly must not cost the connection.
            name = type(selector).__name__
            self._driver.plugins.count_failure(name, "dialkey_path_selector", exc)
            return self._fallback.select(infos)

    def _leave(self, now: float) -> None:
        for each in self._policy.to_leave(self._views(), now):
            path = self._core.paths[each.path_id]
            if each.is_attempt:
                self._core.paths.give_up(path, now)
            else:
                self._core.paths.abandon(path, codes.APPLICATION_ABANDON_PATH, now)

    def _open(self, now: float) -> None:
        views = self._views()
        for address in self._policy.to_open(views, now):
            if self._core.open_path(address, now) is None:
                # There are no ids: PathsAvailable follows.
                return
            self._policy.opened(address, views, now)

    def _schedule(self, now: float) -> None:
        at = self._policy.next_look(self._views(), now)
        if at is None:
            return
        self._cancel_timer()
        delay = max(_SOONEST_LOOK_S, at - now)
        self._timer = asyncio.get_running_loop().call_later(delay, self.update)
