"""Paths under random actions: opened, abandoned, cut, lossy, reordered, rebound; and data all the while.

One way of three always works, though no path may lead over it yet. So whatever happens the connection
lives, every byte arrives once and in order, the limits on paths and ids hold, each id that is over is
replaced by one, and nothing is left behind.
"""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quic_pair import Side
from quic_paths import PathPair, footprint

from dialkey.quic import codes
from dialkey.quic.paths import multipath
from dialkey.testing import Conditions

WHO = st.sampled_from(["client", "server"])
WAY = st.integers(0, 2)
CLEAN = Conditions(delay_s=0.01)
FAULTS = [
    CLEAN,
    Conditions(delay_s=0.15),
    Conditions(delay_s=0.01, loss=0.2),
    Conditions(delay_s=0.03, reorder=0.3, jitter_s=0.02),
    Conditions(delay_s=0.02, duplicate=0.5),
    Conditions(delay_s=0.02, loss=0.1, reorder=0.2, duplicate=0.2, jitter_s=0.05),
]
FAULT = st.integers(0, len(FAULTS) - 1)
FIRST_ALLOWANCE = multipath.MAX_CONCURRENT_PATHS - 1


class PathMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.written: dict[tuple[str, int], bytearray] = {}
        self.finished: set[tuple[str, int]] = set()
        self.rng = random.Random(0)

    @initialize(seed=st.integers(0, 10_000), faults=st.tuples(FAULT, FAULT, FAULT))
    def begin(self, seed: int, faults: tuple[int, int, int]) -> None:
        self.pair = PathPair(CLEAN, CLEAN, CLEAN, seed=seed).with_paths()
        for way, fault in zip(self.pair.ways, faults, strict=True):
            way.set(FAULTS[fault])

    def side(self, who: str) -> Side:
        found: Side = getattr(self.pair, who)
        return found

    def passes(self) -> None:
        """Let some time pass, or none: actions may meet."""
        self.run(self.pair.rng.choice([0.0, 0.0, 0.02, 0.2, 1.0]))

    def run(self, seconds: float) -> None:
        """Let time pass; as an endpoint does, the client opens paths when none works any more."""
        until = self.pair.now + seconds
        while True:
            self.rescue()
            if self.pair.now >= until:
                return
            self.pair.run(seconds=min(0.1, until - self.pair.now))

    def rescue(self) -> None:
        pair = self.pair
        paths = [path for path in pair.client.c.paths.values() if not path.abandoned]
        if any(path.validated and not path.suspect for path in paths):
            return
        state = pair.client.c.paths.multipath
        assert state is not None
        if any(side.c.paths.multipath and side.c.paths.multipath.ends_at for side in pair.sides):
            # Both gave up what the other kept: there are three seconds, enough on a clean way.
            for way in pair.ways:
                way.mend()
                way.set(CLEAN)
        taken = {path.remote for path in paths if not path.suspect}
        for way in pair.ways:
            if way.server not in taken:
                pair.open_path(way)

    # --- applications ---------------------------------------------------------------------------

    @rule(who=WHO, size=st.sampled_from([0, 1, 3000, 40_000]), finish=st.booleans())
    def write_on_a_new_stream(self, who: str, size: int, finish: bool) -> None:
        stream = self.side(who).open(uni=True)
        if stream is not None:
            self.written[who, stream] = bytearray()
            self._write(who, stream, size, finish)

    @rule(who=WHO, size=st.sampled_from([1, 3000, 40_000]), finish=st.booleans(), data=st.data())
    def write_more(self, who: str, size: int, finish: bool, data: st.DataObject) -> None:
        streams = [s for w, s in self.written if w == who and (w, s) not in self.finished]
        if streams:
            self._write(who, data.draw(st.sampled_from(streams)), size, finish)

    def _write(self, who: str, stream: int, size: int, finish: bool) -> None:
        content = self.rng.randbytes(size)
        self.side(who).write(stream, content, finish=finish)
        self.written[who, stream] += content
        if finish:
            self.finished.add((who, stream))
        self.passes()

    # --- paths ----------------------------------------------------------------------------------

    @rule(way=WAY)
    def open(self, way: int) -> None:
        self.pair.open_path(self.pair.ways[way])
        self.passes()

    @rule(who=WHO, data=st.data())
    def abandon(self, who: str, data: st.DataObject) -> None:
        paths = [path.id for path in self.side(who).c.paths.values() if not path.abandoned]
        if paths:
            path_id = data.draw(st.sampled_from(paths))
            self.pair.abandon(self.side(who), path_id, codes.APPLICATION_ABANDON_PATH)
        self.passes()

    @rule(who=WHO, data=st.data())
    def select(self, who: str, data: st.DataObject) -> None:
        paths = [p.id for p in self.side(who).c.paths.values() if p.validated and not p.abandoned]
        if paths:
            self.pair.select(data.draw(st.sampled_from(paths)), self.side(who))
        self.passes()

    @rule(way=WAY, up=st.booleans(), down=st.booleans())
    def lose(self, way: int, up: bool, down: bool) -> None:
        """Cut one way, in one direction or both, and mend the others."""
        for other in self.pair.ways:
            other.mend()
        self.pair.ways[way].cut(up=up, down=down)
        self.passes()

    @rule(ways=st.sets(WAY, min_size=2, max_size=2))
    def lose_two(self, ways: set[int]) -> None:
        for number, way in enumerate(self.pair.ways):
            way.mend()
            if number in ways:
                way.cut()
        self.passes()

    @rule(way=WAY, up=FAULT, down=FAULT)
    def disturb(self, way: int, up: int, down: int) -> None:
        """Reorder, double, delay and lose, unlike in both directions."""
        self.pair.ways[way].set(FAULTS[up], FAULTS[down])
        self.passes()

    @rule(way=WAY)
    def rebind(self, way: int) -> None:
        self.pair.ways[way].rebind()
        self.passes()

    @rule()
    def tell_of_a_new_network(self) -> None:
        self.pair.client.c.network_changed(self.pair.now)
        self.pair.wants_flush(self.pair.client)
        self.passes()

    @rule(who=WHO)
    def update_keys(self, who: str) -> None:
        self.side(who).c.update_keys(self.pair.now)
        self.passes()

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.run(seconds)

    # --- what must hold -------------------------------------------------------------------------

    @precondition(lambda self: hasattr(self, "pair"))
    @invariant()
    def nothing_is_lost_doubled_or_out_of_order(self) -> None:
        for who, other in (("client", "server"), ("server", "client")):
            reader = self.side(other)
            for stream, got in reader.data.items():
                assert self.written[who, stream].startswith(got)
                if stream in reader.ended:
                    assert (who, stream) in self.finished
                    assert got == self.written[who, stream]

    @precondition(lambda self: hasattr(self, "pair"))
    @invariant()
    def limits_hold(self) -> None:
        for side in self.pair.sides:
            core, state = side.c, side.c.paths.multipath
            assert core.close_reason is None
            assert state is not None
            open_paths = [path for path in core.paths.values() if not path.abandoned]
            assert len(open_paths) <= multipath.MAX_CONCURRENT_PATHS
            assert len(core.paths) <= len(open_paths) + multipath.MAX_DRAINING
            assert max(core.paths, default=0) <= state.usable_max
            assert len(state.abandoned) <= multipath.MAX_CONCURRENT_PATHS + 1
            over = sum(high - low for low, high in state.abandoned._ranges)
            waiting = sum(p.abandoned and not p.replaced for p in core.paths.values())
            assert state.local_max == FIRST_ALLOWANCE + over - waiting
            sizes = footprint(side)
            assert sizes["ids"] <= 20 * 5
            assert sizes["cid sets"] <= 3 * multipath.MAX_CONCURRENT_PATHS
            assert sizes["owed frames"] <= 300
            assert sizes["reset tokens"] <= 20
            for cids in core.paths.ids.sets.values():
                assert len(cids.local) <= 5
            for path in core.paths.values():
                assert path.recovery.cc.in_flight >= 0
                assert path.recovery.eliciting_in_flight >= 0

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        for way in pair.ways:
            way.mend()
            way.set(CLEAN)
        for who, stream in self.written.keys() - self.finished:
            self._write(who, stream, 10, True)
        for _ in range(600):
            if all(
                stream in self.side("server" if who == "client" else "client").ended
                for who, stream in self.finished
            ):
                break
            self.run(0.1)
        else:
            raise AssertionError(f"not everything arrived: {pair}")
        self.run(40)
        self.nothing_is_lost_doubled_or_out_of_order()
        self.limits_hold()
        here, there = pair.client.c, pair.server.c
        assert here.paths.multipath is not None
        assert there.paths.multipath is not None
        live = [{p.id for p in core.paths.values() if p.validated} for core in (here, there)]
        assert live[0] == live[1], "and both agree on what is left"
        assert not any(path.abandoned for path in here.paths.values())
        assert here.paths.multipath.local_max == there.paths.multipath.peer_max
        assert here.paths.multipath.peer_max == there.paths.multipath.local_max
        for core in (here, there):
            assert not core.control
            assert not core.streams.send_halves


PathMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestPathMachine = PathMachine.TestCase
