"""The congestion control of an endpoint: by name, by a function, by a plugin."""

from __future__ import annotations

import pytest

from dialkey import Endpoint, errors, hookimpl
from dialkey.endpoint import Controller
from dialkey.quic.paths.bbr import Bbr
from dialkey.quic.paths.congestion import Cubic
from dialkey.testing import MemoryNetwork, in_virtual_time


class Counting(Cubic):
    """CUBIC that counts what it is told."""

    made: int = 0

    def __init__(self, max_datagram: int) -> None:
        super().__init__(max_datagram)
        type(self).made += 1


class Chooser:
    @hookimpl
    def dialkey_congestion(self) -> type[Counting]:
        return Counting


class Wrong:
    @hookimpl
    def dialkey_congestion(self) -> str:
        return "cubic"


async def controllers(**options: object) -> list[Controller]:
    """Return the controllers of a connection that was dialled with these options."""
    network = MemoryNetwork(seed=1)
    async with (
        Endpoint.bind(transports=[network.transport("bob")], alpns=["x/1"]) as bob,
        Endpoint.bind(transports=[network.transport("alice")], **options) as alice,  # type: ignore[arg-type]
        alice.connect(bob.addr(), "x/1") as connection,
    ):
        send, recv = await connection.open_bi()
        await send.write(bytes(100_000), finish=True)
        accepted = await bob.accept()
        assert accepted is not None
        _, incoming = await accepted.accept_bi()
        assert len(await incoming.read_to_end(limit=200_000)) == 100_000
        recv.stop()
        driver = connection._driver
        return [path.recovery.cc for path in driver.core.paths.values()]


@in_virtual_time
async def test_bbr_is_the_default_and_cubic_can_be_named() -> None:
    assert {type(each) for each in await controllers()} == {Bbr}
    assert {type(each) for each in await controllers(congestion="cubic")} == {Cubic}


@in_virtual_time
async def test_a_function_makes_controllers_of_ones_own() -> None:
    Counting.made = 0
    found = await controllers(congestion=Counting)
    assert {type(each) for each in found} == {Counting}
    assert Counting.made >= len(found)


@in_virtual_time
async def test_a_plugin_wins() -> None:
    found = await controllers(congestion="bbr", plugins=[Chooser()])
    assert {type(each) for each in found} == {Counting}


@in_virtual_time
async def test_a_plugin_that_returns_something_else_is_named() -> None:
    with pytest.raises(errors.PluginError, match=r"Wrong.*str.*dialkey_congestion"):
        await controllers(plugins=[Wrong()])


@pytest.mark.parametrize("name", ["reno", "", "BBR", 7])
def test_a_name_that_is_none_is_refused_at_once(name: object) -> None:
    with pytest.raises(errors.InvalidInput, match="not a congestion control") as caught:
        Endpoint.bind(congestion=name)  # type: ignore[arg-type]
    assert "bbr, cubic" in str(caught.value.hint)
