"""Two connections under random actions and faults, beside a model of what each application wrote.

Whatever is written, dropped, reordered, moved, updated or closed: what a reader gets is a beginning of
what was written to that stream, an end comes only after all of it, and nothing hangs or grows.
"""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quic_pair import SERVER_ADDRESS, Pair, Side

from dialkey.quic import codes
from dialkey.quic.connection import State
from dialkey.testing import Conditions

WHO = st.sampled_from(["client", "server"])
FAULTS = [
    Conditions(delay_s=0.01),
    Conditions(delay_s=0.01, loss=0.3),
    Conditions(delay_s=0.01, reorder=0.3, jitter_s=0.01),
    Conditions(delay_s=0.01, duplicate=0.5),
    Conditions(delay_s=0.2),
    Conditions(delay_s=0.01, mtu_bytes=1250),
    Conditions(delay_s=0.01, loss=0.1, reorder=0.1, duplicate=0.1, jitter_s=0.03),
]


class ConnectionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.written: dict[tuple[str, int], bytes] = {}
        self.finished: set[tuple[str, int]] = set()
        self.broken: set[tuple[str, int]] = set()
        self.closed = False
        self.moves = 0
        self.rng = random.Random(0)

    @initialize(seed=st.integers(0, 10_000), small_windows=st.booleans(), with_paths=st.booleans())
    def begin(self, seed: int, small_windows: bool, with_paths: bool) -> None:
        options: dict[str, object] = {"max_streams": 8, "multipath": with_paths}
        if small_windows:
            options.update(stream_window=5000, connection_window=20_000)
        self.pair = Pair(seed=seed, client=dict(options), server=dict(options)).connect()
        self.pair.settle(0.1)

    def side(self, who: str) -> Side:
        found: Side = getattr(self.pair, who)
        return found

    @property
    def alive(self) -> bool:
        return not self.closed

    def writable(self, who: str) -> list[int]:
        return [
            stream
            for stream, half in self.side(who).send.items()
            if not half.fin and half.reset_code is None
        ]

    # --- what applications do -------------------------------------------------------------------

    @precondition(lambda self: self.alive)
    @rule(who=WHO, uni=st.booleans())
    def open(self, who: str, uni: bool) -> None:
        stream = self.side(who).open(uni=uni)
        if stream is not None:
            self.written.setdefault((who, stream), b"")

    @precondition(lambda self: self.alive)
    @rule(who=WHO, size=st.sampled_from([1, 100, 1200, 10_000, 100_000]), data=st.data())
    def write(self, who: str, size: int, data: st.DataObject) -> None:
        streams = self.writable(who)
        if streams:
            stream = data.draw(st.sampled_from(streams))
            content = self.rng.randbytes(size)
            self.side(who).write(stream, content)
            self.written[who, stream] = self.written.get((who, stream), b"") + content

    @precondition(lambda self: self.alive)
    @rule(who=WHO, uni=st.booleans(), size=st.sampled_from([0, 1, 1200, 50_000, 300_000]))
    def send_whole(self, who: str, uni: bool, size: int) -> None:
        stream = self.side(who).open(uni=uni)
        if stream is not None:
            content = self.rng.randbytes(size)
            self.side(who).write(stream, content, finish=True)
            self.written[who, stream] = content
            self.finished.add((who, stream))

    @precondition(lambda self: self.alive)
    @rule(who=WHO, data=st.data())
    def finish(self, who: str, data: st.DataObject) -> None:
        streams = self.writable(who)
        if streams:
            stream = data.draw(st.sampled_from(streams))
            self.side(who).finish(stream)
            self.finished.add((who, stream))

    @precondition(lambda self: self.alive)
    @rule(who=WHO, data=st.data())
    def reset(self, who: str, data: st.DataObject) -> None:
        streams = [s for s, half in self.side(who).send.items() if not half.closed]
        if streams:
            stream = data.draw(st.sampled_from(streams))
            self.side(who).reset(stream, 7)
            self.broken.add((who, stream))

    @precondition(lambda self: self.alive)
    @rule(who=WHO, data=st.data())
    def stop(self, who: str, data: st.DataObject) -> None:
        streams = list(self.side(who).recv)
        if streams:
            stream = data.draw(st.sampled_from(streams))
            self.side(who).stop(stream, 8)
            self.broken.add(("server" if who == "client" else "client", stream))

    @rule(who=WHO)
    def stall_or_read_on(self, who: str) -> None:
        side = self.side(who)
        side.auto_read = not side.auto_read
        if side.auto_read and self.alive:
            for half in list(side.recv.values()):
                side._read_and_watch(half)
                self.pair.wants_flush(side)

    @precondition(lambda self: self.alive)
    @rule(who=WHO, priority=st.integers(-2, 2), data=st.data())
    def set_priority(self, who: str, priority: int, data: st.DataObject) -> None:
        streams = list(self.side(who).send)
        if streams:
            half = self.side(who).send[data.draw(st.sampled_from(streams))]
            half.priority = priority
            self.side(who).c.streams.wake(half)

    @precondition(lambda self: self.alive)
    @rule(who=WHO, size=st.integers(0, 1000))
    def send_datagram(self, who: str, size: int) -> None:
        self.side(who).send_datagram(bytes(size))

    # --- what happens to the connection ---------------------------------------------------------

    @rule(faults=st.sampled_from(FAULTS))
    def change_the_network(self, faults: Conditions) -> None:
        self.pair.to_client.conditions = self.pair.to_server.conditions = faults

    @rule(up=st.booleans())
    def cut_or_mend(self, up: bool) -> None:
        self.pair.to_client.is_up = self.pair.to_server.is_up = up
        if not up:
            self.run_for(0.3)
            self.pair.to_client.is_up = self.pair.to_server.is_up = True

    @precondition(lambda self: self.alive)
    @rule(announced=st.booleans())
    def move(self, announced: bool) -> None:
        self.moves += 1
        self.pair.client.address = f"port {self.moves}"
        if announced:
            self.pair.client.c.network_changed(self.pair.now)
            self.pair.wants_flush(self.pair.client)

    @precondition(lambda self: self.alive)
    @rule()
    def open_path(self) -> None:
        client = self.pair.client
        if client.c.paths.multipath is not None:
            client.c.open_path(SERVER_ADDRESS, self.pair.now)
            self.pair.wants_flush(client)

    @precondition(lambda self: self.alive)
    @rule(who=WHO, data=st.data())
    def select_path(self, who: str, data: st.DataObject) -> None:
        core = self.side(who).c
        usable = [path.id for path in core.paths.values() if path.validated and not path.abandoned]
        if core.paths.multipath is not None and usable:
            core.paths.select(data.draw(st.sampled_from(usable)))
            self.pair.wants_flush(self.side(who))

    @precondition(lambda self: self.alive)
    @rule(who=WHO, data=st.data())
    def abandon_path(self, who: str, data: st.DataObject) -> None:
        core = self.side(who).c
        # The last one that works is left alone: the peer might be about to leave another.
        usable = [path for path in core.paths.values() if path.validated and not path.abandoned]
        if core.paths.multipath is not None and len(usable) > 2:
            path = data.draw(st.sampled_from(usable))
            core.paths.abandon(path, codes.APPLICATION_ABANDON_PATH, self.pair.now)
            self.pair.wants_flush(self.side(who))

    @precondition(lambda self: self.alive)
    @rule(who=WHO)
    def update_keys(self, who: str) -> None:
        self.side(who).c.update_keys(self.pair.now)

    @precondition(lambda self: self.alive)
    @rule(who=WHO, rare=st.integers(0, 9))
    def close(self, who: str, rare: int) -> None:
        if rare == 0:
            self.side(who).close(5, b"enough")
            self.closed = True

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.05, 1.0]))
    def run_for(self, seconds: float) -> None:
        self.pair.run(seconds=seconds)

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def readers_got_a_beginning_of_what_was_written(self) -> None:
        if not hasattr(self, "pair"):
            return
        for who, other in (("client", "server"), ("server", "client")):
            reader = self.side(other)
            for stream, got in reader.data.items():
                written = self.written.get((who, stream), b"")
                assert written.startswith(bytes(got))
                if stream in reader.ended:
                    assert (who, stream) in self.finished
                    assert bytes(got) == written
                if stream in reader.reset_codes:
                    assert (who, stream) in self.broken

    @invariant()
    def no_rule_was_broken(self) -> None:
        if not hasattr(self, "pair"):
            return
        for side in self.pair.sides:
            reason = side.close_reason
            assert reason is None or self.closed, reason
            assert reason is None or reason.cause in ("local", "peer")
            for path in side.c.paths.values():
                assert path.recovery.cc.in_flight >= 0
                assert path.recovery.eliciting_in_flight >= 0

    def teardown(self) -> None:
        """On a good network everything that was finished arrives, and both sides come to rest."""
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        pair.to_client.is_up = pair.to_server.is_up = True
        pair.to_client.conditions = pair.to_server.conditions = Conditions(delay_s=0.01)
        for side in pair.sides:
            side.auto_read = True
            for half in list(side.recv.values()) if self.alive else ():
                side._read_and_watch(half)
                pair.wants_flush(side)
        if self.closed:
            pair.run(lambda: all(side.c.state is State.GONE for side in pair.sides), seconds=120)
            return
        expected = self.finished - self.broken
        pair.run(
            lambda: all(
                stream in self.side("server" if who == "client" else "client").ended
                for who, stream in expected
            ),
            seconds=120,
        )
        pair.settle(5)
        self.readers_got_a_beginning_of_what_was_written()
        self.no_rule_was_broken()


ConnectionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestConnectionMachine = ConnectionMachine.TestCase
